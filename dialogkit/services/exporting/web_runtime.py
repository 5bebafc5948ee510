"""The files of onnxruntime-web, which compute a model in a browser: what npm installed, or its registry has.

They take 14 MiB, so the package does not carry them.
"""

import base64
import hashlib
import os
import re
import tarfile
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from dialogkit.config.paths import cache_dir
from dialogkit.errors import ConfigError, UnavailableError, os_reason
from dialogkit.hints import Shell

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the archive of this version, as the registry names it."""
REGISTRY = "https://registry.npmjs.org"
"""Where npm looks, unless its settings name another place."""
FILES = {"onnxruntime.js": "ort.wasm.bundle.min.mjs", "onnxruntime.wasm": "ort-wasm-simd-threaded.wasm"}
"""The exported files, and their names in `dist/`. A server may not know that a file `.mjs` is a script."""
_ANSWER_S = 30.0
_INSTALL = Shell(f"npm install {PACKAGE}@{VERSION}")

Runtime = dict[str, bytes]
"""The contents of the exported files, by name."""


def find_runtime(folder: str | Path | None, on_download: Callable[[float], None]) -> Runtime:
    """Return the files of onnxruntime-web.

    Args:
        folder: the installed package. None: what `npm install` left here; without that, the package in the cache,
            which is downloaded once.
        on_download: receives the fraction that is here.

    Raises: ConfigError if a named folder does not hold it; UnavailableError if it is nowhere.
    """
    installed = Path("node_modules") / PACKAGE if folder is None else Path(folder).expanduser()
    if all((installed / "dist" / file).is_file() for file in FILES.values()):
        return {name: (installed / "dist" / file).read_bytes() for name, file in FILES.items()}
    if folder is not None:
        raise ConfigError(
            f"{str(folder)!r} does not hold {PACKAGE}: there is no dist/{FILES['onnxruntime.js']}", hint=_INSTALL
        )
    archive = cache_dir() / f"{PACKAGE}-{VERSION}.tgz"
    if not _is_right(archive):
        _download(archive, on_download)
    names = {f"package/dist/{file}": name for name, file in FILES.items()}
    with tarfile.open(archive, "r|gz") as package:  # to go back in it would unpack it again
        contents = ((names[entry.name], package.extractfile(entry)) for entry in package if entry.name in names)
        return {name: content.read() for name, content in contents if content is not None}


def registry() -> str:
    """Return the address of the npm registry that the settings of npm name."""
    # npm reads its variables in either case.
    variables = {name.lower(): value for name, value in os.environ.items()}
    named = variables.get("npm_config_registry")
    for file in (Path(".npmrc"), Path.home() / ".npmrc"):
        with suppress(OSError, UnicodeDecodeError):
            if not named:
                found = re.findall(r"^registry\s*=\s*(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
                named = found[-1] if found else None
    return (named or REGISTRY).rstrip("/")


def _is_right(archive: Path) -> bool:
    with suppress(OSError), archive.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode() == INTEGRITY
    return False


def _download(archive: Path, on_download: Callable[[float], None]) -> None:
    """Download the package."""
    address = f"{registry()}/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    lacking = f"{PACKAGE} is not in node_modules, and {address}"
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=archive.parent, prefix=".runtime-") as folder:
            made = Path(folder) / archive.name
            with urlopen(address, timeout=_ANSWER_S) as answer, made.open("wb") as file:
                size = int(answer.headers.get("Content-Length") or 0)
                while block := answer.read(2**20):
                    file.write(block)
                    on_download(min(1.0, file.tell() / size) if size else 0.0)
            if not _is_right(made):
                raise UnavailableError(f"{lacking} is not version {VERSION}: its SHA-512 differs", hint=_INSTALL)
            os.replace(made, archive)
    except (OSError, HTTPException, ValueError) as error:  # no answer, half an answer, or no room for it
        cause = getattr(error, "reason", error)  # that of an URLError
        reason = os_reason(cause) if isinstance(cause, OSError) else str(cause)
        raise UnavailableError(f"{lacking} cannot be downloaded: {reason}", hint=_INSTALL) from None
