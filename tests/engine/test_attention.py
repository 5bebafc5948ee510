"""Dialogs in one row must not affect each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from dialogkit.data.collate import collate_dialogs
from dialogkit.engine.attention import (
    kernels_without_plans,
    packed_attention,
    use_packed_attention,
    use_plain_attention,
    varlen_dtype,
)
from dialogkit.errors import ModelError

VOCABULARY = 97
LENGTHS = (7, 1, 12, 4)


def gpt2(**settings: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None, **settings))


def gpt2_scaled_by_layer() -> Any:
    return gpt2(scale_attn_by_inverse_layer_idx=True)


def llama(**shape: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_shape(**shape)))


def grouped_llama() -> Any:
    return llama(num_key_value_heads=2)


def mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_shape(num_key_value_heads=1), sliding_window=5))


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_shape(num_key_value_heads=2)))


def _shape(**shape: int) -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **shape,
    }


def capped_scores() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**_shape(num_key_value_heads=2, head_dim=8)))


def convolutions_over_neighbours() -> Any:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    shape = _shape(num_key_value_heads=2)
    return Lfm2ForCausalLM(Lfm2Config(**shape, layer_types=["conv", "full_attention"]))


def scaled_logits() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**_shape(), logits_scaling=8.0))


def attention_of_its_own() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


PACKABLE = [gpt2, gpt2_scaled_by_layer, llama, grouped_llama, mistral, qwen2, scaled_logits]
IN_ROWS = [capped_scores, convolutions_over_neighbours, attention_of_its_own]
ARCHITECTURES = [*PACKABLE, *IN_ROWS]


def build(architecture: Callable[[], Any]) -> Any:
    """Return a model whose weights are large, so that every position matters."""
    torch.manual_seed(0)
    model = architecture().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def dialogs(seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in LENGTHS]


def hidden_packed(model: Any, parts: list[torch.Tensor]) -> torch.Tensor:
    use_packed_attention(model)
    hidden: torch.Tensor = model.base_model(
        input_ids=torch.cat(parts)[None],
        position_ids=torch.cat([torch.arange(len(part)) for part in parts])[None],
        dialog_lengths=tuple(len(part) for part in parts),
        dialog_bounds=torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).int(),
        use_cache=False,
    )[0][0]
    return hidden


def hidden_alone(model: Any, parts: list[torch.Tensor]) -> torch.Tensor:
    use_plain_attention(model)
    return torch.cat([model.base_model(input_ids=part[None], use_cache=False)[0][0] for part in parts])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_dialog_among_others_gets_the_states_and_gradients_that_it_gets_alone(
    architecture: Callable[[], Any],
) -> None:
    model = build(architecture)
    direction = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(2))
    states, gradients = [], []
    for run in (hidden_packed, hidden_alone):
        model.zero_grad()
        hidden = run(model, dialogs())
        (hidden * direction).sum().backward()
        states.append(hidden.detach())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, packed in gradients[0].items():
        alone = gradients[1][name]
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()), msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_changing_a_dialog_changes_no_other(architecture: Callable[[], Any]) -> None:
    model = build(architecture)
    before = hidden_packed(model, dialogs()).split(LENGTHS)
    changed = dialogs()
    changed[2] = dialogs(seed=3)[2]
    after = hidden_packed(model, changed).split(LENGTHS)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_attention_is_the_model_as_it_was(architecture: Callable[[], Any]) -> None:
    model, untouched = build(architecture), build(architecture)
    hidden_packed(model, dialogs())
    use_plain_attention(model)
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    assert model.config._attn_implementation == untouched.config._attn_implementation
    assert torch.equal(*(m(input_ids=ids, attention_mask=mask).logits for m in (model, untouched)))


def transformed_states() -> Any:
    from transformers import BertConfig, BertLMHeadModel

    shape = _shape()
    return BertLMHeadModel(BertConfig(**shape, is_decoder=True))


def test_an_architecture_that_is_not_the_same_in_a_batch_is_refused() -> None:
    model = build(transformed_states)
    before = model.config._attn_implementation
    with pytest.raises(ModelError, match="BertLMHeadModel is not supported"):
        use_packed_attention(model)
    assert model.config._attn_implementation == before
    assert "forward" not in model.base_model.__dict__


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: no room")]
)
def test_too_little_memory_is_not_taken_for_an_architecture(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(llama)

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(type(model.base_model), "forward", forward)
    with pytest.raises(RuntimeError, match="no room"):
        use_packed_attention(model)


def test_all_layers_and_dialogs_of_a_batch_share_one_mask() -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 2, 40, 8, requires_grad=True)
    masks: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        if saved.shape[-1] == saved.shape[-2]:
            masks[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.inference_mode():  # as an evaluation before the step
        packed_attention(torch.nn.Identity(), query, query, query, None, dialog_lengths=(24, 16), sliding_window=5)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        for _ in range(3):
            attended, _ = packed_attention(
                torch.nn.Identity(), query, query, query, None, dialog_lengths=(24, 16), sliding_window=5
            )
    attended.sum().backward()
    assert list(masks.values()) == [4 * 32 * 32]  # float32, its side a multiple of 16


def attended(query: Any, key: Any, value: Any, bounds: Any, scale: Any, window: list[int]) -> torch.Tensor:
    """Return what FlashAttention computes for dialogs of all lengths, by its documentation, [T, H, D]."""
    parts = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        before, after = (n if n >= 0 else end for n in window)
        seen = (distance <= before) & (distance >= -after)
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        made = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
        parts.append(made[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let a CPU do what is behind torch's `varlen_attn`, which needs a GPU; each call is noted."""
    from torch.nn.attention import varlen

    calls: list[dict[str, Any]] = []

    def forward(
        q: Any, k: Any, v: Any, bounds: Any, bounds_k: Any, longest: int, longest_k: int, is_causal: bool,
        scale: Any, window: list[int], *more: Any,
    ) -> Any:  # fmt: skip
        calls.append({"longest": longest, "window": window, "bounds": bounds})
        unused = torch.zeros(q.shape[1], len(q)), torch.zeros(2).to(torch.uint64)
        return attended(q, k, v, bounds, scale, window), *unused

    def backward(
        grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, bounds: Any, bounds_k: Any, longest: int,
        longest_k: int, is_causal: bool, state: Any, scale: Any, window: list[int],
    ) -> Any:  # fmt: skip

        def gradients() -> Any:
            inputs = tuple(part.detach().requires_grad_() for part in (q, k, v))
            return torch.autograd.grad(
                attended(inputs[0], inputs[1], inputs[2], bounds, scale, window), inputs, grad
            )

        with ThreadPoolExecutor() as thread:  # in this one autograd is switched off, as in every kernel
            return thread.submit(gradients).result()

    torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", forward)
    torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", backward)
    assert callable(varlen.varlen_attn)
    monkeypatch.setattr("dialogkit.engine.attention.varlen_dtype", lambda query: query.dtype)
    return calls


