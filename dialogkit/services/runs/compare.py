"""Show and compare runs from their folders, and upload offline W&B runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, InstanceOf, ValidationError

from dialogkit.config.base import Result
from dialogkit.config.load import flatten
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.distributed.stop_signals import signals_stop
from dialogkit.errors import ConfigError, InterruptedRunError, ModelError, UnavailableError
from dialogkit.hints import Call
from dialogkit.services.evaluate import EvaluateResult, EvaluateRow
from dialogkit.services.evaluation.results import TaskRow
from dialogkit.services.runs.listing import held_out_identity, series_of
from dialogkit.services.runs.resolve import output_of
from dialogkit.services.runs.verdict import Contender, Differing, Verdict, differing, judge
from dialogkit.system.credentials import find_credentials
from dialogkit.system.network import plain_url, problems
from dialogkit.text import counted
from dialogkit.tracking import wandb_sync
from dialogkit.tracking.evaluation_files import all_evaluations, best_evaluations, dialog_scores, task_results
from dialogkit.tracking.metric_specs import STOP_RATE
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import find_run
from dialogkit.tracking.wandb_sync import folders_of_run, offline_folders, sync_folder

_COMPARED = {
    "steps": "train/steps",
    "loss before": "before/nats_per_token",
    "loss": "final/nats_per_token",
    "perplexity": "final/perplexity",
    "bits per byte": "final/bits_per_byte",
    "token accuracy": "final/accuracy",
    "right answers": "final/right_answers",
    "tokens/s": "perf/tokens_per_s",
    "training seconds": "train/seconds",
}
Kept = TypeVar("Kept", bound=BaseModel)


class AnsweredPrompt(Result):
    """A prompt and the final reply of each run."""

    prompt: str
    replies: list[str]
    reference: str | None = None
    """The dataset's answer, if the prompt is from a held-out dialog."""


class RunDetails(RunRecord):
    """The record of a run, with its loss, evaluations and replies."""

    train_loss: list[tuple[int, float]] = Field(default_factory=list)
    """Steps with the training loss, in nats per token."""
    held_out_loss: list[tuple[int, float]] = Field(default_factory=list)
    evaluations: list[EvaluateResult] = Field(default_factory=list)
    """Evaluation of the finished model on each dataset, with its baselines."""
    tasks: list[TaskRow] = Field(default_factory=list)
    answers: list[AnsweredPrompt] = Field(default_factory=list)
    """Prompts with the replies of the finished model."""


class SyncRow(Result):
    """Result of uploading one offline W&B run."""

    folder: str
    uploaded: bool
    reason: str
    """Why the upload failed; empty if it succeeded."""


class ComparedEvaluation(Result):
    """The evaluations of several runs on the same dialogs."""

    dataset: str
    dialogs: int
    rows: list[EvaluateRow | None]
    """None for a run that was not evaluated on them."""
    verdict: Verdict
    """Which of the evaluated runs predicts best."""


class HeldOut(Result):
    """Dialogs that a run is evaluated on."""

    dataset: str
    dialogs: int


class Comparison(Result):
    """Runs side by side; every list of values is in the order of `runs`."""

    runs: list[str]
    figures: list[Differing]
    """Metrics of the finished models and of their runs."""
    same_data: bool
    """Whether all were evaluated on the same held-out dialogs of the same file."""
    settings: list[Differing]
    """Settings that differ."""
    versions: list[Differing]
    """Versions, device and processor that differ."""
    evaluations: list[ComparedEvaluation]
    """Evaluations of at least two runs on the same dialogs."""
    held_out: list[HeldOut | None]
    """The held-out dialogs of each run's own dataset; None if not recorded."""
    evaluated_on: list[list[HeldOut]]
    """The dialogs that each run was evaluated on."""
    evaluation: InstanceOf[Call] | None = Field(default=None, exclude=True)
    """The call that evaluates all of them on the same dialogs; None if they were."""
    evaluate: list[str] = Field(default_factory=list)
    """The same call as words of a command; the command line fills it in."""
    tasks: list[list[TaskRow]]
    """Task results of each run."""
    replies: list[AnsweredPrompt]
    """Prompts that all runs answered at the end."""
    verdict: Verdict
    """Which run's model predicts best."""

    @property
    def conclusion(self) -> str:
        """The verdict as a sentence; empty if the held-out dialogs differ, which is reported separately."""
        return self.verdict.text if self.same_data or self.verdict.best is not None else ""


