"""Attention inside each dialog of a padding-free batch.

Most architectures take attention as a function, `packed_attention`. It computes all dialogs at once where torch
has a kernel for that, and each on its own elsewhere. For the other architectures, the dialogs are put into rows of
one length for as long as the model computes.

Shapes: query [1, H, T, D]; key and value [1, H_kv, T, D]; T tokens of all
B dialogs of the batch, L of the longest.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dialogkit.engine.hf_model import attention_of, plain_attention_of, takes_attention
from dialogkit.engine.row_attention import attention_in_rows, product_dtype, takes_rows
from dialogkit.errors import ModelError
from dialogkit.hints import Call
from dialogkit.logits import final_logits
from dialogkit.system.memory import is_out_of_memory

PACKED = "dialogkit_packed"
_ALIGNED = 16
"""The rows of a mask start at multiples of this, as kernels on GPUs need it."""
_ALTERS_SCORES = ("softcap", "s_aux")
"""Arguments of attention, None where unused, that torch's kernel does not have: capped scores, and sinks."""


def varlen_dtype(query: torch.Tensor) -> torch.dtype | None:
    """Return the dtype in which one kernel computes all dialogs of a batch; None where there is no such kernel.

    It is FlashAttention's: for NVIDIA GPUs from compute capability 8.0 on, in 16 bits, and for heads whose width
    is a multiple of 8 up to 256.
    """
    if query.device.type != "cuda" or query.shape[-1] % 8 or query.shape[-1] > 256:
        return None
    dtype = product_dtype(query)
    return dtype if dtype in (torch.bfloat16, torch.float16) and _has_varlen(query.device) else None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_varlen(device: torch.device) -> bool:
    return (
        torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and _varlen_has_windows()
    )


@lru_cache
def _varlen_has_windows() -> bool:
    """Return whether torch's function takes what we pass; its first versions do not."""
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    dialog_lengths: Sequence[int],
    dialog_bounds: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention inside each dialog, [1, T, H, D].

    Exact, without a mask, and no dialog can see another. Tokens after the last dialog are padding; nothing is
    computed for them. With a window of W, a token attends to W tokens including itself.

    `dialog_bounds` says in int32 where each dialog begins and the last one ends, [B + 1]. Without it, each dialog
    is computed on its own.

    Raises: NotImplementedError for attention that the kernels do not compute.
    """
    if altered := [name for name in _ALTERS_SCORES if unused.get(name) is not None]:
        raise NotImplementedError(altered[0])
    dtype = None if dialog_bounds is None else varlen_dtype(query)
    if dtype is None:
        in_window = sliding_window is None or max(dialog_lengths) <= sliding_window
        if in_window and takes_rows(query, key, dialog_lengths):
            return attention_in_rows(query, key, value, dialog_lengths, scaling), None
        return _one_by_one(query, key, value, dialog_lengths, scaling, sliding_window), None
    assert dialog_bounds is not None
    query_THD, key_THD, value_THD = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    longest = max(dialog_lengths)
    attended = _at_once(query_THD, key_THD, value_THD, dialog_bounds, longest, scaling, sliding_window)
    return attended[None], None


def _at_once(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return attention by one call of a kernel for dialogs of all lengths, which a compiled model contains."""
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=key_THD.shape[1] != query_THD.shape[1],
    )
    assert isinstance(attended, torch.Tensor)  # without the sums of its softmax
    return attended


# Not part of a compiled model, which would be compiled again for the lengths of every batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dialog_lengths: Sequence[int],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return attention by one call of torch's kernel per dialog; only longer ones than the window need a mask."""
    grouped = key.shape[1] != query.shape[1]
    lengths = (*dialog_lengths, query.shape[2] - sum(dialog_lengths))
    *dialogs, (padding, _, _) = zip(
        query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
    )
    longest, attended = max(dialog_lengths), []
    for q, k, v in dialogs:
        mask, length = None, q.shape[2]
        if window is not None and length > window:
            mask = _window(longest, window, q.dtype, q.device)[:length, :length]
        attended.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    attended.append(padding)
    return torch.cat(attended, 2).transpose(1, 2).contiguous()


def kernels_without_plans(device: str) -> AbstractContextManager[Any]:
    """Return a context in which attention on a GPU uses any kernel but cuDNN's; on other devices it does nothing.

    cuDNN makes a plan for every new shape, which takes longer than a step, and keeps all of them. The lengths of
    dialogs are always new.
    """
    if device != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


