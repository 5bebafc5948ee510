"""What a wrong command says: one sentence that shows the wrong value, what to type instead, exit code 2."""

import gzip
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dialogkit.system.loading import LOADING as ACTIVITY
from tests.conftest import Finished, Trained, run_process, write_files

Run = Callable[..., Finished]

ROW = {"instruction": "Say hello.", "output": "Hello!"}
LINE = json.dumps(ROW) + "\n"
PACKED = gzip.compress((LINE * 50).encode(), mtime=0)

FILES: dict[str, str | bytes] = {
    "good.jsonl": "".join(json.dumps({**ROW, "instruction": f"Say {word}."}) + "\n" for word in "abcdefgh"),
    "empty.jsonl": "",
    "columns.jsonl": '{"topic": "Why?", "remark": "So."}\n',
    "one.jsonl": LINE,
    "same.jsonl": LINE * 9,
    "no-answer.jsonl": '{"instruction": "Say nothing.", "output": ""}\n' * 3,
    "numbers.jsonl": "[1, 2]\n",
    "syntax.jsonl": LINE + '{"instruction"\n',
    "latin.jsonl": LINE.replace("Say", "\xe9").encode("latin-1"),
    "ragged.csv": "instruction,output\na,b\nc,d,e\n",
    "short.jsonl.gz": PACKED[:-20],
    "damaged.jsonl.gz": PACKED[:12] + b"\xff\xff\xff\xff" + PACKED[16:],
    "unpacked.jsonl.gz": LINE,
    "fake.parquet": "PAR1 and no more",
    "plain.txt": "some text\n",
    "blank.txt": "\n  \n",
    "latin.txt": b"caf\xe9\n",
    "syntax.json": '{"train": {"epochs": }}',
    "twice.json": '{"train": {"epochs": 1, "epochs": 2}}',
    "list.json": "[]",
    "unknown-key.json": '{"train": {"epoch": 1}}',
    "wrong-type.json": '{"train": {"epochs": "two"}}',
    "null.json": '{"model": null}',
    "shape.json": '{"model": {"layers": 2}}',
    "folder/notes.txt": "not a model",
    "tokenizer/tokenizer.json": "{}",
}

TRAIN = "train custom-nano --no-cuda --set model.layers=1"

