"""Where pretrained weights and tokenizers come from: the hub, a folder, or a GGUF file."""

import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from dialogkit.config.model import ModelConfig
from dialogkit.errors import DialogKitError, ModelError, UnavailableError
from dialogkit.hints import Call, Shell
from dialogkit.models.folder import describe_folder, require_regular, require_sound, weights_bytes
from dialogkit.models.limits import panics_raised
from dialogkit.system.hub import from_hub


def load_from_source(loader: Callable[..., Any], config: ModelConfig, /, **options: Any) -> Any:
    """Call a `from_pretrained` for a model's source; never runs remote code.

    Raises: ModelError if the source is unusable; UnavailableError if it is on an unreachable hub and not cached.
    """
    from transformers.utils import logging as hf_logging

    # It warns of padding without a mask if the padding token also ends texts; our batches have no padding.
    hf_logging.set_verbosity_error()
    # Otherwise a thread asks the hub to convert weights, without a time limit, and exiting waits for it.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    hf_logging.disable_progress_bar()
    source = config.source or ""
    local = local_source(source)
    if local is not None:
        if local.is_dir():
            require_sound(local)
        else:
            require_regular(local)
        folder = str(local)
        if (gguf := find_gguf(config)) is not None:
            require_gguf()
            folder, options["gguf_file"] = str(gguf.parent), gguf.name
    else:
        folder, options["revision"] = source, config.revision

    def load(online: bool) -> Any:
        if local is None:
            _require_sound_config(source, config.revision, online=online)
        return loader(folder, trust_remote_code=False, local_files_only=not online, **options)

    # Its GGUF reader draws a progress bar that no setting turns off.
    quiet = redirect_stderr(StringIO()) if "gguf_file" in options else nullcontext()
    try:
        # Waiting for the hub is reported on stderr.
        with quiet, panics_raised(quietly=local is not None):
            if local is not None:
                return load(False)
            return from_hub(load, lacking=f"{source!r} is not in its cache", hint=Call("doctor", network=True))
    except DialogKitError:
        raise
    # Whatever a library raises for damaged files counts as wrong input.
    except Exception as error:
        raise unusable(source, error) from None


def require_gguf() -> None:
    """Raise UnavailableError if the package that reads and writes GGUF files is missing."""
    if find_spec("gguf") is None:
        raise UnavailableError("GGUF files need the package gguf", hint=Shell("pip install 'dialogkit[gguf]'"))


def require_onnx() -> None:
    """Raise UnavailableError if a package that writes ONNX files, or computes them, is missing."""
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise UnavailableError(
                f"ONNX files need the package {package}", hint=Shell("pip install 'dialogkit[onnx]'")
            )


def _require_sound_config(source: str, revision: str | None, *, online: bool) -> None:
    """Raise ModelError if the config of a model on the hub is invalid; see `require_sound`."""
    from transformers.utils import cached_file

    found = cached_file(
        source,
        "config.json",
        revision=revision,
        local_files_only=not online,
        _raise_exceptions_for_missing_entries=False,
    )
    if found is not None:  # a bare tokenizer has none
        describe_folder(Path(found).parent)


def unusable(source: str, error: Exception) -> ModelError:
    """Return the error for a source that a library failed to load."""
    if isinstance(error, pickle.UnpicklingError):
        return ModelError(
            f"{source!r} was not loaded: its weights are damaged, or hold more than tensors, which could run code",
            hint="use a model with weights in the safetensors format",
        )
    reason = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    return ModelError(f"{source!r} cannot be loaded: {reason.rstrip(': ')}", hint=Call("models list"))


def size_of(config: ModelConfig) -> int | None:
    """Return the bytes of a local source's weights; None for a source on the hub."""
    local = local_source(config.source or "")
    if local is None:
        return None
    gguf = find_gguf(config)
    return weights_bytes(local) if gguf is None else gguf.stat().st_size


def local_source(source: str) -> Path | None:
    """Return the file or folder of a local source; None for one on the hub."""
    # Unlike pathlib's, these functions accept texts that are too long for a name.
    path = os.path.expanduser(source)
    return Path(path) if os.path.exists(path) else None


def find_gguf(config: ModelConfig) -> Path | None:
    """Return the GGUF file that a source is or holds instead of ordinary weights; None for none."""
    local = local_source(config.source or "")
    if local is None or local.is_file():
        return local
    files = sorted(local.glob("*.gguf"))
    if not files or (local / "config.json").is_file():
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"{str(local)!r} holds several GGUF files ({names})", hint=f"name one: {files[0]}")
    return files[0]
