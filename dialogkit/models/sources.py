"""Where pretrained weights and tokenizers come from: the hub, a folder, or a GGUF file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError, UnavailableError
from dialogkit.network import hub_reachable


def load_from_source(loader: Callable[..., Any], config: ModelConfig, **options: Any) -> Any:
    """Call a `from_pretrained` for the source of a model; remote code is never run.

    Raises: ModelError if the source is not usable; UnavailableError if it lies on an unreachable hub and is
    not in the cache.
    """
    source = config.source or ""
    local = Path(source).expanduser()
    if local.exists():
        folder = str(local)
        gguf = local if local.is_file() else _only_gguf(local)
        if gguf is not None:
            _need_gguf()
            folder, options["gguf_file"] = str(gguf.parent), gguf.name
        options["local_files_only"] = True
    else:
        folder = source
        options["revision"] = config.revision
        # Decided here: without a network the libraries retry for 20 to 50 seconds.
        options["local_files_only"] = not hub_reachable()
    try:
        return loader(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if not local.exists() and options["local_files_only"]:
            raise UnavailableError(
                f"the hub cannot be reached and {source!r} is not in its cache",
                hint="connect once to fetch it, give a model folder, or: dialogkit train custom-tiny",
            ) from None
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source!r} cannot be loaded: {first}", hint="dialogkit models list") from None


def _only_gguf(folder: Path) -> Path | None:
    """Return the GGUF file of a folder that holds no ordinary weights."""
    files = sorted(folder.glob("*.gguf"))
    if not files or (folder / "config.json").is_file():
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"{str(folder)!r} holds several GGUF files ({names})", hint=f"name one: {files[0]}")
    return files[0]


def _need_gguf() -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise UnavailableError("GGUF files need the package gguf", hint="pip install 'dialogkit[gguf]'")
