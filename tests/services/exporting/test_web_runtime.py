"""onnxruntime-web comes from a folder, from what npm installed, or once from the registry."""

import base64
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from dialogkit.config.paths import cache_dir
from dialogkit.errors import ConfigError, UnavailableError
from dialogkit.services.exporting import web_runtime
from dialogkit.services.exporting.web_runtime import FILES, VERSION, find_runtime, registry

CONTENT = {name: f"the content of {name}".encode() for name in FILES}


def installed(folder: Path) -> Path:
    for name, file in FILES.items():
        (folder / "dist").mkdir(parents=True, exist_ok=True)
        (folder / "dist" / file).write_bytes(CONTENT[name])
    return folder


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The archive of a registry, which is a folder here."""
    path = tmp_path / f"registry/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as package:
        for name, file in FILES.items():
            entry = tarfile.TarInfo(f"package/dist/{file}")
            entry.size = len(CONTENT[name])
            package.addfile(entry, io.BytesIO(CONTENT[name]))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(web_runtime, "INTEGRITY", digest)
    monkeypatch.setenv("DIALOGKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", (tmp_path / "registry").as_uri())
    return path


def find(folder: str | None = None) -> dict[str, bytes]:
    return find_runtime(folder, lambda fraction: None)


def test_a_named_folder_comes_before_what_npm_installed_here(tmp_path: Path) -> None:
    installed(tmp_path / "node_modules/onnxruntime-web")
    assert find() == CONTENT
    own = installed(tmp_path / "own")
    (own / "dist" / FILES["onnxruntime.js"]).write_bytes(b"mine")
    assert find("own") == {**CONTENT, "onnxruntime.js": b"mine"}
    with pytest.raises(ConfigError, match="'nowhere' does not hold onnxruntime-web: there is no dist/ort"):
        find("nowhere")


def test_it_is_downloaded_once(archive: Path) -> None:
    fractions: list[float] = []
    assert find_runtime(None, fractions.append) == CONTENT
    assert fractions[-1] == 1.0
    archive.unlink()
    assert find() == CONTENT
    (cached,) = cache_dir().iterdir()
    cached.write_bytes(b"damaged")
    with pytest.raises(UnavailableError, match=r"is not in node_modules, and file.* cannot be downloaded: no"):
        find()


def test_another_file_than_the_known_one_is_not_used(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"more")
    with pytest.raises(UnavailableError, match=f"is not version {VERSION}: its SHA-512 differs") as refused:
        find()
    assert str(refused.value.hint) == f"npm install onnxruntime-web@{VERSION}"
    assert not list(cache_dir().iterdir())


def test_the_registry_is_npms(monkeypatch: pytest.MonkeyPatch, isolated_home: Path) -> None:
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    assert registry() == "https://registry.npmjs.org"
    settings = Path(".npmrc")
    settings.write_text("fund=false\nregistry = https://npm.example.org/\n")
    assert registry() == "https://npm.example.org"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://other.example.org")
    assert registry() == "https://other.example.org"
