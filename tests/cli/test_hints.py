"""Hints and messages as the command line renders them: every one is taken by the command that it names."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli import hints
from dialogkit.cli.hints import click_command, in_flags, name_of, render, verb_of
from dialogkit.cli.options import Sets, given_settings, sets_of
from dialogkit.cli.train import train_command
from dialogkit.config.load import default_settings, load_run_config, parse_sets
from dialogkit.hints import Call, Change, Either, Hint, Shell, Then
from tests.cli.test_surface import commands

VALUES: dict[str, Any] = {
    "train.budget_s": 5400,
    "train.lora_targets": ["q_proj", "it's"],
    "model.tokenizer": "a folder/$HOME",
    "tracking.tags": ["one", "two words", "-x"],
    "tracking.trackers": ["tensorboard"],
    "tracking.notes": 'it\'s "so"; $(x)',
    "tracking.project": "5",
    "name": "my-run",
    "data.samples": 100,
    "data.columns": ["prompt=die Frage", "response=a,b"],
    "runtime.devices": "auto",
    "train.merge": False,
}


def parsed(words: str) -> tuple[str, dict[str, Any]]:
    """Return the verb of a command, and what its parameters are given; fails where the command refuses a word."""
    program, *rest = shlex.split(words)
    assert program == "dialogkit"
    verb = verb_of(rest)
    with click_command(verb).make_context(f"dialogkit {verb}", rest[len(verb.split()) :]) as context:
        return verb, context.params


def settings_of(words: str) -> dict[str, Any]:
    """Return the settings that the arguments of `train` give."""
    verb, given = parsed(words)
    assert verb == "train"
    return given_settings(train_command, given) | parse_sets(given["sets"] or [])


def changed(typed: str, settings: dict[str, Any]) -> str | None:
    """Return how a change of the typed command is rendered."""
    hints.remember(shlex.split(typed))
    return render(Change(settings))


# Changes


@pytest.mark.parametrize("name", sorted({*default_settings(), "model.tokenizer"} - {"preset"}))
def test_every_setting_is_given_by_words_that_train_reads_as_the_same_value(name: str) -> None:
    value = VALUES.get(name, default_settings().get(name))
    rendered = changed("train custom-tiny", {name: value})
    assert settings_of(f"dialogkit train custom-tiny {rendered}") == {name: value}
    called = settings_of(str(render(Call("train", settings={name: value}))))
    assert called == ({} if value is None or name == "runtime.output_dir" else {name: value})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data.samples": 100}, "--samples 100"),
        ({"train.batch_size": 4}, "--batch-size 4"),
        ({"train.learning_rate": 1e-3, "train.seed": 1}, "--lr 0.001 --set train.seed=1"),
        ({"train.budget_s": 5400}, "--budget 1h30m"),
        ({"train.budget_s": 90.0}, "--budget 1m30s"),
        ({"runtime.device": "cpu"}, "--no-cuda"),
        ({"runtime.device": "cuda"}, "--set runtime.device=cuda"),
        ({"train.merge": False}, "--no-merge"),
        ({"train.merge": True}, "--set train.merge=true"),
        ({"train.fit_batch": True}, "--fit-batch"),
        ({"train.fit_batch": False}, "--set train.fit_batch=false"),
        ({"tracking.tags": ["a", "b c"]}, "--tag a --tag 'b c'"),
        ({"data.dataset": "my file.jsonl"}, "--dataset 'my file.jsonl'"),
        ({"data.dataset": Path("a/b.jsonl")}, "--dataset a/b.jsonl"),
        ({"model.name": "mine"}, "--set model.name=mine"),
        ({"tracking.notes": "a b"}, "--set 'tracking.notes=a b'"),
        ({"tracking.notes": "5"}, "--set 'tracking.notes=\"5\"'"),
        ({"runtime.threads": None}, "--set runtime.threads=null"),
        ({"force": True}, "--force"),
        ({"preset": "test", "train.epochs": 2.0}, "--preset test --epochs 2.0"),
        ({"name": "my-run"}, "--name my-run"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": "a:1"}, "--nodes 2 --node-rank 0 --rendezvous a:1"),
        ({"resume": "last"}, "--resume last"),
        ({"resume_run": "last"}, "--resume last"),
        ({"model": "custom-nano"}, "dialogkit train custom-nano"),
    ],
)
def test_a_change_is_given_by_the_flags_of_train(settings: dict[str, Any], words: str) -> None:
    assert changed("train custom-tiny", settings) == words


@pytest.mark.parametrize(
    ("typed", "settings", "words"),
    [
        ("evaluate it", {"data.dataset": "a b.jsonl", "data.samples": 5}, "--dataset 'a b.jsonl' --samples 5"),
        ("evaluate it", {"runtime.device": "cpu"}, "--no-cuda"),
        ("evaluate it", {"batch_size": 2}, "--batch-size 2"),
        ("generate it", {"generate.max_new_tokens": 8}, "--max-new-tokens 8"),
        ("generate it", {"prompt": ["Hello!", "You?"]}, "--prompt 'Hello!' --prompt 'You?'"),
        ("chat it", {"generate.seed": 1}, "--seed 1"),
        ("runs list", {"runtime.output_dir": "my-models"}, "--output-dir my-models"),
        ("data inspect a.csv", {"data.dataset": "b c.csv"}, "dialogkit data inspect 'b c.csv'"),
        ("data inspect", {"data.max_tokens": 8}, "--set data.max_tokens=8"),
        ("tokenizer train a.txt", {"vocab_size": 300}, "--vocab-size 300"),
        ("launch slurm -- train x", {"gpus": 0}, "dialogkit launch slurm --gpus 0 -- train x"),
        ("launch slurm --gpus=2 -- train x -s 1", {"gpus": 0}, "dialogkit launch slurm --gpus 0 -- train x -s 1"),
        ("launch slurm -- train x", {"train.batch_size": 8}, "--batch-size 8"),
        (
            "launch slurm -- train x",
            {"data.samples": 8, "memory": "64G"},
            "dialogkit launch slurm --memory 64G -- train x --samples 8",
        ),
        ("config show", {"train.epochs": 1}, "--set train.epochs=1"),
    ],
)
def test_a_change_is_given_by_the_flags_of_the_command_that_was_typed(
    typed: str, settings: dict[str, Any], words: str
) -> None:
    assert changed(typed, settings) == words


@pytest.mark.parametrize("typed", ["generate it", "chat", "evaluate it", "runs list", "models show x", "", "runs"])
def test_a_command_without_set_advises_none(typed: str) -> None:
    assert changed(typed, {"train.batch_size": 4}) == "set train.batch_size=4"
    assert changed(typed, {"data.format": "messages", "train.method": "lora"}) == (
        "set data.format=messages, train.method=lora"
    )
    both = Either(Change({"model.chat_format": "plain"}), Call("runs list"))
    assert render(both) == "dialogkit runs list"
    assert render(Either(Change({"model.chat_format": "plain"}))) == "set model.chat_format=plain"


@pytest.mark.parametrize("typed", ["train --set tracking.wandb=on", "train --set=tracking.wandb=on"])
def test_what_was_given_by_set_is_changed_by_set(typed: str) -> None:
    # Which wins over the flag, wherever that stands.
    assert changed(typed, {"tracking.wandb": "auto"}) == "--set tracking.wandb=auto"
    assert changed(typed, {"tracking.project": "x"}) == "--project x"


# Calls

FROM: dict[str, Any] = {"from": "it"}  # a word of Python


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Call("runs show", "my run"), "dialogkit runs show 'my run'"),
        (Call("runs show", "it", output_dir="models"), "dialogkit runs show it"),
        (Call("runs show", "it", output_dir=Path("models/")), "dialogkit runs show it"),
        (Call("runs show", "it", output_dir="my models"), "dialogkit runs show it --output-dir 'my models'"),
        (Call("train", "custom-tiny", preset="test"), "dialogkit train custom-tiny --preset test"),
        (Call("train", resume="it", force=True), "dialogkit train --resume it --force"),
        (Call("train", resume="it", force=False, output_dir=None), "dialogkit train --resume it"),
        (Call("train", **FROM, name="it-2"), "dialogkit train --from it --name it-2"),
        (
            Call("train", "gpt2-small", settings={"train.method": "lora", "train.epochs": 1}),
            "dialogkit train gpt2-small --method lora --epochs 1",
        ),
        (Call("train", settings={"runtime.output_dir": "models"}), "dialogkit train"),
        (Call("generate", "it", prompt="Hello!"), "dialogkit generate it --prompt 'Hello!'"),
        (Call("generate", settings={"train.epochs": 1}), "dialogkit generate"),
        (Call("evaluate", "a", "b", whole=True, max_bad_rows=0), "dialogkit evaluate a b --whole"),
        (Call("evaluate", help=True), "dialogkit evaluate --help"),
        (Call("runs show", "-odd"), "dialogkit runs show -- -odd"),
        (Call("config validate", "a b.json"), "dialogkit config validate 'a b.json'"),
        (Call("doctor", network=True), "dialogkit doctor --network"),
        (
            Call("launch slurm", "train", "custom-tiny", gpus=2, nodes=1),
            "dialogkit launch slurm --gpus 2 -- train custom-tiny",
        ),
    ],
)
def test_a_call_is_a_command_that_is_taken(hint: Call, words: str) -> None:
    hints.remember(["train", "--set", "train.method=full"])  # what was typed does not matter
    assert render(hint) == words
    if not hint.options.get("help"):
        assert parsed(words)[0] == hint.verb


@pytest.mark.parametrize("verb", [verb for verb, _ in commands()])
def test_every_option_of_every_command_can_be_given(verb: str) -> None:
    parameters = [p for p in click_command(verb).params if p.param_type_name == "option" and p.name != "help"]
    sets = sets_of(click_command(verb).callback)
    required: dict[str, Any] = {p.name: "a b" for p in parameters if p.required}
    words = ["x"] * len([p for p in click_command(verb).params if p.param_type_name == "argument" and p.required])
    words = ["train"] if verb.startswith("launch") else words
    for parameter in parameters:
        value = True if parameter.is_flag else [3] if parameter.multiple else 3
        taken = [str(value), "3.0", "3s", "['3']"]
        by_name = Call(verb, *words, **{**required, parameter.name: value})
        assert str(parsed(str(render(by_name)))[1][parameter.name]) in taken
        one: Sets | None = sets.get(parameter.name)
        if one is not None and one.to is None:
            by_setting = Call(verb, *words, settings={one.setting: value}, **required)
            assert str(parsed(str(render(by_setting)))[1][parameter.name]) in taken


@pytest.mark.parametrize(
    "typed", ["train --output-dir here", "train --output-dir=here", "runs show x --output-dir here"]
)
def test_a_call_stays_in_the_folder_that_was_typed(typed: str) -> None:
    hints.remember(shlex.split(typed))
    assert render(Call("runs list")) == "dialogkit runs list --output-dir here"
    assert render(Call("runs list", output_dir="there")) == "dialogkit runs list --output-dir there"
    assert render(Call("train", settings={"runtime.output_dir": "there"})) == "dialogkit train --output-dir there"
    assert render(Call("config schema")) == "dialogkit config schema"


# Others


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (None, None),
        ("rename the columns", "rename the columns"),
        (Shell("pip install 'dialogkit[lora]'"), "pip install 'dialogkit[lora]'"),
        (
            Either(Change({"train.max_steps": 1000}), Change({"train.budget_s": 3600})),
            "--set train.max_steps=1000, or: --budget 1h",
        ),
        (Either("fix that line", Change({"data.max_bad_rows": 1})), "fix that line, or: --max-bad-rows 1"),
        (Either(Either("a", "b"), Call("doctor")), "a, or: b, or: dialogkit doctor"),
        (
            Then(Shell("sed s/a/b/ x > y"), Change({"data.dataset": "y"})),
            "sed s/a/b/ x > y && dialogkit train --dataset y",
        ),
        (Then(Shell("mv a b"), Change({"nothing": 1})), "mv a b"),
    ],
)
def test_hints_of_all_kinds(hint: Hint | None, words: str | None) -> None:
    hints.remember(["train"])
    assert render(hint) == words


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("data inspect x --columns prompt=frage", "data inspect y --columns prompt=frage"),
        ("data inspect --columns 'prompt=die Frage' --json x -s 3", None),
        ("data inspect --show=2", "data inspect --show=2 y"),
        ("train custom-nano -d x --columns prompt=frage", "train custom-nano --columns prompt=frage --dataset y"),
    ],
)
def test_what_was_typed_stays_in_the_line_for_rewritten_data(typed: str, again: str | None) -> None:
    hints.remember(shlex.split(typed))
    hint = Then(Shell("iconv x > y"), Change({"data.dataset": "y"}))
    assert render(hint) == f"iconv x > y && dialogkit {again or typed.replace(' x ', ' y ')}"


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Change({"train.batch_size": 4, "name": "x y"}), "set train.batch_size=4, name=x y"),
        (Change({"data.dataset": Path("a.csv")}), "set data.dataset=a.csv"),
        (Call("runs show", "a b"), "runs show 'a b'"),
        (Call("train", resume="it", settings={"train.epochs": 1}), "train resume=it train.epochs=1"),
        (Shell("wandb login"), "wandb login"),
        (Either("a", Change({"train.epochs": 1})), "a, or: set train.epochs=1"),
    ],
)
def test_a_program_without_a_command_line_reads_verbs_and_settings(hint: Hint, words: str) -> None:
    assert str(hint) == words


# Messages


@pytest.mark.parametrize(
    ("typed", "setting", "expected"),
    [
        ("train --samples 0", "data.samples", "--samples: wrong"),
        ("train --samples=0", "data.samples", "--samples: wrong"),
        ("train -s 0", "data.samples", "--samples: wrong"),
        ("train -s0", "data.samples", "--samples: wrong"),
        ("train --set data.samples=0", "data.samples", "data.samples: wrong"),
        ("train --config x.json", "data.samples", "data.samples: wrong"),
        ("train --tag a --tag ''", "tracking.tags.1", "--tag: wrong"),
        ("train --set train.adam_beta2=2", "train.adam_beta2", "train.adam_beta2: wrong"),
        ("launch slurm -- train --samples 0", "data.samples", "--samples: wrong"),
        ("launch slurm -- train", "gpus", "--gpus: wrong"),
        ("train --devices 2", "node_rank", "--node-rank: wrong"),
        ("generate x", "data.samples", "data.samples: wrong"),
    ],
)
def test_a_message_names_the_flag_that_was_typed(typed: str, setting: str, expected: str) -> None:
    hints.remember(shlex.split(typed))
    assert in_flags(f"{setting}: wrong", setting) == expected
    assert in_flags("something is wrong", setting) == "something is wrong"


def test_a_setting_is_known_by_its_flag() -> None:
    hints.remember(["train"])
    assert [name_of(name) for name in ("data.samples", "tracking.log_model", "train.seed", "name")] == [
        *("--samples", "--log-model", "train.seed", "--name")
    ]


def test_the_settings_of_flags_are_values_that_a_configuration_takes() -> None:
    flags = {sets.setting for sets in sets_of(train_command).values()}
    known = {name: value for name, value in VALUES.items() if name in flags}
    assert load_run_config("custom-tiny", overrides={**known, "train.method": "lora"}).train.budget_s == 5400