def compare_runs(names: Sequence[str], *, output: str | Path = DEFAULT_OUTPUT) -> Comparison:
    """Compare the records of runs. Raises: ConfigError for fewer than two; ModelError."""
    if len(set(names)) < 2:
        given = f", and {names[0]!r} was given {len(names)} times" if len(names) > 1 else ""
        raise ConfigError(f"a comparison needs at least two runs{given}", hint=Call("runs list"))
    runs = [find_run(Path(output), name) for name in dict.fromkeys(names)]
    records = [run.read() for run in runs]
    figures = [
        Differing(name="parameters", values=[record.model.parameters for record in records]),
        *(Differing(name=name, values=[r.metrics.get(key) for r in records]) for name, key in _COMPARED.items()),
        Differing(name=STOP_RATE, values=[record.replies.get("stop_rate") for record in records]),
    ]
    machine = [{**r.versions, "device": r.runtime.device_name, "precision": r.runtime.precision} for r in records]
    same_data = len({held_out_identity(record) for record in records}) == 1
    settings = differing([dict(flatten(record.config)) for record in records], leave={"name"})
    evaluations = _compared_evaluations(runs, settings)
    return Comparison(
        runs=[run.name for run in runs],
        figures=[row for row in figures if any(value is not None for value in row.values)],
        same_data=same_data,
        settings=settings,
        versions=differing(machine),
        evaluations=evaluations,
        held_out=[_held_out(record) for record in records],
        evaluated_on=[
            [
                HeldOut(dataset=row.dataset, dialogs=row.dialogs)
                for row in _valid(EvaluateRow, best_evaluations(run))
            ]
            for run in runs
        ],
        evaluation=None
        if any(all(evaluation.rows) for evaluation in evaluations)
        else _evaluation_of_all(runs, records, same_data=same_data),
        tasks=[_valid(TaskRow, task_results(run)) for run in runs],
        replies=_common_replies(runs),
        verdict=next((one.verdict for one in evaluations if all(one.rows)), None)
        or _judge_from_training(runs, records, settings),
    )


def _judge_from_training(
    runs: Sequence[RunDir], records: Sequence[RunRecord], settings: Sequence[Differing]
) -> Verdict:
    """Return which run's model predicts best by the metrics at the end of the runs."""
    contenders = [
        Contender(
            run.name,
            record.metrics.get("final/bits_per_byte"),
            record.intervals.get("final/bits_per_byte"),
            right=record.metrics.get("final/right_answers"),
            right_interval=record.intervals.get("final/right_answers"),
        )
        for run, record in zip(runs, records, strict=True)
    ]
    same = len({held_out_identity(record) for record in records}) == 1
    dialogs = records[0].data.eval_dialogs if same else None
    return judge(contenders, dialogs=dialogs, differing=settings, from_training=True)


def _held_out(record: RunRecord) -> HeldOut | None:
    dataset, dialogs = record.data.dataset, record.data.eval_dialogs
    return None if dataset is None or dialogs is None else HeldOut(dataset=dataset, dialogs=dialogs)


def _evaluation_of_all(runs: Sequence[RunDir], records: Sequence[RunRecord], *, same_data: bool) -> Call:
    """Return the call that evaluates all runs on the same dialogs."""
    names = [run.name for run in runs]
    dataset = records[0].settings("data").get("dataset")
    if same_data or not dataset:
        return Call("evaluate", *names)
    # The dialogs with the lowest hashes are held out: the smallest set is part of all others.
    revision, _ = held_out_identity(records[0])
    sizes = [number for known, number in map(held_out_identity, records) if known == revision and number]
    smallest: dict[str, Any] = {"samples": min(sizes)} if sizes else {}
    return Call("evaluate", *names, dataset=str(dataset), **smallest)


def _compared_evaluations(runs: Sequence[RunDir], settings: Sequence[Differing]) -> list[ComparedEvaluation]:
    """Return for each dataset the evaluations that most runs, at least two, share, on the most dialogs."""
    by_dialogs: dict[tuple[str, int, bool], list[EvaluateRow | None]] = {}
    for number, run in enumerate(runs):
        for row in _valid(EvaluateRow, all_evaluations(run)):
            place = (row.dataset, row.dialogs, row.trained_on)
            by_dialogs.setdefault(place, [None] * len(runs))[number] = row
    chosen: dict[str, tuple[int, int, list[EvaluateRow | None]]] = {}
    # Training dialogs come last: a model may have memorised them.
    for (dataset, dialogs, _), rows in sorted(by_dialogs.items(), key=lambda item: (item[0][2], -item[0][1])):
        shared = sum(row is not None for row in rows)
        known = chosen.get(dataset)
        if shared > 1 and (known is None or shared > known[0]):
            chosen[dataset] = (shared, dialogs, rows)
    return [
        ComparedEvaluation(dataset=dataset, dialogs=dialogs, rows=rows, verdict=_judge(runs, rows, settings))
        for dataset, (_, dialogs, rows) in chosen.items()
    ]


def _judge(runs: Sequence[RunDir], rows: Sequence[EvaluateRow | None], settings: Sequence[Differing]) -> Verdict:
    """Return which of the runs that were evaluated on the same dialogs predicts best."""
    evaluated = [(run, row) for run, row in zip(runs, rows, strict=True) if row is not None]
    contenders = [
        Contender.of_row(run.name, row, dialog_scores(run, row.dataset, row.dialogs)) for run, row in evaluated
    ]
    return judge(contenders, dialogs=evaluated[0][1].dialogs, differing=settings)


