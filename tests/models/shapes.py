"""Small models of the architectures that people bring: random weights, a tokenizer and template of their kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.models.foreign import CHATML, byte_level, gpt2_like, sentencepiece_like

LLAMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}"
    "{{ system + '<|eot_id|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
"""Of the form of Llama 3's: it writes the date."""

MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}"
    "{%- else %}{% set turns = messages %}{% endif %}{{- bos_token }}{%- for message in turns %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('After the optional system message, roles must alternate user/assistant') }}{% endif %}"
    "{%- if message['role'] == 'user' %}{%- if loop.first and system is defined %}"
    "{{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{% endif %}{%- endfor %}"
)
"""Of the form of Mistral's: it refuses two turns of one role in a row."""

QWEN_3 = (
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.last %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""Of the form of Qwen 3's: the last answer alone has a block for its reasoning."""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""Of the form of Gemma's: no system role, and the assistant is called model."""

PHI_3 = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Of the form of Phi-3's: a text ends with the end-of-text token, where no answer is to follow."""

FALCON = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Falcon'}[message['role']] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nFalcon:' }}{% endif %}"
)
"""Of the form of Falcon's: roles in words."""


class Shape(NamedTuple):
    """What to make a small model of one architecture from."""

    architecture: str
    """Prefix of the classes in transformers."""
    settings: dict[str, Any]
    tokenizer: Callable[[], Any]
    generation: dict[str, Any]
    """What its generation_config.json holds."""


def _special(*tokens: str, eos: str, template: str | None, bos: str | None = None) -> Callable[[], Any]:
    def make() -> Any:
        hf = byte_level(*tokens, eos=eos, template=template)
        hf.bos_token = bos
        return hf

    return make


def _marked(template: str | None, *special: str) -> Callable[[], Any]:
    def make() -> Any:
        hf = sentencepiece_like(template)
        hf.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": list(special)})
        return hf

    return make


_GROUPED = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 256, "head_dim": 8,
}  # fmt: skip
_FULL = {**_GROUPED, "num_key_value_heads": 4}
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN = _special(*_CHATML, eos="<|im_end|>", template=CHATML)
_GEMMA = _marked(GEMMA, "<start_of_turn>", "<end_of_turn>")
_LLAMA_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

SHAPES: dict[str, Shape] = {
    "Llama 3": Shape(
        "Llama",
        {**_GROUPED, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        }},
        _special(*_LLAMA_TOKENS, eos="<|eot_id|>", bos="<|begin_of_text|>", template=LLAMA_3),
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "eos_token_id": [1, 4]},
    ),
    "Mistral": Shape(
        "Mistral", {**_GROUPED, "sliding_window": 128}, _marked(MISTRAL, "[INST]", "[/INST]"), {"bos_token_id": 1}
    ),
    "Qwen 2": Shape(
        "Qwen2",
        {**_GROUPED, "use_sliding_window": False, "sliding_window": 128, "max_window_layers": 2},
        _QWEN,
        {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    ),
    "Qwen 3": Shape(
        "Qwen3",
        {**_GROUPED, "head_dim": 16, "tie_word_embeddings": True},
        _special(*_CHATML, "<think>", "</think>", eos="<|im_end|>", template=QWEN_3),
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
    ),
    "Gemma": Shape("Gemma", _GROUPED, _GEMMA, {"cache_implementation": "hybrid"}),
    "Gemma 2": Shape(
        "Gemma2",
        {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 64},
        _GEMMA,
        {"cache_implementation": "hybrid"},
    ),
    "Gemma 3": Shape(
        "Gemma3",
        {**_GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 64,
         "layer_types": ["sliding_attention", "full_attention"]},
        _GEMMA,
        {"cache_implementation": "hybrid", "do_sample": True, "top_k": 64, "top_p": 0.95},
    ),
    "Phi": Shape("Phi", {**_FULL, "partial_rotary_factor": 0.5}, gpt2_like, {}),
    "Phi-3": Shape(
        "Phi3",
        {**_FULL, "original_max_position_embeddings": 256, "pad_token_id": None},
        _marked(PHI_3, "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        {},
    ),
    "GPT-NeoX": Shape("GPTNeoX", {**_FULL, "hidden_act": "gelu"}, gpt2_like, {}),
    "OPT": Shape(
        "OPT",
        {**_FULL, "ffn_dim": 48, "word_embed_proj_dim": 32},
        _special("<pad>", "</s>", eos="</s>", bos="</s>", template=None),
        {},
    ),
    "Falcon": Shape(
        "Falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "new_decoder_architecture": True,
         "num_kv_heads": 2, "max_position_embeddings": 256},
        _special("<|endoftext|>", eos="<|endoftext|>", template=FALCON),
        {},
    ),
    "StableLM": Shape("StableLm", {**_FULL, "use_qkv_bias": True}, gpt2_like, {}),
    "SmolLM": Shape(
        "Llama",
        {**_GROUPED, "tie_word_embeddings": True},
        _QWEN,
        {"temperature": 0.2, "top_p": 0.9, "max_length": 20},
    ),
}  # fmt: skip


def write_shape(name: str, folder: Path) -> Path:
    """Write a model with random weights and its tokenizer as their makers publish them; return the folder."""
    import torch
    import transformers

    shape = SHAPES[name]
    tokenizer = shape.tokenizer()
    kind = shape.architecture
    config = getattr(transformers, f"{'Gemma3Text' if kind == 'Gemma3' else kind}Config")
    torch.manual_seed(0)
    described = config(vocab_size=len(tokenizer), initializer_range=0.1, **shape.settings)
    described.eos_token_id, described.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    model = getattr(transformers, f"{kind}ForCausalLM")(described)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    (folder / "generation_config.json").write_text(json.dumps(shape.generation))
    return folder
