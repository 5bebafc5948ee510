"""Where a run happens: machine, system and the state of the user's folder. Never an environment variable."""

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dialogkit.machine import processor_name
from dialogkit.tracking.git import git_state


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
