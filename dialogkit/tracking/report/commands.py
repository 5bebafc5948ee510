"""The commands that a page shows.

A page is read long after the command that wrote it, so its commands are content rather than hints. A run
writes its page also when started from Python, where the command line cannot render them: this is the only module
below the command line that contains commands.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.tracking.report.run import PageRun
from dialogkit.tracking.run_dir import plain_name


class Commands:
    """Commands about the runs of a page."""

    def __init__(self, runs: Sequence[PageRun], output: Path | None) -> None:
        is_default = output is None or output == Path(DEFAULT_OUTPUT)
        self._where = "" if is_default else f" --output-dir {shlex.quote(str(output))}"
        self._runs = runs

    def evaluate(self) -> str:
        """Return the commands that evaluate all runs and, for several, write their page again."""
        names = shlex.join(run.name for run in self._runs)
        # The evaluation of a single run writes its page itself.
        verbs = ("evaluate", "runs report") if len(self._runs) > 1 else ("evaluate",)
        return "\n".join(f"dialogkit {verb} {names}{self._where}" for verb in verbs)

    def resume(self, run: PageRun) -> str:
        """Return the command that resumes a run."""
        return f"dialogkit train --resume {shlex.quote(run.name)}{self._where}"

    def started(self, run: PageRun) -> str:
        """Return the command that started a run; empty if not recorded."""
        return shlex.join(run.record.command)

    def repeat(self, run: PageRun) -> str:
        """Return the command that repeats a run."""
        # The name of the run is taken.
        name = f" --name {plain_name(run.name)[:58]}-again" if run.record.config.get("name") else ""
        return f"dialogkit train --config {shlex.quote(str(run.record_path))}{name}"
