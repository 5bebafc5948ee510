"""The number of threads that torch computes with on a CPU, by how busy other programs keep the cores.

The threads of one operation wait for each other at its end, and a training step has thousands of operations. If
another program takes the core of one thread, all of them wait: on two cores of which one is taken, two threads are
up to twenty times slower than one. So this process leaves busy cores to other programs, and uses them again when
they are free.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from dialogkit.system.compute_lock import forked_with_torch
from dialogkit.system.cpu import usable_cores

FIRST_S = 0.1
"""How long other programs are watched before the first operation."""
FEWER_S, MORE_S, LONGEST_S = 1.0, 5.0, 80.0
"""How long cores must be busy before threads are given up, and free before they are used again.

The second doubles each time that it was too short, up to the third."""
SLACK_CORES = 0.3
"""What other programs may use of a core that is still called free: less costs less than one thread does."""


class Usage(NamedTuple):
    """How much the cores have worked."""

    at: float
    """Seconds on a clock."""
    busy: float
    """CPU seconds of all programs on the cores that this process may use."""
    own: float
    """CPU seconds of this process."""
    cores: int
    """The number of these cores."""


def usage() -> Usage:
    """Return how much the cores have worked since the system started."""
    import psutil

    process = psutil.Process()
    allowed = set(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else None
    times = [one for core, one in enumerate(psutil.cpu_times(percpu=True)) if allowed is None or core in allowed]
    # A guest's time is part of the user's.
    idle = [sum(getattr(one, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice")) for one in times]
    return Usage(time.monotonic(), sum(map(sum, times)) - sum(idle), time.process_time(), len(times))


@dataclass(frozen=True)
class ThreadChange:
    """A new number of threads."""

    threads: int
    most: int
    """Threads when the cores are free."""

    def __str__(self) -> str:
        now = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        if self.threads == self.most:
            return f"the cores are free again: computing with {now}"
        return f"other programs keep cores busy: computing with {now} instead of {self.most}, which is faster now"


class CpuThreads:
    """Adapts the number of threads to the cores that other programs leave free.

    Args:
        measure: returns the usage so far.
        set_threads: receives each new number.
    """

    def __init__(self, measure: Callable[[], Usage], set_threads: Callable[[int], None]) -> None:
        self._measure, self._set_threads = measure, set_threads
        self.now, self.most, self._usual = 0, 1, 1
        self.adaptive = False
        self._short = self._long = Usage(0.0, 0.0, 0.0, 1)
        self._more_s, self._raised_at = MORE_S, -math.inf

    def start(
        self, current: int, cores: int, *, requested: int | None = None, adaptive: bool
    ) -> ThreadChange | None:
        """Begin with a requested number of threads, or with as many as there are free cores.

        Args:
            current: torch's number of threads.
            cores: cores that the scheduler and the control group leave to this process.
            requested: a number that stays as it is.
            adaptive: whether the number may change without a request.
        """
        if current != self.now:  # else it was chosen here, and says nothing about the machine
            self._usual = current
        self.now = current
        self.most = requested or (min(self._usual, cores) if adaptive else current)
        self.adaptive = adaptive and requested is None and self.most > 1
        if self.adaptive:
            with suppress(Exception):  # a strange /proc, on which psutil fails in many ways
                self._short = self._measure()
                time.sleep(FIRST_S)
                found = self._measure()
                return self._change(self._wanted(self._short, found), found)
            self.adaptive = False
        self._change(self.most, self._short)
        return None

    def adapt(self) -> ThreadChange | None:
        """Change the number if the load asks for it. Call it often, between operations."""
        if not self.adaptive or time.monotonic() - self._short.at < FEWER_S:
            return None
        found = self._measure()
        fewer, more = self._wanted(self._short, found), self._wanted(self._long, found)
        self._short = found
        if fewer < self.now:
            if found.at - self._raised_at < LONGEST_S:
                self._more_s = min(2 * self._more_s, LONGEST_S)
            return self._change(fewer, found)
        if self.now < self.most and found.at - self._long.at >= self._more_s:
            self._raised_at = found.at
            return self._change(max(self.now, more), found)
        return None

    def _wanted(self, since: Usage, found: Usage) -> int:
        """Return how many cores other programs left free on average, from 1 up to the most."""
        others = max(0.0, found.busy - since.busy - (found.own - since.own)) / max(found.at - since.at, 1e-3)
        return max(1, min(self.most, math.floor(found.cores - others + SLACK_CORES)))

    def _change(self, threads: int, found: Usage) -> ThreadChange | None:
        self._short = self._long = found
        if threads == self.now:
            return None
        self.now = threads
        self._set_threads(threads)
        return ThreadChange(threads, self.most)


def _set_threads(threads: int) -> None:
    sys.modules["torch"].set_num_threads(threads)


of_process = CpuThreads(usage, _set_threads)
"""The threads of this process; torch's number of threads belongs to the process too."""


def start(requested: int | None = None, *, adaptive: bool) -> ThreadChange | None:
    """Choose the number of torch's threads; see `CpuThreads.start`. torch must be loaded."""
    current = sys.modules["torch"].get_num_threads()
    adaptive = adaptive and not forked_with_torch()
    return of_process.start(current, usable_cores(), requested=requested, adaptive=adaptive)
