"""The files of onnxruntime-web, which compute a model in a browser, as npm installed them.

They take 14 MiB, so the package does not carry them.
"""

from pathlib import Path

from dialogkit.errors import ConfigError, UnavailableError
from dialogkit.hints import Shell

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FILES = {"onnxruntime.js": "ort.wasm.bundle.min.mjs", "onnxruntime.wasm": "ort-wasm-simd-threaded.wasm"}
"""The exported files, and their names in `dist/`. A server may not know that a file `.mjs` is a script."""
_INSTALL = Shell(f"npm install {PACKAGE}@{VERSION}")

Runtime = dict[str, bytes]
"""The contents of the exported files, by name."""


def find_runtime(folder: str | Path | None) -> Runtime:
    """Return the files of onnxruntime-web.

    Args:
        folder: the installed package, or the `node_modules` that holds it. None: what `npm install` left in the
            working folder.

    Raises: ConfigError if a named folder does not hold it; UnavailableError if npm did not install it here.
    """
    named = Path("node_modules" if folder is None else folder).expanduser()
    for installed in (named, named / PACKAGE):
        if all((installed / "dist" / file).is_file() for file in FILES.values()):
            return {name: (installed / "dist" / file).read_bytes() for name, file in FILES.items()}
    if folder is not None:
        raise ConfigError(
            f"{str(folder)!r} does not hold {PACKAGE}: there is no dist/{FILES['onnxruntime.js']}", hint=_INSTALL
        )
    raise UnavailableError(
        f"a page that runs a model needs {PACKAGE}, and node_modules does not have it", hint=_INSTALL
    )
