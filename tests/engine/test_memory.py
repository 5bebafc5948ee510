"""A batch that does not fit into memory is refused before training, or split until it fits."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.engine import loss
from dialogkit.engine.memory import peak_bytes
from dialogkit.errors import OutOfMemoryError
from dialogkit.services.train import train
from dialogkit.services.training import memory_plan
from dialogkit.services.training.memory_plan import step_bytes
from dialogkit.system.memory import free_bytes, is_out_of_memory
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import REPOSITORY, typed

BATCH = {"train.batch_size": 4, "runtime.precision": "fp32"}


def test_the_estimate_is_near_what_was_measured() -> None:
    # Peaks of the process in MiB, less the 630 that it takes before: see the module.
    measured = {
        (4_788_096, 3, 128, 1948): 159,
        (4_788_096, 3, 128, 5822): 329,
        (11_553_024, 4, 256, 1948): 369,
        (11_553_024, 4, 256, 5822): 790,
        (41_984_512, 8, 512, 1037): 1001,
        (41_984_512, 8, 512, 3415): 1773,
    }
    for (parameters, layers, width, tokens), peak in measured.items():
        estimate = step_bytes(parameters=parameters, layers=layers, width=width, tokens=tokens, precision="bf16")
        assert (estimate + 4 * parameters) / 2**20 == pytest.approx(peak, rel=0.12, abs=30)


def test_where_attention_keeps_its_scores_the_context_counts_twice() -> None:
    # Growth of the process in MiB at a Llama of 8 heads and width 64, with 1,536 tokens and eager attention.
    measured = {("fp32", 2): 311, ("fp32", 6): 619, ("bf16", 2): 350, ("bf16", 6): 810}
    for (precision, layers), peak in measured.items():
        shape = {"parameters": 0, "layers": layers, "width": 64, "tokens": 1536}
        estimate = step_bytes(**shape, precision=precision, scores=8 * 1536**2)
        assert estimate / 2**20 == pytest.approx(peak, rel=0.15)


def test_the_scores_of_eager_attention_are_planned_for(small_config: Callable[..., Any]) -> None:
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.services.training.setup import TrainingSetup

    config = small_config(BATCH)
    setup = TrainingSetup(config, resolve_runtime(config.runtime))
    longest, info = int(setup.data.sample.lengths.max()), setup.model_info
    assert memory_plan.tokens_at_once(setup) == (sum(sorted(setup.data.sample.lengths)[-4:]), longest)
    by_kernel = memory_plan.bytes_of_step(setup, 4 * longest)
    setup.model.set_attn_implementation("eager")
    assert memory_plan.tokens_at_once(setup) == (4 * longest, longest)  # in rows of one length
    scores = 4 * info["heads"] * longest**2
    assert memory_plan.bytes_of_step(setup, 4 * longest) - by_kernel == scores * (4 * info["layers"] + 8)


def test_the_free_memory_is_less_than_the_machine_has() -> None:
    free = free_bytes()
    assert free is None or 0 < free < 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def little(monkeypatch: pytest.MonkeyPatch, config: Any, *, fits: bool = True) -> int:
    """Leave memory for the longest dialog, or a byte less; return how many tokens it has."""
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.services.training.setup import TrainingSetup

    setup = TrainingSetup(config, resolve_runtime(config.runtime))
    tokens, longest = memory_plan.tokens_at_once(setup)
    assert tokens > longest
    free = memory_plan.bytes_of_step(setup, longest) - (not fits)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda: free)
    return longest


def test_a_step_that_does_not_fit_is_reported_before_the_start(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = little(monkeypatch, small_config(BATCH))
    fits = rf"{longest} tokens at once would fit .train\.micro_batch_tokens={longest}\)"
    with pytest.raises(OutOfMemoryError, match=fits) as error:
        train(small_config(BATCH))
    assert typed(error.value) == "--fit-batch"
    little(monkeypatch, small_config(BATCH), fits=False)
    with pytest.raises(OutOfMemoryError, match="not even a single dialog") as error:
        train(small_config({**BATCH, "train.fit_batch": True}))
    assert typed(error.value) == "--set train.activation_checkpointing=true"


def test_a_model_that_no_machine_holds_is_refused_before_it_is_made(small_config: Callable[..., Any]) -> None:
    before = peak_bytes("cpu") or 0
    shape = {"model.width": 32_768, "model.layers": 256, "model.heads": 512, "model.feed_forward": 262_144}
    with pytest.raises(OutOfMemoryError, match=r"alone take 28,\d+\.\d GiB") as error:
        train(small_config(shape))
    assert typed(error.value) == "dialogkit models list"
    assert (peak_bytes("cpu") or 0) < before + 2**29
    assert not Path("models").exists()


def run_of(result: Any) -> RunDir:
    return RunDir(Path(result.run_dir))


def losses(result: Any) -> list[float]:
    return [point["train/loss"] for point in run_of(result).metrics() if "train/loss" in point]


def test_a_batch_that_is_split_learns_the_same(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(small_config({**BATCH, "train.log_every_steps": 1}))
    settings = {**BATCH, "train.log_every_steps": 1, "train.fit_batch": True}
    longest = little(monkeypatch, small_config(BATCH))
    split = train(small_config(settings))
    assert run_of(split).read().config["train"]["micro_batch_tokens"] == longest
    assert losses(split) == pytest.approx(losses(whole), rel=1e-4)


def test_a_device_that_runs_out_of_memory_gets_smaller_parts(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(small_config({**BATCH, "train.log_every_steps": 1}))
    real = loss.chunked_cross_entropy
    refused: list[int] = []

    def small_device(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if len(refused) < 2 and torch.is_grad_enabled():
            refused.append(len(hidden))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(hidden, *args, **kwargs)

    monkeypatch.setattr(loss, "chunked_cross_entropy", small_device)
    settings = {**BATCH, "train.log_every_steps": 1, "train.fit_batch": True}
    split = train(small_config(settings))
    assert len(refused) == 2
    limit = run_of(split).read().config["train"]["micro_batch_tokens"]
    assert losses(split) == pytest.approx(losses(whole), rel=1e-4)
    log = (run_of(split).path / "console.log").read_text()
    assert f"resumes from step 0 with at most {limit} tokens at once" in log
    assert log.count("at most") == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("unable to mmap 440490952 bytes from file <a>: Cannot allocate memory (12)"),
    ],
)
def test_memory_that_ends_in_the_midst_is_reported_in_a_sentence(
    error: Exception, small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(loss, "chunked_cross_entropy", fails)
    with pytest.raises(OutOfMemoryError, match="does not have enough memory for 4 dialogs at once") as refused:
        train(small_config(BATCH))
    assert typed(refused.value) == "--fit-batch"


@pytest.mark.parametrize(
    ("error", "means_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("cuDNN SDPA failed\nCUDA ran out of memory outside PyTorch's allocator."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"), True),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("NCCL error: unhandled cuda error: Failed to CUDA calloc 608 bytes, out of memory"), True),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_out_of_memory(error: Exception, means_it: bool) -> None:
    assert is_out_of_memory(error) is means_it


def test_a_gpu_meets_the_longest_dialogs_before_the_first_step(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dialogkit.engine.device import resolve_runtime
    from dialogkit.services.training.setup import TrainingSetup

    config = small_config({**BATCH, "train.fit_batch": True})
    setup = TrainingSetup(config, resolve_runtime(config.runtime))
    before = {name: weight.clone() for name, weight in setup.model.state_dict().items()}
    limit = memory_plan.tokens_at_once(setup)[0] // 2
    real, tokens = loss.chunked_cross_entropy, list[int]()

    def small_device(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        tokens.append(len(hidden))
        if len(tokens) < 2:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return real(hidden, *args, **kwargs)

    monkeypatch.setattr(loss, "chunked_cross_entropy", small_device)
    assert memory_plan.fit_batch_to_gpu(setup) is None  # on a CPU
    note = memory_plan.split_until_the_longest_fit(setup)
    assert note is not None
    assert note.endswith(f"larger steps are computed in parts of {limit} tokens")
    assert setup.config.train.micro_batch_tokens == limit
    assert len(tokens) >= 3
    assert sum(tokens[1:]) == tokens[0]
    assert all(torch.equal(before[name], weight) for name, weight in setup.model.state_dict().items())


def test_a_limit_of_the_process_counts() -> None:
    script = (
        "import resource; from dialogkit.system.memory import free_bytes\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 40, 8 << 40)); unlimited = free_bytes()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); print(unlimited, free_bytes())"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    _, limited = map(int, done.stdout.split())
    assert 0 < limited < 8 << 30
