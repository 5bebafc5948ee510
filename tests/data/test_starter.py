"""The dialogs that ship with the package."""

import math
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from dialogkit.config.data import DataConfig
from dialogkit.config.model import ModelConfig
from dialogkit.data.prepare import prepare_data
from dialogkit.data.sources import NAMED, STARTER, RawData, find_source, read_dialogs
from dialogkit.dialog import Dialog, check_dialog
from dialogkit.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def raw() -> RawData:
    return read_dialogs(find_source(DataConfig()), DataConfig())


@pytest.fixture(scope="module")
def dialogs(raw: RawData) -> list[Dialog]:
    return list(raw.dialogs)


@pytest.fixture(scope="module")
def answers(dialogs: list[Dialog]) -> list[str]:
    return [message.content for dialog in dialogs for message in dialog if message.role == "assistant"]


def test_there_are_hundreds_and_every_row_is_a_dialog(raw: RawData) -> None:
    assert len(raw.dialogs) == raw.rows >= 300
    assert raw.bad_rows == []
    assert [check_dialog(dialog) for dialog in raw.dialogs] == [None] * raw.rows


def test_nothing_is_asked_twice(dialogs: list[Dialog]) -> None:
    def normal(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.casefold()))

    asked = Counter(normal(message.content) for dialog in dialogs for message in dialog if message.role == "user")
    assert [text for text, count in asked.items() if count > 1] == []
    assert len(set(dialogs)) == len(dialogs)


def test_there_is_something_of_everything(dialogs: list[Dialog], answers: list[str]) -> None:
    assert sum(dialog[0].role == "system" for dialog in dialogs) >= 20
    assert sum(sum(message.role == "assistant" for message in dialog) > 1 for dialog in dialogs) >= 20
    words = [len(answer.split()) for answer in answers]
    assert sum(count == 1 for count in words) >= 20
    assert sum(count >= 150 for count in words) >= 5
    assert len(Counter(words)) >= 50


def test_the_text_is_clean(dialogs: list[Dialog]) -> None:
    for text in (message.content for dialog in dialogs for message in dialog):
        assert text == text.strip()
        assert text == unicodedata.normalize("NFC", text)
        assert all(character == "\n" or character.isprintable() for character in text)
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert not re.search(r"\S  ", prose), text


FOREIGN = (
    r"https?:|www\.|@|<\||openai|anthropic|claude|chatgpt|\bgpt|gemini|llama|language model|as an ai\b"
    r"|dialogkit|\btodo\b|lorem"
)


def test_nothing_names_other_assistants_people_or_places_on_the_web(dialogs: list[Dialog]) -> None:
    text = "\n".join(message.content for dialog in dialogs for message in dialog)
    assert re.findall(FOREIGN, text.casefold()) == []


def test_the_licence_lies_beside_and_is_the_one_that_is_reported() -> None:
    licence = (Path(STARTER).parent / "LICENSE").read_text(encoding="utf-8")
    assert STARTER.name in licence
    assert str(NAMED["starter"].license) in licence
    assert "CC0 1.0" in licence


def test_every_dialog_fits_into_1024_tokens_of_the_shipped_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(layers=1, width=8, heads=1, context=1024))
    ledger = prepare_data(DataConfig(), tokenizer, context=1024, cache=tmp_path).ledger
    assert (ledger.cut, ledger.dropped, ledger.unusable) == (0, 0, 0)


NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
SUM = rf"{NUMBER}(?: [-+*/x] {NUMBER})*"


def value(text: str) -> float:
    """Return what a sum of numbers is; `x` is a product."""
    return float(eval(text.replace(",", "").replace("x", "*"), {"__builtins__": {}}))


def test_every_sum_that_is_written_out_is_right(answers: list[str]) -> None:
    # Whole sums only: what `y + 4 = 10` says about 4 is something else.
    equations = [
        e for answer in answers for e in re.findall(rf"(?<![-+*/x=] )(?<![\w.,]){SUM}(?: = {SUM})+", answer)
    ]
    assert len(equations) >= 15
    for equation in equations:
        first, *others = [value(side) for side in equation.split(" = ")]
        assert all(math.isclose(first, other) for other in others), equation


WORDS = {"plus": "+", "minus": "-", "times": "*", "divided by": "/", "percent of": "* 0.01 *"}
IN_WORDS = rf"({NUMBER}) ({'|'.join(WORDS)}) ({NUMBER})"


def test_every_sum_that_is_said_or_asked_for_in_words_is_right(dialogs: list[Dialog], answers: list[str]) -> None:
    said = [found.groups() for answer in answers for found in re.finditer(rf"{IN_WORDS} is ({NUMBER})", answer)]
    # With a system message the answer may be something else on purpose, such as a hint.
    exchanges = [dialog[:2] for dialog in dialogs if dialog[0].role == "user"]
    asked = [
        (*found.groups(), answer.content)
        for question, answer in exchanges
        if (found := re.match(rf"(?:What is|Compute) {IN_WORDS}", question.content))
    ]
    assert len(said) + len(asked) >= 3
    for left, word, right, reported in [*said, *asked]:
        result = value(f"{left} {WORDS[word]} {right}")
        assert any(math.isclose(result, value(number)) for number in re.findall(NUMBER, reported)), (
            left,
            word,
            right,
        )
