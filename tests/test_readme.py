"""The README, docs/ and CONTRIBUTING: their commands run, and what they name exists.

A block of commands that begins with `# needs ...` or `# takes ...` is not run: its words are checked.
"""

import io
import json
import re
import shlex
import subprocess
import textwrap
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from dialogkit.cli.app import app
from dialogkit.cli.app import main as dialogkit
from dialogkit.config.load import load_with_origins, parse_sets
from dialogkit.config.problems import known_settings
from tests.conftest import REPOSITORY, TINY

PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        REPOSITORY / "CHANGELOG.md",
        *sorted((REPOSITORY / "docs").rglob("*.md")),
    )
}

MARK = re.compile(r"# (needs|takes) \S")
"""The first line of a block of commands that cannot run everywhere."""

BRIEF: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "model.context"},
    "data.samples": 8,
    "data.eval_min_dialogs": 2,
    "data.eval_max_dialogs": 2,
    "train.max_steps": 2,
    "train.eval_every_steps": 2,
    "generate.test_prompts": ["Hello!"],
    "generate.max_new_tokens": 4,
    "tracking.replies_at_evaluations": 0,
    "tracking.report": False,
}
"""Settings added to every run, so that all pages take seconds: two layers, two steps, short replies."""


class Block(NamedTuple):
    """One block of a page."""

    kind: str
    text: str

    @property
    def runs(self) -> bool:
        return not MARK.match(self.text)

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [Block(kind, textwrap.dedent(text)) for _, kind, text in found]


def files() -> dict[str, str]:
    """Return the files whose content the pages show, by name."""
    pattern = r"`([\w./-]+\.(?:jsonl?|csv|yaml))`[^`]*?:?\n\n```(?:json|csv|yaml)\n(.*?)^```$"
    return {name: text for page in PAGES.values() for name, text in re.findall(pattern, page, re.M | re.S)}


def made_by(line: str) -> list[str]:
    """Return the commands of dialogkit that a `make` target runs."""
    words = ["make", "-n", *shlex.split(line)[1:]]
    planned = subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert planned.strip(), line
    return [f"dialogkit {words}" for words in re.findall(r"^\S+/dialogkit (.*)$", planned, re.MULTILINE)]


def shortened(words: list[str]) -> list[str]:
    """Return the words of a command with what makes it brief."""
    if words[0] == "generate":
        return [*words, "--max-new-tokens", "4"]
    if words[0] != "train":
        return words
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in BRIEF.items()}
    if any(word.startswith("model.tokenizer=") for word in words):
        del texts["model.tokenizer"]
    return [*words, *(word for name, text in texts.items() for word in ("--set", f"{name}={text}"))]


