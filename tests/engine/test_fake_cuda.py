"""Training on a GPU keeps it busy, as far as that can be seen without one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.fake_cuda import (
    NEEDS,
    USABLE,
    Dialogs,
    Watch,
    compiled,
    fake_cuda,
    new_model,
    operations_of_a_step,
)
from tests.forks import run_forked

pytestmark = pytest.mark.skipif(not USABLE, reason=f"needs {NEEDS}")

LENGTHS = [(60 + 37 * number) % 200 + 20 for number in range(40)]
STEPS, LOG_EVERY = 4, 2


class Stream:
    """A stream of dialogs, as the trainer takes it."""

    passes = 0.0

    def __init__(self, dialogs: Any) -> None:
        self._dialogs = dialogs

    def batches(self, size: int, collate: Any, workers: int) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self._dialogs), size):
            yield collate([self._dialogs[i] for i in range(start, start + size)])

    def restore(self, folder: Path | None) -> None: ...

    def save(self, folder: Path) -> None: ...

    def row_counts(self) -> Any:
        return None

    def merge_row_counts(self, ranks: Any) -> None: ...

    def close(self) -> None: ...


def train(
    *, streamed: bool = False, precision: str = "bf16", optimizer: str = "muon", **settings: Any
) -> dict[str, Any]:
    """Train a small model on the GPU that is none; return what was seen."""
    from dialogkit.data.collate import collate_dialogs
    from dialogkit.engine.arguments import StepCounts
    from dialogkit.engine.device import Runtime
    from dialogkit.engine.fit import fit
    from dialogkit.engine.task import FitTask
    from dialogkit.engine.trainer import DialogTrainer

    begin, pinned, cudnn = DialogTrainer.training_step, 0, set[bool]()

    def training_step(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        watch.step = trainer.state.global_step + 1
        cudnn.add(torch.backends.cuda.cudnn_sdp_enabled())
        return begin(trainer, *args, **kwargs)

    def pin_memory(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
        nonlocal pinned
        pinned += 1
        return tensor

    with fake_cuda((7, 5) if precision == "fp16" else (8, 0)), Watch() as watch:
        model, config = new_model("custom-nano", layers=2, width=64, heads=2, context=256)
        model.to = lambda *_, **__: model  # it is there, and fake weights cannot be moved
        changes = {"batch_size": 4, "keep": "last", "max_steps": STEPS, "optimizer": optimizer, **settings}
        dialogs = Dialogs(LENGTHS, 32768)
        task = FitTask(
            model=model,
            train_set=Stream(dialogs) if streamed else dialogs,
            config=config.model_copy(update=changes),
            runtime=Runtime("cuda", "", "", precision, ""),  # type: ignore[arg-type]
            schedule=StepCounts(STEPS, LOG_EVERY, 1000),
            collate=collate_dialogs,
            score=lambda: {"nats_per_token": 1.0},
            folder=Path("fit"),
        )
        points: list[int] = []
        with (
            patch.object(DialogTrainer, "save_checkpoint", lambda _: None),
            patch.object(DialogTrainer, "training_step", training_step),
            patch.object(torch.Tensor, "pin_memory", pin_memory),
        ):
            fitted = fit(task, lambda step, _: points.append(step))
        return {
            "steps": fitted.steps,
            "logged": points,
            "devices": {str(parameter.device) for parameter in model.parameters()},
            "cudnn": cudnn,
            "pinned": pinned,
            "seen": {step: vars(seen) for step, seen in watch.steps.items() if step},
        }


def watched() -> dict[str, Any]:
    """Return what was seen in each way of training; for one process."""
    return {
        "plain": train(),
        "accumulated": train(accumulation_steps=2),
        "streamed": train(streamed=True),
        "in parts": train(micro_batch_tokens=250),
        "streamed in parts": train(micro_batch_tokens=250, streamed=True),
        "fp16": train(precision="fp16", optimizer="adamw"),
    }


def counted() -> dict[int, dict[str, int]]:
    """Return the operations of steps of few and of many dialogs; for one process."""
    return {n: operations_of_a_step("custom-nano", n, layers=2) for n in (8, 64)}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiled()
    return run_forked(watched, folder=tmp_path_factory.mktemp("fake"), timeout=280)


@pytest.mark.faults
@pytest.mark.parametrize("way", ["plain", "accumulated", "streamed", "in parts", "streamed in parts", "fp16"])
def test_a_step_does_not_wait_for_the_gpu_unless_it_is_logged(way: str, seen: Any) -> None:
    run = seen[way]
    assert (run["steps"], run["devices"]) == (STEPS, {"cuda:0"})
    assert set(run["seen"]) == set(range(1, STEPS + 1))
    for step, of_step in run["seen"].items():
        assert of_step["operations"] > 100
        assert bool(of_step["waits"]) == (step in run["logged"]), (step, of_step["waits"])
        assert len(of_step["waits"]) <= (5 if way == "fp16" else 2) or step == STEPS  # fp16: the scale as well
        assert of_step["blocking_copies"] == []
        assert of_step["from_the_host"] == []
        # The reciprocal of the scale, a single number.
        assert [where for where in of_step["float64"] if way != "fp16" or "accelerator.py" not in where] == []
    assert sum(of_step["copies"] for of_step in run["seen"].values()) >= 5 * (STEPS - 1)
    assert run["pinned"] >= 5 * STEPS  # the tensors of a batch
    assert run["cudnn"] == {False}


@pytest.mark.faults
def test_in_fp16_the_scale_is_updated_and_nothing_is_computed_by_kernels_that_the_gpu_lacks(seen: Any) -> None:
    for of_step in seen["fp16"]["seen"].values():
        assert of_step["by_name"]["_amp_update_scale_"] == 1
        assert not any("_varlen_attn" in name for name in of_step["by_name"])


@pytest.mark.faults
def test_an_attention_kernel_computes_all_dialogs(seen: Any) -> None:
    by_name = seen["plain"]["seen"][3]["by_name"]
    assert by_name["_varlen_attn"] == by_name["_varlen_attn_backward"] == 2  # once a layer
    assert not any("scaled_dot_product" in name for name in by_name)


def test_a_step_launches_few_operations_and_hardly_more_for_more_dialogs(tmp_path: Path) -> None:
    compiled()
    operations = run_forked(counted, folder=tmp_path, timeout=280)
    few, many = (sum(operations[n].values()) for n in (8, 64))
    assert few < 400
    assert many - few < 60
    assert operations[64]["optimizer"] < 200
