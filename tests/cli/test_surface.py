"""The surface of the command line: its commands and options, and what they print, to whom, and how wide."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import dialogkit as package
from dialogkit.cli.app import app
from dialogkit.config.load import load_with_origins, model_names, preset_names, schema_text
from dialogkit.config.paths import configs_dir
from dialogkit.config.problems import known_settings
from dialogkit.errors import did_you_mean
from tests.conftest import REPOSITORY, SMALL, Finished, Trained, run_process
from tests.forks import command_line, heard, run_forked

Run = Callable[..., Finished]

SURFACE = {
    "train": "[model] --model -m --preset -c --dataset -d --samples -s --epochs --budget --resume --name --lr "
    "--batch-size --method --no-merge --from --force --fit-batch --dry-run --config --set --columns "
    "--max-bad-rows --project -p --wandb --tag --tracker --log-model --no-cuda --devices --nodes --node-rank "
    "--rendezvous --max-restarts --output-dir --json",
    "plan": "--time -t --dataset -d --columns --max-bad-rows --set --no-cuda --json",
    "generate": "[model] --model -m --prompt -p --prompts-file --system --compare --max-new-tokens --temperature "
    "--top-k --top-p --repetition-penalty --seed --use-model-settings --int8 --no-cuda --output-dir --json",
    "chat": "[model] --model -m --system --compare --max-new-tokens --temperature --seed --use-model-settings "
    "--int8 --no-cuda --output-dir",
    "serve": "[models] --model -m --host --port --api-key --at-once --queue --time-limit --max-new-tokens "
    "--temperature --top-k --top-p --repetition-penalty --seed --use-model-settings --no-cuda --output-dir",
    "evaluate": "[models] --model -m --dataset -d --samples -s --max-bad-rows --whole --quick --slices --worst "
    "--tasks --batch-size --use-model-settings --wandb --no-cuda --output-dir --json",
    "export": "[model] --model -m --to --type --output -o --runtime --force --output-dir --json",
    "push": "model repository --public --dry-run --bundle --message --include-pickle --force --output-dir --json",
    "models list": "--output-dir --json",
    "models show": "name --output-dir --json",
    "runs list": "--output-dir --json",
    "runs show": "name --all --output-dir --json",
    "runs compare": "names --output-dir --json",
    "runs best": "--output-dir --json",
    "runs report": "names --output -o --output-dir --json",
    "runs prune": "[names] --keep --older-than --status --checkpoints-only --yes -y --output-dir --json",
    "runs sync": "[names] --output-dir --json",
    "data list": "--json",
    "data inspect": "[dataset] --model -m --samples -s --show --columns --max-bad-rows --set --json",
    "data make": "world --output -o --dialogs -n --seed --force --json",
    "config show": "[model] --preset -c --config --set --json",
    "config validate": "file",
    "config schema": "",
    "tokenizer train": "files --output -o --vocab-size --json",
    "doctor": "--output-dir --network --json",
    "launch slurm": "words --nodes --gpus --cpus --memory --time --partition --account --setup --max-restarts "
    "--name --output -o",
    "launch kubernetes": "words --image --claim --namespace --secret --nodes --gpus --cpus --memory --time "
    "--max-restarts --name --output -o",
}
"""Every command with its arguments ([optional]) and options. Who adds one adds it here and to the change log."""


def commands(command: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command with the words that call it."""
    command = command or typer.main.get_command(app)
    for name, child in getattr(command, "commands", {}).items():
        words = f"{path} {name}".strip()
        if hasattr(child, "commands"):
            yield from commands(child, words)
        else:
            yield words, child


def parameters(command: Any) -> list[str]:
    """Return the arguments and options of a command, `--help` left out."""
    names: list[str] = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            names.append(parameter.name if parameter.required else f"[{parameter.name}]")
        elif parameter.name != "help":
            names += [*parameter.opts, *parameter.secondary_opts]
    return names


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_the_commands_and_their_options_are_these() -> None:
    assert {words: parameters(command) for words, command in commands()} == {
        words: options.split() for words, options in SURFACE.items()
    }


GROUPS = ["", *dict.fromkeys(words.split()[0] for words in SURFACE if " " in words)]


@pytest.mark.parametrize("words", [*GROUPS, *SURFACE])
def test_help_fits_into_80_columns_and_names_everything(
    words: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = dialogkit(*words.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, lines(done.out))) <= 80
    below = {
        command.removeprefix(words).split()[0]
        for command in SURFACE
        if command.startswith(words) and command != words
    }
    expected = below if words in GROUPS else {name for name in SURFACE[words].split() if name.startswith("-")}
    assert expected <= set(done.out.split())