@pytest.mark.parametrize("architecture", PACKABLE)
def test_one_kernel_for_all_dialogs_gives_the_states_and_gradients_of_each_alone(
    architecture: Callable[[], Any], kernel: list[dict[str, Any]]
) -> None:
    test_a_dialog_among_others_gets_the_states_and_gradients_that_it_gets_alone(architecture)
    assert len(kernel) == 2  # once a layer
    assert {call["longest"] for call in kernel} == {max(LENGTHS)}
    assert kernel[0]["bounds"].tolist() == [0, 7, 8, 20, 24]
    assert {tuple(call["window"]) for call in kernel} == {(4, 0) if architecture is mistral else (-1, 0)}


@pytest.mark.faults
def test_a_model_with_one_kernel_for_all_dialogs_is_compiled_at_most_twice(
    small: Any, kernel: list[dict[str, Any]]
) -> None:
    graphs: list[Any] = []

    def as_it_is(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = small.model()
    use_packed_attention(model)
    compiled = torch.compile(model.base_model, backend=as_it_is)
    made, start = [], 0
    for _ in range(4):
        batch = collate_dialogs([small.train[i] for i in range(start, start + 3)])
        start += 3
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "dialog_lengths", "dialog_bounds")}
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(**inputs, use_cache=False)[0], model.base_model(**inputs, use_cache=False)[0]
            )
        made.append(len(graphs))
    assert made == [1, 2, 2, 2]  # once for the first lengths, once more for any


@pytest.mark.parametrize(
    ("device", "dtype", "heads", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, 64, (8, 0), torch.bfloat16),
        ("cuda", torch.float16, 128, (12, 0), torch.float16),
        ("cuda", torch.float32, 64, (9, 0), None),
        ("cuda", torch.bfloat16, 64, (7, 5), None),
        ("cuda", torch.bfloat16, 20, (9, 0), None),
        ("cuda", torch.bfloat16, 264, (9, 0), None),
        ("cpu", torch.bfloat16, 64, (9, 0), None),
    ],
)
def test_one_kernel_is_taken_where_a_gpu_has_it(
    device: str, dtype: torch.dtype, heads: int, capability: tuple[int, int], expected: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.backends.cuda.is_flash_attention_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
    query: Any = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 2, 30, heads))
    assert varlen_dtype(query) == expected


def test_cudnn_computes_no_attention_on_a_gpu() -> None:
    found = torch.backends.cuda.cudnn_sdp_enabled()
    for device, expected in (("cuda", False), ("cpu", found)):
        with kernels_without_plans(device):
            assert torch.backends.cuda.cudnn_sdp_enabled() is expected
            assert torch.backends.cuda.flash_sdp_enabled()
            assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.cudnn_sdp_enabled() is found
