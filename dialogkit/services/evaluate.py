"""How good models are: how well they predict held-out answers, whether they listen, and how they talk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.config.problems import list_problems
from dialogkit.data.sources import find_source
from dialogkit.errors import ConfigError
from dialogkit.services.evaluation.evaluator import ProgressSink, measure
from dialogkit.services.evaluation.lm_eval import TaskSuite
from dialogkit.services.evaluation.results import EvaluateRow, TaskRow
from dialogkit.services.evaluation.store import Keeper, KeptRow, TrackedRow, require_mode
from dialogkit.services.generate import sampling_of
from dialogkit.services.result import Result
from dialogkit.services.runs.resolve import Loadable, find_dataset, resolve_model
from dialogkit.system.compute_lock import alone

__all__ = ["EvaluateResult", "EvaluateRow", "evaluate", "find_dataset"]


class EvaluateResult(Result):
    """One row for each model, and the anchors."""

    rows: list[EvaluateRow]
    anchors: list[EvaluateRow] = Field(default_factory=list)
    """Those of each model, by its name."""
    kept: list[KeptRow] = Field(default_factory=list)
    """Where the figures lie, of models of runs."""
    tracked: list[TrackedRow] = Field(default_factory=list)
    """The W&B runs that were told of it."""


@alone()
def evaluate(
    model: str | Path | Sequence[str] | None = None,
    *,
    dataset: str | None = None,
    samples: int | None = None,
    max_bad_rows: int = 0,
    whole: bool = False,
    batch_size: int = 8,
    quick: bool = False,
    tasks: str | Sequence[str] = (),
    use_model_settings: bool = False,
    wandb: str | None = None,
    output: str | Path = DEFAULT_OUTPUT,
    device: str = "auto",
    on_progress: ProgressSink = lambda what, share: None,
) -> EvaluateResult:
    """Return how well one model or several predict held-out answers, listen and talk; in float32.

    The figures of a run's own model are kept in its folder, beside those on another number of dialogs, and told to
    its W&B run, and its page is written again.

    Args:
        model: catalogue name, run, folder or hub id, or several; None is the newest finished run.
        dataset: a dataset as `train` takes it; None is the one of the run, or `starter`.
        samples: use so many held-out dialogs, those of the lowest content hash. None: all.
        max_bad_rows: malformed rows of another dataset's file that are passed over.
        whole: score every dialog of the dataset and not the held-out ones alone, which come first.
        batch_size: dialogs at once; the figures do not depend on it.
        quick: only how well the answers are predicted: no replies, no anchors.
        tasks: tasks of the lm-evaluation-harness, by name or file; `samples` limits their questions as well.
        use_model_settings: sample replies with the settings that come with each model; tasks keep their own.
        wandb: W&B mode: auto, online, offline or disabled; None is that of the run. One that was trained without
            W&B stays without it.
        output: folder of models and runs.
        device: auto, cpu, cuda or mps.
        on_progress: takes how far it is.

    Raises: ModelError, DataError, ConfigError, UnavailableError.
    """
    if wandb is not None:
        require_mode(wandb)
    names: list[str | None] = [None]
    if model is not None:
        names = [str(model)] if isinstance(model, str | Path) else [str(name) for name in model]
    chosen = [resolve_model(name, output=output) for name in names]
    asked = GenerateConfig(use_model_settings=use_model_settings)
    sampling, notes = sampling_of(chosen, asked, command="evaluate", output=output)
    datasets = [_dataset_of(loadable, dataset, whole=whole) for loadable in chosen]
    for config in datasets:
        if not config.streaming:
            find_source(config)  # what is not there is told before a model is loaded
    keeps = not quick or bool(tasks)
    keepers = [Keeper(loadable, wandb=wandb if keeps else "disabled", output=Path(output)) for loadable in chosen]
    suite = TaskSuite([tasks] if isinstance(tasks, str) else tasks) if tasks else None

    rows: list[EvaluateRow] = []
    anchors: list[EvaluateRow] = []
    kept: list[KeptRow] = []
    tracked: list[TrackedRow] = []
    for number, (loadable, keeper, config) in enumerate(zip(chosen, keepers, datasets, strict=True)):
        if max_bad_rows:
            config = config.model_copy(update={"max_bad_rows": max_bad_rows})

        def told(what: str, share: float, number: int = number, name: str = loadable.known_as) -> None:
            on_progress(f"{name}: {what}", (number + share) / len(chosen))

        row, beside, replies = measure(
            loadable,
            config,
            samples=samples,
            whole=whole,
            batch_size=batch_size,
            quick=quick,
            own_data=dataset is None,
            sampling=sampling[number],
            device=device,
            told=told,
        )
        if notes:
            row = row.model_copy(update={"model_settings": notes[number]})
        if suite is not None:
            row = row.model_copy(update={"tasks": _ask(suite, loadable, samples, batch_size, device, told)})
            keeper.tasks(row.tasks)
        beyond = whole and row.dialogs > (row.held_out or 0)
        own = loadable.run is not None and row.dataset == loadable.run.read().data.dataset
        row = row.model_copy(update={"trained_on": beyond and own})
        rows.append(row)
        anchors += beside
        if not quick and (told_of := keeper.evaluation(row, beside, replies)) is not None:
            kept.append(told_of)
        told("keeping the figures", 1.0)
        if (told_to := keeper.close()) is not None:
            tracked.append(told_to)
    return EvaluateResult(rows=rows, anchors=anchors, kept=kept, tracked=tracked)


def _ask(
    suite: TaskSuite, loadable: Loadable, samples: int | None, batch_size: int, device: str, told: ProgressSink
) -> list[TaskRow]:
    """Return what a model comes to in tasks."""
    from dialogkit.services.runs.loading import load_for_inference

    loaded = load_for_inference(loadable, device=device)
    return suite.ask(loaded, limit=samples, batch_size=batch_size, told=told)


def _dataset_of(loadable: Loadable, dataset: str | None, *, whole: bool) -> DataConfig:
    """Return the data settings of the run that made the model, or those of another dataset.

    The run's own have the dialogs that it was trained on, unless the whole dataset is asked for.
    """
    settings: dict[str, Any] = {}
    if loadable.run is not None:
        record = loadable.run.read()
        settings = dict(record.settings("data"))
        if whole or dataset is not None:
            settings.pop("samples", None)
        if dataset is None and "dataset" in settings:
            settings["dataset"] = find_dataset(record)
    if dataset is not None:
        # Models that are compared on a dataset are given the same dialogs, whatever limit they were trained with.
        settings.pop("max_tokens", None)
        if dataset != settings.get("dataset"):
            settings = {"dataset": dataset}
    try:
        return DataConfig.model_validate(settings)
    except ValidationError as error:
        run = loadable.run.name if loadable.run else loadable.name
        raise ConfigError(
            f"the run {run!r} has no valid settings of its data: {list_problems(error)[0]}",
            hint=f"dialogkit runs show {run}",
        ) from None
