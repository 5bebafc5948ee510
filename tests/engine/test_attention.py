"""Dialogs in one row must not affect each other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dialogkit.engine.attention import packed_attention, use_packed_attention, use_plain_attention
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
