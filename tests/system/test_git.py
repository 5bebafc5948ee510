"""The git state of a folder is that which git reports, and nothing that a repository configures is run for it."""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dialogkit.system.git import git_state
from tests.system.test_environment import git

Change = Callable[[Path, str], None]


def committed(folder: Path) -> Path:
    """Make a repository with a commit and with files whose stat data git must look into."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "trunk")
    for name in ("one.txt", "two.txt"):
        (folder / name).write_text("some text\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def touch(folder: Path) -> None:
    """Make git compare contents: the same ones, with another time."""
    for name in ("one.txt", "two.txt"):
        os.utime(folder / name, (1, 1))


def settings(*names: str, value: str = "{0}") -> Change:
    def change(folder: Path, program: str) -> None:
        for name in names:
            git(folder, "config", name, value.format(program))

    return change


def attributes(driver: str, *settings: Change, inside: str = ".gitattributes") -> Change:
    def change(folder: Path, program: str) -> None:
        (folder / inside).write_text(f"* {driver}\n")
        for one in settings:
            one(folder, program)

    return change


def hooks(folder: Path, program: str) -> None:
    for name in ("post-index-change", "reference-transaction", "fsmonitor-watchman", "post-checkout"):
        (folder / ".git/hooks" / name).write_text(f"#!/bin/sh\n{program}\n")
        (folder / ".git/hooks" / name).chmod(0o755)
    git(folder, "config", "core.fsmonitor", ".git/hooks/fsmonitor-watchman")


def included(folder: Path, program: str) -> None:
    (folder / "more").write_text(f"[core]\n\tfsmonitor = {program}\n")
    git(folder, "config", "include.path", "../more")


def pointed_elsewhere(folder: Path, program: str) -> None:
    (folder / ".git").rename(folder.parent / "elsewhere")
    (folder / ".git").write_text("gitdir: ../elsewhere\n")
    git(folder, "config", "core.fsmonitor", program)


def submodule(folder: Path, program: str) -> None:
    inner = committed(folder.parent / "inner")
    git(folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "sub")
    git(folder, "commit", "-qm", "with a submodule")
    git(folder / "sub", "config", "core.fsmonitor", program)
    touch(folder / "sub")


def worktree_config(folder: Path, program: str) -> None:
    git(folder, "config", "extensions.worktreeConfig", "true")
    git(folder, "config", "--worktree", "core.fsmonitor", program)


def lazy_objects(folder: Path, program: str) -> None:
    settings("remote.x.url", value="ext::{0}")(folder, program)
    settings("remote.x.promisor", value="true")(folder, program)
    settings("extensions.partialClone", value="x")(folder, program)


HOSTILE: dict[str, Change] = {
    "fsmonitor": settings("core.fsmonitor"),
    "fsmonitor of hooks": hooks,
    "hooks elsewhere": settings("core.hooksPath", value="."),
    "clean filter": attributes("filter=x", settings("filter.x.clean")),
    "required filter": attributes(
        "filter=x", settings("filter.x.clean"), settings("filter.x.required", value="1")
    ),
    "process filter": attributes("filter=x", settings("filter.x.process")),
    "filter of info": attributes("filter=x", settings("filter.x.clean"), inside=".git/info/attributes"),
    "filter like lfs": attributes("filter=lfs", settings("filter.lfs.process", "lfs.extension.x.clean")),
    "textconv": attributes("diff=x", settings("diff.x.textconv")),
    "external diff": attributes("diff=x", settings("diff.external", "diff.x.command")),
    "pager and editor": settings("core.pager", "core.editor", "core.askPass", "pager.status"),
    "aliases": settings("alias.status", "alias.config", "alias.rev-parse", value="!{0}"),
    "ssh and signing": settings("core.sshCommand", "gpg.program"),
    "include": included,
    "git file": pointed_elsewhere,
    "submodule": submodule,
    "configuration of a worktree": worktree_config,
    "lazy objects": lazy_objects,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_that_a_repository_configures_is_run(kind: str, tmp_path: Path) -> None:
    folder = committed(tmp_path / "repository")
    commit = git_state(folder)["commit"]  # type: ignore[index]
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-$$\ncat\n")
    program.chmod(0o755)
    HOSTILE[kind](folder, str(program))
    touch(folder)
    for ran in tmp_path.glob("ran-*"):  # the preparation may run it
        ran.unlink()
    before = contents(folder)
    state = git_state(folder)
    assert list(tmp_path.glob("ran-*")) == []
    assert state is not None
    assert state["branch"] == "trunk"
    assert (state["commit"] == commit) == (kind != "submodule")
    assert state["dirty"] is False  # with the contents that were committed
    assert contents(folder) == before
    if kind in ("fsmonitor", "clean filter", "include", "git file", "submodule"):  # the trap is one
        subprocess.run(["git", "-C", str(folder), "status"], capture_output=True, check=False)
        assert list(tmp_path.glob("ran-*")) != []


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def test_the_state_is_that_which_git_reports(tmp_path: Path) -> None:
    top = committed(tmp_path / "repository")
    inside = top / "a/b"
    inside.mkdir(parents=True)
    git(top, "branch", "feature/x")
    git(top, "worktree", "add", "-q", "../beside", "feature/x")
    git(top, "pack-refs", "--all")
    for folder, branch in ((top, "trunk"), (inside, "trunk"), (tmp_path / "beside", "feature/x")):
        said = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
        assert git_state(folder) == {"commit": said.strip(), "branch": branch, "dirty": False}
    (tmp_path / "beside/one.txt").write_text("other text\n")
    assert git_state(tmp_path / "beside")["dirty"] is True  # type: ignore[index]
    assert git_state(top)["dirty"] is False  # type: ignore[index]
    git(top, "checkout", "-q", "--detach")
    assert git_state(top)["branch"] == "HEAD"  # type: ignore[index]
    (top / "one.txt").unlink()
    (top / "untracked.txt").touch()
    assert git_state(top)["dirty"] is True  # type: ignore[index]


def test_how_files_are_compared_is_the_repository_s_own(tmp_path: Path) -> None:
    folder = committed(tmp_path / "repository")
    (folder / "one.txt").chmod(0o755)
    assert git_state(folder)["dirty"] is True  # type: ignore[index]
    git(folder, "config", "core.fileMode", "false")
    assert git_state(folder)["dirty"] is False  # type: ignore[index]


def test_a_repository_with_sha256_and_one_with_a_split_index_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk", "--object-format=sha256")
    git(folder, "commit", "-qm", "first", "--allow-empty")
    (folder / "one.txt").write_text("x")
    git(folder, "add", ".")
    state = git_state(folder)
    assert state is not None
    assert (len(state["commit"]), state["dirty"]) == (64, True)
    split = committed(tmp_path / "split")
    git(split, "update-index", "--split-index")
    assert git_state(split)["dirty"] is False  # type: ignore[index]


@pytest.mark.parametrize(
    "damage",
    [
        *(f"{kind} {name}" for kind in ("pipe", "junk", "huge", "none") for name in ("HEAD", "index", "config")),
        *("pipe packed-refs", "pipe refs/heads/trunk", "junk objects", "none objects", "pipe commondir"),
    ],
)
def test_a_damaged_repository_is_no_error_and_no_wait(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.system.git.TIMEOUT_S", 1.0)
    folder = committed(tmp_path / "repository")
    kind, _, name = damage.partition(" ")
    path = folder / ".git" / name
    if path.exists():
        path.rename(tmp_path / "moved")
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "junk":
            path.write_bytes(b"\xff\0ref: ../../x\n")
        case "huge":
            with path.open("wb") as file:
                file.truncate(2**36)
    began = time.monotonic()
    state = git_state(folder)
    assert time.monotonic() - began < 30
    if name in ("index", "objects") and state is not None:
        assert state["dirty"] is None


def test_the_environment_of_git_does_not_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = committed(tmp_path / "repository"), committed(tmp_path / "other")
    state = git_state(folder)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_TRACE", str(tmp_path / "trace"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", f"touch {tmp_path / 'ran'};")
    assert git_state(folder) == state
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "ran").exists()
