"""`kill -9` at any moment costs at most the work since the last checkpoint, and the end is the same."""

import random
import time
from pathlib import Path

import pytest

from dialogkit.tracking.run_dir import RunDir
from tests.faults.training import ROUNDS, Undisturbed, newest_step, train_or_go_on, unsealed, wait_for_save
from tests.forks import run_forked, start_forked

AIMED = 0.75
"""Share of the kills that wait for a save to begin."""


def kill_and_go_on(folder: Path, *, rounds: int, steps: int, seed: int, save_s: float) -> tuple[int, int]:
    """Kill a run again and again; return how many kills came before its end, and how many in a save."""
    chance = random.Random(seed)
    run, kills, in_save, resumed = folder / "models/runs/it", 0, 0, 0
    for _ in range(rounds):
        reached, torn = newest_step(run), unsealed(run)
        process = start_forked(train_or_go_on, steps, folder=folder)
        if chance.random() < AIMED:
            wait_for_save(run, process, number=chance.randrange(1, 4))
            time.sleep(chance.uniform(0, 0.9 * save_s))
        else:
            time.sleep(chance.uniform(0.3, 2.5))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
        in_save += bool(unsealed(run) - torn)
        assert newest_step(run) >= reached
        if RunDir(run).exists:
            reported = RunDir(run).read().resumed
            assert [resumption.step for resumption in reported[resumed:]] in ([], [reached]), (
                "it went on from the last manifest"
            )
            resumed = len(reported)
    return kills, in_save


PARTS = [pytest.param(part, ROUNDS or 50, 60, marks=pytest.mark.faults) for part in range(1, 5)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("part", "rounds", "steps"), PARTS)
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    tmp_path: Path, part: int, rounds: int, steps: int, undisturbed: Undisturbed
) -> None:
    expected, save_s = undisturbed.digest(steps), undisturbed.save_s(steps)
    total = saves = 0
    for number in range(1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        kills, in_save = kill_and_go_on(
            folder, rounds=min(rounds - total, 20), steps=steps, seed=1000 * part + number, save_s=save_s
        )
        total, saves = total + kills, saves + in_save
        assert run_forked(train_or_go_on, steps, folder=folder, timeout=300) == expected
        if total >= rounds:
            break
    print(f"{total} kills, {saves} of them inside a save: no checkpoint lost, same weights, optimizer and history")
    assert saves >= rounds // 2 or rounds < 20
