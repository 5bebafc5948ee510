"""Metrics of replies are what their names say."""

import pytest

from dialogkit.inference.reply_metrics import (
    Answered,
    ReplyMetrics,
    distinct,
    echoed_fraction,
    repeated_fraction,
    rouge_l,
    similarities,
)


def test_figures_of_replies_are_what_their_names_say() -> None:
    loop = ["a", "b", "c", "d", "a", "b", "c", "d", "a", "b", "c", "d"]
    assert repeated_fraction(loop, 4) == pytest.approx(5 / 9)
    assert repeated_fraction(["a", "b"], 4) == 0.0
    assert distinct([["a", "b", "a"], ["b", "c"]], 1) == pytest.approx(3 / 5)
    assert distinct([["a", "b", "a"], ["b", "c"]], 2) == 1.0
    assert echoed_fraction("Tell me of the cats now", "tell me of the dogs") == pytest.approx(2 / 4)
    assert similarities("The same text.", "The same text.") == pytest.approx((100, 1))
    assert similarities("", "Something.") == pytest.approx((0, 0))
    figures = ReplyMetrics(
        [Answered("p", "one two", "one two three", stopped=True), Answered("p", "", "x", stopped=False)]
    ).figures()
    assert (figures["stop_rate"], figures["cut_rate"], figures["empty_rate"]) == (0.5, 0.5, 0.5)
    assert figures["length_ratio"] == pytest.approx(7 / 14)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [  # by the package rouge-score 0.1.2, without stemming
        ("The cat sat on the mat.", "The cat sat on the mat.", 1.0),
        ("the mat sat on the cat", "The cat sat on the mat.", 0.6666666666666666),
        ("", "Something.", 0.0),
        ("Something.", "", 0.0),
        ("?!", "...", 0.0),
        ("Paris is the capital.", "The capital of France is Paris.", 0.4),
        ("One, two, three; four", "four three two one", 0.25),
        ("don't stop", "do not stop", 0.3333333333333333),
        ("re-use of U.S. data", "reuse of us data", 0.4),
        ("10 x 5 = 50", "5 times 10 is 50", 0.4444444444444445),
        ("HELLO hello HeLLo", "hello", 0.5),
        ("a b c d e f", "a x b x c x", 0.5),
        ("Gr\u00fc\u00dfe an alle", "Gruesse an alle", 0.5714285714285715),
        ("na\u00efve caf\u00e9", "naive cafe", 0.0),
        ("\u041f\u0447\u0451\u043b\u044b", "\u041f\u0447\u0451\u043b\u044b", 0.0),
        ("I I I I I I", "I am here", 0.2222222222222222),
        ("snake_case_name", "snake case name", 1.0),
        ("300\u212a", "300k", 1.0),  # the Kelvin sign, whose lower case is k
        ("line one\nline two", "line two\tline one", 0.5),
        ("running runs", "run runs ran", 0.4),
    ],
)
def test_rouge_l_is_that_of_rouge_score(text: str, reference: str, expected: float) -> None:
    assert rouge_l(text, reference) == expected
