"""The tables of a page: metrics, settings, data, machine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dialogkit.config.load import flatten
from dialogkit.text import known_from_training, no_fault
from dialogkit.tracking.metric_specs import ANCHORS, GROUPS, METRICS, STOP_RATE, best_of
from dialogkit.tracking.report.run import NOTHING, PageRun, in_bytes, number, short, text_of, written

TO = "–"  # noqa: RUF001 - an en dash stands between bounds

_DATA_TITLES = {
    "license": "licence",
    "rows": "rows read",
    "unusable": "rows that could not be read",
    "cut": "dialogs cut to the context",
    "dropped": "dialogs dropped",
    "first_bad_row": "first that was dropped",
    "kept": "dialogs kept",
    "train_dialogs": "dialogs to train on",
    "train_tokens": "their tokens",
    "train_supervised_tokens": "of these supervised",
    "checked": "answers with a check",
    "eval_dialogs": "dialogs held out",
    "eval_supervised_tokens": "their supervised tokens",
    "known_prompts": "of these with a prompt of training",
    "known_answers": "of these with an answer of training",
}


Best = Mapping[tuple[str, float], str | None]
"""The run that predicts best by more than chance, or None, by dataset and number of dialogs."""


class Cell(NamedTuple):
    """A value in a table, with a note below it."""

    text: str
    note: str = ""
    best: bool = False


class Row(NamedTuple):
    """A row of a table."""

    name: str
    cells: list[Cell]
    differs: bool = False
    """Whether the runs differ in it."""


class Head(NamedTuple):
    """The header of a column; runs have a letter and a colour if there are several, baselines are muted."""

    text: str
    colour: str = ""
    letter: str = ""
    muted: bool = False


class Group(NamedTuple):
    """Rows under a title."""

    rows: list[Row]
    title: str = ""
    subtitle: str = ""


class Table(NamedTuple):
    """Rows in groups. Without heads, the table has one column of values."""

    heads: list[Head]
    groups: list[Group]
    caption: str = ""


class Evaluation(NamedTuple):
    """Models on one dataset, with the baselines beside them."""

    table: Table
    remarks: list[str]
    """Faults, or a sentence that none was found."""
    slices: list[Table]


_Column = tuple[Head, Mapping[str, Any]]
"""A model or a baseline with its stored metrics."""


def _heads(runs: Sequence[PageRun]) -> list[Head]:
    return [] if len(runs) == 1 else [Head(run.name, run.colour, run.letter) for run in runs]


def _table(heads: list[Head], rows: list[Row], caption: str = "") -> Table:
    return Table(heads, [Group(rows)] if rows else [], caption)


# Metrics


def summary_of(runs: Sequence[PageRun]) -> Table:
    """Return the main metrics of several runs, side by side."""

    def right(run: PageRun) -> str:
        return written(run.after("right_answers"), ".1%")

    lines: dict[str, Callable[[PageRun], str]] = {
        "model": lambda run: run.model,
        "preset": lambda run: run.preset,
        "dataset": lambda run: run.dataset or NOTHING,
        "bits/byte before": lambda run: written(run.before("bits_per_byte"), ".3f"),
        "bits/byte after": lambda run: written(run.after("bits_per_byte"), ".3f"),
        "loss (nats/token)": lambda run: written(run.after("nats_per_token"), ".3f"),
        "accuracy": lambda run: written(run.after("accuracy"), ".1%"),
        **({"right answers": right} if any(run.after("right_answers") is not None for run in runs) else {}),
        STOP_RATE: lambda run: written(run.record.replies.get("stop_rate"), ".1%"),
        "parameters": lambda run: written(run.record.model.parameters, ",.0f"),
        "steps": lambda run: written(run.steps, ",.0f"),
        "tokens seen": lambda run: short(run.tokens),
        "tokens/s": lambda run: written(run.speed, ",.0f"),
        "time": lambda run: run.took,
        "memory": lambda run: in_bytes(run.memory),
    }
    return _table(_heads(runs), [Row(name, [Cell(value(run)) for run in runs]) for name, value in lines.items()])


def training_metrics_of(runs: Sequence[PageRun]) -> Table:
    """Return the metrics on the held-out dialogs before training, and after it with their intervals."""
    rows = []
    for metric in METRICS:
        values: list[tuple[object, object]] = []
        for run in runs:
            interval = run.record.intervals.get(f"final/{metric.name}")
            values += [(run.before(metric.name), None), (run.after(metric.name), interval)]
        if any(value is not None for value, _ in values):
            rows.append(Row(metric.title, [_cell(*value, metric.form) for value in values]))
    times = ("before", "after")
    if len(runs) == 1:
        return _table([Head(time) for time in times], rows)
    return _table([Head(f"{run.name}, {time}", run.colour, run.letter) for run in runs for time in times], rows)


def evaluations_of(runs: Sequence[PageRun], best: Best) -> list[Evaluation]:
    """Return the stored evaluations, one table for each set of dialogs.

    Args:
        runs: the runs of the page.
        best: the run whose bits per byte are the best by more than chance, as the verdict has it. Where it is not
            known, and for all other metrics, intervals decide.
    """
    models: dict[str, list[_Column]] = {}
    judged: dict[str, str | None] = {}
    anchors: dict[str, list[_Column]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            dialogs = number(evaluation.get("dialogs"))
            measured = (
                f"{evaluation.get('dataset')}, {written(dialogs, ',.0f')} dialog{'' if dialogs == 1 else 's'}"
            )
            head = Head(run.name, run.colour, run.letter) if len(runs) > 1 else Head(run.model)
            models.setdefault(measured, []).append((head, evaluation))
            if dialogs is not None and (place := (str(evaluation.get("dataset")), dialogs)) in best:
                judged[measured] = best[place]
            beside = anchors.setdefault(measured, [])
            for anchor in _mappings(evaluation.get("anchors")):
                name = str(anchor.get("anchor"))
                # Models with the same shape and tokenizer have the same baselines.
                identity = ("anchor", "bits_per_byte", "chrf")
                if not any(all(anchor.get(n) == other.get(n) for n in identity) for _, other in beside):
                    again = any(other.get("anchor") == name for _, other in beside)
                    title = ANCHORS.get(name, name) + (f" ({run.letter})" if again else "")
                    beside.append((Head(title, muted=True), anchor))
    return [_evaluation(measured, rows, anchors[measured], judged) for measured, rows in models.items()]


def _evaluation(
    measured: str, models: list[_Column], anchors: list[_Column], judged: Mapping[str, str | None]
) -> Evaluation:
    columns = [*models, *anchors]
    groups = []
    for group, (title, subtitle) in GROUPS.items():
        rows = []
        for name, words, form, better, _ in (metric for metric in METRICS if metric.group == group):
            values = [(column.get(name), _mapping(column.get("intervals")).get(name)) for _, column in columns]
            row = _row(words, values, form, better, models=len(models))
            if name == "bits_per_byte" and measured in judged:
                cells = zip(columns, row.cells, strict=True)
                best = judged[measured]
                row = row._replace(cells=[cell._replace(best=head.text == best) for (head, _), cell in cells])
            rows.append(row)
        if rows := [row for row in rows if any(cell.text != NOTHING for cell in row.cells)]:
            groups.append(Group(rows, title, subtitle))
    return Evaluation(
        Table([head for head, _ in columns], groups, measured),
        [remark for head, values in models for remark in _remarks(head.text, values)],
        [table for head, values in models if (table := _slices(head, values)).groups],
    )


def _remarks(name: str, evaluation: Mapping[str, Any]) -> list[str]:
    """Return what the evaluation says about a model."""
    faults, checks = (_items(evaluation.get(what)) for what in ("remarks", "checks"))
    said = [f"{name} {fault}" for fault in faults] or ([f"{name}: {no_fault(checks)}"] if checks else [])
    known = [evaluation.get(what) for what in ("known_prompts", "known_answers")]
    prompts, answers = (value if type(value) is int else None for value in known)
    note = None if evaluation.get("trained_on") else known_from_training("these dialogs", prompts, answers)
    return [*said, f"{name}: {note}"] if note else said


def _row(
    title: str, values: Sequence[tuple[object, object]], form: str, better: int, *, models: int | None = None
) -> Row:
    """Return a metric with its intervals: of the models, which come first, and of the baselines."""
    of_models = values if models is None else values[:models]
    bounds = {n: pair for n, (_, interval) in enumerate(of_models) if (pair := _bounds(interval)) is not None}
    best = best_of(bounds, better) if len(bounds) == len(of_models) else None
    return Row(title, [_cell(*value, form, best=n == best) for n, value in enumerate(values)])


def _cell(value: object, interval: object, form: str, *, best: bool = False) -> Cell:
    measured, bounds = number(value), _bounds(interval)
    low, high = ("", "") if measured is None or bounds is None else (format(bound, form) for bound in bounds)
    note = f"{low} {TO} {high}" if low != high else ""  # a single value needs no interval
    return Cell(written(measured, form), note, best)


def _slices(head: Head, evaluation: Mapping[str, Any]) -> Table:
    rows = []
    for part in _mappings(evaluation.get("slices")):
        bits = _cell(part.get("bits_per_byte"), part.get("interval"), ".4f")
        rows.append(Row(str(part.get("name")), [_cell(part.get("dialogs"), None, ",.0f"), bits]))
    return _table([Head("dialogs"), Head("bits/byte")], rows, head.text)


def tasks_of(runs: Sequence[PageRun]) -> Table:
    """Return the task results of the models, those on the same questions side by side."""
    heads = _heads(runs) or [Head(run.model) for run in runs]
    found: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for place, run in enumerate(runs):
        for task in run.tasks:
            rows = found.setdefault((str(task.get("name")), _asked(task)), {})
            for metric in _mappings(task.get("figures")):
                name = f"{metric.get('name')} {metric.get('filter') or ''}".strip()
                rows.setdefault(name, [{}] * len(runs))[place] = metric
    groups = [
        Group([_task_row(name, metrics) for name, metrics in rows.items()], task, asked)
        for (task, asked), rows in found.items()
        if rows
    ]
    return Table(heads, groups)


def _asked(task: Mapping[str, Any]) -> str:
    """Return the number of questions of a task, and of examples before each."""
    questions, of, examples = (number(task.get(name)) for name in ("questions", "of_questions", "examples"))
    if not questions:
        return ""
    text = f"{questions:,.0f}{f' of {of:,.0f}' if of and of != questions else ''} questions"
    return text + (f" after {examples:,.0f} example{'' if examples == 1 else 's'}" if examples else "")


def _task_row(name: str, metrics: Sequence[Mapping[str, Any]]) -> Row:
    better = next((metric.get("better") for metric in metrics if metric), 0)
    values = [(metric.get("value"), metric.get("interval")) for metric in metrics]
    return _row(name, values, ".4f", better if isinstance(better, int) else 0)


def _bounds(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _items(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


# Settings, data, machine


def settings_of(runs: Sequence[PageRun], *, all_of_them: bool) -> Table:
    """Return settings with their origins: all, or only those chosen by the user or different between runs."""
    settings = [dict(flatten(run.record.config)) for run in runs]
    origins = [run.record.origins for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    if not all_of_them and len(runs) > 1:
        names = [n for n in names if n != "name" and any(one.get(n) != settings[0].get(n) for one in settings)]
    elif not all_of_them:
        names = [name for name in names if origins[0].get(name, "default") != "default"]
    if len(runs) > 1:
        return _side_by_side(runs, [{name: one.get(name) for name in names} for one in settings], origins)
    rows = [Row(name, [Cell(_value(settings[0][name])), Cell(origins[0].get(name, ""))]) for name in names]
    return _table([Head("value"), Head("from", muted=True)] if origins[0] else [], rows)


def data_of(runs: Sequence[PageRun]) -> Table:
    """Return the data of the runs and the counts of its rows."""
    columns = [
        {
            _DATA_TITLES.get(name, name.replace("_", " ")): f"{value:,}" if type(value) is int else value
            for name, value in run.record.data.model_dump().items()
            if value is not None
        }
        for run in runs
    ]
    return _side_by_side(runs, columns)


def machine_of(runs: Sequence[PageRun]) -> Table:
    """Return the machines of the runs."""
    return _side_by_side(runs, [_machine(run) for run in runs])


def versions_of(runs: Sequence[PageRun]) -> Table:
    """Return the versions of the packages."""
    return _side_by_side(runs, [run.record.versions for run in runs])


def _side_by_side(
    runs: Sequence[PageRun], columns: Sequence[Mapping[str, Any]], notes: Sequence[Mapping[str, str]] | None = None
) -> Table:
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name) for column in columns]
        cells = [
            Cell(_value(value), note.get(name, ""))
            for value, note in zip(values, notes or [{}] * len(values), strict=True)
        ]
        rows.append(Row(name, cells, any(value != values[0] for value in values)))
    return _table(_heads(runs), rows)


def _value(value: object) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "\n".join(value) or NOTHING
    shown = text_of(value)
    return shown.text + (f" ... and {shown.more:,} characters more" if shown.more else "")


class Share(NamedTuple):
    """A fraction of the rows of a dataset."""

    kind: str
    text: str
    percent: float


def shares_of(run: PageRun) -> list[Share]:
    """Return how the rows were used; empty if unknown."""
    data = run.record.data
    rows, kept, train, held_out = (
        count or 0 for count in (data.rows, data.kept, data.train_dialogs, data.eval_dialogs)
    )
    parts = {
        "train": ("to train on", train),
        "held": ("held out", held_out),
        "spare": ("kept and not used", kept - train - held_out),
        "lost": ("dropped or not readable", rows - kept),
    }
    if rows <= 0 or any(count < 0 for _, count in parts.values()):
        return []
    return [Share(kind, f"{n:,.0f} {words}", 100 * n / rows) for kind, (words, n) in parts.items() if n]


def _machine(run: PageRun) -> dict[str, Any]:
    runtime, environment = run.record.runtime, run.record.environment
    plain = environment.model_dump(exclude={"memory_bytes", "git"})
    shown: dict[str, Any] = {
        "device": _because(runtime.device_name, runtime.device_reason),
        "precision": _because(runtime.precision, runtime.precision_reason),
        **{name.replace("_", " "): value for name, value in plain.items()},
        "memory": "" if environment.memory_bytes is None else in_bytes(environment.memory_bytes),
    }
    if (git := environment.git) is not None:
        dirty = ", with changes that are not in it" if git.dirty else ""
        shown["git commit"] = f"{str(git.commit)[:12]} on {git.branch}{dirty}"
    return {name: value for name, value in shown.items() if value not in (None, "")}


def _because(value: str | None, reason: str | None) -> str:
    return ", because ".join(filter(None, (value, reason)))