# What is typed, and the part of it that the error must show.
WRONG = {
    # Words
    "trian custom-tiny": "'trian'",
    "models lst": "'lst'",
    "--vresion": "--vresion",
    "train custom-tiny --prest test": "--prest",
    "train custom-tiny --preset": "'--preset'",
    "train custom-tiny custom-nano": "custom-nano",
    "models show": "'name'",
    "config validate": "'FILE'",
    "tokenizer train plain.txt": "'--output'",
    # Models, presets, settings
    "train custom-huge": "'custom-huge'",
    "train folder": "'folder'",
    "train nowhere.json": "'nowhere.json'",
    "train nowhere.gguf": "'nowhere.gguf'",
    "train shape.json": "width, heads, context",
    "train ''": "''",
    "models show custom-tinny": "'custom-tinny'",
    "config show no-such-model": "'no-such-model'",
    "train custom-tiny --preset tset": "'tset'",
    "train custom-tiny --set train.learning_rat=1": "'train.learning_rat'",
    "train custom-tiny --set trian.epochs=1": "'trian'",
    "train custom-tiny --set train.epochs": "'train.epochs'",
    "train custom-tiny --set train.learning_rate=fast": '"fast"',
    "train custom-tiny --set train.batch_size=2.5": "2.5",
    "train custom-tiny --set train.epochs=NaN": "finite number (got NaN)",
    "train custom-tiny --set train=3": "train: must be a JSON object (got 3)",
    "train custom-tiny --set model.heads=3": "heads 3",
    "train custom-tiny --set model.heads=256": "256 heads",
    "train custom-tiny --set train.batch_size=4 --set train.accumulation_steps=3": "accumulation_steps 3",
    "train custom-tiny --samples=-1": "-1",
    "train custom-tiny --samples 0": "0",
    "train custom-tiny --samples many": '"many"',
    "train custom-tiny --name ../elsewhere": '"../elsewhere"',
    "train custom-tiny --wandb on": '"on"',
    "train custom-tiny --no-merge": "--no-merge keeps the adapter that LoRA trains, and --method is 'full'",
    "train custom-tiny --set runtime.compile=yes": 'runtime.compile: must be true or false (got "yes")',
    "train custom-tiny --set runtime.sharding=fsdp --set train.optimizer=muon": "error: train.optimizer 'muon'",
    "train custom-tiny --tracker foo": "--tracker: must be 'tensorboard', 'trackio' or 'mlflow' (got \"foo\")",
    "train custom-tiny --name last": "--name: must not be 'last'",
    "train ./nowhere": "no file or folder './nowhere'",
    "generate ./nowhere": "no file or folder './nowhere'",
    "train custom-tiny --project ''": '""',
    # Settings files
    "train --config nowhere.json": "'nowhere.json'",
    "train --config syntax.json": "syntax.json:1",
    "train --config twice.json": "'epochs'",
    "train --config list.json": "list.json",
    "train --config unknown-key.json": "'train.epoch'",
    "train --config wrong-type.json": '"two"',
    "train custom-tiny --config null.json": "null",
    "train --config folder": "folder",
    "train --config latin.txt": "latin.txt",
    "config validate unknown-key.json": "unknown-key.json",
    "config validate nowhere.json": "'nowhere.json'",
    # Datasets
    f"{TRAIN} --dataset nowhere.jsonl": "'nowhere.jsonl'",
    f"{TRAIN} --dataset startr": "'startr'",
    f"{TRAIN} --dataset folder": "'folder'",
    f"{TRAIN} --dataset plain.txt": "'plain.txt'",
    f"{TRAIN} --dataset empty.jsonl": "empty.jsonl",
    f"{TRAIN} --dataset columns.jsonl": "topic, remark",
    f"{TRAIN} --dataset one.jsonl": "one.jsonl leaves 1",
    f"{TRAIN} --dataset same.jsonl": "same.jsonl",
    f"{TRAIN} --dataset no-answer.jsonl": "no-answer.jsonl:1",
    f"{TRAIN} --dataset numbers.jsonl": "numbers.jsonl",
    f"{TRAIN} --dataset syntax.jsonl": "syntax.jsonl:2",
    f"{TRAIN} --dataset latin.jsonl": "latin.jsonl",
    f"{TRAIN} --dataset ragged.csv": "ragged.csv:3",
    f"{TRAIN} --dataset short.jsonl.gz": "short.jsonl.gz",
    f"{TRAIN} --dataset damaged.jsonl.gz": "damaged.jsonl.gz",
    f"{TRAIN} --dataset unpacked.jsonl.gz": "unpacked.jsonl.gz",
    f"{TRAIN} --dataset fake.parquet": "fake.parquet",
    f"{TRAIN} --dataset good.jsonl --set data.format=messages": "messages",
    "data inspect nowhere.jsonl": "'nowhere.jsonl'",
    "data inspect startr": "'startr'",
    "data inspect folder": "'folder'",
    "data inspect columns.jsonl": "topic, remark",
    "data inspect --show=-1": "--show: must be greater than or equal to 0",
    "data inspect --samples 0": "--samples: must be greater than or equal to 1",
    "data inspect --model custom-huge": "'custom-huge'",
    "data inspect --set data.max_tokens=2": "data.max_tokens",
    "data inspect someone/some-dialogs": "'someone/some-dialogs'",
    # Places, devices, tokenizers, services
    f"{TRAIN} --set runtime.output_dir=good.jsonl": "'good.jsonl/runs/",
    f"{TRAIN} --set runtime.output_dir=good.jsonl/inside": "'good.jsonl/inside/runs/",
    f"{TRAIN} --set model.tokenizer=folder": "'folder'",
    f"{TRAIN} --set model.tokenizer=tokenizer": "'tokenizer'",
    f"{TRAIN} --set model.vocabulary=1000": "1000",
    f"{TRAIN} --wandb online": "WANDB_API_KEY",
    "tokenizer train nowhere.txt --output new": "'nowhere.txt'",
    "tokenizer train latin.txt --output new": "'latin.txt'",
    "tokenizer train blank.txt --output new": "blank.txt",
    "tokenizer train columns.jsonl --output new": "topic, remark",
    "tokenizer train plain.txt --output folder": "'folder'",
    "tokenizer train plain.txt --output good.jsonl/inside": "'good.jsonl/inside'",
    "tokenizer train plain.txt --output new --vocab-size 5": "5",
    # No network
    "train gpt2-small --no-cuda": "'openai-community/gpt2'",
    "train someone/some-model --no-cuda": "'someone/some-model'",
    f"{TRAIN} --dataset alpaca-gpt4": "'vicgalle/alpaca-gpt4'",
    f"{TRAIN} --dataset someone/some-dialogs": "'someone/some-dialogs'",
    "generate gpt2-small --no-cuda": "'openai-community/gpt2'",
    # Replies and figures
    "generate": "'models'",
    "generate custom-tiny": "'custom-tiny'",
    "generate no-such-run": "'no-such-run'",
    "generate folder": "'folder'",
    "generate --temperature=-1": "-1",
    "generate --temperature hot": '"hot"',
    "generate --temperature nan": "NaN",
    "generate --top-p 0": "0",
    "generate --max-new-tokens 0": "--max-new-tokens: must be greater than or equal to 1 (got 0)",
    "generate --prompt ''": "empty",
    "generate --prompt '  '": "empty",
    "generate --prompts-file nowhere.txt": "'nowhere.txt'",
    "generate --prompts-file empty.jsonl": "'empty.jsonl'",
    "generate --prompts-file blank.txt": "'blank.txt'",
    "generate --prompts-file latin.txt": "'latin.txt'",
    "generate --prompts-file folder": "'folder'",
    "generate --compare custom-nano": "--compare",
    "evaluate no-such-run": "'no-such-run'",
    "evaluate custom-tiny": "'custom-tiny'",
    "evaluate --samples=-3": '"-3"',
}


