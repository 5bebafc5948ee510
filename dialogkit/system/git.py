"""Read the git state of a folder without running anything that the repository configures.

`git status` runs programs that a repository's configuration names (`core.fsmonitor`, attribute filters, submodule
settings). So git gets a temporary repository without configuration, which takes only objects and index from the
real one. User and system configuration are ignored too, as they may name filters that read the repository's
settings.
"""

import os
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from dialogkit.text import read_small

TIMEOUT_S = 5.0
_REF = re.compile(r"refs/[^\0-\x20\x7f~^:?*\[\\]+")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_HARMLESS = re.compile(r"core\.(filemode|symlinks|ignorecase|autocrlf|eol|trustctime|checkstat|precomposeunicode)")
"""Settings that affect how files are compared; their values are single words."""
_LARGEST_PACKED_REFS = 64 * 2**20


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch and dirtiness of the repository that a folder is in; None outside one.

    `dirty` is None if git cannot tell within `TIMEOUT_S`. A submodule makes a repository dirty by another commit,
    not by changed files.
    """
    with suppress(OSError, ValueError):
        top = next((place for place in (folder.absolute(), *folder.absolute().parents) if _is_top(place)), None)
        if top is None:
            return None
        own = _git_folder(top)
        common = _common_folder(own)
        branch, commit = _head(own, common)
        if commit is None:
            return None
        return {"commit": commit, "branch": branch or "HEAD", "dirty": _is_dirty(top, own, common, commit)}
    return None


def _is_top(place: Path) -> bool:
    git = place / ".git"
    return git.is_file() or (git / "HEAD").is_file()


def _line(path: Path) -> str:
    return read_small(path, 64 * 1024).decode("utf-8", "replace").strip()


def _git_folder(top: Path) -> Path:
    """Return the folder that `.git` is, or names as worktrees and submodules do."""
    git = top / ".git"
    if git.is_dir():
        return git
    name, _, place = _line(git).partition(":")
    if name != "gitdir":
        raise ValueError("not a git file")
    return top / place.strip()


def _common_folder(own: Path) -> Path:
    """Return the folder that the worktrees of a repository share."""
    with suppress(FileNotFoundError):
        return own / _line(own / "commondir")
    return own


def _head(own: Path, common: Path) -> tuple[str | None, str | None]:
    """Return branch and commit of a repository, or None for each."""
    name, branch = "HEAD", None
    for _ in range(5):
        text = _ref(own, common, name)
        if text is None or _COMMIT.fullmatch(text):
            return branch, text
        name = text.removeprefix("ref:").strip()
        if not _REF.fullmatch(name) or ".." in name:
            return None, None
        branch = name.removeprefix("refs/heads/")
    return None, None


def _ref(own: Path, common: Path, name: str) -> str | None:
    for place in (own, common):
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return _line(place / name)
    with suppress(FileNotFoundError):
        for line in read_small(common / "packed-refs", _LARGEST_PACKED_REFS).splitlines():
            if line.endswith(b" " + name.encode()):
                return line.partition(b" ")[0].decode("ascii", "replace")
    return None


def _is_dirty(top: Path, own: Path, common: Path, commit: str) -> bool | None:
    """Return whether tracked files differ from a commit; None if git cannot tell."""
    index = own / "index"
    if not index.is_file():
        return None
    with suppress(subprocess.SubprocessError), tempfile.TemporaryDirectory() as made:
        clean = Path(made)
        (clean / "HEAD").write_text(f"{commit}\n", encoding="ascii")
        for name in ("refs", "objects"):
            (clean / name).mkdir()
        extensions = "[extensions]\n\tobjectformat = sha256\n" if len(commit) == 64 else ""
        version = f"[core]\n\trepositoryformatversion = {1 if extensions else 0}\n"
        (clean / "config").write_text(version + extensions, encoding="ascii")
        for shared in own.glob("sharedindex.*"):  # of a split index
            (clean / shared.name).symlink_to(shared.absolute())
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            "GIT_DIR": str(clean),
            "GIT_WORK_TREE": str(top),
            "GIT_OBJECT_DIRECTORY": str((common / "objects").absolute()),
            "GIT_INDEX_FILE": str(index.absolute()),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
        }

        def git(*words: str) -> str | None:
            done = subprocess.run(
                ["git", *words],
                cwd=clean,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
            )
            return done.stdout if done.returncode == 0 else None

        settings: list[str] = []
        config = common / "config"
        if config.is_file():  # read as a plain file, git follows no include and runs nothing
            listed = git("config", "--file", str(config.absolute()), "--no-includes", "--list", "-z") or ""
            for entry in listed.split("\0"):
                name, _, value = entry.partition("\n")
                if _HARMLESS.fullmatch(name) and re.fullmatch(r"\w*", value):
                    settings += ["-c", f"{name}={value}"]
        changes = git(*settings, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
        return None if changes is None else bool(changes)
    return None
