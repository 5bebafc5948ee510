"""How models of transformers are laid out in GGUF: the names of settings and tensors, and the order of values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dialogkit.errors import ModelError

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """How one architecture is laid out.

    Attributes:
        name: its name in GGUF.
        computes: the values of settings that llama.cpp computes with; it knows no others.
        rotary: whether it has rotary positions.
        pairs_rotate: whether the two numbers that rotate together lie side by side; half a head apart if not.
        transposed: ends of the names of matrices that transformers holds as [in, out].
    """

    name: str
    computes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    rotary: bool = True
    pairs_rotate: bool = False
    transposed: tuple[str, ...] = ()


_LLAMA = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}
LAYOUTS: Mapping[str, Layout] = {
    "gpt2": Layout(
        "gpt2",
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        rotary=False,
        transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    ),
    "llama": Layout("llama", _LLAMA, pairs_rotate=True),
    "qwen2": Layout("qwen2", {"hidden_act": ("silu",), "use_sliding_window": (False,)}),
    "qwen3": Layout("qwen3", {**_LLAMA, "use_sliding_window": (False,)}),
}
"""By transformers' `model_type`."""


def layout_of(config: Any) -> Layout:
    """Return how a model is laid out in GGUF. Raises: ModelError if llama.cpp cannot compute it, or we cannot."""
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise ModelError(
            f"a model of the architecture {config.model_type!r} cannot be exported to GGUF; those of "
            f"{', '.join(LAYOUTS)} can"
        )
    for setting, known in layout.computes.items():
        if (value := getattr(config, setting, known[0])) not in known:
            raise ModelError(
                f"the model has {setting} {value!r}, and llama.cpp computes {layout.name} with {known[0]!r} only"
            )
    if layout.rotary and (scaling := _rotation(config).get("rope_type", "default")) != "default":
        raise ModelError(f"the model scales its rotary positions ({scaling!r}), which cannot be exported to GGUF")
    return layout


def add_settings(writer: Any, config: Any, layout: Layout) -> None:
    """Write the shape of a model into a GGUF file."""
    heads = config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    if not layout.rotary:
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_rotation(config).get("rope_theta", 10_000.0))
    of_head = _head_width(config)
    writer.add_rope_dimension_count(of_head)
    writer.add_key_length(of_head)
    writer.add_value_length(of_head)


class Tensor(NamedTuple):
    """A parameter of a model, with its name in GGUF and how it is laid out there."""

    name: str
    parameter: Any
    is_transposed: bool
    pairs_of_head: int
    """Pairs of rows of each head that rotate together and lie side by side; 0 for none."""

    def to_gguf(self) -> Weights:
        """Return the values of the parameter as GGUF has them."""
        values: Weights = self.parameter.detach().float().cpu().numpy()
        if self.is_transposed:
            values = values.T
        if self.pairs_of_head:
            halves = values.reshape(-1, 2, self.pairs_of_head, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        return np.ascontiguousarray(values)

    def from_gguf(self, values: Weights) -> Weights:
        """Return values of a GGUF file as the parameter has them."""
        if self.pairs_of_head:
            pairs = values.reshape(-1, self.pairs_of_head, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        return np.ascontiguousarray(values.T if self.is_transposed else values)


def tensors_of(model: Any, layout: Layout) -> Iterator[Tensor]:
    """Yield each parameter of a model once, however often it is used. Raises: ModelError if GGUF has no name."""
    import gguf

    config = model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"the model has the tensor {name!r}, for which GGUF has no name")
        is_paired = layout.pairs_rotate and name.endswith(("q_proj.weight", "k_proj.weight"))
        pairs = _head_width(config) // 2 if is_paired else 0
        yield Tensor(known, parameter, name.endswith(layout.transposed), pairs)


def _rotation(config: Any) -> Mapping[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
