"""The verdict between models: which predicts best, by how much, and whether that is more than chance."""

import math
import random

import pytest

from dialogkit.services.runs.verdict import Contender, Differing, judge

SIZE = 20.0


def scores(better_by: float = 0.0, *, dialogs: int = 40, noise: float = 0.2) -> dict[str, tuple[float, float]]:
    """Return nats of dialogs that are very different, alike for all models but for a difference and some noise."""
    same, own = random.Random(0), random.Random(repr(better_by))
    return {
        f"{n:016x}": (SIZE * (same.uniform(0.2, 4.0) - better_by + own.uniform(-noise, noise)), SIZE)
        for n in range(dialogs)
    }


def test_a_paired_comparison_is_sharper_than_that_of_two_intervals() -> None:
    wide = (0.5, 4.0)
    a, b = Contender("a", 3.0, wide, scores()), Contender("b", 2.8, wide, scores(0.2))
    verdict = judge([a, b], dialogs=40)
    (behind,) = verdict.behind
    assert (verdict.best, verdict.dialogs, behind.model, behind.clear) == ("b", 40, "a", True)
    assert behind.interval is not None
    low, high = behind.interval
    assert 0.1 < low < behind.difference < high < 0.5
    assert behind.difference == pytest.approx(0.2 / 0.6931, abs=0.1)  # nats in bits
    assert verdict.text == (
        f"b predicts better than a, {verdict.bits_per_byte:.3f} against {behind.bits_per_byte:.3f} bits/byte on "
        f"the same 40 dialogs: {behind.difference:.3f} fewer (95% interval {low:.3f} to {high:.3f}), more than "
        "chance."
    )
    unpaired = judge([one._replace(scores={}) for one in (a, b)], dialogs=40)
    assert unpaired.behind[0].clear is False
    assert unpaired.text == (
        "b predicts better than a, 2.800 against 3.000 bits/byte on the same 40 dialogs: 0.200 fewer, but their "
        "95% intervals overlap, so that may be chance."
    )


def test_a_difference_smaller_than_its_noise_may_be_chance() -> None:
    verdict = judge(
        [Contender("a", 1.0, None, scores()), Contender("b", 1.0, None, scores(0.01, noise=1.5))], dialogs=40
    )
    (behind,) = verdict.behind
    assert behind.interval is not None
    assert behind.interval[0] < 0
    assert verdict.text.endswith("which may be chance.")


def test_only_dialogs_that_all_have_are_compared() -> None:
    half = dict(list(scores(0.3).items())[:25])
    cut = {dialog: (nats, SIZE - 1) for dialog, (nats, _) in list(scores().items())[:5]}  # another answer
    verdict = judge([Contender("a", 9.0, None, scores() | cut), Contender("b", 9.0, None, half)], dialogs=None)
    assert (verdict.best, verdict.dialogs) == ("b", 20)


def test_few_dialogs_cannot_decide() -> None:
    verdict = judge(
        [Contender("a", 1, None, scores(dialogs=8)), Contender("b", 1, None, scores(0.2, dialogs=8))], dialogs=8
    )
    assert verdict.behind[0].clear is False
    assert verdict.text.endswith("but so few dialogs cannot tell whether that is chance.")


def test_three_models_are_measured_against_the_best() -> None:
    contenders = [
        Contender(name, bits, (bits - 0.1, bits + 0.1)) for name, bits in (("a", 3), ("b", 2), ("c", 2.05))
    ]
    assert judge(contenders, dialogs=15).text == (
        "b predicts best, 2.000 bits/byte on the same 15 dialogs; a has 3.000: 1.000 more, more than chance; c "
        "has 2.050: 0.050 more, but their 95% intervals overlap, so that may be chance."
    )


@pytest.mark.parametrize(
    ("a", "b", "dialogs", "text"),
    [
        (2, 1, None, "a and b cannot be compared: they were not evaluated on the same dialogs."),
        (2, None, 15, "a and b cannot be compared: the bits per byte of b are not known."),
        (2, math.nan, 15, "a and b cannot be compared: the bits per byte of b are not known."),
        (2, 2, 15, "a and b predict equally well, 2.000 bits/byte on the same 15 dialogs."),
    ],
)
def test_what_is_not_known_is_said(a: float, b: float | None, dialogs: int | None, text: str) -> None:
    assert judge([Contender("a", a), Contender("b", b)], dialogs=dialogs).text == text


def test_a_model_that_has_seen_the_dialogs_is_named() -> None:
    assert judge([Contender("a", 2, trained_on=True), Contender("b", 3)], dialogs=15).text == (
        "a predicts better than b, 2.000 against 3.000 bits/byte on the same 15 dialogs: 1.000 fewer, and whether "
        "that is more than chance was not measured; a was trained on some of them."
    )


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        (((0.2, 0.3), (0.5, 0.7)), "b 60.0%, a 25.0%, more than chance."),
        (((0.1, 0.6), (0.5, 0.7)), "b 60.0%, a 25.0%, which may be chance."),
        ((None, (0.5, 0.7)), "b 60.0%, a 25.0%."),
    ],
)
def test_right_answers_are_part_of_the_verdict(
    intervals: tuple[tuple[float, float] | None, tuple[float, float]], said: str
) -> None:
    a, b = Contender("a", 1, right=0.25, right_interval=intervals[0]), Contender("b", 2, right=0.6)
    b = b._replace(right_interval=intervals[1])
    assert judge([a, b], dialogs=15).text.endswith(f" Right answers: {said}")
    assert "Right" not in judge([a, b._replace(right=None)], dialogs=15).text


def test_the_settings_that_change_what_is_learned_are_named() -> None:
    pairs = {
        "preset": ["x", "y"],
        "model.name": ["m", "n"],
        "model.width": [32, 64],
        "data.samples": [None, 8],
        "train.learning_rate": [1e-4, 0.5],
        "train.epochs": [1.0, 30.0],
        "train.seed": [1, 2],
        "train.keep": ["best", "last"],
        "tracking.report": [True, False],
    }
    rows = [Differing(name=name, values=values) for name, values in pairs.items()]
    text = judge([Contender("a", 2, (2, 2)), Contender("b", 1, (1, 1))], dialogs=15, differing=rows).text
    assert text.endswith(
        ", more than chance. Settings that differ: model.name m / n, data.samples none / 8, train.learning_rate "
        "0.0001 / 0.5, train.epochs 1 / 30, and 2 more."
    )
