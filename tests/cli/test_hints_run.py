"""What is printed behind `try:` and `next:` is typed, and works."""

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SMALL, Finished, Trained, write_files

Run = Callable[..., Finished]

SETTINGS = {**SMALL, "train.max_steps": 1, "train.eval_every_steps": 1, "tracking.held_out_replies": 0}
ROWS = [{"prompt": f"Say {word}.", "response": f"{word} {word}"} for word in "abcdefghijklmnopqrstuvwxyz"]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FILES = {
    "shop.jsonl": LINES,
    "shop.csv": "prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in ROWS),
    "more.csv": "prompt,response\nWhy?,So.\nHow?,Thus.\n",
    "talk.txt": "hello\n",
    "bad.tsv": "a\tb\nc\td\n",
    "many/a.jsonl": LINES,
    "many/b.jsonl": '{"prompt": "Why?", "response": "So."}\n',
    "broken.jsonl": LINES + "{\n",
    "settings.json": '{"train": {"epochs": 1}}',
    "wrong.json": '{"train": {"epochs": 0}}',
    "prompts.txt": "Hello!\n",
}

TRAIN = "train custom-nano"

# What is typed wrong, and a part of what works that holds what was typed.
WRONG = {
    f"{TRAIN} --set train.epochs 3": f"{TRAIN} --set train.epochs=3",
    f"{TRAIN} --set train.epochs = 3": f"{TRAIN} --set train.epochs=3",
    f"{TRAIN} --set epochs=3": "--set train.epochs=3",
    f"{TRAIN} --set lr: 1e-3": "--set train.learning_rate=1e-3",
    f"{TRAIN} train.epochs=3": "--set train.epochs=3",
    f"{TRAIN} --dataset talk.txt": "--dataset",
    f"{TRAIN} --dataset bad.tsv": "--dataset",
    f"{TRAIN} --num_train_epochs 3 --learning_rate 1e-3": "--epochs 3 --lr 1e-3",
    f"{TRAIN} --gpu 0": TRAIN,
    f"{TRAIN} --device cpu": f"{TRAIN} --no-cuda",
    f"{TRAIN} shop.jsonl": f"{TRAIN} --dataset shop.jsonl",
    "train shop.csv custom-nano": f"{TRAIN} --dataset shop.csv",
    f"{TRAIN} --dataset many/a.jsonl many/b.jsonl": f"{TRAIN} --dataset many",
    f"{TRAIN} --dataset shop.csv more.csv": "> together.csv && dialogkit train custom-nano --dataset together.csv",
    "train custom-tiny --model custom-nano": TRAIN,
    f"{TRAIN} --prest test": "--preset test",
    f"{TRAIN} --project 'my project/\u00fc'": "--project 'my project-\u00fc'",
    f"{TRAIN} --dataset broken.jsonl": "--max-bad-rows 1",
    f"{TRAIN} --budget soon": "--budget 20m",
    f"{TRAIN} --samples 0": "--samples 100",
    "custom-nano": TRAIN,
    "fit custom-nano": TRAIN,
    "train settings.json --model-name custom-nano": "",
    "train --list-models": "models list",
    "list models": "models list",
    "help": "--help",
    "help train": "train --help",
    "version": "--version",
    "train -h": "train --help",
    "trian --help": "train --help",
    "models lst": "models list",
    "models show --model custom-nano": "models show custom-nano",
    "models show custom-nanno": "models list",
    "config show --set epochs=3": "config show --set train.epochs=3",
    "config show --set train.zzz=1": "config show",
    "config validate wrong.json": "config schema",
    f"{TRAIN} --fp16": f"{TRAIN} --set runtime.precision=bf16",
    "data inspect --dataset shop.jsonl": "data inspect shop.jsonl",
    "data inspect shop.csv more.csv": "data inspect together.csv",
    "data inspect shp.jsonl": "data inspect shop.jsonl",
    "data shop.csv": "data inspect shop.csv",
    "train --help --epoch 3": "train --help --epochs 3",
    "inspect shop.jsonl": "data inspect shop.jsonl",
    "generate nothing": "models list",
    "launch slurm train custom-nano --samples 5": "launch slurm -- train custom-nano --samples 5",
    "launch slurm -- train custom-nano --num_epochs 3": "-- train custom-nano --epochs 3",
    "launch slurm -- custom-nano": "-- train custom-nano",
    "runs show nothing": "runs list",
    "doctor --ntwork": "doctor --network",
    "train settings.json": "train --config settings.json",
    "train --from nothing": "runs list",
    "train --resume nothing": "runs list",
    "train nothing": "models list",
    "train --config setings.json": "config validate settings.json",
    "generate ./nothing": "models list",
    "runs report nothing": "runs list",
    "runs prune --status wrong": "runs list",
    "config show nothing": "models list",
    "config show --preset prod": "--preset production",
    "config show --set train.optimizer=adam": "--set train.optimizer=adamw",
    "config show --set data.streaming=yes": "--set data.streaming=true",
    "config show --set runtime.sharding=fsdp --set train.optimizer=muon": "--set train.optimizer=adamw",
    "data inspect startr": "data list",
    "data inspect broken.jsonl": "--max-bad-rows 1",
}
# The same, where there is a finished run.
WITH_RUN = {
    "runs delete shared-run": "runs prune shared-run",
    "runs rm shared-run": "runs prune shared-run",
    "runs ls": "runs list",
    "runs shared-run": "runs show shared-run",
    "run show shared-run": "runs show shared-run",
    "runs show --run shared-run": "runs show shared-run",
    "shared-run": "generate shared-run",
    "generate shared-run Hello there": "generate shared-run --prompt 'Hello there'",
    "generate shared-run --max_tokens 2": "--max-new-tokens 2",
    "generate shared-run --temperature=-1": "generate --help",
    "generate shared-run --compare shared-run": "generate shared-run",
    "generate --compare shared-run --prompts-file nowhere.txt": "generate --prompt",
    "evaluate shared-run shop.jsonl --samples 4": "evaluate shared-run --samples 4 --dataset shop.jsonl",
    "eval shared-run --samples 4": "evaluate shared-run --samples 4",
    "evaluate --model shared-rn": "models list",
}


