"""Reports a run in Python: lines of the log, and in a notebook a bar for the steps."""

import html
import time
from collections.abc import Mapping
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
        from IPython.display import display

        now = time.monotonic()
        if step != total and now - self._drawn < _REDRAWN_S:
            return
        self._drawn = now
        text = f"{step:,}/{total:,}" if total else f"step {step:,}"
        text += f"  loss {metrics['train/loss']:.3f}  {metrics['perf/tokens_per_s']:,.0f} tokens/s"
        left = metrics.get("perf/time_left_s", 0.0)
        text += f"  {duration(left)} left" if total and step < total else ""
        extent = f'value="{step}" max="{total}"' if total else ""
        drawn = (
            f'<div style="font-family: monospace; white-space: pre"><progress {extent} '
            f'style="width: 20em; vertical-align: middle"></progress>  {html.escape(text)}</div>'
        )
        data: Any = {"text/html": drawn, "text/plain": text}
        known, self._id = self._id is not None, self._id or uuid4().hex
        display(data, raw=True, display_id=self._id, update=known)  # type: ignore[no-untyped-call]
