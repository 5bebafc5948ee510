"""Results as HTML, for notebooks: tables, the loss curve as inline SVG, and replies; all text escaped."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dialogkit.services.evaluation.table import columns_of, figure_of, legend_of, measured
from dialogkit.text import counted, duration, sanitize
from dialogkit.tracking.metric_specs import HELD_OUT, METRICS
from dialogkit.tracking.plots import Curve, draw

if TYPE_CHECKING:
    from dialogkit.inference.results import ReplyResult
    from dialogkit.services.evaluate import EvaluateResult
    from dialogkit.services.inspect import InspectResult
    from dialogkit.services.training.result import TrainResult

_COLOURS = {
    "training": "#3b76d8",
    "held-out": "#cf6a12",
    "muted": "var(--jp-ui-font-color2, #737c88)",
    "line": "var(--jp-border-color2, #8886)",
}
"""Colours by the names that the curves use; those of the notebook's theme where it has them."""
_WIDTH, _HEIGHT = 640, 240


def training(result: "TrainResult") -> str:
    """Return a run: metrics before and after, the loss curve, replies, and where everything is."""
    rows = [
        [title, *(format(result.metrics[f"{when}/{name}"], form) for when in ("before", "final"))]
        for name, (title, form) in HELD_OUT.items()
        if {f"before/{name}", f"final/{name}"} <= result.metrics.keys()
    ]
    places = {"model": result.published_dir, "run": result.run_dir, "report": result.report}
    parts = [
        _heading(f"{result.run}: {result.steps_in_words}, {duration(result.duration_s)}"),
        _table(["held out, in float32", "before", "after"], rows),
        loss_curve(result.curve),
        replies(result.shown_replies),
        *(_line(f"{name}: {place}") for name, place in places.items() if place),
    ]
    return _page(parts)


def evaluation(result: "EvaluateResult") -> str:
    """Return an evaluation: the verdict, a metric per line with models and baselines side by side, and remarks."""
    columns = columns_of(result.rows, result.anchors)
    rows = [
        [metric.title, *(figure_of(metric, row) for _, row in columns)]
        for metric in measured(METRICS, result.rows)
    ]
    on = ", ".join(dict.fromkeys(f"{counted(row.dialogs, 'dialog')} of {row.dataset}" for row in result.rows))
    remarks = [_line(f"{row.model} {remark}.") for row in result.rows for remark in row.remarks]
    verdict = [_line(result.verdict.text)] if result.verdict is not None else []
    titles = [legend_of(result.rows), *(title for title, _ in columns)]
    return _page([_heading(on), *verdict, _table(titles, rows), *remarks])


def generation(made: "Sequence[ReplyResult]", notes: Sequence[str] = ()) -> str:
    """Return replies and notes on them."""
    return _page([replies(made), *map(_line, notes)])


def inspection(result: "InspectResult") -> str:
    """Return the main figures of a dataset, and the remarks on it."""
    rows = [
        [name, f"{figures.dialogs:,}", f"{figures.tokens:,}", f"{figures.supervised_tokens:,}"]
        for name, figures in (("to train on", result.train), ("held out", result.held_out))
    ]
    facts = {
        "rows": f"{result.rows:,}, {result.unusable:,} unusable",
        "cut": f"{counted(result.cut, 'dialog')} to {counted(result.limit, 'token')}",
        "copies": f"{result.copies.exact:,} exact, {result.copies.near:,} near",
        "length": f"median {result.lengths.median:,.0f} tokens, longest {result.lengths.longest:,}",
    }
    return _page(
        [
            _heading(f"{result.dataset} ({result.format}) for {result.model}"),
            _table(["", "dialogs", "tokens", "supervised"], rows),
            _table(["", ""], list(map(list, facts.items()))),
            *map(_line, [*result.notes, *result.remarks]),
        ]
    )


def replies(made: "Sequence[ReplyResult]") -> str:
    """Return a table of prompts, their true answers if known, and the replies of each model."""
    models = list(dict.fromkeys(reply.model for reply in made))
    references = {reply.prompt: [reply.reference] for reply in made if reply.reference is not None}
    by_prompt: dict[str, dict[str, str]] = {}
    for reply in made:
        by_prompt.setdefault(reply.prompt, {})[reply.model] = reply.reply or "(empty)"
    rows = [
        [
            prompt,
            *(references.get(prompt, [""]) if references else ()),
            *(found.get(model, "") for model in models),
        ]
        for prompt, found in by_prompt.items()
    ]
    titles = ["prompt", *(["true answer"] if references else ()), *(models if len(models) > 1 else ["reply"])]
    return _table(titles, rows, left=True) if rows else ""


def loss_curve(points: Sequence[Mapping[str, float]]) -> str:
    """Return training and held-out loss over steps as inline SVG; empty without points."""
    lines = {"training": "train/loss", "held-out": "eval/nats_per_token"}
    curves = []
    for name, metric in lines.items():
        known = [(point["step"], point[metric]) for point in points if metric in point]
        steps, values = [step for step, _ in known], [value for _, value in known]
        curves.append(Curve(steps, values, f"--{name}", "line" if name == "training" else "marks"))
    drawable = [curve for curve in curves if curve.drawable]
    if not drawable:
        return ""
    style = "".join(f"--{name}: {colour}; " for name, colour in _COLOURS.items())
    legend = " ".join(
        f'<span style="color: var({curve.colour})">&#9679; {curve.colour[2:]}</span>' for curve in drawable
    )
    # Ids in the SVG are made from its title; two curves in one notebook may share them, as their marks are alike.
    drawn = draw(drawable, title="Loss", width=_WIDTH, height=_HEIGHT)
    return (
        f'<div style="{style}max-width: {_WIDTH}px"><div>loss in nats per token over steps &#160; {legend}</div>'
        f"{drawn}</div>"
    )


def _page(parts: Sequence[str]) -> str:
    return f'<div style="font-size: 13px; line-height: 1.5">{"".join(parts)}</div>'


def _heading(text: str) -> str:
    return f"<div><b>{_escaped(text)}</b></div>"


def _line(text: str) -> str:
    return f"<div>{_escaped(text)}</div>"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Return a table; all columns but the first are numbers, aligned to the right, unless `left`."""
    aligns = ["left", *["left" if left else "right"] * (len(titles) - 1)]

    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} style="text-align: {align}; vertical-align: top; padding: 2px 8px; white-space: pre-wrap">'
            f"{_escaped(value)}</{tag}>"
            for value, align in zip(values, aligns, strict=True)
        )

    head = f"<thead><tr>{cells(titles, 'th')}</tr></thead>" if any(titles) else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _escaped(text: str) -> str:
    return html.escape(sanitize(text))