@pytest.fixture(autouse=True)
def files(in_temporary_folder: Path) -> None:
    write_files(in_temporary_folder, FILES)


def small(words: list[str]) -> list[str]:
    """Return a command so that it lasts a second; the last words win."""
    if words[:1] == ["train"] and "--help" not in words:
        own = [word.partition("=")[0] for word in words]
        given = {"--samples": "data.samples", "--epochs": "train.epochs", "--no-cuda": "runtime.device"}
        own += [setting for flag, setting in given.items() if flag in words]
        return [
            *words,
            *(w for k, v in SETTINGS.items() if k not in own for w in ("--set", f"{k}={json.dumps(v)}")),
        ]
    return [*words, "--max-new-tokens", "2"] if words[0] == "generate" and "--help" not in words else words


def type_hint(hint: str, words: list[str], dialogkit: Run) -> Finished:
    """Type a hint: a line, or what to add to the command that was typed; of several the last."""
    first, _, line = hint.rpartition(", or: ")[2].rpartition(" && ")
    if first:
        subprocess.run(first, shell=True, check=True)
    hinted = shlex.split(line)
    typed = hinted[1:] if hinted[0] == "dialogkit" else [*words, *hinted]
    return dialogkit(*small(typed))


def check(typed: str, part: str, dialogkit: Run) -> None:
    words = shlex.split(typed)
    done = dialogkit(*words)
    assert done.code == 2
    hint = next(line.removeprefix("try: ") for line in done.err.splitlines() if line.startswith("try: "))
    assert part in hint
    worked = type_hint(hint, words, dialogkit)
    assert worked.code == 0, f"{hint}: {worked.err}"


@pytest.mark.parametrize(("typed", "part"), WRONG.items(), ids=WRONG)
def test_what_a_wrong_command_says_to_try_works(typed: str, part: str, dialogkit: Run) -> None:
    check(typed, part, dialogkit)


@pytest.mark.parametrize(("typed", "part"), WITH_RUN.items(), ids=WITH_RUN)
def test_what_it_says_to_try_with_a_run_works(typed: str, part: str, dialogkit: Run, trained: Trained) -> None:
    shutil.copytree(trained.output, "models")  # what is run may store something with the run
    check(typed, part, dialogkit)
