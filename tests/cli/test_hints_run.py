"""What is printed behind `try:` and `next:` is typed, and works."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.hint_rows import CHAT, ELSEWHERE, FILES, WITH_RUN, WRONG
from tests.cli.hint_sites import Recorder, sites
from tests.cli.hint_situations import SITUATIONS, UNREACHED, Situation, memory_of_replies
from tests.conftest import SMALL, Finished, Trained, write_files

Run = Callable[..., Finished]

SETTINGS = {**SMALL, "train.max_steps": 1, "train.eval_every_steps": 1, "tracking.held_out_replies": 0}
FLAGS = {
    "--samples": "data.samples",
    "--epochs": "train.epochs",
    "--no-cuda": "runtime.device",
    "--wandb": "tracking.wandb",
    "--set": "",
}

PROGRAMS = ("awk ", "gunzip ", "iconv ", "mv ", "python3 ", "sed ")
"""What is run of other programs."""

LEADS_ON = {
    "config validate wrong.json": "train.epochs: must be greater than 0",
    "config validate latin.json": "latin.json is not UTF-8 text",
    "config validate syntax.json": "syntax.json:1",
    "config validate twice.json": "'epochs' appears twice",
    "config validate deep.json": "deep.json is nested too deeply",
    "config validate list.json": "list.json holds no JSON object",
    "config validate models/runs/shared-run/run.json": "train.epochs: must be greater than 0",
    "runs show shared-run": "still holds its finished model",
    "train someone/gone --preset test": "is not in its cache",
    "--nodes 2": "several machines need a rendezvous",
    "--method lora --no-merge": "starts from random weights",
    "--type q8_0": "needs onnxruntime-web",
}
"""Hints after which the same file or another reason is reported, by their ends."""

SOME = dict([row for row in WRONG.items() if not row[0].startswith("plan ")][::25])
"""Those of the ordinary suite; `make faults` runs all, also those that measure the machine."""
PRINTED: set[str] = set()


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder(monkeypatch)
    yield recorder
    PRINTED.update(recorder.printed)


@pytest.fixture(autouse=True)
def files(in_temporary_folder: Path) -> Iterator[None]:
    write_files(in_temporary_folder, FILES)
    yield
    shutil.rmtree(in_temporary_folder)  # the copies of a run would add up to gigabytes


def small(words: list[str]) -> list[str]:
    """Return a command so that it lasts a second; the last words win."""
    if "--help" in words:
        return words
    if words[:1] == ["train"] and "--resume" not in words:
        own = {word.partition("=")[0] for word in words} | {FLAGS[word] for word in words if word in FLAGS}
        own |= {name for name in SETTINGS if name.startswith("model.")} if _is_pretrained(words) else set()
        # What was typed counts tokens of the tokenizer that ships.
        own |= {"model.tokenizer"} if own & {"model.vocabulary", "data.max_tokens"} else set()
        return [
            *words,
            *(w for k, v in SETTINGS.items() if k not in own for w in ("--set", f"{k}={json.dumps(v)}")),
        ]
    if words[:2] == ["data", "make"]:
        return [*words, "--dialogs", "5"]
    return [*words, "--max-new-tokens", "2"] if words[:1] == ["generate"] else words


def _is_pretrained(words: list[str]) -> bool:
    return "--from" in words or (len(words) > 1 and (words[1] == "mine" or words[1].startswith("models/")))


def type_hint(hint: str, words: list[str], dialogkit: Run) -> Finished | None:
    """Type a hint: a line, or what to add to the command that was typed; None for an advice in words."""
    first, _, line = hint.rpartition(" && ")
    if hint.startswith(PROGRAMS):
        subprocess.run(first or hint, shell=True, check=True)
        if not first:
            return Finished(0, "", "")
    if hint.startswith("unset "):
        for name in hint.split()[1:]:
            os.environ.pop(name)
        return dialogkit(*small(words))
    if not line.startswith(("dialogkit ", "--")) or "--rendezvous" in [*words, *line.split()]:
        return None
    hinted = shlex.split(line)
    return dialogkit(*small(hinted[1:] if hinted[0] == "dialogkit" else [*words, *hinted]))


def check(typed: str, part: str, dialogkit: Run) -> None:
    words = shlex.split(typed)
    done = dialogkit(*words)
    marked = [line for line in done.err.splitlines() if line.startswith(("try: ", "next: "))]
    assert marked, done
    hint = marked[-1].partition(": ")[2]
    assert part in hint, done.err
    for each in hint.split(", or: "):
        worked = type_hint(each, words, dialogkit)
        if worked is not None and worked.code != 0:
            told = next((text for end, text in LEADS_ON.items() if each.endswith(end)), "nothing")
            assert told in worked.err, f"{each}: {worked.err}"


@pytest.mark.parametrize(("typed", "part"), SOME.items(), ids=SOME)
def test_what_is_suggested_works_in_some_cases(typed: str, part: str, dialogkit: Run) -> None:
    check(typed, part, dialogkit)


@pytest.mark.faults
@pytest.mark.parametrize(("typed", "part"), WRONG.items(), ids=WRONG)
def test_what_is_suggested_works(typed: str, part: str, dialogkit: Run) -> None:
    check(typed, part, dialogkit)


@pytest.fixture
def with_run(trained: Trained) -> None:
    shutil.copytree(trained.output, "models")  # what is run may store something with the run


@pytest.mark.faults
@pytest.mark.usefixtures("with_run")
@pytest.mark.parametrize(("typed", "part"), WITH_RUN.items(), ids=WITH_RUN)
def test_what_is_suggested_with_a_run_works(typed: str, part: str, dialogkit: Run) -> None:
    check(typed, part, dialogkit)


@pytest.mark.faults
@pytest.mark.usefixtures("with_run")
@pytest.mark.parametrize(("typed", "part"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_what_is_suggested_is_for_the_folder_that_was_typed(typed: str, part: str, dialogkit: Run) -> None:
    Path("models").rename("other")
    check(f"{typed} --output-dir other", part, dialogkit)


@pytest.mark.faults
@pytest.mark.usefixtures("with_run")
@pytest.mark.parametrize(
    ("situation", "typed", "part"),
    SITUATIONS,
    ids=[f"{getattr(situation, '__name__', '')}: {typed}" for situation, typed, _ in SITUATIONS],
)
def test_what_is_suggested_in_a_situation_works(
    situation: Situation, typed: str, part: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = situation(monkeypatch)
    check(typed, part, dialogkit)
    del held


@pytest.mark.faults
@pytest.mark.usefixtures("with_run")
@pytest.mark.parametrize(("lines", "part"), CHAT.items(), ids=map(repr, CHAT))
def test_what_is_suggested_in_a_dialog_works(
    lines: str, part: str, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory = "max_new_tokens" in part
    if short_of_memory:
        memory_of_replies(80_000)(monkeypatch)

    def say(*said: str) -> list[str]:
        text = "\n".join(said).encode("utf-8", "surrogateescape")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
        return dialogkit("chat", "shared-run").err.splitlines()

    turns = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi!"}]
    Path("chat.jsonl").write_text(f"{json.dumps({'messages': turns})}\n")
    hint = next(line.removeprefix("try: ") for line in say(lines) if line.startswith("try: "))
    assert part in hint
    assert not any(
        line.startswith("error: ") for line in say(*((hint, "Hello!") if short_of_memory else ("Hello!", hint)))
    )


@pytest.mark.faults
def test_every_place_that_makes_a_hint_is_reached(request: pytest.FixtureRequest) -> None:
    rows = len(WRONG) + len(WITH_RUN) + len(ELSEWHERE) + len(SITUATIONS) + len(CHAT)
    typed = sum(item.path == request.path for item in request.session.items)
    if typed < rows or "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("needs all rows, in one process")
    known = {site.name for site in sites().values()}
    excused = {name for names in UNREACHED.values() for name in names}
    excused = {name for name in known if name in excused or name.partition(":")[0] in excused}
    missed, needless = sorted(known - PRINTED - excused), sorted(excused & PRINTED)
    assert not missed, "add a row, or a reason to UNREACHED:\n" + "\n".join(missed)
    assert not needless, "these are reached and need no reason:\n" + "\n".join(needless)
