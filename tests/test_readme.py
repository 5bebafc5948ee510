"""Every command and every piece of Python in the README runs, in the order in which it stands there."""

import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TINY, Finished
from tests.hub import write_alpaca, write_gpt2

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FILES = re.findall(r"`([\w.-]+\.json)`[^`]*?:\n\n```json\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# So that the whole README takes seconds: two steps, short replies, and two layers for models from scratch.
LIMITS = {"train.max_steps": 2, "generate.max_new_tokens": 4}
SCRATCH = {name: value for name, value in TINY.items() if name != "model.context"}


BRIEF = {**SCRATCH, "generate.max_new_tokens": 8, "tracking.replies_at_evaluations": 0}


def commands() -> list[str]:
    """Return the command lines; a `make` target stands for the commands of dialogkit that it runs."""
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line.strip()]
    return [command for line in lines for command in (made_by(line) if line.startswith("make ") else [line])]


def made_by(line: str) -> list[str]:
    planned = subprocess.run(
        ["make", "-n", *shlex.split(line)[1:]], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    assert planned.strip(), line
    return [f"dialogkit {words}" for words in re.findall(r"^\S+/dialogkit (.*)$", planned, re.MULTILINE)]


def shortened(words: list[str]) -> list[str]:
    if words[0] == "generate":
        return [*words, "--max-new-tokens", "4"]
    if words[0] != "train":
        return words
    limits = LIMITS if words[1].startswith("gpt2") else LIMITS | SCRATCH
    return [*words, *(word for name, value in limits.items() for word in ("--set", f"{name}={value}"))]


def test_every_command_of_the_readme_runs(
    dialogkit: Callable[..., Finished], in_temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = in_temporary_folder / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    write_gpt2(home, "openai-community/gpt2")
    write_alpaca(home)
    for name, text in FILES:
        (in_temporary_folder / name).write_text(text, encoding="utf-8")
    (in_temporary_folder / "shards").mkdir()
    lines = [json.dumps(row) + "\n" for row in json.loads(dict(FILES)["my-dialogs.json"])]
    (in_temporary_folder / "shards/0.jsonl").write_text("".join(lines), encoding="utf-8")
    ran = 0
    for line in commands():
        before, _, command = line.rpartition(" | ")
        words = shlex.split(command)
        assert words[0] == "dialogkit", line
        if before:
            piped = subprocess.run(shlex.split(before), capture_output=True, check=True)
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped.stdout)))
        if words[1] == "chat":
            monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\n/undo\n"))
        done = dialogkit(*shortened(words[1:]))
        assert done.code == 0, f"{line}\n{done.err}"
        ran += 1
    assert ran >= 20


def test_what_needs_a_cluster_submits_what_the_readme_wrote() -> None:
    written = re.findall(r"^dialogkit launch .*--output (\S+) ", README, re.MULTILINE)
    lines = [
        line for block in re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S) for line in block.splitlines()
    ]
    assert [line for line in lines if "dialogkit train custom-large --preset production" not in line] == [
        f"{submit} {file}" for submit, file in zip(("sbatch", "kubectl apply -f"), written, strict=True)
    ]


def test_the_python_of_the_readme_runs(in_temporary_folder: Path) -> None:
    blocks = [text for kind, text in BLOCKS if kind == "python"]
    assert len(blocks) == 2
    for text in blocks:
        brief = ", ".join(f'"{name}": {value!r}' for name, value in BRIEF.items())
        text = text.replace("overrides={", f'overrides={{"data.samples": 8, {brief}, ')
        text = text.replace("max_samples=50", f"max_samples=8, overrides={{{brief}}}")
        exec(compile(text, "README.md", "exec"), {})


def test_the_table_of_models_is_that_of_the_catalogue() -> None:
    from dialogkit import list_models

    for row in list_models():
        assert row.parameters is not None
        assert row.parameters_without_embeddings is not None
        millions = f"{row.parameters_without_embeddings / 1e6:.1f}M"
        cells = [f"`{row.name}`", f"{row.parameters:,}", millions, str(row.layers), str(row.width)]
        assert f"| {' | '.join(cells)} |" in README


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).is_file(), target
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README):
        assert anchor in headings