class Reader:
    """Works through pages in one folder, as somebody would who types what they say.

    What was typed already, on this page or another, is not typed again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.typed: set[str] = set()
        for name, text in files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "shards").mkdir()
        rows = json.loads((folder / "my-dialogs.json").read_text(encoding="utf-8"))
        (folder / "shards/0.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    def work_through(self, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(self.folder)
        monkeypatch.setattr("dialogkit.services.evaluation.evaluator.REPLIES", 2)
        monkeypatch.setattr("dialogkit.services.exporting.certificate.LONGEST", 4)
        monkeypatch.setattr("dialogkit.data.worlds.dialogs.DIALOGS", 600)
        monkeypatch.setenv("WANDB_MODE", "offline" if page == "docs/tracking.md" else "disabled")
        for block in blocks(page):
            if block.kind == "bash" and block.runs:
                for line in block.lines:
                    for command in made_by(line) if line.startswith("make ") else [line]:
                        self.type(command, monkeypatch)
            elif block.kind == "python":
                self.run_python(block.text)

    def type(self, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if line in self.typed:
            return
        self.typed.add(line)
        before, _, command = line.rpartition(" | ")
        words = shlex.split(command)
        assert words[0] == "dialogkit", line
        if before:
            piped = subprocess.run(shlex.split(before), capture_output=True, check=True)
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped.stdout)))
        if words[1] == "chat":
            monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\n/undo\n"))
        with pytest.raises(SystemExit) as finished:
            dialogkit(shortened(words[1:]))
        assert not finished.value.code, line

    def run_python(self, text: str) -> None:
        if text in self.typed:
            return
        self.typed.add(text)
        brief = text.replace("overrides={", "overrides={**BRIEF, ")
        brief = brief.replace("max_samples=50", "max_samples=8, overrides=BRIEF")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of transformers, in its own pipeline
            exec(compile(brief, "a page", "exec"), {"BRIEF": BRIEF})


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.kind in ("bash", "python") and block.runs for block in blocks(page))],
)
def test_the_commands_of_a_page_run(page: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.work_through("README.md", monkeypatch)  # its models are used by the other pages
    reader.work_through(page, monkeypatch)


def parse(words: list[str]) -> None:
    """Check words against the command line, settings included."""
    command: Any = typer.main.get_command(app)
    path = "dialogkit"
    while hasattr(command, "commands") and words:
        name, *words = words
        assert name in command.commands, f"{path} {name}"
        command, path = command.commands[name], f"{path} {name}"
    if hasattr(command, "commands") or words in ([], ["--help"]):
        return
    given = command.make_context(path, list(words)).params
    settings = parse_sets(given.get("sets") or [])
    if path == "dialogkit train":
        load_with_origins(given["model"], preset=given["preset"], overrides=settings)
    elif path.startswith("dialogkit launch"):
        parse(given["words"])


def check(line: str, page: str) -> None:
    """Check a line that cannot run here."""
    words = shlex.split(line)
    if "dialogkit" in words:
        parse(words[words.index("dialogkit") + 1 :])
    elif words[:4] == ["python", "-m", "pip", "install"]:
        check_extras(words[-1])
    elif words[0] in ("sbatch", "kubectl"):
        assert f"--output {words[-1]} " in PAGES[page], line
    elif words[0] == "make":
        targets = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), line
    else:
        assert words[0] == ".venv/bin/python", line
        assert (REPOSITORY / words[-1]).exists(), line


def check_extras(requirement: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"\[([\w-]+)\]", requirement):
        assert extra in project["optional-dependencies"], requirement


@pytest.mark.parametrize("page", PAGES)
def test_what_does_not_run_is_right(page: str, in_temporary_folder: Path) -> None:
    marked = [line for block in blocks(page) if not block.runs for line in block.lines]
    for line in marked:
        check(line, page)
    text = re.sub(r"^( *)```.*?^\1```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    if page != "CHANGELOG.md":  # of earlier releases, too
        for command in re.findall(r"`dialogkit ([a-z][^`>…]*)`", text):
            parse(shlex.split(command.partition(" > ")[0].replace("...", "")))
    for requirement in re.findall(r"pip install '([^']+)'", text):
        check_extras(requirement)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    assert {block.kind for block in blocks(page)} <= {"bash", "python", "json", "csv", "yaml", "text"}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_the_settings_that_a_page_names_exist(page: str) -> None:
    sections = "data|train|model|runtime|tracking|generate"
    named = set(re.findall(rf"`((?:{sections})\.\w+)(?:=[^`]*)?`", PAGES[page]))
    assert {name for name in named if not name.endswith((".js", ".onnx"))} <= set(known_settings())


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/training.md"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"\b((?:dialogkit|configs|tests|benchmarks|docs)/[\w/.]+)", PAGES[page])
    assert named
    for name in named:
        assert (REPOSITORY / name.rstrip(".")).exists(), name


def headings(page: str) -> Iterator[str]:
    """Yield the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        yield re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert file.is_file(), target
        if anchor and (linked := file.resolve().relative_to(REPOSITORY).as_posix()) in PAGES:
            assert anchor in set(headings(linked)), target


def test_the_table_of_models_is_that_of_the_catalogue() -> None:
    from dialogkit import list_models

    for row in list_models():
        assert row.parameters is not None
        assert row.parameters_without_embeddings is not None
        millions = f"{row.parameters_without_embeddings / 1e6:.1f}M"
        cells = [f"`{row.name}`", f"{row.parameters:,}", millions, str(row.layers), str(row.width)]
        assert f"| {' | '.join(cells)} |" in PAGES["docs/models.md"]


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].encode()) <= 9_000
