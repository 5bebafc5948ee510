"""Output in a narrow encoding ends as it does in UTF-8: what the encoding lacks is escaped."""

import io
import json
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich._spinners import SPINNERS
from rich.console import Console

from dialogkit.cli.app import main
from dialogkit.cli.output import spinner
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL, Trained, run_process

ENCODINGS = ["ascii", "cp1252", "gbk"]
TEXTS = ["Grüße — ça va?", "Привет, мир", "你好吗", "שלום مرحبا", "नमस्ते", "👋🏽 👩‍👩‍👧", "€ ½ ŝ ﬁ"]
DIALOGS = [{"prompt": text, "response": f"{text} {number}"} for text in TEXTS for number in range(4)]
WORDS: dict[str, Any] = {
    **SMALL,
    "generate.test_prompts": TEXTS,
    "generate.max_new_tokens": 4,
    "tracking.held_out_replies": 1,
    "data.samples": 4,
    "train.max_steps": 1,
}
SETTINGS = [word for name, value in WORDS.items() for word in ("--set", f"{name}={json.dumps(value)}")]
PROMPTS = [word for text in TEXTS for word in ("--prompt", text)]
FEW = ["--max-new-tokens", "4", "--no-cuda"]
COMMANDS = [
    ["train", "custom-nano", "--dataset", "данные.jsonl", "--name", "alone", "--no-cuda", *SETTINGS],
    ["train", "custom-nano", "--dataset", "данные.jsonl", "--no-cuda", "--json", *SETTINGS],
    ["generate", "alone", *PROMPTS, "--system", "👋", *FEW],
    ["generate", "alone", *PROMPTS, *FEW, "--json"],
    ["generate", "shared-run", "--compare", "alone", *PROMPTS, *FEW],
    ["chat", "alone", *FEW],
    ["evaluate", "alone", "--quick", "--worst", "2", "--no-cuda"],
    ["data", "inspect", "данные.jsonl", "--show", "3"],
    ["data", "inspect", "данные.jsonl", "--json"],
    ["data", "inspect", "нет.jsonl"],
    ["data", "list"],
    ["runs", "list"],
    ["runs", "show", "alone", "--all"],
    ["runs", "show", "shared-run"],
    ["runs", "show", "alone", "--json"],
    ["runs", "show", "你好"],
    ["runs", "compare", "shared-run", "alone"],
    ["runs", "best"],
    ["runs", "report", "alone", "--output", "отчёт.html"],
    ["runs", "prune", "--status", "failed"],
    ["models", "list"],
    ["models", "show", "alone"],
    ["models", "show", "👋"],
    ["doctor"],
    ["config", "show", "custom-nano", "--set", 'generate.test_prompts=["你好 👋"]'],
    ["config", "schema"],
    ["config", "validate", "нет.json"],
    ["config", "show", "--set", "train.epochs=你"],
    ["launch", "slurm", "--setup", "echo é 你", "--", "train", "custom-nano"],
    ["train", "--help"],
    ["evaluate", "--help"],
    ["é"],
]


class Ended(NamedTuple):
    """A command that ended: its exit code, and what it wrote."""

    code: Any
    out: str
    err: str


def run(encoding: str, words: Sequence[str]) -> Ended:
    """Run a command whose stdin, stdout and stderr have an encoding, as Python opens them."""
    kept, drawn = (sys.stdin, sys.stdout, sys.stderr), [io.BytesIO(), io.BytesIO()]
    said = "\n".join(["/system é 你", *TEXTS, "/history", "/save dialog.jsonl", "/неизвестно"])
    sys.stdin = io.TextIOWrapper(io.BytesIO(said.encode(encoding, "replace")), encoding=encoding)
    streams = [io.TextIOWrapper(stream, encoding=encoding, write_through=True) for stream in drawn]
    sys.stdout, sys.stderr = streams
    try:
        main(list(words))
        code: Any = None
    except SystemExit as end:
        code = end.code
    except BaseException:
        code = traceback.format_exc()
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept
    out, err = (stream.getvalue().decode(encoding) for stream in drawn)
    return Ended(code, out, err)


def go(folder: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a new folder, with a dataset and the shared run."""
    shutil.copytree(trained.output, folder / "models")
    lines = (json.dumps(dialog, ensure_ascii=False) for dialog in DIALOGS)
    (folder / "данные.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def in_utf_8(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    with pytest.MonkeyPatch.context() as patch:
        go(tmp_path_factory.mktemp("utf-8"), trained, patch)
        return [run("utf-8", words) for words in COMMANDS]


@pytest.mark.faults
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_ends_as_it_does_in_utf_8(
    encoding: str, in_utf_8: list[Ended], tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {ended.code for ended in in_utf_8} == {0, 2}
    go(tmp_path / encoding, trained, monkeypatch)
    for words, as_utf8 in zip(COMMANDS, in_utf_8, strict=True):
        ended = run(encoding, words)
        assert ended.code == as_utf8.code, (words, ended)
        assert "Traceback" not in ended.err, words
        if "--json" in words and words[0] != "train":
            assert _shape(json.loads(ended.out)) == _shape(json.loads(as_utf8.out)), words
    assert RunDir(Path("models/runs/alone")).read().config["generate"]["test_prompts"] == TEXTS


def _shape(data: Any) -> Any:
    """Return what two runs of one command have in common: all texts."""
    if isinstance(data, dict):
        return {
            name: _shape(value) for name, value in data.items() if name in ("data", "replies", "prompt", "text")
        }
    return [_shape(value) for value in data] if isinstance(data, list) else data


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("cp1252", "> Grüße — ça va? \\u4f60"),
        ("ascii", "> Gr\\xfc\\xdfe \\u2014 \\xe7a va? \\u4f60"),
        ("gbk", "> Grü\\xdfe — \\xe7a va? 你"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(
    encoding: str, shown: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.output.parent)
    ended = run(encoding, ["generate", "shared-run", "-p", "Grüße — ça va? 你", "-p", "a", *FEW])
    assert shown in ended.out.splitlines()


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0"}])
def test_a_process_of_its_own_is_no_different(environment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "данные.json").write_text('{"generate": {"test_prompts": ["你好 é"]}}', encoding="utf-8")
    words = ["config", "show", "custom-nano", "--config", "данные.json", "--set", "tracking.notes=ü", "--json"]
    done = run_process(*words, **{"LC_ALL": "C", **environment})
    assert (done.code, done.err) == (0, "")
    settings = {row["name"]: row["value"] for row in done.json["data"]}
    assert (settings["generate.test_prompts"], settings["tracking.notes"]) == (["你好 é"], "ü")


def test_a_spinner_is_drawn_in_what_the_terminal_has() -> None:
    drawn = {}
    for encoding in ("utf-8", "ascii"):
        console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        drawn[encoding] = str(SPINNERS[spinner(console)]["frames"])
    assert drawn["ascii"].isascii()
    assert not drawn["utf-8"].isascii()
