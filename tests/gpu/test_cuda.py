"""Training on CUDA devices; every test skips itself where there are too few.

`make gpu` prints each name as a claim, proven or failed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.config.runtime import RuntimeConfig
from dialogkit.engine.device import resolve_runtime
from dialogkit.engine.trainer import DialogTrainer
from dialogkit.errors import OutOfMemoryError
from dialogkit.services.train import train as train_run
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import REPOSITORY, SMALL
from tests.services.cluster.test_launch import words_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")

HEAVY = {
    "model.width": 256,
    "model.heads": 4,
    "data.samples": 64,
    "train.batch_size": 64,
    "train.log_every_steps": 1,
    "runtime.device": "cuda",
    "runtime.precision": "fp32",
}
"""Settings of a run whose batch takes hundreds of megabytes of the GPU."""


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_twenty_steps_in_fp16_learn_what_they_learn_in_float32(small: Any, optimizer: str) -> None:
    half, exact = (
        train(small, device="cuda", precision=precision, max_steps=20, optimizer=optimizer)
        for precision in ("fp16", "fp32")
    )
    assert half[0] == pytest.approx(exact[0], rel=1e-2)
    assert half[1].skipped_steps <= 2
    assert {p.dtype for p in half[1].trainer.model.parameters()} == {torch.float32}


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
    whole, *others = (
        train(small, device="cuda", max_steps=5, **parts)[0]
        for parts in ({}, {"accumulation_steps": 4}, {"micro_batch_tokens": 64})
    )
    for parts in others:
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


def test_the_first_losses_in_bf16_are_near_those_of_float32(small: Any) -> None:
    rounded, exact = (train(small, device="cuda", precision=p, max_steps=5)[0] for p in ("bf16", "fp32"))
    assert rounded == pytest.approx(exact, rel=2e-2)


def test_a_new_model_leaves_the_generator_of_the_gpu_alone(small: Any) -> None:
    before = torch.cuda.get_rng_state()
    small.model(seed=7)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_steps_that_are_not_logged_never_wait_for_the_gpu(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, steps = DialogTrainer.training_step, iter(range(1, 9))

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        step = next(steps)  # the first allocates, the last is logged
        torch.cuda.set_sync_debug_mode("error" if 2 <= step <= 4 else "default")
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(DialogTrainer, "training_step", training_step)
    try:
        small.fit(
            small.model().to("cuda"), small.train.select(range(16)), device="cuda", max_steps=6, log_every_steps=6
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_resumed_run_ends_with_the_same_bits(small: Any, tmp_path: Path) -> None:
    def trained(folder: str, **settings: Any) -> dict[str, torch.Tensor]:
        model = small.model(dropout=0.1, architecture="gpt2").to("cuda")
        data = small.train.select(range(16))
        small.fit(
            model, data, folder=tmp_path / folder, device="cuda", dropout=0.1, max_steps=6, eval_every_steps=3,
            keep="last", **settings,
        )  # fmt: skip
        return {name: weight.cpu() for name, weight in model.state_dict().items()}

    once, again = trained("a"), trained("b")
    if not all(torch.equal(once[name], again[name]) for name in once):
        pytest.skip("two runs that are not stopped differ on this GPU")
    shutil.rmtree(tmp_path / "a/checkpoint-6")
    resumed = trained("a", resume_from=tmp_path / "a/checkpoint-3")
    assert all(torch.equal(once[name], resumed[name]) for name in once)


@contextmanager
def memory_limited_to(limit: int) -> Iterator[None]:
    """Let torch take so many bytes of the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_without_room_is_reported_and_split_on_request(small_config: Callable[..., Any]) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = train_run(small_config({**HEAVY, "name": "whole"}))
    peak = torch.cuda.max_memory_reserved()
    with memory_limited_to(peak // 2):
        with pytest.raises(OutOfMemoryError, match="the GPU does not have enough memory for 64 dialogs at once"):
            train_run(small_config({**HEAVY, "name": "refused"}))
        split = train_run(small_config({**HEAVY, "name": "split", "train.fit_batch": True}))
    record = RunDir(Path(split.run_dir)).read()
    assert record.config["train"]["micro_batch_tokens"]
    assert not record.resumed  # it was split before the first step
    assert losses_of(split.run_dir) == pytest.approx(losses_of(whole.run_dir), rel=1e-3)


def losses_of(run: str | Path) -> list[float]:
    return [point["train/loss"] for point in RunDir(Path(run)).metrics() if "train/loss" in point]


def start(name: str, devices: int, **settings: Any) -> Any:
    """Start a run of the command line on the GPUs."""
    on_gpus = {"runtime.device": "cuda", "runtime.precision": "fp32", "train.log_every_steps": 1}
    words = words_of({**SMALL, **on_gpus, "train.batch_size": 8, "data.samples": 64, **settings})
    command = [
        sys.executable,
        "-m",
        "dialogkit",
        "train",
        "custom-nano",
        "--name",
        name,
        "--devices",
        str(devices),
    ]
    return subprocess.Popen([*command, *words], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


@two_gpus
def test_two_gpus_learn_what_one_learns() -> None:
    assert [start(f"on-{devices}", devices).wait(120) for devices in (1, 2)] == [0, 0]
    assert losses_of("models/runs/on-2") == pytest.approx(losses_of("models/runs/on-1"), rel=1e-3)


@two_gpus
def test_a_run_on_two_gpus_survives_the_loss_of_a_process() -> None:
    process = start("it", 2, **{"train.max_steps": 400, "train.eval_every_steps": 20})
    until = time.monotonic() + 90
    try:
        while not list(Path("models/runs/it").glob("checkpoint-*/manifest.json")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(ranks[1]), signal.SIGKILL)
        assert process.wait(180) == 0
    finally:
        process.kill()
    record = RunDir(Path("models/runs/it")).read()
    assert record.status == "completed"
    assert len(record.resumed) == 1
