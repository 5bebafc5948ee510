"""What is recorded of the machine and of the folder, and what is never recorded."""

import subprocess
from pathlib import Path

import pytest

from dialogkit.redaction import without_secrets
from dialogkit.system.environment import environment_info
from dialogkit.system.git import git_state
from dialogkit.system.memory import process_memory_bytes


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_the_git_state_reports_commit_branch_and_changes(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["branch"], state["dirty"]) == (40, "trunk", False)
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path) == {**state, "dirty": True}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train", "--set", "a.api_key=x"], ["train", "--set", "a.api_key=***"]),
        (["--hub-token", "x", "y"], ["--hub-token", "***", "y"]),
        (["--password=x"], ["--password=***"]),
        (["--max-new-tokens", "5", "--set", "generate.max_new_tokens=5"], None),
    ],
)
def test_a_command_line_is_kept_without_secrets(words: list[str], shown: list[str] | None) -> None:
    assert without_secrets(words) == (shown or words)


def test_no_environment_variable_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "c4nary")
    facts = environment_info(tmp_path)
    assert facts["memory_bytes"] > (process_memory_bytes() or 0) > 1_000_000
    assert "c4nary" not in str(facts)
