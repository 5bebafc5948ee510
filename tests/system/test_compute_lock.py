"""What computes in one process at the same time, or in a fork of it, comes to what it would come to alone."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.generate import GenerateConfig
from dialogkit.services.generate import generate
from dialogkit.services.train import train
from dialogkit.services.training.progress import LogReporter
from dialogkit.system.compute_lock import ONE_THREAD, WAITING, alone
from tests.conftest import REPOSITORY, Trained


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Do some work in as many threads, all at the same time, and return what each came to."""
    together, found = threading.Barrier(len(works)), {}

    def begin(work: Callable[[], Any]) -> None:
        together.wait()
        try:
            found[work] = work()
        except BaseException as error:
            found[work] = error

    threads = [threading.Thread(target=begin, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)  # a guard against a hang
    return [found.get(work) for work in works]


def weights(result: Any) -> bytes:
    return (Path(result.model_dir) / "model.safetensors").read_bytes()


class Notes(LogReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_two_runs_and_a_reply_at_once_come_to_what_they_would_alone(
    small_config: Callable[..., Any], trained: Trained
) -> None:
    config = GenerateConfig(max_new_tokens=8, temperature=1.0, seed=3)

    def reply() -> str:
        return generate("shared-run", "Hello!", config=config, output=trained.output, device="cpu").text

    def made(name: str, seed: int, notes: Notes | None = None) -> Any:
        dropout = {"model.name": name, "train.dropout": 0.1, "train.seed": seed}
        return train(small_config({"name": name, **dropout}), reporter=notes)

    expected = [weights(made("a", 1)), weights(made("b", 2)), reply()]
    notes = [Notes(), Notes()]
    first, second, said = in_threads(lambda: made("c", 1, notes[0]), lambda: made("d", 2, notes[1]), reply)
    assert [weights(first), weights(second), said] == expected
    assert WAITING in notes[0].lines + notes[1].lines


def test_one_waits_for_the_other_and_may_enter_again() -> None:
    order: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def holds() -> None:
        with alone(), alone():
            entered.set()
            leave.wait(60)
            order.append("first")

    def reported(line: str) -> None:
        order.append(line)
        leave.set()

    def waits() -> None:
        entered.wait(60)
        with alone(reported):
            order.append("second")

    in_threads(holds, waits)
    assert order == [WAITING, "first", "second"]


def test_a_failure_lets_the_next_one_in() -> None:
    def fails() -> None:
        with alone():
            raise OSError

    failed, entered = in_threads(fails, lambda: alone().__enter__())
    assert (type(failed), entered) == (OSError, None)


# In a fork


FORK = """
import os, signal, threading
from dialogkit.errors import DialogKitError
from dialogkit.system.compute_lock import alone, require_threads
import torch

torch.set_num_threads(2)
matrix = torch.rand(600, 600)
def compute():
    return float((matrix @ matrix).relu().sum())
expected = compute()
busy, over = threading.Event(), threading.Event()
def hold():
    with alone():
        busy.set()
        over.wait(60)
def in_fork(threads):
    child = os.fork()
    if not child:
        signal.alarm(30)  # a guard against a hang
        try:
            require_threads(threads)
            with alone(print):
                print(abs(compute() / expected - 1) < 1e-5, torch.get_num_threads(), flush=True)
        except DialogKitError as error:
            print(error.message, error.hint, sep=os.linesep, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
require_threads(2)
in_fork(None)
in_fork(1)
in_fork(2)
threading.Thread(target=hold).start()
busy.wait()
in_fork(None)
over.set()
"""
SPAWN = 'multiprocessing.get_context("spawn")'


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_computes_with_one_thread_or_says_what_to_do() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.stdout.splitlines() == [
        *(ONE_THREAD, "True 1", "0") * 2,
        "runtime.threads is 2, and this process was forked from one that had loaded torch, whose threads it lacks",
        f"{SPAWN}, or: set runtime.threads=1",
        "0",
        "this process was forked while another thread was computing, and cannot compute; start a new process",
        SPAWN,
        "0",
    ], done.stderr
