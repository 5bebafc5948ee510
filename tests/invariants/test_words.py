"""Nothing below the command line knows its words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "dialogkit"
COMMANDS = [
    "train",
    "plan",
    "generate",
    "chat",
    "serve",
    "evaluate",
    "doctor",
    "export",
    "push",
    "models",
    "runs",
    "data",
    "config",
    "tokenizer",
    "launch",
]
OF_COMMAND_LINE = re.compile(rf"\bdialogkit (?:{'|'.join(COMMANDS)})\b|(?:^|[\s(\"'`\[])--[a-z][\w-]+")
EXCEPTIONS: dict[str, str] = {
    # file: why its strings may name commands or flags
    "engine/device.py": "the arguments of nvidia-smi",
    "services/machine/checks.py": "the arguments of pip and docker",
    "services/machine/probe.py": "the arguments of nvidia-smi",
    "services/exporting/card.py": "a card shows commands to its reader",
    "services/exporting/hub_card.py": "a card shows commands to its reader",
    "services/display.py": "custom properties of CSS",
    "system/git.py": "the arguments of git",
    "distributed/rank.py": "the arguments of torchrun and accelerate, which start ranks",
    "services/training/lifecycle.py": "the arguments of torchrun, which starts ranks",
    "services/cluster/slurm.py": "a job file consists of commands",
    "tracking/plots.py": "custom properties of CSS",
    "tracking/report/charts.py": "custom properties of CSS",
    "tracking/report/commands.py": "a report shows commands to its reader",
}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module that are not documentation, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def offenders() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("cli/") or name == "__main__.py":
            continue
        for line, text in strings(path):
            if OF_COMMAND_LINE.search(text):
                found.setdefault(name, []).append(f"{line}: {text}")
    return found


def test_below_the_command_line_no_string_names_a_command_or_a_flag() -> None:
    assert {name: lines for name, lines in offenders().items() if name not in EXCEPTIONS} == {}


def test_every_exception_is_still_one() -> None:
    assert set(EXCEPTIONS) <= set(offenders())