# Each layer keeps its mask for the backward pass, and a shorter dialog's is a part of the longest one's. So all
# layers and dialogs of a batch share one, in the form into which torch would otherwise copy it.
@lru_cache(maxsize=1)
def _window(length: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return what to add to the scores of `length` tokens or more: 0 within the window, else minus infinity."""
    side = -(-length // _ALIGNED) * _ALIGNED
    with torch.inference_mode(mode=False):  # an evaluation may make what the next step trains with
        outside = torch.ones(side, side, dtype=torch.bool, device=device).tril_().triu_(1 - window).logical_not_()
        return torch.zeros(side, side, dtype=dtype, device=device).masked_fill_(outside, float("-inf"))


def _forward_in_rows(
    self: Any,
    input_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    *,
    dialog_lengths: Sequence[int],
    dialog_bounds: torch.Tensor | None = None,  # known by the lengths
    position_ids: torch.Tensor | None = None,  # every row starts at 0, as the model does by itself
    **more: Any,
) -> tuple[torch.Tensor]:
    """Return the hidden states of a padding-free batch, [1, T, D], computed with a row for each dialog.

    Needs no mask: the padding comes last, and a causal model's states depend on earlier tokens only.
    """
    text = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    ((name, packed),) = text.items()
    assert packed is not None
    lengths = torch.tensor(dialog_lengths, device=packed.device)
    within = torch.arange(max(dialog_lengths), device=packed.device)
    places_BL = (lengths.cumsum(0) - lengths)[:, None] + within
    rows = packed[0][places_BL.clamp_max(packed.shape[1] - 1)]
    hidden_TD = type(self).forward(self, **{name: rows}, **more)[0][within < lengths[:, None]]
    padding = packed.shape[1] - hidden_TD.shape[0]
    return (torch.nn.functional.pad(hidden_TD, (0, 0, 0, padding))[None],)


def _pack(model: Any) -> None:
    model.set_attn_implementation(PACKED)


def _put_in_rows(model: Any) -> None:
    model.base_model.forward = MethodType(_forward_in_rows, model.base_model)


def use_packed_attention(model: Any) -> None:
    """Make a model attend inside each dialog of a padding-free batch.

    Raises: ModelError for architectures that would then not compute the same as for each dialog alone.
    """
    from transformers import AttentionInterface

    if attention_of(model) == PACKED or computes_rows(model):
        return
    AttentionInterface.register(PACKED, packed_attention)
    if takes_attention(model) and _is_same(model, _pack):
        _pack(model)
    elif _is_same(model, _put_in_rows):
        _put_in_rows(model)
    else:
        raise ModelError(
            f"{type(model).__name__} is not supported: its results change when several dialogs are in one batch",
            hint=Call("models list"),
        )


@torch.no_grad()
def _is_same(model: Any, prepare: Callable[[Any], None]) -> bool:
    """Return whether a prepared model gives two short dialogs in a batch the logits of each alone.

    Packed, it does not if positions also interact outside attention (convolutions, state spaces), or if attention
    involves more than queries, keys and values (capped scores, sinks). In rows, it does not if it is not
    causal, or if its logits are more than `final_logits`.
    """
    lengths = (3, 2)
    ids = torch.arange(sum(lengths), device=model.device)[None]
    positions = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    was_training = model.training
    model.eval()
    try:
        alone = torch.cat([model(input_ids=dialog, use_cache=False).logits for dialog in ids.split(lengths, 1)], 1)
        prepare(model)
        hidden = model.base_model(input_ids=ids, position_ids=positions, dialog_lengths=lengths, use_cache=False)[
            0
        ]
        logits = final_logits(model)(model.get_output_embeddings()(hidden))
        return bool((logits - alone).abs().max() <= 1e-3 * alone.abs().max())
    except (NotImplementedError, TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return False  # not made for such input
    finally:
        use_plain_attention(model)
        model.train(was_training)


def use_plain_attention(model: Any) -> None:
    """Restore the attention that `generate` and other tools expect."""
    model.base_model.__dict__.pop("forward", None)
    _window.cache_clear()
    model.set_attn_implementation(plain_attention_of(model))


def computes_rows(model: Any) -> bool:
    """Return whether a model that was prepared puts dialogs into rows of one length, padding included."""
    return "forward" in model.base_model.__dict__


def keeps_scores(model: Any) -> bool:
    """Return whether a model keeps the scores of its attention for the backward pass; kernels of torch do not."""
    return attention_of(model) == "eager"


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Use plain attention within a context, as generation needs it."""
    before, in_rows = attention_of(model), computes_rows(model)
    use_plain_attention(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        if in_rows:
            _put_in_rows(model)