def test_help_shows_all_that_is_written_for_it(dialogkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for words, command in commands():
        shown = dialogkit(*words.split(), "--help").out
        for parameter in command.params:
            # A word in brackets, as of what an option is if it is left out, would be taken for a colour.
            assert (parameter.help or "").replace("\\[", "[") in shown, (words, parameter.name)


@pytest.mark.parametrize("words", GROUPS)
def test_a_command_that_needs_more_words_shows_its_help(words: str, dialogkit: Run) -> None:
    done, asked = dialogkit(*words.split()), dialogkit(*words.split(), "--help")
    assert (done.code, done.out.strip(), done.err) == (0, asked.out.strip(), "")


def test_the_version_is_the_packages(dialogkit: Run) -> None:
    assert dialogkit("--version") == Finished(0, f"dialogkit {package.__version__}\n", "")


# Models and datasets


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_list_of_models_cuts_no_name_at_any_width(
    width: int, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    done = dialogkit("models", "list")
    header, *rows = lines(done.out)
    assert (done.code, done.err) == (0, "")
    assert max(map(len, [header, *rows])) <= width
    assert [row.split()[0] for row in rows] == model_names()
    assert "124,439,808" in rows[0]
    if width >= 120:
        sources = [load_with_origins(name).config.model.source or "from scratch" for name in model_names()]
        assert all(source in row for source, row in zip(sources, rows, strict=True))


def test_the_list_of_models_for_programs_reports_the_same(dialogkit: Run) -> None:
    done = dialogkit("models", "list", "--json")
    assert (done.code, done.err, done.json["hint"]) == (0, "", None)
    assert done.json["data"] == [row.model_dump(mode="json") for row in package.list_models()]
    shown = dialogkit("models", "list").out
    assert all(row["name"] in shown and f"{row['parameters']:,}" in shown for row in done.json["data"])


def test_a_process_of_its_own_takes_the_width_of_its_terminal() -> None:
    narrow, wide = (run_process("models", "list", COLUMNS=columns) for columns in ("80", "120"))
    assert (narrow.code, wide.code) == (0, 0)
    assert all(name in narrow.out for name in model_names())
    assert "microsoft/DialoGPT-medium" in wide.out
    assert "microsoft" not in narrow.out


def test_a_trained_model_is_marked_in_the_list(dialogkit: Run, trained: Trained) -> None:
    rows = dialogkit("models", "list", "--output-dir", str(trained.output), "--json").json["data"]
    assert [row["name"] for row in rows if row["trained"]] == ["custom-nano"]
    assert not any(row["trained"] for row in dialogkit("models", "list", "--json").json["data"])


@pytest.mark.parametrize("name", model_names())
def test_showing_a_model_reports_everything_about_it(
    name: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data = dialogkit("models", "show", name, "--json").json["data"]
    done = dialogkit("models", "show", name)
    assert (done.code, done.err) == (0, f"next: dialogkit train {name}\n")
    assert max(map(len, lines(done.out))) <= 80
    words = " ".join(done.out.split())
    for value in data.values():
        if isinstance(value, bool | None):
            assert {True: "yes", False: "no", None: "-"}[value] in words
        else:
            assert (f"{value:,}" if isinstance(value, int) else value) in words


def test_a_model_file_is_shown_as_a_model_of_the_catalogue(dialogkit: Run) -> None:
    Path("mine.json").write_text('{"model": {"layers": 2, "width": 32, "heads": 2, "context": 64}}')
    row = dialogkit("models", "show", "mine.json", "--json").json["data"]
    assert (row["name"], row["kind"], row["layers"], row["trained"]) == ("mine", "from scratch", 2, False)


def test_the_datasets_with_a_short_name_are_listed(dialogkit: Run) -> None:
    rows = dialogkit("data", "list", "--json").json["data"]
    assert [(row["name"], row["source"]) for row in rows] == [
        ("starter", "ships with the package"),
        ("smalltalk", "ships with the package"),
        ("smalltalk-core", "ships with the package"),
        ("alpaca-gpt4", "vicgalle/alpaca-gpt4"),
    ]
    shown = dialogkit("data", "list")
    assert (shown.code, shown.err) == (0, "")
    assert all(row["name"] in shown.out for row in rows)


# Settings


def test_every_setting_is_shown_with_its_origin(dialogkit: Run) -> None:
    words = ["custom-nano", "--preset", "production", "--set", "train.seed=7"]
    done = dialogkit("config", "show", *words, "--json")
    loaded = load_with_origins("custom-nano", preset="production", overrides={"train.seed": 7})
    assert {row["name"]: row["origin"] for row in done.json["data"]} == loaded.origins
    table = {line.split()[0]: line for line in lines(dialogkit("config", "show", *words).out)[1:]}
    assert set(known_settings()) <= set(table)
    assert table["train.seed"].split() == ["train.seed", "7", "command", "line"]
    assert table["train.epochs"].split() == ["train.epochs", "3.0", "preset", "production"]
    assert table["model.layers"].split() == ["model.layers", "3", "model", "custom-nano"]


def test_the_schema_is_printed_as_it_is_on_disk(dialogkit: Run) -> None:
    assert dialogkit("config", "schema") == Finished(0, schema_text(), "")


@pytest.mark.parametrize(
    "file",
    [*(f"models/{name}.json" for name in model_names()), *(f"presets/{name}.json" for name in preset_names())],
)
def test_every_shipped_file_is_valid(file: str, dialogkit: Run) -> None:
    path = str(configs_dir() / file)
    assert dialogkit("config", "validate", path) == Finished(0, f"{path} is valid\n", "")


# Replies


def test_prompts_come_from_standard_input_one_a_line(trained: Trained, dialogkit: Run) -> None:
    words = [
        "generate",
        "--prompts-file",
        "-",
        "--no-cuda",
        "--max-new-tokens",
        "2",
        "--output-dir",
        str(trained.output),
    ]
    done = dialogkit(*words, "--json", stdin="Hello!\n\n  \nAnd   you?\r\n")
    assert (done.code, done.err) == (0, "")
    assert [reply["prompt"] for reply in done.json["data"]["replies"]] == ["Hello!", "And   you?"]


@pytest.mark.parametrize("mark", ["\x1b[2J", "\x9b31m", "\x07", "\u202e", "\r", "\x00"])
def test_marks_in_a_prompt_do_not_reach_the_terminal(mark: str, trained: Trained, dialogkit: Run) -> None:
    words = ["generate", "--no-cuda", "--max-new-tokens", "1", "--output-dir", str(trained.output)]
    done = dialogkit(*words, "--prompt", f"a{mark}b", "--prompt", "c")
    assert done.code == 0
    assert mark not in done.out + done.err
    assert f"> a\\{'u' if mark == chr(0x202E) else 'x'}" in done.out


@pytest.mark.parametrize("words", ["train custom-nano --no-cuda --wandb disabled --dataset", "train"])
def test_marks_in_the_name_of_a_file_do_not_reach_the_terminal(words: str, dialogkit: Run) -> None:
    name = "a\x1b[31m\u202eb.jsonl"
    Path(name).touch()
    done = dialogkit(*words.split(), name)
    assert done.code == 2
    assert "\x1b" not in done.err
    assert "\u202e" not in done.err
    assert "a\\x1b[31m\\u202eb.jsonl" in done.err


def test_marks_in_the_columns_of_a_dataset_do_not_reach_the_terminal(dialogkit: Run) -> None:
    Path("odd.jsonl").write_text(json.dumps({"\x1b]0;owned\x07": "a"}))
    done = dialogkit("train", "custom-nano", "--no-cuda", "--wandb", "disabled", "--dataset", "odd.jsonl")
    assert done.code == 2
    assert "\x1b" not in done.err
    assert "\\x1b]0;owned\\x07" in done.err


# The end of a command


@pytest.mark.parametrize(
    "words",
    [
        "models list",
        *(
            pytest.param(words, marks=pytest.mark.faults)
            for words in ("config schema", "--version", "config show --json")
        ),
    ],
)
def test_a_reader_that_left_is_no_error_worth_a_word(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "dialogkit", *words.split()]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def unheard(words: list[str]) -> int:
    """Run `dialogkit WORDS` where nobody reads its errors."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 2)
    with open(2, "w", buffering=1, closefd=False) as sys.stderr:
        code = command_line(words)
        os.dup2(1, 2)
    sys.stderr = sys.__stderr__
    return code


@pytest.mark.faults
def test_a_run_continues_when_the_reader_of_its_talk_leaves(tmp_path: Path) -> None:
    small = [word for key, value in SMALL.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["train", "custom-nano", *small, "--name", "unheard"]
    code, out, _ = run_forked(heard, unheard, words, folder=tmp_path)
    assert (code, "models/custom_nano" in out) == (0, True)
    assert "> 'Hello!'" in (tmp_path / "models/runs/unheard/console.log").read_text()


def test_what_is_piped_and_not_read_is_reported(trained: Trained, dialogkit: Run) -> None:
    words = ["generate", "shared-run", "--output-dir", str(trained.output), "--max-new-tokens", "2"]
    done = dialogkit(*words, stdin="Hello!\n")
    assert done.code == 0
    assert "dialogkit generate --prompts-file -" in done.err


def test_ctrl_c_ends_a_command_with_one_word(dialogkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dialogkit.services.models.list_models", interrupted)
    assert dialogkit("models", "list") == Finished(130, "", "stopped\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from dialogkit.cli.app import main

    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dialogkit.services.models.list_models", broken)
    with pytest.raises(ZeroDivisionError):
        main(["models", "list"])


def test_a_suggestion_is_made_only_for_a_near_word() -> None:
    assert did_you_mean("tain", ["train", "generate"]) == " (did you mean 'train'?)"
    assert did_you_mean("xyz", ["train", "generate"]) == ""
    continued = "custom-pico-talk-20261130-124533"
    assert did_you_mean("custom-pico-talk", ["custom-pico", continued]) == f" (did you mean {continued!r}?)"
