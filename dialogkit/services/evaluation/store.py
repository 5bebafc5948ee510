"""Stores the evaluation of a run's model in the run's folder, its W&B run and its page."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dialogkit.config.base import Result
from dialogkit.config.tracking import TrackingConfig
from dialogkit.errors import StorageError
from dialogkit.services.evaluation.results import EvaluateRow, TaskRow
from dialogkit.services.runs.report import write_run_report
from dialogkit.services.runs.resolve import Loadable
from dialogkit.tracking.evaluation_files import (
    best_evaluations,
    replies_beside,
    worst_beside,
    write_evaluation,
    write_task,
)
from dialogkit.tracking.metric_specs import ANCHORS, METRICS
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import Decision, decide, open_wandb
from dialogkit.tracking.wandb_sync import folders_of_run

logger = logging.getLogger(__name__)

_WANDB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class TrackedRow(Result):
    """The W&B run that received the metrics of a run's model."""

    run: str
    mode: str
    folder: str
    url: str | None
    """None offline: `wandb sync` uploads the folders."""
    folders: list[str]
    """All folders of the W&B run that are not uploaded, with those of its run."""


class KeptRow(Result):
    """Where the evaluation of a run's model is stored."""

    run: str
    figures: str
    replies: str
    worst: str
    shown_dialogs: int
    """Dialogs of the evaluation that the run is shown with: the largest one on this dataset."""