@pytest.fixture(autouse=True)
def files(in_temporary_folder: Path) -> None:
    write_files(in_temporary_folder, FILES)


LOADING = f"{ACTIVITY} ...\n"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def check_refused(done: Finished, shown: str) -> None:
    """One sentence that shows the wrong value, and something to type."""
    assert done.code == 2
    assert done.out == ""
    error, *details, hint = done.err.removeprefix(LOADING).splitlines()
    assert error.startswith("error: ")
    assert shown in error
    assert not error.endswith(".")
    assert all(detail.startswith("       ") for detail in details)
    assert hint.startswith("try: ")
    assert re.search(r"dialogkit \w|--\w|iconv ", hint), "there is nothing to type in it"


@pytest.mark.parametrize(("words", "shown"), WRONG.items(), ids=WRONG)
def test_a_wrong_command_is_refused_in_one_sentence_and_leaves_nothing(
    words: str, shown: str, dialogkit: Run, in_temporary_folder: Path
) -> None:
    before = tree(in_temporary_folder)
    check_refused(dialogkit(*shlex.split(words)), shown)
    assert tree(in_temporary_folder) == before


def test_several_problems_of_a_file_are_reported_in_one_go(dialogkit: Run) -> None:
    Path("three.json").write_text('{"train": {"epochs": 0, "seed": -1}, "dta": {}}')
    done = dialogkit("config", "validate", "three.json")
    check_refused(done, "three.json has 3 problems")
    details = [line.strip() for line in done.err.splitlines()[1:-1]]
    assert [detail.split(":")[0] for detail in details] == [
        "train.epochs",
        "train.seed",
        "unknown section 'dta' (did you mean 'data'?); there are model, data, train, runtime, tracking, generate",
    ]


@pytest.mark.parametrize(
    ("words", "hint"),
    {
        "train --samples -5": "--samples 100",
        "train --learning_rate 1e-3 --steps 5 --gpu 0": "dialogkit train --lr 1e-3 --set train.max_steps=5",
        "train --per_device_train_batch_size 8": "dialogkit train --batch-size 8",
        "train --gpu 1 --seed 3": "CUDA_VISIBLE_DEVICES=1 dialogkit train --set train.seed=3",
        "train nano --model custom-tiny": "dialogkit train custom-tiny",
        "generate a --model b": "dialogkit generate b",
        "train --preset prod": "--preset production",
        "train my.json": "dialogkit train --dataset my.json",
        "train rows.csv": "dialogkit train --dataset rows.csv",
        "train --preset tset": "--preset test",
        "train --tracker foo": "--tracker tensorboard",
        "train someone/some-model --no-cuda": "dialogkit doctor --network",
        "train --dataset ro.csv": "--dataset rows.csv",
        "data inspect ro.csv": "dialogkit data inspect rows.csv",
        "train --config syntax.json": "dialogkit config validate syntax.json",
        "generate Hello!": "dialogkit generate --prompt 'Hello!'",
        "generate custom-tiny Hello there": "dialogkit generate custom-tiny --prompt 'Hello there'",
        "generate custom-tiny --prompt=": "dialogkit generate custom-tiny --prompt 'Hello!'",
        "generate custom-tiny --compare custom-tiny": "dialogkit generate custom-tiny",
        "generate rows.csv": "dialogkit evaluate --dataset rows.csv",
        "runs show nope": "dialogkit runs list",
        "runs sync": "wandb login",
        "train --set train.learning_rate=fast": "--set train.learning_rate=0.0001",
        "train --name ../x": "--name my-run",
        "train --set tracking.wandb=on": "--set tracking.wandb=auto",
        "train --set runtime.sharding=fsdp --set train.optimizer=muon": "--set train.optimizer=adamw",
        "train --set foo.bar=1": "dialogkit config show",
        "train --config wrong-type.json": "dialogkit config validate wrong-type.json",
        "train settings.json": "dialogkit train --config settings.json",
        "train --dataset syntax.jsonl": "fix that line, or: --max-bad-rows 1",
        "train nano": "dialogkit models list",
        "data inspect syntax.jsonl": "fix that line, or: --max-bad-rows 1",
        "data inspect folder": "dialogkit data list",
        "data inspect one.jsonl": "add dialogs to one.jsonl, for example with /save in a chat, or: "
        "dialogkit data inspect starter",
        "data inspect --model rows.csv": "dialogkit data inspect rows.csv",
    }.items(),
)
def test_what_to_try_fits_what_is_wrong(dialogkit: Run, words: str, hint: str) -> None:
    Path("settings.json").write_text('{"train": {"epochs": 1}}')
    Path("my.json").write_text('[{"prompt": "a", "response": "b"}]')
    Path("rows.csv").write_text("prompt,response\na,b\nc,d\n")
    done = dialogkit(*shlex.split(words))
    assert done.err.splitlines()[-1] == f"try: {hint}"


