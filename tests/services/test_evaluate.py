"""Figures depend on the model and the dialogs, and on nothing else."""

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dialogkit.api.inference import evaluate as evaluate_in_full
from dialogkit.config.data import DataConfig
from dialogkit.data.sources import STARTER
from dialogkit.errors import DataError, ModelError
from dialogkit.services.evaluate import EvaluateRow
from dialogkit.services.train import train
from tests.conftest import Finished, Trained

evaluate = partial(evaluate_in_full, quick=True)

FIGURES = ("nats_per_token", "perplexity", "bits_per_byte", "accuracy")


def figures(row: EvaluateRow) -> dict[str, float]:
    return {name: getattr(row, name) for name in FIGURES}


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """Forty short dialogs of the starter set, without system texts."""
    dialogs = [json.loads(line)["messages"] for line in STARTER.read_text(encoding="utf-8").splitlines()]
    short = [dialog for dialog in dialogs if dialog[0]["role"] == "user" and len(str(dialog)) < 500][:40]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps({"messages": dialog}) + "\n" for dialog in short))
    return path


def evaluated(trained: Trained, **options: Any) -> EvaluateRow:
    (row,) = evaluate("shared-run", output=trained.output, device="cpu", **options).rows
    return row


def test_the_figures_are_those_at_the_end_of_training(trained: Trained) -> None:
    (row,) = evaluate(output=trained.output, device="cpu").rows
    final = {name: trained.result.metrics[f"final/{name}"] for name in FIGURES}
    assert figures(row) == pytest.approx(final, rel=1e-6)
    assert (row.model, row.dataset) == ("shared-run", "starter")


def test_a_relative_dataset_is_found_where_the_run_was_started(
    small_config: Callable[..., Any], some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config({"data.dataset": some.name, "runtime.output_dir": str(tmp_path / "models")})
    run = train(config).run
    here = evaluate(run, output=tmp_path / "models", device="cpu").rows
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate(run, output=tmp_path / "models", device="cpu").rows == here
    some.unlink()
    with pytest.raises(DataError, match=rf"neither '{some.name}' here nor '{re.escape(str(some))}'"):
        evaluate(run, output=tmp_path / "models", device="cpu")


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_figures_do_not_depend_on_the_batch_size(trained: Trained, batch_size: int) -> None:
    row, expected = evaluated(trained, batch_size=batch_size), evaluated(trained)
    assert figures(row) == pytest.approx(figures(expected), rel=1e-6)
    assert (row.tokens, row.dialogs) == (expected.tokens, expected.dialogs)


def test_the_figures_are_those_of_a_plain_loop_over_transformers(trained: Trained, some: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(trained.result.model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.result.model_dir)
    openings = dict(
        zip(tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]), (False, True), strict=True)
    )
    losses: list[float] = []
    end_losses: list[float] = []
    hits = near = answer_bytes = 0
    for line in some.read_text().splitlines():
        dialog = json.loads(line)["messages"]
        ids = tokenizer.apply_chat_template(dialog, return_dict=False)
        with torch.no_grad():
            predictions = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        answering = False
        for position, token in enumerate(ids):
            if token in openings:
                answering = openings[token]
            elif answering:
                losses.append(-predictions[position - 1, token].item())
                hits += predictions[position - 1].argmax().item() == token
                near += token in predictions[position - 1].topk(5).indices
                if token == tokenizer.eos_token_id:
                    end_losses.append(losses[-1])
        answer_bytes += sum(len(turn["content"].encode()) for turn in dialog if turn["role"] == "assistant")
    row = evaluated(trained, dataset=str(some), whole=True)
    assert row.tokens == len(losses)
    assert row.accuracy == hits / len(losses)
    assert row.top5_accuracy == near / len(losses)
    assert row.end_of_turn_nats == pytest.approx(sum(end_losses) / len(end_losses), rel=1e-5)
    assert row.nats_per_token == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert row.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    bits = (sum(losses) - sum(end_losses)) / math.log(2)
    assert row.bits_per_byte == pytest.approx(bits / answer_bytes, rel=1e-5)