class EvaluationStore:
    """Stores the metrics of a run's finished model; ignores those of any other model."""

    def __init__(self, loadable: Loadable, *, wandb: str | None, output: Path) -> None:
        """Determine where the metrics of this model go, before anything is measured.

        Args:
            loadable: the model.
            wandb: the W&B mode; None is that of the run.
            output: folder of models and runs; W&B's files of a run outside it go there.

        Raises: UnavailableError if `online` is requested without a key.
        """
        self._run = _run_of(loadable)
        self._output = output
        self._changed = False
        self._summary: dict[str, Any] = {}
        self._tables: list[tuple[str, list[str], list[list[Any]]]] = []
        """Name, columns and rows."""
        if self._run is not None:
            self._record = self._run.read()
            self._tracking = _tracking_of(self._record, wandb)

    def add_evaluation(
        self, row: EvaluateRow, baselines: Sequence[EvaluateRow], replies: Sequence[dict[str, Any]]
    ) -> KeptRow | None:
        """Write an evaluation with its baselines and replies; return where, or None if it is not stored."""
        if self._run is None:
            return None
        kept = self._write(self._run, row, baselines, replies)
        # Metrics on other dialogs than the run's own go under other names, so that runs can be compared by these.
        is_shown = kept is None or kept.shown_dialogs == row.dialogs
        own = row.dataset == self._record.data.dataset
        place = "evaluate" if own else f"evaluate/{row.dataset.replace('/', '-')}"
        place += "" if is_shown else f"/{row.dialogs}-dialogs"
        measured = {metric: value for metric in METRICS if (value := getattr(row, metric.name)) is not None}
        self._summary |= {f"{place}/{metric.name}": value for metric, value in measured.items()}
        self._summary |= {f"{place}/dataset": row.dataset, f"{place}/dialogs": row.dialogs}
        columns = ["figure", "value", "low", "high", *(ANCHORS[str(baseline.anchor)] for baseline in baselines)]
        rows = [
            [metric.title, value, *row.intervals.get(metric.name, (None, None))]
            + [getattr(baseline, metric.name) for baseline in baselines]
            for metric, value in measured.items()
        ]
        self._tables.append((f"{place}/figures", columns, rows))
        return kept

    def _write(
        self, run: RunDir, row: EvaluateRow, baselines: Sequence[EvaluateRow], replies: Sequence[dict[str, Any]]
    ) -> KeptRow | None:
        """Write an evaluation into the run's folder; None, with a warning, if that is impossible."""
        result = row.model_dump(mode="json", exclude={"worst", "tasks"})
        exclude = {"slices", "worst", "tasks"}
        result["anchors"] = [baseline.model_dump(mode="json", exclude=exclude) for baseline in baselines]
        worst = [dialog.model_dump() for dialog in row.worst]
        scores = [{"dialog": dialog, "nats": nats, "bytes": size} for dialog, (nats, size) in row.scores.items()]
        try:
            path = write_evaluation(run, row.dataset, result, worst=worst, replies=replies, scores=scores)
        except StorageError as error:  # for example, a read-only run folder
            logger.warning("the evaluation of the run %s is not kept: %s", run.name, error.message)
            return None
        self._changed = True
        shown = [stored["dialogs"] for stored in best_evaluations(run) if stored.get("dataset") == row.dataset]
        return KeptRow(
            run=run.name,
            figures=str(path),
            replies=str(replies_beside(path)),
            worst=str(worst_beside(path)),
            shown_dialogs=shown[0],
        )

    def add_tasks(self, tasks: Sequence[TaskRow]) -> None:
        """Write the metrics of tasks."""
        if self._run is None:
            return
        with suppress(StorageError):
            for task in tasks:
                write_task(self._run, task.name, task.model_dump(mode="json"))
                self._changed = True
        rows = [
            [task.name, f"{metric.name} {metric.filter}".strip(), metric.value, *(metric.interval or (None, None))]
            for task in tasks
            for metric in task.figures
        ]
        self._summary |= {f"evaluate/tasks/{task}/{metric}": value for task, metric, value, *_ in rows}
        self._tables.append(("evaluate/tasks", ["task", "figure", "value", "low", "high"], rows))

    def publish(self) -> TrackedRow | None:
        """Send everything to W&B and rewrite the run's page. A failure of either is only a warning."""
        if self._run is None:
            return None
        tracked = self._track(self._run)
        wanted = self._record.settings("tracking").get("report", True) is True
        if self._changed and wanted and (reason := write_run_report(self._run)) is not None:
            logger.warning("the report of the run %s could not be written: %s", self._run.name, reason)
        return tracked

    def _track(self, run: RunDir) -> TrackedRow | None:
        if self._tracking is None or not self._tables:
            return None
        output = run.path.parent.parent if run.path.parent.name == "runs" else self._output
        try:
            wandb_run = open_wandb(
                *self._tracking,
                name=self._record.name,
                tags=[],  # W&B keeps the tags that the run has
                settings={},
                folder=output,
                resume_id=self._record.wandb.id,
            )
        except StorageError as error:
            logger.warning("the evaluation is not sent to W&B: %s", error.message)
            return None
        wandb_run.summarize(self._summary)
        for table in self._tables:
            wandb_run.log_table(*table, step=int(self._record.metrics.get("train/steps", 0)), late=True)
        wandb_run.finish(exit_code=0)
        if wandb_run.folder is None:
            return None
        folders = [str(folder) for folder in folders_of_run(output, wandb_run.id)]
        return TrackedRow(
            run=run.name,
            mode=wandb_run.mode,
            folder=str(wandb_run.folder),
            url=wandb_run.url,
            folders=folders or [str(wandb_run.folder)],
        )


def _tracking_of(record: RunRecord, mode: str | None) -> tuple[TrackingConfig, Decision] | None:
    """Return how the W&B run of a run is resumed; None if it has none, or if W&B is disabled."""
    known = record.wandb.id
    try:
        config = TrackingConfig.model_validate(record.settings("tracking"))
    except ValidationError:  # written by another version or by hand
        return None
    if known is None or not _WANDB_ID.fullmatch(known):
        if mode in ("online", "offline"):
            logger.warning(
                "the run %s was trained without W&B: its evaluation is not sent there either", record.name
            )
        return None
    # A run that required W&B online does not make its evaluation require a key.
    mode = mode or ("auto" if config.wandb == "online" else config.wandb)
    decision = decide(config.model_copy(update={"wandb": mode}), Path.cwd())
    return None if decision.mode == "disabled" else (config, decision)


def _run_of(loadable: Loadable) -> RunDir | None:
    """Return the run whose finished model this is; None for a checkpoint, or a model without a run."""
    run, source = loadable.run, Path(loadable.model.source or "")
    if run is not None and source.resolve().parent == run.path.resolve() and source.name != run.model_dir.name:
        return None
    return run
