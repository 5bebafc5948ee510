"""How good models are: how well they predict held-out answers, whether they use the prompt, and how they reply."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import Field, InstanceOf, ValidationError

from dialogkit.config.base import Result
from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import flatten
from dialogkit.config.problems import list_problems
from dialogkit.data.sources import find_source
from dialogkit.errors import ConfigError, DataError
from dialogkit.hints import Call
from dialogkit.services.evaluation.evaluator import ProgressSink, evaluate_model
from dialogkit.services.evaluation.lm_eval import TaskSuite
from dialogkit.services.evaluation.request import EvaluateRequest
from dialogkit.services.evaluation.results import EvaluateRow, TaskRow
from dialogkit.services.evaluation.store import EvaluationStore, KeptRow, TrackedRow
from dialogkit.services.inference import hints_for, sampling_of
from dialogkit.services.runs.resolve import Loadable, find_dataset, resolve_model
from dialogkit.services.runs.verdict import Contender, Verdict, differing, judge
from dialogkit.system.compute_lock import alone

__all__ = ["EvaluateRequest", "EvaluateResult", "EvaluateRow", "evaluate_models", "find_dataset"]


class EvaluateResult(Result):
    """One row for each model, and its baselines."""

    rows: list[EvaluateRow]
    anchors: list[EvaluateRow] = Field(default_factory=list)
    """The baselines of each model, by its name."""
    kept: list[KeptRow] = Field(default_factory=list)
    """Where the metrics of models of runs were stored."""
    tracked: list[TrackedRow] = Field(default_factory=list)
    """The W&B runs that received them."""
    verdict: Verdict | None = None
    """Which of several models predicts best."""
    same_dialogs: InstanceOf[Call] | None = Field(default=None, exclude=True)
    """The call that evaluates all models on the same dialogs; None if they were."""

    def repr_fields(self) -> Iterable[tuple[str, Any]]:
        """Return the models with their bits per byte, and which of several is the best."""
        yield "models", ", ".join(row.model for row in self.rows)
        yield "bits_per_byte", ", ".join(f"{row.bits_per_byte:.3f}" for row in self.rows if row.bits_per_byte)
        bounds = [row.intervals.get("bits_per_byte") for row in self.rows]
        yield "interval", ", ".join(f"{pair[0]:.3f} to {pair[1]:.3f}" for pair in bounds if pair)
        if self.verdict is not None:
            yield "best", self.verdict.best
            yield "more_than_chance", None if self.verdict.best is None else bool(self.verdict.clearly_best)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from dialogkit.services import display

        return display.evaluation(self)


class _Planned(NamedTuple):
    """One model of a request, and what is known about it before any model is loaded."""

    loadable: Loadable
    data: DataConfig
    sampling: GenerateConfig
    note: str | None
    """What was used of the model's own sampling settings."""
    store: EvaluationStore
    trained_with: DataConfig | None
    """The data settings of its run; None if they are unknown."""


@alone()
def evaluate_models(request: EvaluateRequest, *, on_progress: ProgressSink) -> EvaluateResult:
    """Return the metrics of each model of a request, and store them.

    Args:
        request: the models and dialogs.
        on_progress: receives the current stage and the fraction of the work that is done.

    Raises: ModelError, DataError, ConfigError, UnavailableError.
    """
    planned = _plan(request)
    suite = TaskSuite(request.tasks) if request.tasks else None

    result = EvaluateResult(rows=[])
    for number, model in enumerate(planned):

        def report(stage: str, fraction: float, number: int = number, one: _Planned = model) -> None:
            on_progress(f"{one.loadable.display_name}: {stage}", (number + fraction) / len(planned))

        _evaluate_one(model, request, suite, report, result)
    if len(planned) > 1:
        verdict, again = _judge(result.rows, [model.loadable for model in planned]), None
        if (
            len({row.dataset for row in result.rows}) > 1 and not planned[0].data.columns
        ):  # no option maps columns here
            names = [word or row.model for word, row in zip(request.models, result.rows, strict=True)]
            again = Call("evaluate", *names, dataset=planned[0].data.dataset, output_dir=str(request.output))
        result = result.model_copy(update={"verdict": verdict, "same_dialogs": again})
    return result


