"""What runs out of anything, or is stopped at any moment, loses at most the work since the last checkpoint."""

import gc
import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.engine.checkpoints import newest_valid, read_progress
from tests.conftest import SMALL
from tests.faults.test_kills import train_or_go_on
from tests.forks import run_forked, start_forked


def train_with_little_room(limit: int) -> tuple[int, str]:
    """Train until no file may be longer than `limit`, from the second step on; return exit code and message."""
    import resource

    from dialogkit.config.load import load_run_config
    from dialogkit.errors import DialogKitError
    from dialogkit.services.parts import Parts
    from dialogkit.services.train import train

    score, calls = Parts.score, []

    def limited(self: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return score(self, **kwargs)

    Parts.score = limited  # type: ignore[method-assign]
    try:
        train(load_run_config("custom-nano", overrides={**SMALL, "train.eval_every_steps": 1, "name": "full"}))
    except DialogKitError as error:
        return error.exit_code, f"{error.message}\n{error.hint}"
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


@pytest.mark.parametrize(
    "size", [size if size in (100, 3_000_000) else pytest.param(size, marks=pytest.mark.faults) for size in SIZES]
)
def test_a_disk_that_is_full_at_any_size_costs_no_checkpoint(size: int, tmp_path: Path) -> None:
    code, told = run_forked(train_with_little_room, size, folder=tmp_path)
    found = newest_valid(tmp_path / "models/runs/full")
    assert found is not None
    assert found[1].step >= 1
    assert (code, len(told.splitlines())) == (1, 2)
    assert "dialogkit train --resume full" in told


def stop_and_go_on(folder: Path, *, stops: int, steps: int, seed: int) -> int:
    """Stop a training again and again by signals; return how often it was."""
    chance = random.Random(seed)
    stopped = 0
    for _ in range(stops):
        process = start_forked(train_or_go_on, steps, folder=folder)
        time.sleep(chance.uniform(0.5, 2.5))
        if not process.is_alive():
            process.join()
            break
        assert process.pid is not None
        os.kill(process.pid, chance.choice([signal.SIGINT, signal.SIGTERM]))
        process.join(60)
        assert process.exitcode is not None
        stopped += 1
    return stopped


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("stops", "steps"), [(1, 12), pytest.param(50, 60, marks=pytest.mark.faults)])
def test_a_run_that_is_stopped_again_and_again_ends_the_same(tmp_path: Path, stops: int, steps: int) -> None:
    (tmp_path / "whole").mkdir()
    expected = run_forked(train_or_go_on, steps, folder=tmp_path / "whole")
    total = 0
    for seed in range(1000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        total += stop_and_go_on(folder, stops=min(stops - total, 10), steps=steps, seed=seed)
        assert run_forked(train_or_go_on, steps, folder=folder, timeout=300) == expected
        if total >= stops:
            break
    print(f"{total} stops: same weights")


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


def damage_size(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


WAYS: list[Callable[[Path], None]] = [damage_size, damage_byte, damage_empty, Path.unlink]
FILES = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "manifest.json",
]


@pytest.mark.parametrize("way", WAYS, ids=["half of it", "a byte", "empty", "gone"])
@pytest.mark.parametrize("file", FILES)
def test_every_damage_of_every_file_is_seen(
    way: Callable[[Path], None], file: str, small: Any, tmp_path: Path
) -> None:

    made = tmp_path.parent / "made-for-damages"
    if not made.is_dir():
        small.fit(small.model(), small.train, max_steps=2, eval_every_steps=1, folder=made)
    shutil.copytree(made, "fit")
    before = hashlib.sha256(Path("fit/checkpoint-1/model.safetensors").read_bytes()).digest()
    way(Path("fit/checkpoint-2") / file)
    found = newest_valid(Path("fit"))
    assert found is not None
    assert (found[0].name, Path("fit/torn-checkpoint-2").is_dir()) == ("checkpoint-1", True)
    assert hashlib.sha256(Path("fit/checkpoint-1/model.safetensors").read_bytes()).digest() == before
    way(Path("fit/checkpoint-1") / file)
    assert newest_valid(Path("fit")) is None
    assert read_progress(Path("fit/torn-checkpoint-1")) is None
