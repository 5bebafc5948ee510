"""Small tokenizers of the kinds that other models bring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dialogkit.dialog import native_format, plain_format, turns_format
from dialogkit.models.tokenizer import SHIPPED_TOKENIZER, ChatTokenizer

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
"""Of the form of Llama 2's template: no special token opens an answer."""


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


SOME = list(range(100, 300))

GENERATION_SETTINGS: list[dict[str, Any]] = [
    {"num_return_sequences": 2}, {"num_return_sequences": 2, "do_sample": True}, {"min_new_tokens": 11},
    {"min_length": 60}, {"max_time": 0.0}, {"num_beams": 3}, {"num_beams": 4, "num_beam_groups": 2},
    {"suppress_tokens": SOME}, {"begin_suppress_tokens": SOME}, {"sequence_bias": [[[150], 100.0]]},
    {"forced_bos_token_id": 120}, {"forced_eos_token_id": 121}, {"bad_words_ids": [[i] for i in SOME]},
    {"no_repeat_ngram_size": 1}, {"guidance_scale": 3.0}, {"typical_p": 0.1}, {"min_p": 0.9}, {"top_h": 0.1},
    {"watermarking_config": {"bias": 50.0}}, {"epsilon_cutoff": 0.5}, {"eta_cutoff": 0.9},
    {"encoder_repetition_penalty": 3.0}, {"encoder_no_repeat_ngram_size": 1}, {"renormalize_logits": True},
    {"exponential_decay_length_penalty": [1, 50.0]}, {"length_penalty": 5.0}, {"early_stopping": True},
    {"max_new_tokens": 1}, {"max_length": 3}, {"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.6},
    {"temperature": "hot"}, {"top_k": -5}, {"repetition_penalty": -1.0}, {"eos_token_id": SOME},
    # Those that end in an error of transformers.
    {"stop_strings": ["e"]}, {"prompt_lookup_num_tokens": 3}, {"dola_layers": "high"}, {"constraints": ["x"]},
    {"force_words_ids": [[120]]}, {"token_healing": True}, {"cache_implementation": "static"},
    {"cache_implementation": "quantized"}, {"cache_implementation": "offloaded"}, {"use_cache": False},
    {"cache_implementation": "unknown"}, {"penalty_alpha": 0.6, "top_k": 4}, {"assistant_early_exit": 1},
    {"use_mtp": True}, {"speculation_type": "dflash"}, {"is_assistant": True}, {"early_stopping": 7},
    {"return_dict_in_generate": True}, {"output_scores": True}, {"output_attentions": True},
    {"output_hidden_states": True}, {"output_logits": True}, {"compile_config": {"fullgraph": True}},
    {"watermarking_config": {"unknown": 1}}, {"suppress_tokens": 5}, {"min_new_tokens": "many"},
    {"max_time": "soon"}, {"pad_token_id": -7}, {"prefill_chunk_size": 2}, {"low_memory": True},
    {"continuous_batching_config": {}}, {"of_a_later_release": [1]}, {"_from_model_config": True, "num_beams": 2},
]  # fmt: skip
"""Generation settings of a model that change replies, end in an error, or cannot be saved."""

FILE_ONLY: list[dict[str, Any]] = [
    {"bos_token_id": "x"}, {"validate": 1}, {"to_dict": 1}, {"update": 1}, {"logits_processor": [1]},
    {"assistant_model": "x/y"}, {"streamer": 1}, {"custom_generate": "x/y", "trust_remote_code": True},
]  # fmt: skip
"""Further ones, of a generation_config.json alone."""


def together(many: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the same settings in fewer dictionaries."""
    fewer: list[dict[str, Any]] = []
    for settings in many:
        free = next((each for each in fewer if not each.keys() & settings.keys()), None)
        if free is None:
            fewer.append(free := {})
        free.update(settings)
    return fewer
