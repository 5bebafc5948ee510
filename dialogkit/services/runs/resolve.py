"""Resolve a MODEL argument: a catalogue model, a file, a folder, a run or a hub id."""

import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from filecmp import cmp
from pathlib import Path
from typing import Any

from dialogkit.config.load import HUB_ID, folder_name, load_run_config, looks_like_path, model_names
from dialogkit.config.model import NAME_PATTERN, ModelConfig
from dialogkit.config.paths import DEFAULT_OUTPUT, EXPORTS, PARTS, holds_model, without_model
from dialogkit.data.sources import NAMED, looks_like_file
from dialogkit.errors import DataError, DialogKitError, ModelError, did_you_mean
from dialogkit.hints import Call
from dialogkit.tracking.publishing import published_dir
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.run_list import find_run, list_runs


def output_of(output: str | Path) -> dict[str, Any]:
    """Return the option of a call that works in this folder of models and runs; empty for the default folder."""
    return {} if Path(output) == Path(DEFAULT_OUTPUT) else {"output_dir": str(output)}


def call_on(run: RunDir, verb: str, *, by: str | None = None, **options: Any) -> Call:
    """Return a call about a run: by its name, or by its path if the name would not be found.

    Args:
        run: the run.
        verb: the verb, such as `runs show`.
        by: option that takes the run, such as `resume`; None if the run is the argument.
        options: further options.
    """
    has_name = run.output is not None and re.match(NAME_PATTERN, run.name)
    name = run.name if has_name else str(run.path)
    where = output_of(run.output) if run.output is not None and has_name else {}
    taken: dict[str, Any] = {by: name} if by else {}
    return Call(verb, *([] if by else [name]), **taken, **where, **options)


@dataclass(frozen=True)
class Loadable:
    """A model that can be loaded to reply or to be evaluated."""

    name: str
    model: ModelConfig
    run: RunDir | None = None
    """The run that trained it, if it is in a run folder."""

    @property
    def display_name(self) -> str:
        """One name for this model however it was requested: its run, with the checkpoint if it is one."""
        if self.run is None:
            return self.name
        folder = Path(self.model.source or "")
        is_inside = folder.resolve().parent == self.run.path.resolve() and folder.name != self.run.model_dir.name
        return f"{self.run.name}/{folder.name}" if is_inside else self.run.name


