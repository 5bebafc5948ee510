"""Lists the catalogue and the trained models, and shows one model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dialogkit.config.base import Result
from dialogkit.config.load import describe, load_run_config, model_names
from dialogkit.config.paths import DEFAULT_OUTPUT, holds_model
from dialogkit.errors import ModelError
from dialogkit.models.folder import require_regular
from dialogkit.models.shape import adapter_info, read_shape
from dialogkit.services.runs.resolve import Loadable, model_of_folder, resolve_model
from dialogkit.tracking.publishing import published_dir, published_dirs
from dialogkit.tracking.run_list import list_runs


class ModelRow(Result):
    """One model; None for what is unknown."""

    name: str
    description: str
    kind: Literal["pretrained", "from scratch"]
    size_class: str | None
    """The size that the model is known by."""
    parameters: int | None
    """Exact number; tied embeddings count once."""
    parameters_without_embeddings: int | None
    architecture: str | None
    layers: int | None
    width: int | None
    heads: int | None
    context: int | None
    vocabulary: int | None
    source: str | None
    license: str | None
    chat_format: str | None
    trained: bool
    """Whether the output folder has a finished model of this name."""
    folder: str | None
    base: str | None = None
    """The base model of an adapter; None for complete weights."""
    adapter_parameters: int | None = None
    """Parameters of an adapter, which `parameters` does not include."""


_SIZES = ("parameters", "parameters_without_embeddings", "layers", "width", "heads", "context", "vocabulary")


def list_models(*, output: str | Path = DEFAULT_OUTPUT) -> list[ModelRow]:
    """Return the catalogue, then the other models that were trained in the output folder."""
    output, shipped = Path(output), model_names()
    own: dict[str, ModelRow] = {}
    for run, summary in list_runs(output):
        name = summary.model_name
        folder = published_dir(output, name)
        if summary.status == "completed" and name not in own and name not in shipped:
            own[name] = _loadable_row(Loadable(name, model_of_folder(name, folder), run), output, forgiving=True)
    listed = {published_dir(output, name) for name in (*shipped, *own)}
    for folder in published_dirs(output):
        if folder not in listed:  # its run is deleted
            name = folder.name
            row = _loadable_row(Loadable(name, model_of_folder(name, folder)), output, forgiving=True)
            own[name] = row.model_copy(update={"trained": True})
    catalogue = [_catalogue_row(name, output, forgiving=True) for name in shipped]
    return [*catalogue, *(row for _, row in sorted(own.items()) if row.trained)]


def show_model(name: str, *, output: str | Path = DEFAULT_OUTPUT) -> ModelRow:
    """Return one model: of the catalogue, a model file, a run, a folder or a hub id.

    Raises: ModelError if none has this name.
    """
    if name not in model_names() and Path(name).suffix != ".json":
        return _loadable_row(resolve_model(name, output=output), Path(output))
    return _catalogue_row(name, Path(output))


def _catalogue_row(name: str, output: Path, *, forgiving: bool = False) -> ModelRow:
    """Return a model of the catalogue or of a model file; `forgiving` as in `_loadable_row`."""
    model = load_run_config(name).model
    counts = model.parameter_counts()
    folder = published_dir(output, model.name)
    trained = holds_model(folder)
    # Another tokenizer, or settings of the run, may have changed its size.
    shape, problem = _read(read_shape, folder, forgiving=forgiving) if trained else ({}, "")
    planned = {name: getattr(model, name, None) for name in ("architecture", *_SIZES)}
    planned["vocabulary"] = model.known_vocabulary
    if counts is not None:
        planned |= {"parameters": counts.total, "parameters_without_embeddings": counts.without_embeddings}
    description = problem or (describe("models", name) if name in model_names() else "")
    return _row(
        model.name, description, model.model_dump(), {**planned, **shape}, trained, folder if trained else None
    )


def _read(read: Callable[[Path], dict[str, Any]], folder: Path, *, forgiving: bool) -> tuple[dict[str, Any], str]:
    """Return the shape in a folder and what is wrong with it; a problem is raised if not `forgiving`."""
    try:
        return read(folder), ""
    except ModelError as error:
        if not forgiving:
            raise
        return {}, error.message


def _loadable_row(loadable: Loadable, output: Path, *, forgiving: bool = False) -> ModelRow:
    """Return a trained model or one from elsewhere, by its run, its config and its weights.

    With `forgiving`, a problem of its folder becomes its description instead of an error.
    """
    folder = Path(loadable.model.source or "")
    info: dict[str, Any] = {}
    settings: Mapping[str, Any] = {"source": loadable.model.source}
    trained, problem = False, ""
    if loadable.run is not None:
        record = loadable.run.read()
        info, settings = record.model.model_dump(), record.settings("model")
        trained = holds_model(published_dir(output, record.model_name))
    elif folder.is_dir():
        info, problem = _read(read_shape, folder, forgiving=forgiving)
    elif folder.exists():
        require_regular(folder)
    adapter, damage = _read(adapter_info, folder, forgiving=forgiving)
    known = loadable.run is not None or folder.exists()
    description = problem or damage if known else "a hub id; its shape is known once it is fetched"
    shape = {**{name: info.get(name) for name in ("architecture", *_SIZES)}, **adapter}
    return _row(loadable.name, description, settings, shape, trained, folder if folder.is_dir() else None)


def _row(
    name: str,
    description: str,
    settings: Mapping[str, Any],
    shape: Mapping[str, Any],
    trained: bool,
    folder: Path | None,
) -> ModelRow:
    return ModelRow(
        name=name,
        description=description,
        kind="from scratch" if settings.get("source") is None else "pretrained",
        **{name: settings.get(name) for name in ("size_class", "source", "license", "chat_format")},
        **shape,
        trained=trained,
        folder=str(folder) if folder else None,
    )
