"""Writes a model with its tokenizer and chat template as one GGUF file, as llama.cpp reads it."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from dialogkit.config.generate import GenerateConfig
from dialogkit.models.gguf_architectures import add_settings, layout_of, tensors_of
from dialogkit.models.gguf_vocabulary import gguf_vocabulary
from dialogkit.models.sources import require_gguf
from dialogkit.models.tokenizer import ChatTokenizer

WeightType = Literal["f32", "f16", "q8_0", "q4_0"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
"""How numbers can be stored: 32, 16, 8.5 and 4.5 bits each."""


class Written(NamedTuple):
    """What became of a model in a GGUF file.

    Attributes:
        kept_f16: tensors that were to have fewer bits and have 16: their rows do not divide into blocks of 32.
        notes: where llama.cpp may differ.
    """

    kept_f16: tuple[str, ...]
    notes: tuple[str, ...]


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: ChatTokenizer,
    weight_type: WeightType,
    *,
    name: str,
    sampling: GenerateConfig,
    license_id: str | None = None,
) -> Written:
    """Write a GGUF file; the same model makes the same file.

    Norms, biases and position embeddings keep 32 bits, as llama.cpp computes with them.

    Args:
        path: the file.
        model: a causal language model of transformers.
        tokenizer: its tokenizer, whose chat template and ends of reply are written as well.
        weight_type: how the matrices are stored.
        name: the name that programs show.
        sampling: the settings with which llama.cpp samples where the user sets none.
        license_id: the licence, as the hub writes it.

    Raises: ModelError if llama.cpp could not compute the same; UnavailableError without the package gguf.
    """
    require_gguf()
    import gguf
    from gguf.quants import quantize

    layout = layout_of(model.config)
    entries = model.get_input_embeddings().weight.shape[0]
    vocabulary = gguf_vocabulary(tokenizer, entries=entries)
    wanted = gguf.GGMLQuantizationType[weight_type.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]

    writer = gguf.GGUFWriter(str(path), layout.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    if license_id is not None:
        writer.add_license(license_id)
    _add_sampling(writer, sampling)
    add_settings(writer, model.config, layout)
    writer.add_vocab_size(entries)
    mostly = {"f32": "ALL_F32"}.get(weight_type, f"MOSTLY_{weight_type.upper()}")
    writer.add_file_type(gguf.LlamaFileType[mostly])
    if block > 1:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.add_tokenizer_model("gpt2")  # GGUF's word for byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    notes = _add_special_tokens(writer, tokenizer)

    kept_f16 = []
    for tensor in tensors_of(model, layout):
        kind, values = wanted, tensor.to_gguf()
        if values.ndim == 1 or tensor.name == "position_embd.weight":
            kind = gguf.GGMLQuantizationType.F32
        elif values.shape[-1] % block:
            kind = gguf.GGMLQuantizationType.F16
            kept_f16.append(tensor.name)
        writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(tuple(kept_f16), (*vocabulary.notes, *notes))


def read_gguf(path: Path, model: Any) -> Any:
    """Return a copy of a model with the weights that a GGUF file made from it holds, dequantized to 32 bits."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    copy = deepcopy(model)
    held = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    with torch.no_grad():
        for tensor in tensors_of(copy, layout_of(copy.config)):
            stored = held[tensor.name]
            values = tensor.from_gguf(dequantize(stored.data, stored.tensor_type))
            tensor.parameter.copy_(torch.from_numpy(values.copy()))  # those of the file cannot be written to
    return copy


def _add_sampling(writer: Any, sampling: GenerateConfig) -> None:
    """Write the settings for sampling, by the keys that llama.cpp reads."""
    writer.add_float32("general.sampling.temp", sampling.temperature)
    writer.add_int32("general.sampling.top_k", sampling.top_k)
    writer.add_float32("general.sampling.top_p", sampling.top_p)
    writer.add_float32("general.sampling.penalty_repeat", sampling.repetition_penalty)


def _add_special_tokens(writer: Any, tokenizer: ChatTokenizer) -> list[str]:
    """Write the chat template and the special tokens; return a note on ends of a reply that have no place."""
    end = tokenizer.end_of_turn_id
    others = sorted(tokenizer.reply_stop_ids - {end})
    # A file has three kinds of ends, and generating stops at each.
    writer.add_eos_token_id(end)
    for token, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(token)
    writer.add_pad_token_id(tokenizer.pad_id)
    if tokenizer.hf.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.hf.bos_token_id)
    # The template writes the first token, if there is one.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.hf.chat_template)
    if len(others) > 2:
        left_out = ", ".join(map(repr, tokenizer.token_texts(others[2:])))
        return [f"GGUF has no place for more ends of a reply: {left_out}"]
    return []