def resolve_model(name: str | None, *, output: str | Path = DEFAULT_OUTPUT) -> Loadable:
    """Return the model that MODEL names for `generate` and `evaluate`.

    A catalogue name (the model trained here under it, else the pretrained weights), a run, a folder or GGUF file,
    or a hub id. None is the newest finished run.

    Raises: ModelError.
    """
    output = Path(output)
    if name is None:
        for newest, summary in list_runs(output):
            if summary.status == "completed" and holds_model(newest.model_dir):
                return _from_run(newest)
        raise ModelError(
            f"no finished run in {str(output)!r} yet", hint=Call("train", "custom-tiny", preset="test")
        )
    if name in model_names():
        if (published := _published(name, output)) is not None:
            return published
        model = load_run_config(name).model
        if model.from_scratch:
            raise ModelError(
                f"{name!r} has not been trained in {str(output)!r} yet", hint=Call("train", name, preset="test")
            )
        return Loadable(name, model)
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        stem = load_run_config(name).model.name
        if (published := _published(stem, output)) is not None:
            return published
        raise ModelError(f"{name!r} has not been trained in {str(output)!r} yet", hint=Call("train", name))
    if path.is_file() and path.suffix != ".gguf":
        raise ModelError(
            f"{name!r} is neither a model file (.json) nor a GGUF file", hint=Call("evaluate", dataset=name)
        )
    if path.exists():
        if RunDir(path).exists or RunDir(path).is_damaged:
            return _from_run(RunDir(path))
        if path.is_dir() and not holds_model(path) and not list(path.glob("*.gguf")):
            raise ModelError(without_model(name), hint=Call("models list"))
        if path.parent.resolve() == output.resolve() and (published := _published(path.name, output)) is not None:
            return published
        around = RunDir(path.parent)  # a checkpoint and a finished model are named by their run
        if not around.exists or around.is_damaged:
            return Loadable(path.name, model_of_folder(path.stem, path))
        named = around.name if path.name == around.model_dir.name else f"{around.name}/{path.name}"
        return Loadable(named, model_of_folder(path.stem, path), around)
    first, _, inside = name.partition("/")
    if inside and re.match(NAME_PATTERN, first) and RunDir(output / "runs" / first).exists:
        return _inside_run(RunDir(output / "runs" / first), inside)
    if (output / "runs" / name).is_dir() and not HUB_ID.match(name):
        return _from_run(find_run(output, name))
    if "/" not in name and (published := _published(name, output)) is not None:
        return published
    near = _near_path(path, output)
    if HUB_ID.match(name) and not near:
        return Loadable(name, ModelConfig(name=folder_name(name.split("/")[-1]), source=name))
    if looks_like_path(name) or near:
        raise ModelError(f"no file or folder {name!r}{near}")
    known = [*model_names(), *(run.name for run, _ in list_runs(output))]
    if len(parts := [part for part in map(str.strip, name.split(",")) if part]) > 1 and set(parts) <= set(known):
        raise ModelError(
            f"{name!r} is not one model, but the names of {len(parts)}",
            hint=Call("evaluate", *parts, **output_of(output)),
        )
    is_prompt = re.search(r"[\s!?,]", name) is not None
    raise ModelError(
        f"no model or run {name!r}{did_you_mean(name, known)}",
        hint=Call("generate", prompt=name) if is_prompt else Call("models list"),
    )


def _near_path(path: Path, output: Path) -> str:
    """Return ` (did you mean 'x'?)` for a model whose path is nearly this one, or an empty string.

    What could also be a hub id is taken for a path only in a folder of ours: whoever has `google/bert-uncased`
    here may want `google/bert-cased` of the hub.
    """
    folder = path.parent
    with suppress(OSError, ValueError):  # no such folder, or a name that no file can have
        is_ours = folder.name == EXPORTS or (folder / "runs").is_dir() or folder.resolve() == output.resolve()
        is_path = is_ours or path.suffix == ".gguf" or not HUB_ID.match(str(path))
        if is_path and len(path.parts) > 1:
            models = [each.name for each in folder.iterdir() if _is_model(each)]
            if nearest := get_close_matches(path.name, models, n=1):
                return f" (did you mean {str(folder / nearest[0])!r}?)"
    return ""


def _is_model(path: Path) -> bool:
    return path.suffix == ".gguf" or holds_model(path) or any(path.glob("*.gguf"))


def _published(name: str, output: Path) -> Loadable | None:
    """Return the newest finished model with a name, or with the spelling of its folder."""
    folder = published_dir(output, name)
    if not holds_model(folder):
        return None
    # It came from the newest finished run of that model, unless that was deleted.
    for run, summary in list_runs(output):
        made = summary.model_name
        if summary.status == "completed" and published_dir(output, made) == folder and _made(run, folder):
            return Loadable(made, model_of_folder(made, folder), run)
    return Loadable(name, model_of_folder(name, folder))


def lasting_source(model: ModelConfig, output: Path) -> ModelConfig:
    """Return the model with its run's folder as the source, if the source is a published folder.

    The next finished run of that name replaces a published model, but an adapter needs its base forever.
    """
    folder = Path(model.source or "").expanduser()
    if not folder.is_dir() or folder.parent.resolve() != output.resolve():
        return model
    found = _published(folder.name, output)
    if found is None or found.run is None or not _weights(found.run.model_dir):
        return model
    return model.model_copy(update={"source": str(found.run.model_dir)})


def is_published(run: RunDir, name: str, output: Path) -> bool:
    """Return whether the finished model of a run is also published under its name in the output folder."""
    return bool(_weights(run.model_dir)) and _made(run, published_dir(output, name))


