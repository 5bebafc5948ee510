"""Silent stand-ins for what rank 0 writes and prints, so that all ranks run one program."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dialogkit.hints import Hint
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import WandbRun


class SilentReporter:
    """A reporter that shows nothing."""

    def header(self, info: Mapping[str, str]) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def doing(self, text: str) -> None:
        """Do nothing."""

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def advice(self, hint: Hint) -> str:
        """Return the hint in plain words."""
        return str(hint)


class SilentRunDir(RunDir):
    """The folder of a run that rank 0 writes; it may not even exist on this machine."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock nothing."""
        yield

    def write(self, record: RunRecord) -> None:
        """Write nothing."""

    def list_files(self) -> None:
        """List nothing."""

    def unlist_files(self) -> None:
        """Unlist nothing."""

    def cut_after(self, step: int) -> None:
        """Cut nothing."""

    def _append_line(self, file: str, line: str) -> None:
        pass


def silent_wandb() -> WandbRun:
    """Return a W&B run that logs nothing."""
    return WandbRun(None, "disabled", "rank 0 logs")


def silent_record(config: Mapping[str, Any]) -> RunRecord:
    """Return a record that is never written."""
    return RunRecord(
        name="", created="", command=[], environment={}, config=dict(config), origins={}, runtime={}, versions={}
    )