def test_several_models_stand_in_one_table_with_the_figures_that_each_has_alone(
    trained: Trained, small_config: Callable[..., Any], dialogkit: Callable[..., Finished]
) -> None:
    other = train(small_config({"name": "other"}))
    models = ["models/runs/other", trained.result.run_dir]
    together = evaluate([other, trained.result])
    rows, verdict = together.rows, together.verdict
    assert [row.model for row in rows] == ["other", "shared-run"]
    alone = [evaluate(model).rows[0] for model in models]
    assert rows == alone
    assert rows[0].nats_per_token != rows[1].nats_per_token
    # The smaller set of held-out dialogs is a part of the other; their scores need no second look at the data.
    assert verdict is not None
    assert (verdict.best, verdict.dialogs) == ("shared-run", rows[0].dialogs)
    assert verdict.behind[0].bits_per_byte == pytest.approx(rows[0].bits_per_byte, abs=1e-5)
    assert verdict.behind[0].interval is not None
    done = dialogkit("evaluate", *models, "--quick", "--json")
    shown = [row.model_copy(update={"scores": {}}) for row in rows]
    assert [EvaluateRow.model_validate(row) for row in done.json["data"]["rows"]] == shown
    twice = dialogkit("evaluate", *models, models[0], "--quick")
    assert f"{models[0]} was given 2 times: it was evaluated once\n" in twice.err
    table = twice.out
    assert all(f"{row.nats_per_token:.4f}" in table and row.model in table for row in rows)


def test_samples_takes_so_many_of_the_held_out_dialogs(trained: Trained) -> None:
    everything = evaluated(trained)
    assert evaluated(trained, samples=5).dialogs == 5
    assert evaluated(trained, samples=10_000) == everything
    assert evaluated(trained, samples=everything.dialogs) == everything


def test_samples_are_chosen_by_what_they_say_and_not_by_their_place(trained: Trained, some: Path) -> None:
    before = evaluated(trained, dataset=str(some), samples=3)
    lines = some.read_text().splitlines()
    some.write_text("\n".join(reversed(lines)))
    assert figures(evaluated(trained, dataset=str(some), samples=3)) == pytest.approx(figures(before), rel=1e-6)


def test_whole_scores_every_dialog(trained: Trained, some: Path) -> None:
    held_out = evaluated(trained, dataset=str(some))
    assert held_out.dialogs == DataConfig().eval_min_dialogs
    whole = evaluated(trained, dataset=str(some), whole=True)
    assert whole.dialogs == 40
    assert whole.tokens > held_out.tokens


def test_another_dataset_is_scored_by_its_own_held_out_dialogs(trained: Trained) -> None:
    rows = [{"instruction": f"Say {number}.", "output": f"{number}!"} for number in range(60)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = evaluated(trained, dataset="mine.jsonl")
    assert row.dataset == "mine.jsonl"
    assert DataConfig().eval_min_dialogs <= row.dialogs < 30
    assert evaluated(trained, dataset="mine.jsonl", whole=True).dialogs == 60


def test_a_run_is_evaluated_on_the_dialogs_that_it_held_out(small_config: Callable[..., Any]) -> None:
    rows = [{"instruction": f"Say {number}.", "output": f"{number}!"} for number in range(60)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = train(small_config({"data.dataset": "mine.jsonl", "data.eval_min_dialogs": 5, "data.max_tokens": 32}))
    for model in (None, result.run, "custom-nano", result.model_dir, result.published_dir):
        (row,) = evaluate(model).rows
        assert (row.dataset, row.dialogs) == ("mine.jsonl", 5)
        assert row.nats_per_token == pytest.approx(result.metrics["final/nats_per_token"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"model": "shared-ran"}, ModelError, "did you mean 'shared-run'"),
        ({"model": ["shared-run", "nothing"]}, ModelError, "'nothing'"),
        ({"model": "shared-run, custom-nano"}, ModelError, "is not one model, but the names of 2"),
        ({"dataset": "startre"}, DataError, "did you mean 'starter'"),
        ({"dataset": "./nowhere.jsonl"}, DataError, "does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(
    trained: Trained, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    begun: list[str] = []
    with pytest.raises(error, match=sentence):
        evaluate(**{"output": trained.output, **options}, on_progress=lambda what, share: begun.append(what))
    assert not begun, "it is reported before a model is loaded"


@pytest.mark.parametrize(
    ("section", "name", "code"), [("train", "learning_rate", 0), ("data", "eval_fraction", 2)]
)
def test_a_run_whose_settings_cannot_be_is_evaluated_without_them_or_refused(
    section: str, name: str, code: int, trained: Trained, tmp_path: Path, dialogkit: Callable[..., Finished]
) -> None:
    shutil.copytree(trained.output, tmp_path / "models")
    path = tmp_path / "models/runs/shared-run/run.json"
    record = json.loads(path.read_text())
    record["config"][section][name] = 10**400
    path.write_text(json.dumps(record))
    done = dialogkit("evaluate", "shared-run", "--samples", "4", "--no-cuda")
    assert done.code == code
    assert (name in done.err) == (code == 2)