def _made(run: RunDir, folder: Path) -> bool:
    """Return whether a run trained the weights in a folder; true if its own weights are gone."""
    own, there = _weights(run.model_dir), _weights(folder)
    return not own or (
        own.keys() == there.keys()
        and all(path.samefile(there[name]) or cmp(path, there[name], shallow=False) for name, path in own.items())
    )


def _weights(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.glob("*.safetensors")}


def _from_run(run: RunDir) -> Loadable:
    require_finished_model(run)
    return Loadable(run.name, model_of_folder(run.name, run.model_dir), run)


def require_finished_model(run: RunDir) -> None:
    """Raise ModelError, with the call that resumes the run, if it has no finished model."""
    record = run.read()
    if not holds_model(run.model_dir):
        raise ModelError(
            f"the run {run.name!r} has no finished model (it is {record.status})", hint=_resuming_call(run)
        )


def _resuming_call(run: RunDir) -> Call:
    """Return the call that resumes a run that is not finished, or shows it while it is being trained."""
    from dialogkit.engine.checkpoints import read_progress, steps_aside

    if run.is_held:
        return call_on(run, "runs show")
    checkpoints = [path for path in run.remains if path != run.model_dir]
    is_lost = not any(read_progress(path) for path in checkpoints) and (checkpoints or steps_aside(run.path))
    return call_on(run, "train", by="resume", **({"force": True} if is_lost else {}))


def _inside_run(run: RunDir, name: str) -> Loadable:
    """Return a checkpoint of a run, or its model, by folder name."""
    if name == run.model_dir.name:
        return _from_run(run)
    checkpoints = run.checkpoints()
    folder = checkpoints.get(name)
    refuse_sharded(run, run.path / name)
    if folder is None:
        known = f"has {' and '.join(checkpoints)}" if checkpoints else "has none"
        newest = f"/{list(checkpoints)[-1]}" if checkpoints else ""
        raise ModelError(
            f"the run {run.name!r} has no checkpoint {name!r}: it {known}",
            hint=Call("evaluate", f"{run.name}{newest}"),
        )
    return Loadable(f"{run.name}/{name}", model_of_folder(name, folder), run)


def refuse_sharded(run: RunDir, checkpoint: Path) -> None:
    """Raise ModelError if a checkpoint holds a sharded model, which transformers cannot load."""
    if checkpoint.parent == run.path and (checkpoint / PARTS).is_dir():
        finished = holds_model(run.model_dir)
        raise ModelError(
            f"'{run.name}/{checkpoint.name}' holds a sharded model, which can only be resumed",
            hint=call_on(run, "generate") if finished else _resuming_call(run),
        )


def name_to_type(name: str, run: RunDir, output: Path) -> str:
    """Return a MODEL argument for the model of a run: its name, or the run's if the name means another model."""
    with suppress(DialogKitError):
        if (found := resolve_model(name, output=output).run) is not None and found.name == run.name:
            return name
    return run.name


def model_of_folder(name: str, folder: Path) -> ModelConfig:
    """Return the settings of a model in a folder."""
    # A model with a chat template is rendered by it; `auto` recognises our formats.
    return ModelConfig(name=folder_name(name), source=str(folder))


def find_dataset(record: RunRecord) -> str:
    """Return the dataset of a run as found from here; a relative path may start in the run's working directory.

    Raises: DataError if the file is in neither directory.
    """
    data = record.settings("data")
    name = str(data["dataset"])
    original = Path(record.environment.folder or "") / name
    if name not in NAMED and not Path(name).expanduser().exists() and original.is_dir():
        return str(original)
    if name in NAMED or Path(name).expanduser().exists() or not looks_like_file(name):
        return name
    if original.is_file():
        return str(original)
    raise DataError(
        f"the dataset of the run {record.name!r} is neither {name!r} here nor {str(original)!r}",
        hint=Call("runs show", record.name),
    )
