"""Results as a notebook shows them: one short line, or HTML that is well formed and escaped."""

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel

import dialogkit
from dialogkit.config.base import Result
from dialogkit.inference.results import ReplyResult
from dialogkit.services.display import loss_curve
from dialogkit.services.runs.verdict import Contender, judge
from tests.conftest import Trained

HOSTILE = "<script>alert(1)</script>\u202e\x1b"


@pytest.fixture(scope="module")
def results(trained: Trained) -> list[Any]:
    evaluated = dialogkit.evaluate("shared-run", output=trained.output, samples=2, device="cpu", wandb="disabled")
    return [
        trained.result,
        evaluated,
        dialogkit.GenerateResult(replies=trained.result.replies, notes=["a note"]),
        dialogkit.inspect_data("starter", model="custom-nano", samples=8),
    ]


def within(value: Any) -> Iterator[Result]:
    """Yield every result in a value, itself included."""
    if isinstance(value, Result):
        yield value
    parts = [getattr(value, name) for name in type(value).model_fields] if isinstance(value, BaseModel) else value
    for part in parts if isinstance(parts, list) else ():
        yield from within(part)


def test_every_result_is_one_short_line(results: list[Any]) -> None:
    found = [*within(results), *dialogkit.list_models()]
    assert len({type(result) for result in found}) > 12
    for result in found:
        for text in (repr(result), str(result)):
            assert len(text) < 200
            assert "\n" not in text
            assert text.startswith(f"{type(result).__name__}(")


def test_what_matters_is_in_the_line(trained: Trained, results: list[Any]) -> None:
    final = trained.result.metrics["final/bits_per_byte"]
    assert "run='shared-run'" in repr(trained.result)
    assert f"final_bits_per_byte={final:.4g}" in repr(trained.result)
    (row,) = results[1].rows
    low, high = row.intervals["bits_per_byte"]
    assert repr(results[1]) == (
        f"EvaluateResult(models='shared-run', bits_per_byte='{row.bits_per_byte:.3f}', "
        f"interval='{low:.3f} to {high:.3f}')"
    )


def test_html_is_well_formed(results: list[Any]) -> None:
    for result in results:
        ElementTree.fromstring(result._repr_html_())


def test_a_run_shows_figures_curve_and_replies(trained: Trained) -> None:
    page = ElementTree.fromstring(trained.result._repr_html_())
    words = "".join(page.itertext())
    for text in ("bits per byte", f"{trained.result.metrics['final/bits_per_byte']:.3f}", trained.result.run):
        assert text in words
    for reply in trained.result.replies:
        assert reply.prompt in words
    (curve,) = page.iter("svg")
    assert len(list(curve.iter("path"))) >= 2, "training and held-out loss"


def test_an_evaluation_of_several_shows_its_verdict_and_each_baseline_once(
    results: list[Any],
) -> None:
    one = results[1]
    row = one.rows[0].model_copy(update={"intervals": {"bits_per_byte": (1.0, 9.0)}})
    other = row.model_copy(update={"model": "other", "bits_per_byte": 8.0})
    verdict = judge([Contender.of_row(each.model, each, {}) for each in (row, other)], dialogs=2)
    anchors = [*one.anchors, *(anchor.model_copy(update={"model": "other"}) for anchor in one.anchors)]
    both = one.model_copy(update={"rows": [row, other], "anchors": anchors, "verdict": verdict})
    page = ElementTree.fromstring(both._repr_html_())
    heads = ["".join(cell.itertext()) for cell in page.iter("th")]
    assert heads == ["95% interval in brackets", row.model, "other", "untrained", "unigram", "true answers"]
    words = "".join(page.itertext())
    assert verdict.text in words
    assert words.index(verdict.text) < words.index("bits/byte")
    assert f"{row.bits_per_byte:.4f} [1.0000, 9.0000]" in words
    assert repr(verdict) == verdict.text
    assert "more_than_chance=False" in repr(both)


def test_text_from_outside_is_escaped(trained: Trained) -> None:
    reply = ReplyResult(model=HOSTILE, prompt=HOSTILE, reply=HOSTILE, tokens=1, seconds=1.0, stop_reason="length")
    result = trained.result.model_copy(update={"replies": [reply], "run": HOSTILE})
    replies = dialogkit.GenerateResult(replies=[reply, reply.model_copy(update={"model": "b"})], notes=[HOSTILE])
    for page in (result._repr_html_(), replies._repr_html_()):
        assert "script" not in {element.tag for element in ElementTree.fromstring(page).iter()}
        assert "alert(1)" in page
        assert not {"\u202e", "\x1b"} & set(page)


def test_without_points_there_is_no_curve() -> None:
    assert loss_curve([]) == ""
    assert loss_curve([{"step": 1, "train/loss": float("nan")}]) == ""


def test_the_curve_has_a_point_for_each_step_with_its_metrics(trained: Trained) -> None:
    curve = trained.result.curve
    assert [point["step"] for point in curve] == sorted({point["step"] for point in curve})
    assert all(isinstance(value, float | int) for point in curve for value in point.values())
    assert curve[-1]["train/loss"] < curve[1]["train/loss"]
    assert "eval/nats_per_token" in curve[0]
    assert trained.result.model_copy(update={"run_dir": "no/such/run"}).curve == []
