"""Reports progress in Python: lines, and in a notebook a bar."""

import html
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from dialogkit.api import hints
from dialogkit.api.shell import is_notebook
from dialogkit.hints import Hint
from dialogkit.services.training.progress import LogReporter
from dialogkit.text import duration

_REDRAWN_S = 0.25
"""Least seconds between two states of the bar: drawing takes time from training."""


class PythonReporter(LogReporter):
    """Logs a run; in a notebook, its steps move a bar."""

    def __init__(self) -> None:
        self._bar = _Bar() if is_notebook() else None

    def advice(self, hint: Hint) -> str:
        """Return a hint as Python."""
        return hints.render(hint)

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Move the bar, or log the point; an evaluation always gets its own line."""
        if self._bar is None or "train/loss" not in metrics:
            super().step(step, total, metrics)
        else:
            self._bar.move(step, total, metrics)


class _Bar:
    """A bar that any notebook shows: HTML that is replaced in place, without widgets."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._drawn = 0.0

    def move(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Show a step with its loss and speed."""
        if step != total and not self.is_due:
            return
        text = f"{step:,}/{total:,}" if total else f"step {step:,}"
        text += f"  loss {metrics['train/loss']:.3f}  {metrics['perf/tokens_per_s']:,.0f} tokens/s"
        left = metrics.get("perf/time_left_s", 0.0)
        text += f"  {duration(left)} left" if total and step < total else ""
        self.draw(text, step, total)

    @property
    def is_due(self) -> bool:
        """Whether the last state was drawn long enough ago."""
        return time.monotonic() - self._drawn >= _REDRAWN_S

    def draw(self, text: str, done: float, total: float | None) -> None:
        """Show a text beside the bar, which moves back and forth without a total."""
        extent = f'value="{done:g}" max="{total:g}"' if total else ""
        self._show(
            f'<div style="font-family: monospace; white-space: pre"><progress {extent} '
            f'style="width: 20em; vertical-align: middle"></progress>  {html.escape(text)}</div>',
            text,
        )

    def clear(self) -> None:
        """Show nothing any more."""
        if self._id is not None:
            self._show("", "")

    def _show(self, drawn: str, text: str) -> None:
        from IPython.display import display

        self._drawn = time.monotonic()
        data: Any = {"text/html": drawn, "text/plain": text}
        known, self._id = self._id is not None, self._id or uuid4().hex
        display(data, raw=True, display_id=self._id, update=known)  # type: ignore[no-untyped-call]


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Yield a function that shows the current activity and the fraction done (0 to 1) to who waits for it.

    A notebook shows a bar until the end, a terminal a line for each activity. A program shows nothing: its output
    may be read by another.
    """
    if quiet or not (is_notebook() or (sys.stderr is not None and sys.stderr.isatty())):
        yield lambda activity, done: None
    elif is_notebook():
        bar, before = _Bar(), ""

        def move(activity: str, done: float) -> None:
            nonlocal before
            if activity != before or bar.is_due:
                before = activity
                bar.draw(activity, done, 1.0 if done else None)

        try:
            yield move
        finally:
            bar.clear()
    else:
        from dialogkit.cli.output import Output

        with Output(file=sys.stderr).progress() as line_by_line:
            yield line_by_line
