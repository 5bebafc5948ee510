"""Threads are given up while other programs keep cores busy, and used again when these are free."""

import subprocess
import sys
import time

import psutil
import pytest

from dialogkit.system.cpu_threads import LONGEST_S, MORE_S, CpuThreads, Usage, usage


class Machine:
    """A machine with a clock, whose cores other programs and the threads of this process share."""

    def __init__(self, cores: int) -> None:
        self.cores, self.others, self.set = cores, 0.0, list[int]()
        self._at = self._busy = self._own = 0.0
        self.threads = CpuThreads(self.measure, self.set.append)

    def measure(self) -> Usage:
        return Usage(self._at, self._busy, self._own, self.cores)

    def run(self, seconds: float, threads: int = 0) -> None:
        own = threads * min(1.0, self.cores / max(threads + self.others, 1e-9))
        self._at, self._own = self._at + seconds, self._own + own * seconds
        self._busy += min(float(self.cores), own + self.others) * seconds

    def work(self, seconds: int) -> int:
        """Work for some seconds, looking four times a second; return the number of threads then."""
        for _ in range(4 * seconds):
            self.run(0.25, self.threads.now)
            self.threads.adapt()
        return self.threads.now


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Machine:
    made = Machine(getattr(request, "param", 2))
    monkeypatch.setattr(time, "sleep", made.run)
    monkeypatch.setattr(time, "monotonic", lambda: made.measure().at)
    return made


def test_on_a_free_machine_nothing_changes(machine: Machine) -> None:
    assert machine.threads.start(2, 2, adaptive=True) is None
    assert machine.work(300) == machine.threads.most == 2
    assert machine.set == []


def test_threads_are_given_up_while_others_are_busy_and_used_again_after(machine: Machine) -> None:
    machine.threads.start(2, 2, adaptive=True)
    machine.others = 1.0
    assert machine.work(2) == 1
    assert machine.work(60) == 1
    machine.others = 0.0
    assert machine.work(int(MORE_S) - 2) == 1
    assert machine.work(4) == 2
    assert machine.set == [1, 2]


def test_a_process_that_starts_on_a_busy_machine_starts_with_fewer_threads(machine: Machine) -> None:
    machine.others = 2.0
    change = machine.threads.start(2, 2, adaptive=True)
    assert str(change) == (
        "other programs keep cores busy: computing with 1 thread instead of 2, which is faster now"
    )
    # What follows in the same process does not take the one thread for all that the machine has.
    machine.others = 0.0
    assert str(machine.threads.start(1, 2, adaptive=True)) == "the cores are free again: computing with 2 threads"


def test_somebody_who_comes_and_goes_is_waited_for_longer_each_time(machine: Machine) -> None:
    machine.threads.start(2, 2, adaptive=True)
    for _ in range(200):
        machine.others = 1.0
        machine.work(3)
        machine.others = 0.0
        machine.work(7)
    assert len(machine.set) < 3 * 2000 / LONGEST_S
    assert machine.work(2 * int(LONGEST_S)) == 2


@pytest.mark.parametrize("machine", [8], indirect=True)
@pytest.mark.parametrize(("others", "threads"), [(0.2, 8), (1.0, 7), (2.9, 5), (8.0, 1)])
def test_as_many_threads_as_cores_are_free(machine: Machine, others: float, threads: int) -> None:
    machine.threads.start(8, 8, adaptive=True)
    machine.others = others
    assert machine.work(20) == threads


def test_a_control_group_with_fewer_cores_and_a_fixed_number_are_kept(machine: Machine) -> None:
    machine.threads.start(8, 2, adaptive=True)
    assert machine.set == [2]
    machine.others = 2.0
    assert machine.threads.start(2, 2, adaptive=False) is None
    assert machine.work(60) == 2
    assert machine.threads.start(2, 2, requested=1, adaptive=True) is None
    machine.others = 0.0
    assert machine.work(60) == 1


def test_a_requested_number_holds_for_that_run_alone(machine: Machine) -> None:
    machine.threads.start(2, 2, requested=1, adaptive=True)
    assert (machine.threads.now, machine.set) == (1, [1])
    machine.threads.start(1, 2, adaptive=True)
    assert (machine.threads.now, machine.set) == (2, [1, 2])
    # What somebody else chose is taken for the machine's.
    machine.threads.start(1, 2, adaptive=True)
    assert (machine.threads.now, machine.threads.most) == (1, 1)


def test_the_usage_of_the_system_is_what_others_take_of_these_cores() -> None:
    began = usage()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(0.5)
        taken = sum(psutil.Process(busy.pid).cpu_times()[:2])
        found = usage()
        busy.kill()
    assert found.busy - began.busy - (found.own - began.own) >= 0.8 * taken - 0.05
    assert found.busy - began.busy <= found.cores * (found.at - began.at) + 0.1
