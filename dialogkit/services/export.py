"""Writes a trained model for other programs, with a certificate of how faithful the copy is."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from dialogkit import __version__
from dialogkit.config.base import Result
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import folder_name
from dialogkit.config.paths import DEFAULT_OUTPUT, EXPORTS
from dialogkit.errors import ConfigError, ModelError, StorageError, did_you_mean, os_reason, wrong_setting
from dialogkit.hints import Call, Change, Either
from dialogkit.services.evaluation.evaluator import ProgressSink
from dialogkit.services.exporting import web_page, web_runtime
from dialogkit.services.exporting.bundle import add_readme, read_bundle, write_bundle
from dialogkit.services.exporting.card import bundle_readme, gguf_card, origin_of, web_card
from dialogkit.services.exporting.card_head import as_yaml, card_head, places_of, without_places
from dialogkit.services.exporting.certificate import BY_TRANSFORMERS, Certificate, Means, certify
from dialogkit.services.exporting.modelfile import modelfile
from dialogkit.services.exporting.onnx_means import BY_ONNX
from dialogkit.services.inference import hints_for
from dialogkit.services.runs.resolve import Loadable, output_of, resolve_model
from dialogkit.services.serving.chat_page import chat_page
from dialogkit.system.compute_lock import alone

if TYPE_CHECKING:
    from dialogkit.services.runs.loading import LoadedModel

FORMS = ("gguf", "onnx", "bundle")
TYPES = {"gguf": ("f32", "f16", "q8_0", "q4_0"), "onnx": ("f32", "f16", "q8_0")}
"""How weights can be stored, by form."""
DEFAULT_TYPE = "q8_0"
_Make = Callable[[Loadable, Path, str, Any, ProgressSink], tuple[Certificate, list[str]]]


class ExportResult(Result):
    """An exported model.

    Attributes:
        to: its form: `gguf`, `onnx` or `bundle`.
        folder: where its files are.
        file: the file that holds the weights.
        files: all files.
        certificate: how faithful it is.
        notes: where it may differ from the original.
        ollama: the name under which it may be created in Ollama; None for other forms than `gguf`.
    """

    to: str
    folder: str
    file: str
    files: list[str]
    certificate: Certificate
    notes: list[str]
    ollama: str | None

    def repr_fields(self) -> Iterable[tuple[str, Any]]:
        """Return the file, and how faithful it is."""
        yield "file", self.file
        yield "equal_tokens", self.certificate.equal_tokens
        yield "bits_per_byte_lost", self.certificate.bits_per_byte_lost


@alone()
def export(
    model: str | Path | None = None,
    *,
    to: Literal["gguf", "onnx", "bundle"] = "gguf",
    type: Literal["f32", "f16", "q8_0", "q4_0"] | None = None,
    folder: str | Path | None = None,
    runtime: str | Path | None = None,
    force: bool = False,
    output: str | Path = DEFAULT_OUTPUT,
    on_progress: ProgressSink = lambda stage, fraction: None,
) -> ExportResult:
    """Write a model for other programs, and certify that it answers as the original does.

    The weights are read back from the written file, and compared with the original on prompts and on held-out
    dialogs. A copy beyond the tolerance of its type is not kept.

    Args:
        model: catalogue name, run, folder or hub id; None is the newest finished run.
        to: `gguf` for llama.cpp and Ollama, `onnx` for a page that runs it in the browser, or `bundle`, a zip file
            for transformers and dialogkit.
        type: how weights are stored, except in a bundle: f32, f16, q8_0 (the default) or, in GGUF, q4_0.
        folder: where to write. None: a folder in `exports` with the name of the model and the type.
        runtime: for `onnx`, the folder of the npm package onnxruntime-web. None: what npm installed here.
        force: replace existing files, and keep a copy beyond the tolerance.
        output: folder of models and runs.
        on_progress: receives the current stage and the fraction of the work that is done.

    Raises: ConfigError, ModelError, StorageError, UnavailableError.
    """
    _require_known("to", to, FORMS, "gguf")
    if type is not None:
        if to == "bundle":
            _require_known("type", type, TYPES["gguf"], DEFAULT_TYPE)
            raise ConfigError(
                f"type {type!r} is for GGUF and ONNX files; a bundle keeps the weights as they are",
                hint=Call("export", *filter(None, [model]), to="bundle", **output_of(output)),
            )
        _require_known("type", type, TYPES[to], DEFAULT_TYPE)
    if runtime is not None and to != "onnx":
        raise wrong_setting("runtime", "only ONNX files need onnxruntime-web", Change({"to": "onnx"}))
    weight_type = type or DEFAULT_TYPE
    _require_packages(to)
    loadable = resolve_model(None if model is None else str(model), output=output)
    name = folder_name(loadable.name)
    stem = {"gguf": f"{name}-{weight_type}", "onnx": f"{name}-onnx-{weight_type}", "bundle": name}[to]
    target = Path(EXPORTS) / stem if folder is None else Path(folder).expanduser()
    certificate_file = "certificate.json" if to == "onnx" else f"{stem}.certificate.json"
    names = {
        "gguf": [f"{stem}.gguf", "Modelfile", "README.md"],
        "onnx": ["model.onnx", *web_page.FILES, *web_runtime.FILES, "README.md"],
        "bundle": [f"{stem}.zip"],
    }[to]
    with _written_to(target, [*names, certificate_file], force=force) as staging, hints_for(loadable):
        make: Mapping[str, _Make] = {"gguf": _gguf, "onnx": partial(_onnx, runtime), "bundle": _bundle}
        certificate, notes = make[to](loadable, staging / names[0], name, weight_type, on_progress)
        if certificate.problem and not force:
            larger = [Change({"type": "q8_0"})] if weight_type == "q4_0" else []
            raise ModelError(certificate.problem, hint=Either(*larger, Change({"force": True})))
        notes += [certificate.problem] if certificate.problem else []
        (staging / certificate_file).write_text(certificate.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return ExportResult(
        to=to,
        folder=str(target),
        file=str(target / names[0]),
        files=[str(target / each) for each in (*names, certificate_file)],
        certificate=certificate,
        notes=notes,
        ollama=name.lower() if to == "gguf" else None,
    )


def _require_packages(to: str) -> None:
    """Raise UnavailableError if a package is missing that a form needs."""
    from dialogkit.models.sources import require_gguf, require_onnx

    if to != "bundle":
        (require_gguf if to == "gguf" else require_onnx)()


def _gguf(
    loadable: Loadable, file: Path, name: str, weight_type: Any, on_progress: ProgressSink
) -> tuple[Certificate, list[str]]:
    """Write a GGUF file, with a Modelfile and a card beside it, and return its certificate and notes."""
    from dialogkit.models.gguf_file import read_gguf, write_gguf

    sampling = _sampling(loadable)
    original, origin = _load(loadable, on_progress), origin_of(loadable)
    on_progress("writing", 0.1)
    written = write_gguf(
        file,
        original.model,
        original.tokenizer,
        weight_type,
        name=name,
        sampling=sampling,
        license_id=origin.license_id,
    )
    certificate = _certified(
        loadable,
        original,
        read_gguf(file, original.model),
        file,
        weight_type,
        reader="gguf",
        read_back_with="{}'s own dequantized weights",
        kept_f16=written.kept_f16,
        on_progress=on_progress,
    )
    tokenizer = original.tokenizer
    settings = modelfile(
        file.name,
        tokenizer.turn_format,
        stops=tokenizer.token_texts(sorted(tokenizer.reply_stop_ids)),
        context=original.context,
        sampling=sampling,
    )
    card = gguf_card(name.lower(), certificate, _head(loadable, "gguf"), Path(loadable.model.source or ""))
    (file.parent / "Modelfile").write_text(settings, encoding="utf-8")
    (file.parent / "README.md").write_text(card, encoding="utf-8")
    return certificate, list(written.notes)


def _onnx(
    runtime: str | Path | None,
    loadable: Loadable,
    file: Path,
    name: str,
    weight_type: Any,
    on_progress: ProgressSink,
) -> tuple[Certificate, list[str]]:
    """Write an ONNX file with a page that runs it and a card beside it, and return its certificate and notes."""
    from dialogkit.inference.onnx_model import OnnxModel
    from dialogkit.models.onnx_file import cache_shape, require_computed, write_onnx

    found = web_runtime.find_runtime(runtime)  # before the model, which takes seconds to load
    sampling = _sampling(loadable)
    original = _load(loadable, on_progress)
    require_computed(original.model.config)
    web_page.require_page(original.tokenizer)
    on_progress("writing", 0.1)
    for beside, content in found.items():
        (file.parent / beside).write_bytes(content)
    kept_f16 = write_onnx(file, original.model, weight_type)
    page = chat_page()
    web_page.write_page(
        file.parent,
        name,
        original.tokenizer,
        sampling,
        context=original.context,
        cache=cache_shape(original.model.config),
        html=page.html,
        digest=page.digest,
    )
    certificate = _certified(
        loadable,
        original,
        OnnxModel(file, original.model.config),
        file,
        weight_type,
        reader="onnxruntime",
        read_back_with="{}, which computed the copy",
        kept_f16=kept_f16,
        means=BY_ONNX,
        on_progress=on_progress,
    )
    card = web_card(name, certificate, _head(loadable, "onnx"), Path(loadable.model.source or ""))
    (file.parent / "README.md").write_text(card, encoding="utf-8")
    return certificate, []


def _bundle(
    loadable: Loadable, file: Path, name: str, weight_type: Any, on_progress: ProgressSink
) -> tuple[Certificate, list[str]]:
    """Write a bundle, and return its certificate and notes."""
    original = _load(loadable, on_progress)
    on_progress("writing", 0.1)
    write_bundle(file, name, original, Path(loadable.model.source or ""), origin_of(loadable))
    certificate = _certified(
        loadable,
        original,
        read_bundle(file, name, original),
        file,
        "f32",
        reader="transformers",
        read_back_with="{}",
        on_progress=on_progress,
    )
    add_readme(file, name, bundle_readme(name, certificate))
    return certificate.model_copy(update=_of_file(file)), []


def _head(loadable: Loadable, library: str) -> str:
    """Return the YAML at the beginning of a card, with the results of the original."""
    folder = Path(loadable.model.source or "")
    return without_places(as_yaml(card_head(loadable, origin_of(loadable), library), folder), places_of(loadable))


def _sampling(loadable: Loadable) -> GenerateConfig:
    """Return the settings for sampling that stand in the files."""
    from dialogkit.models.generation import choose_settings

    own = "correct or delete its generation_config.json"
    return choose_settings(GenerateConfig(use_model_settings=True), loadable.model, hint=own)[0]


def _load(loadable: Loadable, on_progress: ProgressSink) -> "LoadedModel":
    from dialogkit.services.runs.loading import load_for_inference

    on_progress("loading", 0.0)
    return load_for_inference(loadable, device="cpu")


def _certified(
    loadable: Loadable,
    original: "LoadedModel",
    copy: Any,
    file: Path,
    weight_type: str,
    *,
    reader: Literal["gguf", "onnxruntime", "transformers"],
    read_back_with: str,
    on_progress: ProgressSink,
    kept_f16: Sequence[str] = (),
    means: Means = BY_TRANSFORMERS,
) -> Certificate:
    """Return the certificate of a file that was read into a copy of the model; `{}` stands for what read it."""
    from importlib.metadata import version

    versions = {package: version(package) for package in dict.fromkeys((reader, "transformers", "torch"))}
    return certify(
        loadable,
        original,
        original._replace(model=copy.eval()),
        weight_type=weight_type,
        on_progress=on_progress,
        means=means,
        **_of_file(file),
        read_back_with=read_back_with.format(f"{reader} {versions[reader]}"),
        kept_f16=list(kept_f16),
        versions={"dialogkit": __version__, **versions},
    )


def _of_file(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": digest}


@contextmanager
def _written_to(folder: Path, names: Sequence[str], *, force: bool) -> Iterator[Path]:
    """Yield a folder to write files to, which are moved to their place if nothing fails.

    Raises: StorageError if one exists and is not to be replaced, or a file cannot be written.
    """
    if not force and (taken := next((name for name in names if os.path.lexists(folder / name)), None)):
        raise StorageError(f"{str(folder / taken)!r} exists", hint=Change({"force": True}))
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{str(folder)!r} is a file, not a folder", hint=Change({"output": "my-export"}))
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".export-") as staging:
            yield Path(staging)
            for name in names:
                os.replace(Path(staging) / name, folder / name)
    except OSError as error:
        raise StorageError(
            f"{str(folder)!r} cannot be written: {os_reason(error)}", hint=Change({"output": "my-export"})
        ) from None
    finally:
        for parent in made:
            with suppress(OSError):  # not empty: all went well
                parent.rmdir()


def _require_known(option: str, value: str, known: Sequence[str], default: str) -> None:
    if value not in known:
        likely = did_you_mean(value, known)
        problem = f"{value!r} is none of {', '.join(known)}{likely}"
        raise wrong_setting(option, problem, Change({option: default}))
