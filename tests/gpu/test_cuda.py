"""Training on a CUDA device; every test skips itself where there is none."""

from typing import Any

import pytest
import torch

from dialogkit.config.runtime import RuntimeConfig
from dialogkit.engine.device import resolve_runtime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(small: Any, **settings: Any) -> tuple[list[float], Any]:
    """Return the losses of a run and its result."""
    model, losses = small.model(), list[float]()
    fitted = small.fit(
        model.to(settings.get("device", "cpu")),
        small.train.select(range(16)),
        sink=lambda _, metrics: losses.extend(v for name, v in metrics.items() if name == "train/loss"),
        log_every_steps=1,
        learning_rate=1e-2,
        **settings,
    )
    return losses, fitted


def test_training_in_bf16_learns_and_the_weights_stay_in_float32(small: Any) -> None:
    losses, fitted = train(small, device="cuda", precision="bf16", max_steps=40)
    assert losses[-1] < losses[0] - 2
    assert {p.dtype for p in fitted.trainer.model.parameters()} == {torch.float32}
    assert {p.device.type for p in fitted.trainer.model.parameters()} == {"cuda"}


def test_the_first_losses_in_float32_are_those_of_the_cpu(small: Any) -> None:
    on_cuda, on_cpu = (train(small, device=device, max_steps=5)[0] for device in ("cuda", "cpu"))
    assert on_cuda == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs FlashAttention"
)
def test_one_attention_kernel_for_all_dialogs_gives_the_losses_of_one_for_each(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = train(small, device="cuda", precision="bf16", max_steps=5)[0]
    monkeypatch.setattr("dialogkit.engine.attention.varlen_dtype", lambda _: None)
    alone = train(small, device="cuda", precision="bf16", max_steps=5)[0]
    assert together == pytest.approx(alone, rel=1e-2)


def test_muon_takes_the_steps_of_the_cpu(small: Any) -> None:
    on_cuda, on_cpu = (train(small, device=d, max_steps=5, optimizer="muon")[0] for d in ("cuda", "cpu"))
    assert on_cuda == pytest.approx(on_cpu, rel=1e-3)


def test_accumulation_changes_nothing(small: Any) -> None:
    whole, parts = (train(small, device="cuda", max_steps=5, accumulation_steps=n)[0] for n in (1, 4))
    assert parts == pytest.approx(whole, rel=1e-3)


def test_the_figures_are_those_of_the_cpu(small: Any) -> None:
    model = small.model(initializer_range=0.3)
    on_cpu = small.score(model).figures()
    assert small.score(model.to("cuda"), device="cuda").figures() == pytest.approx(on_cpu, rel=1e-3)


def test_replies_are_those_of_the_cpu_and_leave_the_generator_alone(small: Any) -> None:
    from dialogkit.config.generate import GenerateConfig
    from dialogkit.dialog import Message
    from dialogkit.inference.replies import continue_prompts

    texts = []
    model = small.model(initializer_range=0.4)
    before = torch.cuda.get_rng_state()
    for device in ("cpu", "cuda"):
        made = continue_prompts(
            model.to(device),
            small.tokenizer,
            [small.tokenizer.encode_prompt([Message("user", q)]) for q in ("Hello!", "What is 7 plus 5?")],
            GenerateConfig(temperature=0.0, max_new_tokens=12),
            context=256,
            device=device,
        )
        texts.append([reply.text for reply in made])
    assert texts[0] == texts[1]
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_all_gpus_but_one_are_left_alone(small: Any) -> None:
    _, fitted = train(small, device="cuda", max_steps=1)
    assert fitted.trainer.args.n_gpu == 1
    assert fitted.trainer.model_wrapped is fitted.trainer.model


def test_cuda_is_taken_unless_it_is_forbidden(small: Any) -> None:
    assert resolve_runtime(RuntimeConfig()).device == "cuda"
    assert resolve_runtime(RuntimeConfig(device="cpu")).device == "cpu"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _, fitted = train(small, max_steps=1)
    assert fitted.trainer.args.device.type == "cpu"
    assert torch.cuda.max_memory_allocated() == before
