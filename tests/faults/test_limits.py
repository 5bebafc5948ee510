"""What runs out of anything, or is stopped at any moment, loses at most the work since the last checkpoint."""

import gc
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dialogkit.engine.checkpoints import read_progress
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import typed
from tests.faults.training import (
    ROUNDS,
    SETTINGS,
    Undisturbed,
    newest_step,
    train_or_go_on,
    unsealed,
    wait_for_save,
)
from tests.forks import run_forked, start_forked

STEPS = 6


def train_with_little_room(limit: int) -> tuple[int, str]:
    """Train until no file may be longer than `limit`, from the second step on; return exit code and message."""
    import resource

    from dialogkit.errors import DialogKitError
    from dialogkit.services.training.setup import TrainingSetup

    score, calls = TrainingSetup.score, []

    def limited(self: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return score(self, **kwargs)

    TrainingSetup.score = limited  # type: ignore[method-assign]
    try:
        train_or_go_on(STEPS)
    except DialogKitError as error:
        return error.exit_code, f"{error.message}\n{typed(error)}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return 0, ""


# From less than a line to nearly the optimizer's state of that model, which is the largest file.
SIZES = [
    0,
    100,
    *(2_000 * 2**power for power in range(9)),
    *(1_000_000 * number for number in range(1, 9)),
    8_500_000,
]


@pytest.mark.faults
@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_is_full_at_any_size_costs_no_checkpoint(
    size: int, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    code, reported = run_forked(train_with_little_room, size, folder=tmp_path)
    run = tmp_path / "models/runs/it"
    assert (code, len(reported.splitlines())) == (1, 2)
    assert "dialogkit train --resume it" in reported
    assert newest_step(run) == 1
    assert not unsealed(run)
    assert run_forked(train_or_go_on, STEPS, folder=tmp_path) == undisturbed.digest(STEPS)


class Stops(NamedTuple):
    """Stops by signals: all of them, those while a checkpoint was written, and evaluations that were left."""

    all: int = 0
    in_save: int = 0
    in_evaluation: int = 0


def stop_and_go_on(folder: Path, *, stops: int, steps: int, seed: int, save_s: float) -> Stops:
    """Stop a run again and again, at random moments and within saves."""
    chance = random.Random(seed)
    run, stopped = folder / "models/runs/it", Stops()
    for _ in range(stops):
        ended = finished(run)
        process = start_forked(train_or_go_on, steps, folder=folder)
        if chance.random() < 0.3:
            wait_for_save(run, process, number=chance.randrange(1, 4))
            time.sleep(chance.uniform(0, 0.9 * save_s))
        else:
            time.sleep(chance.uniform(0.5, 2.5))
        if not process.is_alive():
            process.join()
            break
        assert process.pid is not None
        number = chance.choice([signal.SIGINT, signal.SIGTERM])
        os.kill(process.pid, number)
        in_save = bool(unsealed(run))
        process.join(60)
        assert process.exitcode is not None
        assert not unsealed(run), "a signal leaves no torn checkpoint"
        newest = read_progress(run / f"checkpoint-{newest_step(run)}")
        due = newest is not None and newest.evaluation_due
        stopped = Stops(stopped.all + 1, stopped.in_save + in_save, stopped.in_evaluation + due)
        if finished(run) != ended:
            record = RunDir(run).read()
            if record.status == "completed":  # the signal came when all was done
                break
            assert (record.status, record.exit_code) == ("interrupted", 128 + number)
            if "after step" in str(record.error):
                assert f"after step {newest_step(run)};" in str(record.error)
    return stopped


def finished(run: Path) -> str | None:
    """Return when a run's record says that it ended last."""
    return RunDir(run).read().finished if RunDir(run).exists else None


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("stops", "steps"),
    [pytest.param(1, STEPS, marks=pytest.mark.faults), pytest.param(ROUNDS or 50, 60, marks=pytest.mark.faults)],
)
def test_a_run_that_is_stopped_again_and_again_ends_the_same(
    tmp_path: Path, stops: int, steps: int, undisturbed: Undisturbed
) -> None:
    expected, save_s = undisturbed.digest(steps), undisturbed.save_s(steps)
    total = Stops()
    for seed in range(1000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        more = stop_and_go_on(folder, stops=min(stops - total.all, 10), steps=steps, seed=seed, save_s=save_s)
        total = Stops(*map(sum, zip(total, more, strict=True)))
        assert run_forked(train_or_go_on, steps, folder=folder, timeout=300) == expected
        if total.all >= stops:
            break
    print(f"{total}: same weights, optimizer and history")
    assert stops < 50 or (total.in_save > 0 and total.in_evaluation > 0)


def be_refused(again: bool) -> tuple[int, str, float]:
    """Train the run `it`, or go on with it, where another process does; return exit code, message and seconds."""
    from dialogkit.config.load import load_run_config
    from dialogkit.errors import DialogKitError
    from dialogkit.services.train import resume, train

    began = time.perf_counter()
    try:
        if again:
            train(load_run_config("custom-nano", overrides={**SETTINGS, "name": "it"}))
        else:
            resume(RunDir(Path("models/runs/it")))
    except DialogKitError as error:
        return error.exit_code, error.message, time.perf_counter() - began
    return 0, "", 0


@pytest.mark.faults
def test_a_second_trainer_of_a_run_is_refused_and_the_first_does_not_notice(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    expected, run = undisturbed.digest(STEPS), tmp_path / "models/runs/it"
    first = start_forked(train_or_go_on, STEPS, folder=tmp_path)
    assert first.pid is not None
    while not (run / "metrics.jsonl").exists():
        assert first.is_alive()
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused = [run_forked(be_refused, again, folder=tmp_path) for again in (False, True)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert [(code, message) for code, message, _ in refused] == [
        (2, f"the run 'it' is being trained by process {first.pid}"),
        (2, "the run 'it' in 'models' exists already"),
    ]
    print(f"refused after {refused[0][2]:.3f} and {refused[1][2]:.3f} s")
    assert run_forked(train_or_go_on, STEPS, folder=tmp_path) == expected


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a system that lists open files")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cycles", [pytest.param(20, id="some"), pytest.param(500, marks=pytest.mark.faults)])
def test_saving_and_rotating_leaks_nothing(cycles: int, small: Any) -> None:
    held: list[tuple[int, int]] = []

    def sink(step: int, metrics: dict[str, float]) -> None:
        if "perf/tokens_per_s" in metrics and step % (cycles // 10) == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            held.append((len(os.listdir("/proc/self/fd")), pages))

    Path("fit/checkpoint-old").mkdir(parents=True)
    Path("fit/checkpoint-old/notes.txt").write_text("mine")
    Path("fit/thesis.txt").write_text("mine")
    small.fit(small.model(), small.train, max_steps=cycles, eval_every_steps=1, log_every_steps=1, sink=sink)
    files, pages = zip(*held[2:], strict=True)
    assert len(set(files)) == 1
    assert max(pages) <= 1.05 * pages[0]
    assert len(list(Path("fit").glob("checkpoint-[0-9]*"))) == 2
    assert Path("fit/thesis.txt").read_text() == Path("fit/checkpoint-old/notes.txt").read_text() == "mine"
