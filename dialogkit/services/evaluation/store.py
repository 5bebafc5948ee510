"""Where an evaluation of a run's model goes: into the run's folder, its W&B run and its page."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from dialogkit.config.problems import list_problems
from dialogkit.config.tracking import TrackingConfig
from dialogkit.errors import ConfigError, StorageError
from dialogkit.services.evaluation.results import EvaluateRow, TaskRow
from dialogkit.services.result import Result
from dialogkit.services.runs.report import write_run_report
from dialogkit.services.runs.resolve import Loadable
from dialogkit.tracking.evaluation_files import replies_beside, worst_beside
from dialogkit.tracking.metric_specs import ANCHORS, FIGURES
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import Decision, decide, open_wandb

logger = logging.getLogger(__name__)

_WANDB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class TrackedRow(Result):
    """The W&B run that the figures of a run's model went to."""

    run: str
    mode: str
    folder: str
    url: str | None
    """None offline, where `wandb sync` takes the folder."""


class KeptRow(Result):
    """Where the evaluation of a run's model lies."""

    run: str
    figures: str
    replies: str
    worst: str
    shown_dialogs: int
    """Dialogs of the evaluation on this dataset that the run is shown with: the one on the most of them."""


class _Table(NamedTuple):
    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class _Tracking(NamedTuple):
    """The W&B run of a training, which can be gone on with."""

    config: TrackingConfig
    decision: Decision
    id: str


class Keeper:
    """Keeps what is measured of the finished model of a run; of another model nothing is kept."""

    def __init__(self, loadable: Loadable, *, wandb: str | None, output: Path) -> None:
        """Find out where figures of this model go, before anything is measured.

        Args:
            loadable: the model.
            wandb: the W&B mode; None is that of the run.
            output: folder of models and runs; W&B's files of a run that lies elsewhere go there.

        Raises: UnavailableError if `online` is asked for without a key.
        """
        self._run = run_of(loadable)
        self._output = output
        self._kept = False
        self._summary: dict[str, Any] = {}
        self._tables: list[_Table] = []
        if self._run is not None:
            self._record = self._run.read()
            self._tracking = _tracking_of(self._record, wandb)

    def evaluation(
        self, row: EvaluateRow, beside: Sequence[EvaluateRow], replies: Sequence[dict[str, Any]]
    ) -> KeptRow | None:
        """Keep an evaluation with its anchors and replies; return where, or None where it is not kept."""
        if self._run is None:
            return None
        kept: KeptRow | None = None
        anchors = [anchor.model_dump(mode="json", exclude={"slices", "worst", "tasks"}) for anchor in beside]
        try:
            path = self._run.write_evaluation(
                row.dataset,
                row.model_dump(mode="json", exclude={"worst", "tasks"}) | {"anchors": anchors},
                worst=[worst.model_dump() for worst in row.worst],
                replies=replies,
            )
            self._kept = True
            shown = [found["dialogs"] for found in self._run.evaluations() if found.get("dataset") == row.dataset]
            kept = KeptRow(
                run=self._run.name,
                figures=str(path),
                replies=str(replies_beside(path)),
                worst=str(worst_beside(path)),
                shown_dialogs=shown[0],
            )
        except StorageError as error:  # as a run folder that can only be read
            logger.warning("the evaluation of the run %s is not kept: %s", self._run.name, error.message)
        # Figures on other dialogs than the run's own stand apart, so that runs can be compared by these.
        is_shown = kept is None or kept.shown_dialogs == row.dialogs
        own = row.dataset == self._record.data.dataset
        place = "evaluate" if own else f"evaluate/{row.dataset.replace('/', '-')}"
        place += "" if is_shown else f"/{row.dialogs}-dialogs"
        measured = {figure: value for figure in FIGURES if (value := getattr(row, figure.name)) is not None}
        self._summary |= {f"{place}/{figure.name}": value for figure, value in measured.items()}
        self._summary |= {f"{place}/dataset": row.dataset, f"{place}/dialogs": row.dialogs}
        columns = ["figure", "value", "low", "high", *(ANCHORS[str(anchor.anchor)] for anchor in beside)]
        rows = [
            [figure.title, value, *row.intervals.get(figure.name, (None, None))]
            + [getattr(anchor, figure.name) for anchor in beside]
            for figure, value in measured.items()
        ]
        self._tables.append(_Table(f"{place}/figures", columns, rows))
        return kept

    def tasks(self, asked: Sequence[TaskRow]) -> None:
        """Keep what a model came to in tasks."""
        if self._run is None:
            return
        with suppress(StorageError):
            for task in asked:
                self._run.write_task(task.name, task.model_dump(mode="json"))
                self._kept = True
        rows = [
            (task.name, f"{figure.name} {figure.filter}".strip(), figure.value, *(figure.interval or (None, None)))
            for task in asked
            for figure in task.figures
        ]
        self._summary |= {f"evaluate/tasks/{task}/{figure}": value for task, figure, value, *_ in rows}
        self._tables.append(_Table("evaluate/tasks", ["task", "figure", "value", "low", "high"], rows))

    def close(self) -> TrackedRow | None:
        """Tell W&B, and write the run's page again. Whatever goes wrong here is a warning."""
        if self._run is None:
            return None
        tracked = self._track(self._run)
        wanted = self._record.settings("tracking").get("report", True) is True
        if self._kept and wanted and (reason := write_run_report(self._run)) is not None:
            logger.warning(
                "the report could not be written (%s); dialogkit runs report %s", reason, self._run.name
            )
        return tracked

    def _track(self, run: RunDir) -> TrackedRow | None:
        if self._tracking is None or not self._tables:
            return None
        among_runs = run.path.parent.name == "runs"
        try:
            wandb_run = open_wandb(
                self._tracking.config,
                self._tracking.decision,
                name=self._record.name,
                tags=[],  # the run has its own, and keeps them where none are given
                settings={},
                folder=run.path.parent.parent if among_runs else self._output,
                resume_id=self._tracking.id,
            )
        except StorageError as error:
            logger.warning("W&B is not told of the evaluation: %s", error.message)
            return None
        wandb_run.summarize(self._summary)
        for table in self._tables:
            wandb_run.log_table_after(*table, step=int(self._record.metrics.get("train/steps", 0)))
        wandb_run.finish(exit_code=0)
        if wandb_run.folder is None:
            return None
        return TrackedRow(run=run.name, mode=wandb_run.mode, folder=str(wandb_run.folder), url=wandb_run.url)


