"""Errors in a notebook: a sentence, and what to do about it in Python."""

from pathlib import Path

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
