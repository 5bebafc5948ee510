"""Describe where a run happens: machine, system and git state. Never reads environment variables."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from dialogkit.system.cpu import processor_name
from dialogkit.system.git import git_state
from dialogkit.system.memory import machine_memory


def environment_info(folder: Path) -> dict[str, Any]:
    """Return platform, processor, memory, interpreter and git state, as far as known."""
    return {
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": processor_name(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": machine_memory().total,
        "executable": sys.executable,
        "folder": str(folder),
        "git": git_state(folder),
    }
