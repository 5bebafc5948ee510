"""Write runs as one HTML page, from their folders only."""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dialogkit.config.base import Result
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.errors import StorageError, os_reason
from dialogkit.hints import Change
from dialogkit.system.files import write_signed
from dialogkit.system.ownership import is_signed
from dialogkit.tracking.run_dir import REPORT_FILE, RunDir
from dialogkit.tracking.run_list import find_run

logger = logging.getLogger(__name__)


_ELSEWHERE = Change({"to": REPORT_FILE})


class ReportResult(Result):
    """The page that was written."""

    path: str
    runs: list[str]
    """The runs on the page, in order."""
    bytes: int


def write_report(
    names: Sequence[str], *, to: str | Path | None = None, output: str | Path = DEFAULT_OUTPUT
) -> ReportResult:
    """Write a run, or several side by side, as one HTML page.

    Args:
        names: the runs; duplicates count once.
        to: the file; None is `report.html`, in the folder of a single run.
        output: folder of models and runs.

    Raises: ModelError for an unknown run; StorageError if the file cannot be written or is not a report.
    """
    from dialogkit.tracking.report import render_report

    runs = [find_run(Path(output), name) for name in dict.fromkeys(names)]
    if to is None and len(runs) == 1:
        target = runs[0].report_path
    else:
        target = Path(REPORT_FILE if to is None else to).expanduser()
        _require_report(target)
    _require_writable(target)
    page = render_report(runs, output=runs[0].output or Path(output), **_judged(names, runs, output))
    try:
        _write(target, page)
    except StorageError as error:
        error.hint = _ELSEWHERE
        raise
    return ReportResult(path=str(target), runs=[run.name for run in runs], bytes=target.stat().st_size)


def _judged(names: Sequence[str], runs: Sequence[RunDir], output: str | Path) -> dict[str, Any]:
    """Return what the page says about which of several runs is best; nothing for one run."""
    if len(runs) == 1:
        return {}
    from dialogkit.services.runs.compare import compare_runs  # which imports this module

    compared = compare_runs(names, output=output)
    best = {(one.dataset, one.dialogs): one.verdict.clearly_best for one in compared.evaluations}
    return {"verdict": compared.conclusion, "best": best}


def write_run_report(run: RunDir) -> str | None:
    """Write the page of a run into its folder. Return the reason if that failed, else None.

    A failure costs only the page: the model of the run is saved already.
    """
    try:
        from dialogkit.tracking.report import render_report

        _write(run.report_path, render_report([run], output=run.output))
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def _write(target: Path, page: str) -> None:
    """Write a page; an existing one that somebody changed is renamed first. Raises: StorageError."""
    from dialogkit.tracking.report import COMMENT

    if (kept := write_signed(target, page, comment=COMMENT)) is not None:
        logger.warning("%s is not the file that dialogkit wrote: renamed to %s", target, kept.name)


def _require_writable(target: Path) -> None:
    """Raise StorageError if the folder is not writable, before the page is drawn for seconds."""
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise StorageError(f"{str(target)!r} cannot be written: {os_reason(error)}", hint=_ELSEWHERE) from None


def _require_report(target: Path) -> None:
    """Raise StorageError if `target` exists and is not an unchanged page of dialogkit."""
    if target.is_dir():
        raise StorageError(f"{str(target)!r} is a folder", hint=Change({"to": target / REPORT_FILE}))
    if os.path.lexists(target) and not is_signed(target):
        raise StorageError(
            f"{str(target)!r} exists and is not an unchanged report of dialogkit, so it was left unchanged",
            hint=Change({"to": target.with_name(f"{target.stem}-2.html")}),
        )