@pytest.mark.parametrize("words", ["train --samples 0", "evaluate --samples 0"])
def test_a_wrong_flag_is_reported_in_one_manner(dialogkit: Run, words: str) -> None:
    reported = dialogkit(*shlex.split(words)).err.splitlines()[0]
    assert re.fullmatch(r"error: --samples: must be greater than or equal to 1 \(got \"?0\"?\)", reported)


def test_a_run_is_never_overwritten_and_refused_before_libraries_are_loaded(
    dialogkit: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(trained.output / "runs")
    monkeypatch.setitem(sys.modules, "dialogkit.engine.fit", None)  # importing it, which imports torch, fails
    words = f"{TRAIN} --name shared-run --set runtime.output_dir={trained.output}"
    check_refused(dialogkit(*shlex.split(words)), "'shared-run'")
    assert tree(trained.output / "runs") == before


def test_a_folder_that_is_no_model_is_not_replaced(dialogkit: Run, in_temporary_folder: Path) -> None:
    Path("models/custom_nano").mkdir(parents=True)
    Path("models/custom_nano/thesis.txt").write_text("the only copy")
    before = tree(in_temporary_folder)
    check_refused(dialogkit(*shlex.split(TRAIN)), "custom_nano")
    assert tree(in_temporary_folder) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission_is_named(dialogkit: Run) -> None:
    Path("locked").mkdir(mode=0o500)
    check_refused(dialogkit(*shlex.split(f"{TRAIN} --set runtime.output_dir=locked/models")), "'locked/models")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("generate gpt2-small --no-cuda", "'openai-community/gpt2'"),
        (f"{TRAIN} --dataset alpaca-gpt4", "'vicgalle/alpaca-gpt4'"),
    ],
)
def test_a_hub_that_does_not_answer_is_reported_at_once(
    words: str, shown: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    check_refused(dialogkit(*shlex.split(words)), shown)


@pytest.mark.parametrize(
    "words",
    [
        "train custom-huge",
        "train custom-tiny --set train.epochs=0 --set train.seed=-1",
        "train custom-tiny --samples many",
        "trian",
        "generate no-such-run",
        "evaluate no-such-run",
        "models show custom-tinny",
        "tokenizer train nowhere.txt --output new",
    ],
)
def test_a_program_gets_the_same_error_as_one_object(words: str, dialogkit: Run) -> None:
    for_people = dialogkit(*shlex.split(words)).err.splitlines()
    done = dialogkit(*shlex.split(words), "--json")
    assert (done.code, done.err) == (2, "")
    assert list(done.json) == ["error"]
    error = done.json["error"]
    assert for_people == [
        f"error: {error['message']}",
        *(f"       {detail}" for detail in error["details"]),
        f"try: {error['hint'].removesuffix(' --json')}",
    ]
    assert re.fullmatch(r"bad_[a-z]+", error["code"])


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("train custom-huge", "'custom-huge'"),
        pytest.param(f"{TRAIN} --dataset columns.jsonl", "topic, remark", marks=pytest.mark.faults),
    ],
)
def test_a_process_of_its_own_refuses_in_the_same_way(
    words: str, shown: str, dialogkit: Run, in_temporary_folder: Path
) -> None:
    before = tree(in_temporary_folder)
    done = run_process(*shlex.split(words), cwd=in_temporary_folder)
    check_refused(done, shown)
    # What is wrong with the data is known after seconds, which are announced.
    assert done.err.startswith(LOADING) == ("--dataset" in words)
    alike = dialogkit(*shlex.split(words))
    assert (done.code, done.err.removeprefix(LOADING)) == (alike.code, alike.err.removeprefix(LOADING))
    assert tree(in_temporary_folder) == before
