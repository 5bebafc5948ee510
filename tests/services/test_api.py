"""The package from a notebook: one import, and no heavy library before it is needed."""

import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dialogkit
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import REPOSITORY, SMALL, Trained
from tests.forks import heard, run_forked

SETTINGS = {name: value for name, value in SMALL.items() if name != "data.samples"}


def test_every_public_name_is_there_and_listed() -> None:
    assert set(dialogkit.__all__) <= set(dir(dialogkit))
    assert set(dialogkit._EXPORTS) == set(dialogkit.__all__) - {"__version__"}
    for name in dialogkit.__all__:
        assert getattr(dialogkit, name) is getattr(dialogkit, name)


@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_the_page_lists_every_option_with_its_default(name: str) -> None:
    page = (REPOSITORY / "docs/python.md").read_text(encoding="utf-8")
    table = page.partition(f"| option of `{name}` |")[2].partition("\n\n")[0]
    written = re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", table, re.MULTILINE)
    parameters = inspect.signature(getattr(dialogkit, name)).parameters.values()
    defaults = [(each.name, "nothing" if callable(each.default) else repr(each.default)) for each in parameters]
    assert written == [(option, default.replace("'", '"')) for option, default in defaults]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dialogkit' has no attribute 'tarin'"):
        dialogkit.tarin  # noqa: B018
    assert not hasattr(dialogkit, "train_all_models")


def test_train_single_model_returns_the_trainer_of_transformers_and_the_metrics(tmp_path: Path) -> None:
    from transformers import Trainer

    trainer, metrics = dialogkit.train_single_model(
        model_name="custom-nano", config_type="test", max_samples=6, project_name="my-project", overrides=SETTINGS
    )
    assert isinstance(trainer, Trainer)
    assert trainer.state.global_step == metrics["train/steps"] == 4
    assert 0 < metrics["final/nats_per_token"] < metrics["before/nats_per_token"]
    (run,) = (tmp_path / "models/runs").iterdir()
    record = RunDir(run).read()
    assert (record.config["preset"], record.config["tracking"]["project"]) == ("test", "my-project")
    assert (record.data.train_dialogs, record.metrics) == (6, metrics)


def test_a_wrong_word_to_train_single_model_is_refused_by_its_setting() -> None:
    with pytest.raises(dialogkit.DialogKitError, match="unknown preset 'tset'"):
        dialogkit.train_single_model(config_type="tset")
    with pytest.raises(dialogkit.DialogKitError, match=r"data\.samples: must be greater than or equal to 1"):
        dialogkit.train_single_model(max_samples=0)


def test_a_notebook_goes_from_settings_to_figures(small_config: Callable[..., Any]) -> None:
    config = dialogkit.load_run_config("custom-nano", preset="test", overrides=SMALL)
    assert config == small_config()
    result = dialogkit.train(config)
    assert isinstance(result, dialogkit.TrainResult)
    replies = dialogkit.generate(prompts=["Hello!", "Why?"])
    assert isinstance(replies, dialogkit.GenerateResult)
    assert [reply.model for reply in replies.replies] == [result.run] * 2
    figures = dialogkit.evaluate()
    assert isinstance(figures, dialogkit.EvaluateResult)
    assert figures.rows[0].bits_per_byte == pytest.approx(result.metrics["final/bits_per_byte"])
    assert [row.name for row in dialogkit.list_models() if row.trained] == ["custom-nano"]


def test_a_result_can_be_kept_as_json(trained: Trained) -> None:
    text = trained.result.model_dump_json()
    assert dialogkit.TrainResult.model_validate_json(text) == trained.result


def train_twice() -> None:
    dialogkit.train_single_model("custom-nano", overrides=SMALL)
    dialogkit.evaluate(samples=2)
    assert logging.getLogger().handlers == []
    logging.basicConfig(level="INFO")  # as libraries do while they work
    print("AGAIN", flush=True)
    dialogkit.train(dialogkit.load_run_config("custom-nano", overrides=SMALL))


def test_each_run_of_a_process_says_each_thing_once(tmp_path: Path) -> None:
    _, out, err = run_forked(heard, train_twice, folder=tmp_path)
    assert "loss" not in err
    for part in out.split("AGAIN\n"):
        lines = part.splitlines()
        assert lines[0].split()[:2] == ["model", "custom-nano,"]
        assert [line.split()[1] for line in lines if line.startswith("step ") and "held-out" not in line] == [
            f"{step}/4" for step in (1, 2, 3, 4)
        ]
        assert sum(line.startswith("bits per byte ") for line in lines) == 1
