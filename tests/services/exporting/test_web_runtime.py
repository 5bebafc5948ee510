"""onnxruntime-web comes from a folder, or from what npm installed."""

from pathlib import Path

import pytest

from dialogkit.errors import ConfigError, UnavailableError
from dialogkit.services.exporting.web_runtime import FILES, VERSION, find_runtime

CONTENT = {name: f"the content of {name}".encode() for name in FILES}


def installed(folder: Path) -> Path:
    for name, file in FILES.items():
        (folder / "dist").mkdir(parents=True, exist_ok=True)
        (folder / "dist" / file).write_bytes(CONTENT[name])
    return folder


def test_a_named_folder_comes_before_what_npm_installed_here(tmp_path: Path) -> None:
    installed(tmp_path / "node_modules/onnxruntime-web")
    assert find_runtime(None) == find_runtime("node_modules") == CONTENT
    own = installed(tmp_path / "own")
    (own / "dist" / FILES["onnxruntime.js"]).write_bytes(b"mine")
    assert find_runtime("own") == {**CONTENT, "onnxruntime.js": b"mine"}
    with pytest.raises(ConfigError, match="'nowhere' does not hold onnxruntime-web: there is no dist/ort"):
        find_runtime("nowhere")


def test_without_it_the_command_that_installs_it_is_named() -> None:
    with pytest.raises(
        UnavailableError, match="needs onnxruntime-web, and node_modules does not have it"
    ) as refused:
        find_runtime(None)
    assert str(refused.value.hint) == f"npm install onnxruntime-web@{VERSION}"
