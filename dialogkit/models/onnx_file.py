"""Writes a model as an ONNX graph that reads tokens and keeps keys and values.

Shapes: T new tokens, P tokens read before, S = P + T; H heads in G groups of keys, D numbers of a head; W width.
There is no batch: a page talks with one person.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dialogkit.errors import ModelError
from dialogkit.hints import Change
from dialogkit.models.onnx_graph import Graph, WeightType
from dialogkit.models.sources import require_onnx

_NO_WINDOW = {"use_sliding_window": (False,)}
_SILU = {"hidden_act": ("silu",)}
COMPUTES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": _SILU,
    "qwen2": {**_SILU, **_NO_WINDOW},
    "qwen3": {**_SILU, **_NO_WINDOW},
}
"""The values of settings that the graph of an architecture computes with."""
_ROTATIONS = ("default", "linear", "llama3")
"""Rotary positions whose frequencies are the same for texts of every length."""


def write_onnx(path: Path, model: Any, weight_type: WeightType) -> tuple[str, ...]:
    """Write an ONNX file; the same model makes the same file.

    Its inputs are `input_ids` [1, T], `past_key_N` and `past_value_N` [G, P, D] of each layer, and `keep` [1], the
    number of the last tokens that get logits. Its outputs are `logits` [keep, V] and, of each layer,
    `present_key_N` and `present_value_N` [G, S, D].

    Args:
        path: the file.
        model: a causal language model of transformers.
        weight_type: how matrices are stored; norms, biases and position embeddings keep 32 bits.

    Returns: the matrices that keep 16 bits, as their rows do not divide into blocks.

    Raises: ModelError for a model that is not computed here; UnavailableError without the package onnx.
    """
    require_onnx()
    require_computed(model.config)
    from onnx import TensorProto

    graph = Graph(weight_type)
    text = _Text(graph)
    hidden = (_gpt2 if model.config.model_type == "gpt2" else _llama)(graph, model, text)
    head = graph.matrix("lm_head.weight", model.get_output_embeddings().weight)
    graph.op("Gemm", hidden, head, name="logits", transB=1)
    layers, groups, size = cache_shape(model.config)
    kinds = [f"{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]
    number, integer = TensorProto.FLOAT, TensorProto.INT64
    inputs = {"input_ids": (integer, (1, "new")), "keep": (integer, (1,))}
    outputs = {"logits": (number, ("kept", "vocabulary"))}
    graph.save(
        path,
        {**inputs, **{f"past_{kind}": (number, (groups, "past", size)) for kind in kinds}},
        {**outputs, **{f"present_{kind}": (number, (groups, "read", size)) for kind in kinds}},
    )
    return tuple(graph.kept_f16)


def require_computed(config: Any) -> None:
    """Raise ModelError if no graph is written for a model."""
    if (problem := _problem(config)) is not None:
        raise ModelError(problem, hint=Change({"to": "bundle"}))


def _problem(config: Any) -> str | None:
    """Return why no graph is written for a model, in one sentence; None if one is."""
    computes = COMPUTES.get(config.model_type)
    if computes is None:
        known = ", ".join(COMPUTES)
        return f"a model of the architecture {config.model_type!r} cannot be exported to ONNX; {known} can"
    for setting, values in computes.items():
        if (value := getattr(config, setting, values[0])) not in values:
            return f"the model has {setting} {value!r}, and its ONNX graph computes {values[0]!r} only"
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in _ROTATIONS:
        return f"the model scales its rotary positions ({rotation!r}), which its ONNX graph does not"
    return None


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Return layers, groups of keys, and the numbers of a head."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", heads), size


class _Text:
    """What all layers share: the new ids, their positions, and which tokens each may attend to.

    Attributes:
        ids: the new ids [T].
        positions: their positions [T].
        mask: what to add to scores, [T, S].
    """

    def __init__(self, graph: Graph) -> None:
        self.ids = graph.op("Reshape", "input_ids", graph.integers(-1))
        past = graph.op("Shape", "past_key_0", start=1, end=2)
        read = graph.op("Add", past, graph.op("Shape", self.ids))
        scalar, zero, one = graph.integers(0), graph.constant(0, np.int64), graph.constant(1, np.int64)
        first, end = (graph.op("Squeeze", each, scalar) for each in (past, read))
        self.positions = graph.op("Range", first, end, one)
        keys = graph.op("Range", zero, end, one)
        columns, rows = (
            graph.op("Unsqueeze", keys, scalar),
            graph.op("Unsqueeze", self.positions, graph.integers(1)),
        )
        is_seen = graph.op("LessOrEqual", columns, rows)
        never = graph.constant(np.finfo(np.float32).min)
        self.mask = graph.op("Where", is_seen, graph.constant(0.0), never)

    def last(self, graph: Graph, hidden: str) -> str:
        """Return the hidden states of the tokens that get logits."""
        to_the_end = graph.integers(np.iinfo(np.int64).max)
        return graph.op("Slice", hidden, graph.op("Neg", "keep"), to_the_end, graph.integers(0))


def _linear(graph: Graph, name: str, module: Any, value: str, *, transposed: bool = False) -> str:
    """Apply a linear layer to [T, in]."""
    bias = [] if getattr(module, "bias", None) is None else [graph.vector(module.bias)]
    return graph.op("Gemm", value, graph.matrix(name, module.weight, transposed=transposed), *bias, transB=1)


def _rms_norm(graph: Graph, module: Any, value: str) -> str:
    mean = graph.op("ReduceMean", graph.op("Mul", value, value), graph.integers(-1))
    root = graph.op("Sqrt", graph.op("Add", mean, graph.constant(module.variance_epsilon)))
    return graph.op("Mul", graph.vector(module.weight), graph.op("Div", value, root))


def _heads(graph: Graph, value: str, size: int) -> str:
    """Return [T, heads * D] as [heads, T, D]."""
    split = graph.op("Reshape", value, graph.integers(0, -1, size))
    return graph.op("Transpose", split, perm=(1, 0, 2))


def _attention(
    graph: Graph, text: _Text, layer: int, query: str, key: str, value: str, shape: tuple[int, int, int]
) -> str:
    """Return causal attention [T, H * D] of queries [H, T, D] to keys and values [G, T, D] and all before."""
    heads, groups, size = shape
    key = graph.op("Concat", f"past_key_{layer}", key, axis=1, name=f"present_key_{layer}")
    value = graph.op("Concat", f"past_value_{layer}", value, axis=1, name=f"present_value_{layer}")
    query = graph.op("Mul", query, graph.constant(1 / math.sqrt(size)))
    query = graph.op("Reshape", query, graph.integers(groups, heads // groups, -1, size))
    # One group of keys serves several heads, by broadcasting.
    one = graph.integers(1)
    key = graph.op("Unsqueeze", graph.op("Transpose", key, perm=(0, 2, 1)), one)
    scores = graph.op("Add", graph.op("MatMul", query, key), text.mask)
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), graph.op("Unsqueeze", value, one))
    rows = graph.op("Transpose", graph.op("Reshape", mixed, graph.integers(heads, -1, size)), perm=(1, 0, 2))
    return graph.op("Reshape", rows, graph.integers(-1, heads * size))


def _llama(graph: Graph, model: Any, text: _Text) -> str:
    """Return the last hidden states [keep, W] of a model of Llama's family."""
    config, base = model.config, model.base_model
    _, groups, size = cache_shape(config)
    shape = config.num_attention_heads, groups, size
    hidden = graph.op("Gather", graph.matrix("embed_tokens.weight", base.embed_tokens.weight), text.ids)
    rotate = _rotation(graph, base.rotary_emb, text)
    for number, layer in enumerate(base.layers):
        attention, mlp = layer.self_attn, layer.mlp
        normed = _rms_norm(graph, layer.input_layernorm, hidden)
        parts = []
        for name in ("q", "k", "v"):
            part = _linear(
                graph, f"layers.{number}.{name}_proj.weight", getattr(attention, f"{name}_proj"), normed
            )
            part = _heads(graph, part, size)
            if (norm := getattr(attention, f"{name}_norm", None)) is not None:  # Qwen 3
                part = _rms_norm(graph, norm, part)
            parts.append(part)
        query, key, value = parts
        mixed = _attention(graph, text, number, rotate(query), rotate(key), value, shape)
        mixed = _linear(graph, f"layers.{number}.o_proj.weight", attention.o_proj, mixed)
        hidden = graph.op("Add", hidden, mixed)
        normed = _rms_norm(graph, layer.post_attention_layernorm, hidden)
        gate = _linear(graph, f"layers.{number}.gate_proj.weight", mlp.gate_proj, normed)
        gate = graph.op("Mul", gate, graph.op("Sigmoid", gate))
        up = _linear(graph, f"layers.{number}.up_proj.weight", mlp.up_proj, normed)
        down = _linear(graph, f"layers.{number}.down_proj.weight", mlp.down_proj, graph.op("Mul", gate, up))
        hidden = graph.op("Add", hidden, down)
    return _rms_norm(graph, base.norm, text.last(graph, hidden))