def _judge(rows: Sequence[EvaluateRow], loadables: Sequence[Loadable]) -> Verdict:
    """Return which of several models predicts best, and how the settings of their runs differ."""
    settings = [dict(flatten(one.run.read().config)) for one in loadables if one.run is not None]
    same = len({(row.dataset, row.dialogs) for row in rows}) == 1
    return judge(
        [Contender.of_row(row.model, row, row.scores) for row in rows],
        dialogs=rows[0].dialogs if same else None,
        differing=differing(settings) if len(settings) == len(rows) else (),
    )


def _plan(request: EvaluateRequest) -> list[_Planned]:
    """Return the models of a request, after all checks that need no loaded model."""
    chosen = [resolve_model(name, output=request.output) for name in request.models]
    wanted = GenerateConfig(use_model_settings=request.use_model_settings)
    sampling, notes = sampling_of(chosen, wanted, verb="evaluate", output=request.output)
    datasets = [_data_config(loadable, request) for loadable in chosen]
    for config in datasets:
        if not config.streaming:
            find_source(config)
    wandb = request.wandb if request.stores_results else "disabled"
    stores = [EvaluationStore(loadable, wandb=wandb, output=request.output) for loadable in chosen]
    noted: Sequence[str | None] = notes or [None] * len(chosen)
    own = [own_data_config(loadable) for loadable in chosen]
    return list(map(_Planned, chosen, datasets, sampling, noted, stores, own))


def _evaluate_one(
    model: _Planned,
    request: EvaluateRequest,
    suite: TaskSuite | None,
    report: ProgressSink,
    result: EvaluateResult,
) -> None:
    """Evaluate and store one model of a request, and add it to the result."""
    from dialogkit.services.runs.loading import load_for_inference

    loadable = model.loadable
    tasks: list[TaskRow] = []
    with hints_for(loadable):
        evaluation = evaluate_model(
            loadable,
            model.data,
            request,
            trained_with=model.trained_with,
            sampling=model.sampling,
            on_progress=report,
        )
        if suite is not None:
            tasks = suite.run(
                load_for_inference(loadable, device=request.device),
                limit=request.samples,
                batch_size=request.batch_size,
                report=report,
            )
            model.store.add_tasks(tasks)
    row, run = evaluation.row, loadable.run
    own_data = run is not None and row.dataset == run.read().data.dataset
    row = row.model_copy(
        update={
            "model_settings": model.note,
            "tasks": tasks,
            "own_data": own_data,
            "trained_on": own_data and request.whole and row.dialogs > (row.held_out or 0),
        }
    )
    result.rows.append(row)
    result.anchors.extend(evaluation.baselines)
    if not request.quick and (kept := model.store.add_evaluation(row, evaluation.baselines, evaluation.replies)):
        result.kept.append(kept)
    report("storing the results", 1.0)
    if tracked := model.store.publish():
        result.tracked.append(tracked)


def own_data_config(loadable: Loadable) -> DataConfig | None:
    """Return the data settings of a model's run; None if they are unknown or its dataset is not there."""
    if loadable.run is None:
        return None
    record = loadable.run.read()
    try:
        return DataConfig.model_validate({**record.settings("data"), "dataset": find_dataset(record)})
    except (KeyError, ValidationError, DataError):
        return None


def _data_config(loadable: Loadable, request: EvaluateRequest) -> DataConfig:
    """Return the data settings of the run that made the model, or those of another dataset.

    The run's own limit what it was trained on; that limit is dropped when the whole dataset is requested.
    """
    settings: dict[str, Any] = {}
    if loadable.run is not None:
        record = loadable.run.read()
        settings = dict(record.settings("data"))
        if request.whole or request.dataset is not None:
            settings.pop("samples", None)
        if request.dataset is None and "dataset" in settings:
            settings["dataset"] = find_dataset(record)
    if request.dataset is not None:
        # Models that are compared on a dataset get the same dialogs, whatever limit they were trained with.
        settings.pop("max_tokens", None)
        if request.dataset != settings.get("dataset"):
            settings = {"dataset": request.dataset}
    try:
        config = DataConfig.model_validate(settings)
    except ValidationError as error:
        run = loadable.run.name if loadable.run else loadable.name
        problem = f"the run {run!r} has invalid data settings: {list_problems(error)[0]}"
        raise ConfigError(problem, hint=Call("runs show", run)) from None
    return config.model_copy(update={"max_bad_rows": request.max_bad_rows}) if request.max_bad_rows else config
