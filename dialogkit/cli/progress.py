"""Prints the progress of a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dialogkit.cli import hints
from dialogkit.cli.output import Output, print_item, spinner, untrusted, values_grid
from dialogkit.hints import Hint
from dialogkit.redaction import redact
from dialogkit.services.training.progress import TrainReporter, step_line

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.status import Status


class TrainOutput(TrainReporter):
    """Prints a run: a header, then a progress bar in a terminal or plain lines elsewhere."""

    def __init__(self, output: Output) -> None:
        self._console = output.err
        self._progress: Progress | None = None
        self._task: Any = None
        self._status: Status | None = None

    def activity(self, text: str) -> None:
        """Show the current activity: a spinner until the next event in a terminal, a line elsewhere."""
        if not self._console.is_terminal:
            self._console.print(untrusted(redact(f"{text} ...")), soft_wrap=True)
        elif self._progress is None:  # the training steps have their bar
            self._stop_spinner()
            self._status = self._console.status(untrusted(text), spinner=spinner(self._console))
            self._status.start()

    def _stop_spinner(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def header(self, info: Mapping[str, str]) -> None:
        """Print the description of a run, one entry per line."""
        self._stop_spinner()
        print_item(self._console, values_grid({name: redact(value) for name, value in info.items()}))

    def note(self, text: str) -> None:
        """Print a line."""
        self._stop_spinner()
        self._console.print(untrusted(redact(text)))

    def advice(self, hint: Hint) -> str:
        """Return a hint as what to type."""
        return hints.render(hint) or ""

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print a line; an evaluation always gets its own line."""
        self._stop_spinner()
        if "eval/nats_per_token" in metrics or not self._console.is_terminal:
            if (line := step_line(step, total, metrics)) is not None:
                self._console.print(line)
            return
        loss, speed = metrics["train/loss"], metrics["perf/tokens_per_s"]
        if self._progress is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                console=self._console,
                refresh_per_second=4,  # drawing takes time from training
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        self._progress.update(
            self._task, completed=step, total=total, description=f"loss {loss:.3f}  {speed:,.0f} tokens/s"
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._stop_spinner()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