def _tracking_of(record: RunRecord, asked: str | None) -> _Tracking | None:
    """Return how W&B is told of a run's evaluation; None where the run is not in it, or nothing is to be told."""
    known = record.wandb.id
    try:
        config = TrackingConfig.model_validate(record.settings("tracking"))
    except ValidationError:  # of another version, or of somebody else's making
        return None
    if known is None or not _WANDB_ID.fullmatch(known):
        if asked in ("online", "offline"):
            logger.warning("the run %s was trained without W&B, which is not told of its evaluation", record.name)
        return None
    # That a training was to be online is no reason to refuse its evaluation where there is no key.
    mode = asked or ("auto" if config.wandb == "online" else config.wandb)
    decision = decide(config.model_copy(update={"wandb": mode}), Path.cwd())
    return None if decision.mode == "disabled" else _Tracking(config, decision, known)


def require_mode(mode: str) -> None:
    """Raise ConfigError for a W&B mode that there is not."""
    try:
        TrackingConfig.model_validate({"wandb": mode})
    except ValidationError as error:
        raise ConfigError(f"--{list_problems(error)[0]}", hint="--wandb auto") from None


def run_of(loadable: Loadable) -> RunDir | None:
    """Return the run whose finished model this is; None for a checkpoint, or a model of no run."""
    run, source = loadable.run, Path(loadable.model.source or "")
    if run is not None and source.resolve().parent == run.path.resolve() and source.name != run.model_dir.name:
        return None
    return run
