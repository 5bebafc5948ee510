"""A silent stand-in for the run folder that rank 0 writes, so that all ranks run one program."""

from collections.abc import Iterator
from contextlib import contextmanager

from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir


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
