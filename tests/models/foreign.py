"""Small tokenizers of the kinds that other models bring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dialogkit.dialog import plain_format, turns_format
from dialogkit.models.tokenizer import SHIPPED_TOKENIZER, ChatTokenizer, native_format

TEXTS = [
    "User: Hello there, how are you?",
    "Assistant: Fine, thanks; it's 25 degrees and sunny.",
    "user\nassistant\n",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Of the form of SmolLM2's template: a default system prompt, and a line break after each turn."""

INST = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<s>[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' </s>' }}{% endif %}{% endfor %}"
)
"""Of the form of Llama 2's template: no token of its own opens an answer."""


def byte_level(
    *special: str | AddedToken, eos: str | None = None, template: str | None = None, prefix_space: bool = False
) -> Any:
    """Return a byte-level BPE tokenizer, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
    hf.chat_template = template
    return hf


def gpt2_like() -> Any:
    """Return a tokenizer with one special token and no chat template."""
    return byte_level("<|endoftext|>", eos="<|endoftext|>")


def chatml(template: str = CHATML, *, greedy: bool = False, prefix_space: bool = False) -> Any:
    """Return a tokenizer with ChatML's special tokens; greedy ones swallow the white space after them."""
    tokens = [AddedToken(text, rstrip=greedy) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    return byte_level(*tokens, eos="<|im_end|>", template=template, prefix_space=prefix_space)


def sentencepiece_like(template: str | None = None) -> Any:
    """Return a tokenizer that marks spaces, also one before the text, and falls back to bytes, as Llama 2's."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    words.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learned = json.loads(words.to_str())["model"]
    entries = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {entry: number for number, entry in enumerate(entries)},
            [tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    hf.chat_template = template
    return hf


def shipped() -> Any:
    """Return the tokenizer that ships with the package."""
    return PreTrainedTokenizerFast.from_pretrained(str(SHIPPED_TOKENIZER))


CHATS: dict[str, Callable[[], ChatTokenizer]] = {
    "native": lambda: ChatTokenizer(shipped(), native_format()),
    "plain": lambda: ChatTokenizer(gpt2_like(), plain_format("<|endoftext|>")),
    "turns": lambda: ChatTokenizer(gpt2_like(), turns_format("<|endoftext|>")),
    "template": lambda: ChatTokenizer(chatml(), None),
    "template, greedy tokens": lambda: ChatTokenizer(chatml(greedy=True), None),
    "template, prefix space": lambda: ChatTokenizer(chatml(prefix_space=True), None),
    "sentencepiece plain": lambda: ChatTokenizer(sentencepiece_like(), plain_format("</s>")),
    "sentencepiece turns": lambda: ChatTokenizer(sentencepiece_like(), turns_format("</s>")),
    "sentencepiece template": lambda: ChatTokenizer(sentencepiece_like(INST), None),
}
"""A tokenizer of every kind that the package treats differently, with its chat format."""


def save(hf: Any, folder: Path) -> Path:
    """Write a tokenizer as other projects do, and return its folder."""
    hf.save_pretrained(str(folder))
    return folder
