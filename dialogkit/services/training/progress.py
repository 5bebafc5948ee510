"""Progress of a run. The command line draws it; a notebook logs it."""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from dialogkit.hints import Hint

logger = logging.getLogger("dialogkit")

LINES_PER_RUN = 20


class TrainReporter:
    """Receives the events of a run in order; this one shows nothing."""

    def header(self, info: Mapping[str, str]) -> None:
        """Information about the run, once before the first step."""

    def note(self, text: str) -> None:
        """A note or warning of one line."""

    def activity(self, text: str) -> None:
        """The work until the next event; reported before it may take long."""

    def advice(self, hint: Hint) -> str:
        """Return a hint as the user would type it: here in plain words."""
        return str(hint)

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """A logged point: `train/...`, `perf/...` or `eval/...` metrics. The total may be unknown, or change."""


class LogReporter(TrainReporter):
    """Writes to the logger `dialogkit` at level INFO."""

    def header(self, info: Mapping[str, str]) -> None:
        """Log the information, one line for each item."""
        for name, value in info.items():
            logger.info("%-9s  %s", name, value)

    def note(self, text: str) -> None:
        """Log the line."""
        logger.info(text)

    def activity(self, text: str) -> None:
        """Log the work that starts."""
        logger.info("%s ...", text)

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Log the point, if its line is due."""
        if (line := step_line(step, total, metrics)) is not None:
            logger.info(line)


def step_line(step: int, total: int | None, metrics: Mapping[str, float]) -> str | None:
    """Return the line of a logged point; None to skip it. A run has about 20 lines, and all evaluations."""
    of_all = "" if total is None else f"/{total}"
    if "eval/nats_per_token" in metrics:
        right = metrics.get("eval/right_answers")
        return (
            f"step {step}{of_all}  held-out loss {metrics['eval/nats_per_token']:.3f}, "
            f"{metrics['eval/bits_per_byte']:.3f} bits/byte, token accuracy {metrics['eval/accuracy']:.1%}"
            + ("" if right is None else f", right answers {right:.1%}")
        )
    every = max(1, (total or 0) // LINES_PER_RUN)
    if step != 1 and step != total and step % every:
        return None
    return f"step {step}{of_all}  loss {metrics['train/loss']:.3f}  {metrics['perf/tokens_per_s']:,.0f} tokens/s"


class _StdoutHandler(logging.Handler):
    """Prints to what `sys.stdout` is at the time: a notebook exchanges it, and so does `redirect_stdout`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        with suppress(OSError, ValueError):  # a closed pipe or stream ends no training
            sys.stdout.write(f"{self.format(record)}\n")
            sys.stdout.flush()


def show_log() -> None:
    """Show the log on stdout, unless the logger `dialogkit` has its own handlers.

    The root logger is left as it is, and receives nothing: libraries add handlers to it while they work, and each
    line would appear twice.
    """
    if logger.handlers:
        return
    logger.addHandler(_StdoutHandler())
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


@contextmanager
def hidden_log() -> Iterator[None]:
    """Show nothing of what this thread logs, except in handlers that somebody else added."""
    this = threading.get_ident()
    silent = logging.NullHandler()  # without any handler Python itself prints warnings
    printing = [handler for handler in logger.handlers if isinstance(handler, _StdoutHandler)]

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != this

    logger.addHandler(silent)
    for handler in printing:
        handler.addFilter(is_of_another_thread)
    try:
        yield
    finally:
        for handler in printing:
            handler.removeFilter(is_of_another_thread)
        logger.removeHandler(silent)


def say_stopping() -> None:
    """Report the signal from within its handler, where a console could deadlock."""
    with suppress(OSError):
        os.write(2, b"\nStopping after this step and saving; press Ctrl-C again to quit now.\n")
