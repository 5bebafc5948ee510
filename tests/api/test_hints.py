"""Hints in Python: calls of public functions that take these arguments."""

import ast
import inspect
from pathlib import Path

import pytest

import dialogkit
from dialogkit.api.hints import render
from dialogkit.hints import Call, Change, Either, Hint, Shell, Then

PYTHON: list[tuple[Hint, str]] = [
    (Call("train", resume="my-run"), 'resume("my-run")'),
    (
        Call("train", resume="my-run", force=True, output_dir="other"),
        'resume("my-run", force=True, output="other")',
    ),
    (Call("train", "custom-tiny", preset="test"), 'train(load_run_config("custom-tiny", preset="test"))'),
    (
        Call("train", "custom-nano", fit_batch=True, settings={"train.seed": 2, "name": None}),
        'train(load_run_config("custom-nano", overrides={"train.seed": 2, "train.fit_batch": True}))',
    ),
    (Call("train", settings={"from": "a-run"}), 'train(config, from_run="a-run")'),
    (Call("generate", "m", prompt="Hello!"), 'generate("m", "Hello!")'),
    (Call("generate", prompt="Hello!"), 'generate(prompts="Hello!")'),
    (
        Call("evaluate", "a", "b", dataset="x.jsonl", output_dir="models"),
        'evaluate(["a", "b"], dataset="x.jsonl")',
    ),
    (Call("data inspect", Path("x.jsonl")), 'inspect_data("x.jsonl")'),
    (Call("models list"), "list_models()"),
    (Call("push", "m", "you/m", public=True), 'push("m", "you/m", public=True)'),
    (
        Call("plan", settings={"train.budget_s": 180.0, "data.dataset": "smalltalk"}),
        'plan(budget_s=180.0, dataset="smalltalk")',
    ),
]
OTHERS: list[tuple[Hint, str]] = [
    (
        Change({"train.batch_size": 4, "data.dataset": "x"}),
        'overrides={"train.batch_size": 4, "data.dataset": "x"}',
    ),
    (Change({"force": True}), "force=True"),
    (Change({"name": "x"}), 'overrides={"name": "x"}'),
    (Call("runs show", "my-run"), "dialogkit runs show my-run"),
    (Call("train", "m", devices=2), "dialogkit train m --devices 2"),
    (Call("train", resume="my-run", nodes=2), "dialogkit train --resume my-run --nodes 2"),
    (Shell("pip install peft"), "pip install peft"),
    (Either("rename it", Call("models list")), "rename it, or: list_models()"),
    (Then(Shell("mv a b"), Call("train", resume="r")), 'mv a b, then: resume("r")'),
]


@pytest.mark.parametrize(("hint", "text"), [*PYTHON, *OTHERS], ids=lambda value: str(value)[:40])
def test_a_hint_is_python_or_a_command(hint: Hint, text: str) -> None:
    assert render(hint) == text


@pytest.mark.parametrize("text", [text for _, text in PYTHON])
def test_a_call_is_one_that_the_public_functions_take(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            function = getattr(dialogkit, node.func.id)
            inspect.signature(function).bind(*node.args, **{str(word.arg): word.value for word in node.keywords})


def test_without_a_hint_there_is_nothing_to_do() -> None:
    assert render(None) == ""
