"""What ends a line of a file, and what is only a character in it: what is written is read back."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.cli.generate import read_prompts
from dialogkit.cli.terminal import read_turns
from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.data.sources import find_source, read_dialogs
from dialogkit.dialog import Message
from dialogkit.services.chat import Chat
from dialogkit.services.tokenizer import texts_of
from dialogkit.system.credentials import read_dotenv
from dialogkit.text import lines_of, without_surrogates
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Finished, Trained

ENDS = [char for char in map(chr, range(0x3000)) if len(f"a{char}b".splitlines()) == 2]
"""Every character at which `str.splitlines` splits."""
INSIDE = [char for char in ENDS if char != "\n"]
WORDS = [f"one{char}two" for char in INSIDE]


def test_every_separator_of_python_is_tried() -> None:
    assert {"\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"} < set(INSIDE)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_feeds_end_a_line(end: str) -> None:
    assert lines_of(end.join(WORDS)) == lines_of(end.join(WORDS) + end) == WORDS
    assert lines_of(f"a{end}{end}b") == ["a", "", "b"]
    assert lines_of("") == []


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_prompt_of_a_file_keeps_its_characters(end: str) -> None:
    Path("prompts.txt").write_bytes(end.join(WORDS).encode())
    assert read_prompts(None, "prompts.txt") == WORDS


def test_a_text_file_for_a_tokenizer_is_read_line_by_line() -> None:
    Path("plain.txt").write_bytes("\r\n".join(WORDS).encode())
    assert list(texts_of(["plain.txt"])) == WORDS


def test_a_run_keeps_its_samples_and_metrics_when_it_is_cut(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "a")
    run.write(RunRecord(name="a", created="2026-01-01T00:00:00+00:00"))
    for step, text in enumerate(WORDS, 1):
        run.append_sample({"step": step, "prompt": text, "reply": text})
        run.append_metrics(step, {text: 1.0})
    kept = len(WORDS) - 2
    before = run.samples(), run.metrics()
    run.cut_after(kept)
    assert (run.samples(), run.metrics()) == tuple(part[:kept] for part in before)
    assert [sample["reply"] for sample in run.samples()] == WORDS[:kept]


def test_saved_dialogs_are_loaded_as_they_were(trained: Trained) -> None:
    chat = Chat("shared-run", config=GenerateConfig(max_new_tokens=1), output=trained.output, device="cpu")
    for text in WORDS:
        chat.messages = [Message("user", text), Message("assistant", text)]
        saved = list(chat.messages)
        chat.save("chat.jsonl")
        chat.messages = []
        assert (chat.load("chat.jsonl"), chat.messages) == (2, saved)
    assert len(Path("chat.jsonl").read_bytes().split(b"\n")) == len(WORDS) + 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_a_row_of_a_dataset_keeps_its_characters(name: str) -> None:
    rows = [{"prompt": text, "response": text} for text in WORDS]
    if name == "rows.csv":
        text = "prompt,response\r\n" + "".join(f'"{word}","{word}"\r\n' for word in WORDS)
    elif name == "rows.json":
        text = json.dumps(rows, ensure_ascii=False)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(name).write_bytes(text.encode())
    config = DataConfig(dataset=name)
    read = read_dialogs(find_source(config), config).dialogs
    assert [[message.content for message in dialog] for dialog in read] == [[word, word] for word in WORDS]


def test_a_value_of_a_dotenv_file_does_not_begin_another_setting() -> None:
    others = [char for char in INSIDE if char != "\r"]
    lines = [f"NOTE=x{char}WANDB_API_KEY=stolen" for char in others]
    Path(".env").write_text("\n".join([*lines, "WANDB_ENTITY=me"]), encoding="utf-8", newline="\n")
    assert read_dotenv(Path(".env")) == {"WANDB_ENTITY": "me"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_turn_that_is_piped_into_a_chat_keeps_its_characters(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.TextIOWrapper(io.BytesIO(end.join(WORDS).encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", piped)
    assert list(read_turns(print, on_interrupt="", on_unreadable=print)) == WORDS


def test_replies_to_a_prompts_file_are_as_many_as_its_lines(
    dialogkit: Callable[..., Finished], trained: Trained
) -> None:
    Path("prompts.txt").write_bytes("\n".join(WORDS).encode())
    asked: list[Any] = ["--prompts-file", "prompts.txt", "--max-new-tokens", "1", "--json"]
    done = dialogkit("generate", "shared-run", "--output-dir", str(trained.output), *asked)
    assert [reply["prompt"] for reply in done.json["data"]["replies"]] == WORDS


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("Grüße 👋", "Grüße 👋"),
        ("Gr\udcc3\udcbc\udcc3\udc9fe", "Grüße"),
        ("a\udcffb", "a\\xffb"),
        ("\ud83d\udc4b!", "👋!"),
        ("\ud83d!", "\\ud83d!"),
    ],
)
def test_what_a_terminal_or_a_file_gives_as_surrogates_is_text(
    typed: str, text: str, trained: Trained, tmp_path: Path
) -> None:
    assert without_surrogates(typed) == text
    config = GenerateConfig(test_prompts=(typed,), max_new_tokens=2)
    assert config.test_prompts == (text,)
    chat = Chat("shared-run", config=config, output=trained.output, device="cpu")
    chat.say(typed)
    chat.save("chat.jsonl")
    assert json.loads(Path("chat.jsonl").read_text(encoding="utf-8"))["messages"][0]["content"] == text
