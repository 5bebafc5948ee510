"""Errors in a notebook: a sentence, and what to do about it in Python."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dialogkit
from dialogkit.api.shell import sentences
from dialogkit.errors import DialogKitError
from tests.conftest import Trained


def test_a_dataset_is_a_parameter_of_evaluate_and_a_setting_elsewhere(trained: Trained) -> None:
    rows = [f'{{"prompt": "What is {n} plus 1?", "response": "It is {n + 1}."}}\n' for n in range(40)]
    Path("dialogs.jsonl").write_text("".join(rows), encoding="utf-8")
    with pytest.raises(DialogKitError) as asked:
        dialogkit.evaluate("shared-run", dataset="dialog.jsonl", output=trained.output)
    assert sentences(asked.value)[-1] == 'try: dataset="dialogs.jsonl"'
    with pytest.raises(DialogKitError) as trains:
        dialogkit.train(dialogkit.load_run_config("custom-nano", overrides={"data.dataset": "dialog.jsonl"}))
    assert 'overrides={"data.dataset": "dialogs.jsonl"}' in sentences(trains.value)[-1]


@pytest.mark.parametrize(
    ("call", "sentence", "hint"),
    [
        (lambda it: it.train("custom-pico"), "not 'custom-pico'", 'train(load_run_config("custom-pico"))'),
        (lambda it: it.train({"model": "custom-nano"}), "not {'model'", 'train(load_run_config("custom-nano"))'),
        (lambda it: it.load_run_config(overrides=["name=x", "train.max_steps=5"]), "must be a dict",
         'overrides={"name": "x", "train.max_steps": 5}'),
        (lambda it: it.plan(overrides=3), "not 3", 'overrides={"train.max_steps": 5}'),
        (lambda it: it.evaluate("a", samples=0), "samples: must be a whole number of at least 1 (got 0)",
         "samples=20"),
        (lambda it: it.evaluate([]), "no model is given", "dialogkit runs list"),
        (lambda it: it.generate("a", []), "no prompt is given", 'generate("a", "Hello!")'),
        (lambda it: it.evaluate("a", samples="ten"), "(got 'ten')", "samples=20"),
        (lambda it: it.evaluate("a", batch_size=0), "batch_size: must be a whole number from 1 to 65,536 (got 0)",
         "batch_size=8"),
        (lambda it: it.inspect_data(show="x"), "show: must be a whole number from 0", "show=1"),
        (lambda it: it.generate("a", "b", temprature=0), "'temprature' (did you mean 'temperature'?)",
         "temperature=0"),
        (lambda it: it.generate("a", "b", generate={"temperature": 0}), "'generate'; how to sample is set by",
         "temperature=0"),
        (lambda it: it.generate("a", "b", temperature=9), "temperature: must be less than or equal to 2",
         "temperature=0.7"),
        (lambda it: it.generate("a", "b", config={"top_k": 1}), "config must be a GenerateConfig", "top_k=1"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_a_sentence_and_what_to_type(
    call: Callable[[Any], Any], sentence: str, hint: str
) -> None:
    with pytest.raises(DialogKitError) as refused:
        call(dialogkit)
    first, *_, last = sentences(refused.value)
    assert sentence in first
    assert last == f"try: {hint}"


def test_what_takes_long_is_said_in_a_terminal_alone(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.api.inference.loads_libraries", lambda: True)
    calls: list[Callable[..., Any]] = [
        lambda **quiet: dialogkit.generate("shared-run", "Hello!", output=trained.output, **quiet),
        lambda **quiet: dialogkit.evaluate("shared-run", samples=1, quick=True, output=trained.output, **quiet),
    ]
    said = []
    for call in calls:
        call()  # a program, whose output may be read by another
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        call(quiet=True)
        assert capsys.readouterr() == ("", "")
        call()
        out, err = capsys.readouterr()
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
        assert out == ""
        said.append(err.splitlines()[0])
    assert said == ["loading torch and transformers ...", "shared-run: loading ..."]