def _as_results(evaluations: Iterable[Mapping[str, Any]]) -> list[EvaluateResult]:
    """Return stored evaluations with their baselines."""
    return [
        EvaluateResult(rows=rows, anchors=_valid(EvaluateRow, kept.get("anchors") or ()))
        for kept in evaluations
        if (rows := _valid(EvaluateRow, [kept]))
    ]


def _valid(kind: type[Kept], contents: Iterable[object]) -> list[Kept]:
    """Parse stored objects; skip those another version or tool wrote."""
    found = []
    for content in contents:
        with suppress(ValidationError):
            found.append(kind.model_validate(content))
    return found


def _common_replies(runs: Sequence[RunDir]) -> list[AnsweredPrompt]:
    answered = [
        {sample["prompt"]: sample for sample in run.samples() if sample.get("table") == "replies/final"}
        for run in runs
    ]
    return [
        AnsweredPrompt(
            prompt=prompt,
            replies=[samples[prompt]["reply"] for samples in answered],
            reference=reference if isinstance(reference := sample.get("reference"), str) else None,
        )
        for prompt, sample in answered[0].items()
        if all(prompt in samples for samples in answered)
    ]


def show_run(name: str, *, output: str | Path = DEFAULT_OUTPUT) -> RunDetails:
    """Return the record of a run, its loss and its evaluations. Raises: ModelError if it does not exist."""
    run = find_run(Path(output), name)
    points = run.metrics()
    beside = {
        "train_loss": series_of(points, "train/loss"),
        "held_out_loss": series_of(points, "eval/nats_per_token"),
        "evaluations": _as_results(best_evaluations(run)),
        "tasks": _valid(TaskRow, task_results(run)),
        "answers": _common_replies([run]),
    }
    # One mapping: an unknown field of the record may have one of these names.
    return RunDetails.model_validate(run.read().model_dump() | beside)


def sync_runs(
    names: list[str] | None = None,
    *,
    output: str | Path = DEFAULT_OUTPUT,
    progress: Callable[[str, float], None] = lambda line, fraction: None,
) -> list[SyncRow]:
    """Upload offline W&B runs one by one; an unreadable one does not stop the others.

    Args:
        names: runs to upload; None for all runs of the output folder.
        output: folder of models and runs.
        progress: receives a line about the upload and the fraction of completed runs (0 to 1).

    Raises: UnavailableError without a key, or if the server does not answer; ModelError for an unknown run, or one
    without an offline W&B run; InterruptedRunError, which lists what was uploaded, on Ctrl-C or SIGTERM.
    """
    credentials = find_credentials(Path.cwd())
    if credentials.problem is None:  # otherwise it is the error
        credentials.warn()
    credentials.require_key()
    if names:
        folders = [each for name in names for each in _folders_of(find_run(Path(output), name), Path(output))]
    else:
        folders = offline_folders(Path(output))
    if folders and (problem := problems([credentials.server])[0]) is not None:
        none = f"none of {counted(len(folders), 'offline run')} uploaded"
        raise UnavailableError(
            f"W&B's server at {plain_url(credentials.server)} {problem}: {none}", hint=Call("doctor", network=True)
        )
    rows: list[SyncRow] = []
    try:
        with signals_stop():
            for number, folder in enumerate(folders):
                count = f" ({number + 1} of {len(folders)})" if len(folders) > 1 else ""
                limit = f"at most {wandb_sync.SYNC_TIMEOUT_S:.0f} s"
                progress(f"uploading {folder.name}{count}, {limit}", number / len(folders))
                try:
                    reason = sync_folder(folder, credentials)
                except TimeoutError as error:
                    rows.append(SyncRow(folder=str(folder), uploaded=False, reason=str(error)))
                    late = "not tried, because the previous upload timed out"
                    rows += [
                        SyncRow(folder=str(each), uploaded=False, reason=late) for each in folders[number + 1 :]
                    ]
                    break
                rows.append(SyncRow(folder=str(folder), uploaded=reason is None, reason=reason or ""))
    except InterruptedRunError as stop:
        done = [row for row in rows if row.uploaded]
        left = [str(folder) for folder in folders[len(rows) :]]
        message = f"{stop.message}: {len(done)} of {counted(len(folders), 'offline run')} uploaded"
        raise InterruptedRunError(
            message,
            exit_code=stop.exit_code,
            hint=Call("runs sync", *(names or []), **output_of(output)),
            details=(*(f"uploaded: {row.folder}" for row in done), *(f"not uploaded: {each}" for each in left)),
        ) from None
    return rows


def _folders_of(run: RunDir, output: Path) -> list[Path]:
    found = folders_of_run(run.output or output, run.read().wandb.id)
    if not found:
        raise ModelError(f"the run {run.name!r} has no offline W&B run", hint=Call("runs list"))
    return found
