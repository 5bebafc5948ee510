"""What imports what: commands answer without the heavy libraries, arrows point down, each file has its own job."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import typer.main

from dialogkit.cli.app import app
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "dialogkit"
HEAVY = {"torch", "transformers", "datasets", "wandb", "tokenizers", "accelerate", "matplotlib"}

LEVELS = {
    "api": 4,
    "cli": 3,
    "examples": 1,
    "services": 2,
    **dict.fromkeys(["data", "models", "engine", "inference", "tracking"], 1),
    **dict.fromkeys(
        [
            "config",
            "dialog",
            "distributed",
            "errors",
            "forwards",
            "hints",
            "logits",
            "redaction",
            "shapes",
            "system",
            "text",
        ],
        0,
    ),
}
"""An import may only lead to a lower level; on the lowest, each part may use the others."""


def commands() -> list[str]:
    """The words of every command, such as `models list`."""

    def walk(command: object, path: list[str]) -> Iterator[str]:
        for name, child in getattr(command, "commands", {"": None}).items():
            yield from walk(child, [*path, name]) if child is not None else [" ".join(path)]

    return list(walk(typer.main.get_command(app), []))


LIGHT = [
    *(f"{command} --help" for command in commands()),
    "--help",
    "--version",
    "models list",
    "models list --json",
    "models show gpt2-small",
    "config show custom-tiny --preset production",
    "config schema",
    "config validate settings.json",
    "data list",
    "doctor",
    "launch slurm -- train",
    "launch kubernetes --image x --claim y -- train",
    "train custom-huge",
    "train custom-tiny --set train.epochs=-1",
    "generate no-such-run",
    "evaluate no-such-run",
    "data inspect no-such-file.json",
    "data inspect settings.json",
]

PROBE = f"""
import contextlib, importlib, io, json, pkgutil, sys

def heavy():
    return sorted({HEAVY!r} & sys.modules.keys())

found = {{}}
import dialogkit
found["import dialogkit"] = heavy()
for part in {sorted(LEVELS.keys() - {"data", "models", "engine", "inference", "distributed"})!r}:
    module = importlib.import_module(f"dialogkit.{{part}}")
    for inner in pkgutil.iter_modules(getattr(module, "__path__", []), f"{{module.__name__}}."):
        importlib.import_module(inner.name)
        found[f"import {{inner.name}}"] = heavy()
for name in dialogkit.__all__:
    getattr(dialogkit, name)
    found[f"dialogkit.{{name}}"] = heavy()
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            dialogkit.cli.app.main(words.split())
        except SystemExit:
            pass
    found[words] = heavy() if out.getvalue() or err.getvalue() else ["it said nothing"]
import tokenizers
found["import tokenizers"] = heavy()
print(json.dumps(found))
"""


def test_what_needs_no_model_imports_no_heavy_library(in_temporary_folder: Path) -> None:
    Path("settings.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(LIGHT)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found.pop("import tokenizers") == ["tokenizers"], "the probe sees nothing"
    assert {"import dialogkit", "import dialogkit.services.train", "dialogkit.train", *LIGHT} <= set(found)
    assert {what: heavy for what, heavy in found.items() if heavy} == {}


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package by its path below it."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of everything that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def named(tree: ast.Module) -> set[str]:
    """Return every name that a module uses, defines or imports."""
    names = {name.rpartition(".")[2] for name in imported(tree)}
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.ClassDef(name=name) | ast.FunctionDef(name=name)
            ):
                names.add(name)
    return names


def texts(tree: ast.Module) -> Iterator[str]:
    """Yield every text of a module that is no documentation."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def owners(name: str) -> set[str]:
    return {path for path, tree in sources().items() if name in named(tree)}


def test_an_arrow_only_points_down() -> None:
    for path, tree in sources().items():
        part = path.split("/")[0]
        for name in imported(tree) if "/" in path else ():
            target = name.split(".")[1] if name.startswith("dialogkit.") else None
            if target in LEVELS and target != part:
                assert LEVELS[target] < LEVELS[part] or LEVELS[part] == 0, f"{path} imports {name}"


def test_every_part_has_its_level() -> None:
    parts = {path.split("/")[0].removesuffix(".py") for path in sources()}
    assert parts - {"__init__", "__main__"} == set(LEVELS)


def test_only_the_commands_know_the_command_lines_libraries() -> None:
    users = {path for path, tree in sources().items() for name in imported(tree) if name.split(".")[0] == "typer"}
    users |= {path for path, tree in sources().items() for name in imported(tree) if name.split(".")[0] == "rich"}
    assert {path.split("/")[0] for path in users} == {"cli"}


def test_only_the_loader_reads_the_shipped_settings() -> None:
    assert owners("configs_dir") == {"config/load.py", "config/paths.py"}


def test_only_one_module_names_hf_arguments() -> None:
    assert owners("TrainingArguments") == {"engine/arguments.py"}


def test_only_one_module_imports_wandb() -> None:
    users = {path for path, tree in sources().items() for name in imported(tree) if name.split(".")[0] == "wandb"}
    assert users == {"tracking/wandb_run.py"}


def test_only_one_module_draws() -> None:
    users = {path for path, tree in sources().items() for name in imported(tree) if name.startswith("matplotlib")}
    assert users == {"tracking/plots.py"}


def test_only_the_run_folder_knows_the_names_of_its_files() -> None:
    said = {path: "\n".join(texts(tree)) for path, tree in sources().items()}
    for file in ("run.json", "metrics.jsonl", "samples.jsonl", "console.log", "report.html"):
        assert {path for path, text in said.items() if file in text} == {"tracking/run_dir.py"}, file


def test_below_the_services_no_function_takes_the_whole_configuration() -> None:
    parts = {path.split("/")[0] for path in owners("RunConfig")}
    assert parts <= {"config", "services", "cli", "api", "__init__.py"}


def loaded_by(*words: str) -> list[str]:
    """Return the modules that a command has loaded at its end."""
    script = (
        "import sys\n"
        "from dialogkit.cli.app import main\n"
        "try:\n"
        f"    main({list(words)!r})\n"
        "except SystemExit:\n"
        "    print()\n"
        "    print(sorted(sys.modules))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    modules: list[str] = ast.literal_eval(done.stdout.splitlines()[-1])
    return modules


def test_the_help_loads_neither_settings_nor_services() -> None:
    loaded = loaded_by("--help")
    parts = {name.split(".")[1] for name in loaded if name.startswith("dialogkit.")}
    assert not [name for name in loaded if name.startswith("pydantic")]
    assert parts <= {
        "cli",
        "config",
        "distributed",
        "errors",
        "hints",
        "redaction",
        "services",
        "system",
        "text",
        "tracking",
    }
    assert not [name for name in loaded if name.startswith("dialogkit.config.") and name.endswith("load")]


def test_a_list_of_runs_loads_nothing_that_measures_or_tracks() -> None:
    loaded = loaded_by("runs", "list")
    assert "dialogkit.services.runs.listing" in loaded
    assert not {
        f"dialogkit.services.{name}" for name in ("evaluate", "evaluation.evaluator", "evaluation.store")
    } & set(loaded)
    assert not {"dialogkit.tracking.wandb_run", "dialogkit.data"} & set(loaded)


def test_an_inspection_loads_only_the_library_that_tokenizes(in_temporary_folder: Path) -> None:
    rows = [{"prompt": f"ask {number}", "response": f"say {number}"} for number in range(30)]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    loaded = set(loaded_by("data", "inspect", "rows.jsonl"))
    assert (HEAVY | {"pyarrow", "huggingface_hub", "charset_normalizer"}) & loaded == {"tokenizers"}
