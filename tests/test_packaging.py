"""What is installed: an sdist, the wheel made from it, and that wheel at work away from the checkout."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from dialogkit.config.load import model_names
from tests.conftest import REPOSITORY


def run(*words: str | Path, cwd: Path, PYTHONPATH: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Installed(NamedTuple):
    """What was built, and where the wheel lies installed."""

    in_sdist: set[str]
    in_wheel: set[str]
    target: Path

    def dialogkit(self, *words: str) -> str:
        """Run the installed console script."""
        script = self.target / "bin" / "dialogkit"
        return run(sys.executable, script, *words, cwd=self.target.parent, PYTHONPATH=str(self.target))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("packaging")
    build: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"]
    run(*build, "--sdist", REPOSITORY, cwd=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(*build, "--wheel", unpacked, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", "--target", folder / "installed", wheel, cwd=folder)
    return Installed(
        {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()},
        set(zipfile.ZipFile(wheel).namelist()),
        folder / "installed",
    )


def files(folder: str) -> set[str]:
    """The files of a folder of the checkout, by their path in it."""
    found = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(REPOSITORY).as_posix() for path in found}


def test_the_wheel_holds_the_package_its_settings_and_nothing_else(installed: Installed) -> None:
    settings = {name.replace("configs/", "dialogkit/_configs/", 1) for name in files("configs")}
    described = {name for name in installed.in_wheel if ".dist-info/" in name}
    assert installed.in_wheel - described == files("dialogkit") | settings


@pytest.mark.parametrize(
    "file",
    [
        "py.typed",
        "data/samples/starter.jsonl",
        "data/samples/LICENSE",
        "data/worlds/smalltalk/capitals.yaml",
        "examples/shop/prices.yaml",
        "models/shipped_tokenizer/tokenizer.json",
        "models/shipped_tokenizer/tokenizer_config.json",
        "models/shipped_tokenizer/chat_template.jinja",
        "models/smalltalk_tokenizer/tokenizer.json",
        "data/worlds/smalltalk-core/world.yaml",
        "tracking/report/page.html",
        "tracking/report/page.css",
        "_configs/models/custom-tiny.json",
        "_configs/presets/production.json",
        "_configs/schema.json",
    ],
)
def test_what_training_without_network_needs_is_installed(file: str, installed: Installed) -> None:
    assert (installed.target / "dialogkit" / file).is_file()


def test_the_sdist_holds_what_tests_and_builds_need(installed: Installed) -> None:
    assert files("dialogkit") | files("configs") | files("docs") | files("tests") <= installed.in_sdist
    assert {"pyproject.toml", "LICENSE", "constraints.txt", "Makefile"} <= installed.in_sdist
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", ".github/session.svg"} <= installed.in_sdist
    assert not [name for name in installed.in_sdist if name.startswith((".venv", "models", "wandb"))]


def test_the_licences_are_installed(installed: Installed) -> None:
    licences = {name.partition("/licenses/")[2] for name in installed.in_wheel if "/licenses/" in name}
    shipped = {"dialogkit/data/samples/LICENSE", "dialogkit/data/worlds/smalltalk/LICENSE"}
    assert licences == {"LICENSE", *shipped}


def test_the_installed_command_lists_the_models_away_from_the_checkout(installed: Installed) -> None:
    rows = json.loads(installed.dialogkit("models", "list", "--json"))["data"]
    assert [row["name"] for row in rows] == model_names()
    assert all(row["description"] for row in rows)


def test_the_installed_package_is_the_one_that_runs_and_has_its_own_settings(installed: Installed) -> None:
    script = (
        "import dialogkit, json;"
        "from dialogkit.config.paths import configs_dir;"
        "from dialogkit.config.load import load_run_config;"
        "config = load_run_config('custom-large', preset='production').model_dump(mode='json');"
        "print(json.dumps([dialogkit.__file__, str(configs_dir()), config]))"
    )
    reported = run(sys.executable, "-c", script, cwd=installed.target.parent, PYTHONPATH=str(installed.target))
    package, settings, config = json.loads(reported)
    assert Path(package) == installed.target / "dialogkit" / "__init__.py"
    assert Path(settings) == installed.target / "dialogkit" / "_configs"
    here = json.loads(run(sys.executable, "-c", script, cwd=REPOSITORY, PYTHONPATH=str(REPOSITORY)))
    assert config == here[2]
    assert Path(here[0]).is_relative_to(REPOSITORY)
