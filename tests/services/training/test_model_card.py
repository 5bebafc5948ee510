"""A model card says what the run's record says, in a form that the hub reads."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dialogkit.data.sources import NAMED
from dialogkit.services.training.model_card import model_card
from dialogkit.tracking.metric_specs import HELD_OUT
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Trained


@pytest.fixture
def record(trained: Trained) -> RunRecord:
    return RunDir(Path(trained.result.run_dir)).read()


def changed(
    record: RunRecord, *, data: dict[str, Any] | None = None, model: dict[str, Any] | None = None
) -> RunRecord:
    config = {**record.config, "model": {**record.config["model"], **(model or {})}}
    return record.model_copy(update={"data": record.data.model_copy(update=data), "config": config})


def front_matter(card: str) -> dict[str, Any]:
    start, matter, _ = card.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(matter)
    assert isinstance(found, dict)
    return found


def rows(card: str) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_card_lies_beside_the_weights(trained: Trained, record: RunRecord) -> None:
    assert (Path(trained.result.published_dir) / "README.md").read_text(encoding="utf-8") == model_card(record)


def test_the_front_matter_is_what_the_hub_knows(record: RunRecord) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(model_card(record)).data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert (data["license"], data["tags"]) == ("cc0-1.0", ["dialogkit", "conversational"])
    assert "base_model" not in data


def test_data_and_settings_are_those_of_the_record(record: RunRecord) -> None:
    card = model_card(record)
    assert "- dataset: starter, format messages" in card
    assert (record.data.revision or "?")[:16] in card
    assert "licence of the data: CC0-1.0" in card
    assert f"{record.model.parameters:,} parameters" in card
    assert f"40 training dialogs, {record.data.train_supervised_tokens:,} supervised tokens" in card
    shown = rows(card)
    assert shown["steps"] == ["20"]
    for name in ("batch_size", "learning_rate", "schedule", "warmup_fraction", "weight_decay", "seed"):
        assert shown[name.replace("_", " ")] == [str(record.config["train"][name])]
    assert str(record.runtime.precision) in shown["precision"][0]


def test_the_results_are_the_figures_before_and_after(record: RunRecord) -> None:
    shown = rows(model_card(record))
    assert "right answers" not in shown  # the dataset has no checks
    for name, (title, form) in HELD_OUT.items():
        if name == "right_answers":
            continue
        assert shown[title] == [format(record.metrics[f"{when}/{name}"], form) for when in ("before", "final")]


def test_the_card_says_which_step_was_kept_and_what_training_knows_of_the_held_out_dialogs(
    record: RunRecord,
) -> None:
    kept = record.model_copy(update={"metrics": {**record.metrics, "train/kept_step": 5.0}})
    assert rows(model_card(kept))["steps"] == ["20; these are the weights of step 5"]
    card = model_card(changed(record, data={"eval_dialogs": 115, "known_prompts": 3, "known_answers": 109}))
    assert "of 115 held-out dialogs, training contains the answer of 109 and the prompt of 3." in card


def test_the_card_says_what_each_published_file_is(trained: Trained, record: RunRecord) -> None:
    card = model_card(record)
    published = {path.name for path in Path(trained.result.published_dir).iterdir() if path.is_file()}
    assert {name for name in published if f"`{name}`" not in card and not name.startswith(".")} == {"README.md"}
    assert re.search(r"`training_args.bin`: .* as a Python pickle", card)


def test_a_model_trained_on_alpaca_gpt4_is_for_research_only(record: RunRecord) -> None:
    alpaca = {"dataset": "alpaca-gpt4", "license": NAMED["alpaca-gpt4"].license}
    card = model_card(changed(record, data=alpaca))
    assert front_matter(card)["license"] == "cc-by-nc-4.0"
    assert "for research only, and so is a model trained on it" in card
    assert "research only" not in model_card(record)


def test_data_of_unknown_licence_is_called_that(record: RunRecord) -> None:
    card = model_card(changed(record, data={"license": None}))
    assert "licence of the data: unknown" in card
    assert front_matter(card)["license"] == "other"


def test_a_base_model_of_the_hub_is_named_with_its_licence(record: RunRecord) -> None:
    card = model_card(changed(record, model={"source": "openai-community/gpt2", "license": "MIT"}))
    assert front_matter(card)["base_model"] == "openai-community/gpt2"
    assert "from `openai-community/gpt2`" in card
    assert "licence of the base weights: MIT" in card
    assert "random weights" in model_card(record)


@pytest.mark.parametrize("source", ["./mine", "my models/#1: the {best}", "weights/model.gguf"])
def test_a_base_model_on_this_machine_is_not_announced_as_one_of_the_hub(record: RunRecord, source: str) -> None:
    Path(source).mkdir(parents=True)
    assert "base_model" not in front_matter(model_card(changed(record, model={"source": source})))


def test_the_code_of_the_card_works(trained: Trained, record: RunRecord) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", model_card(record), re.DOTALL)
    code = code.replace("PATH/TO/THIS/FOLDER", trained.result.published_dir).replace("\nchat(", "\nanswer = chat(")
    names: dict[str, Any] = {}
    exec(code, names)
    assert [turn["role"] for turn in names["answer"][0]["generated_text"]] == ["user", "assistant"]