def _rotation(graph: Graph, rotary: Any, text: _Text) -> Callable[[str], str]:
    """Return a function that rotates [heads, T, D] by the positions; the two halves of a head form pairs."""
    from onnx import TensorProto

    positions = graph.op("Cast", text.positions, to=TensorProto.FLOAT)
    frequencies = graph.constant(rotary.inv_freq.detach().float().cpu().numpy())
    angles = graph.op("Mul", graph.op("Unsqueeze", positions, graph.integers(1)), frequencies)
    cosine, sine = graph.op("Cos", angles), graph.op("Sin", angles)

    def rotate(value: str) -> str:
        first, second = graph.halves(value)
        turned = (
            graph.op("Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine)),
            graph.op("Add", graph.op("Mul", second, cosine), graph.op("Mul", first, sine)),
        )
        return graph.op("Concat", *turned, axis=-1)

    return rotate


def _gpt2(graph: Graph, model: Any, text: _Text) -> str:
    """Return the last hidden states [keep, W] of a GPT-2; its linear layers are [in, out]."""
    config, base = model.config, model.base_model
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def linear(name: str, module: Any, value: str) -> str:
        return _linear(graph, name, module, value, transposed=True)

    def norm(module: Any, value: str) -> str:
        return graph.op(
            "LayerNormalization", value, graph.vector(module.weight), graph.vector(module.bias), epsilon=module.eps
        )

    hidden = graph.op("Gather", graph.matrix("wte.weight", base.wte.weight), text.ids)
    hidden = graph.op("Add", hidden, graph.op("Gather", graph.vector(base.wpe.weight), text.positions))
    for number, layer in enumerate(base.h):
        joint = linear(f"h.{number}.c_attn.weight", layer.attn.c_attn, norm(layer.ln_1, hidden))
        # The joint matrix makes queries, keys and values side by side: all heads of each.
        joint = _heads(graph, joint, size)
        query, key, value = (
            graph.op("Slice", joint, graph.integers(start), graph.integers(start + heads), graph.integers(0))
            for start in (0, heads, 2 * heads)
        )
        mixed = _attention(graph, text, number, query, key, value, (heads, heads, size))
        hidden = graph.op("Add", hidden, linear(f"h.{number}.attn.c_proj.weight", layer.attn.c_proj, mixed))
        inner = linear(f"h.{number}.c_fc.weight", layer.mlp.c_fc, norm(layer.ln_2, hidden))
        inner = graph.op("Gelu", inner, approximate="tanh")
        hidden = graph.op("Add", hidden, linear(f"h.{number}.mlp.c_proj.weight", layer.mlp.c_proj, inner))
    return norm(base.ln_f, text.last(graph, hidden))
