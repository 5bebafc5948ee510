"""Where a run happens: machine, system and the state of the user's folder. Never an environment variable."""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dialogkit.machine import processor_name

SECRET_NAME = re.compile(r"(key|token|secret|password)$", re.IGNORECASE)  # not max_new_tokens
_KEY = re.compile(r"[0-9a-f]{40}|.*\bhf_\w{16,}.*|.*\bwandb_v1_\w{16,}.*", re.DOTALL)
"""What keys of W&B and of the hub look like; a commit looks like the first."""


def environment_facts(folder: Path) -> dict[str, Any]:
    """Return platform, processor, memory, interpreter and git state, as far as they are known."""
    return {
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": processor_name(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "executable": sys.executable,
        "folder": str(folder),
        "git": git_state(folder),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch and dirtiness of the repository that a folder is in; None outside one."""

    def git(*words: str) -> str | None:
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5)
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "branch": git("rev-parse", "--abbrev-ref", "HEAD"), "dirty": bool(changes)}


def without_secrets(words: list[str]) -> list[str]:
    """Return the words of a command line with the values of what sounds like a secret left out."""
    shown: list[str] = []
    hide = False
    for word in words:
        *names, value = word.split("=")
        secret = next((number for number, name in enumerate(names) if SECRET_NAME.search(name)), None)
        if secret is None and _KEY.fullmatch(value) and not word.partition("=")[0].endswith("revision"):
            secret = len(names) - 1
        if hide:
            shown.append("***")
            hide = False
        elif secret is not None:
            shown.append("=".join([*names[: secret + 1], "***"]))
        else:
            shown.append(word)
            hide = word.startswith("--") and bool(SECRET_NAME.search(word))
    return shown


def process_memory_bytes() -> int | None:
    """Return the memory that this process holds; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def _memory_bytes() -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
