"""What a MODEL argument names: a catalogue model, a file, a folder, a run or a hub id."""

import json
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from typing import Any

from dialogkit.config.load import HUB_ID, folder_name, load_run_config, looks_like_path, model_names
from dialogkit.config.model import NAME_PATTERN, ModelConfig
from dialogkit.config.paths import DEFAULT_OUTPUT, PARTS, holds_model, without_model
from dialogkit.data.sources import NAMED, looks_like_file
from dialogkit.errors import DataError, DialogKitError, ModelError, did_you_mean
from dialogkit.hints import Call
from dialogkit.tracking.publishing import published_dir
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import RunDir, find_run, list_runs


def output_option(output: str | Path) -> str:
    """Return what a command ends with where the folder of models and runs is not the usual one."""
    return "" if Path(output) == Path(DEFAULT_OUTPUT) else f" --output-dir {shlex.quote(str(output))}"


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


def known_as(run: RunDir) -> str:
    """Return what RUN has to be in a command that is typed here: its name, or its path where no name will do."""
    if run.output is None or not re.match(NAME_PATTERN, run.name):
        return shlex.quote(str(run.path))
    return f"{run.name}{output_option(run.output)}"


def trained_name(record: RunRecord) -> str:
    """Return the name of the model that a run trains."""
    return str(record.model.get("name") or record.config.get("model", {}).get("name", ""))


@dataclass(frozen=True)
class Loadable:
    """A model that can be loaded to reply or to be evaluated."""

    name: str
    model: ModelConfig
    run: RunDir | None = None
    """The run that made it, where it lies in a run folder."""

    @property
    def known_as(self) -> str:
        """The one name of this model however it was asked for: its run, and the checkpoint where it is one."""
        if self.run is None:
            return self.name
        folder = Path(self.model.source or "")
        is_inside = folder.resolve().parent == self.run.path.resolve() and folder.name != self.run.model_dir.name
        return f"{self.run.name}/{folder.name}" if is_inside else self.run.name


def resolve_model(name: str | None, *, output: str | Path = DEFAULT_OUTPUT) -> Loadable:
    """Return what MODEL means to `generate` and `evaluate`.

    A catalogue name (what was trained here under it, else the pretrained weights), a run, a folder or GGUF
    file, or a hub id. None is the newest finished run.

    Raises: ModelError with the next command to type.
    """
    output = Path(output)
    if name is None:
        for newest, record in list_runs(output):
            if record.status == "completed" and holds_model(newest.model_dir):
                return _from_run(newest)
        raise ModelError(
            f"there is no finished run in {str(output)!r} yet",
            hint="dialogkit train custom-tiny --preset test",
        )
    if name in model_names():
        if (published := _published(name, output)) is not None:
            return published
        model = load_run_config(name).model
        if model.from_scratch:
            raise ModelError(
                f"{name!r} has not been trained in {str(output)!r} yet",
                hint=f"dialogkit train {name} --preset test",
            )
        return Loadable(name, model)
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        stem = load_run_config(name).model.name
        if (published := _published(stem, output)) is not None:
            return published
        raise ModelError(f"{name!r} has not been trained in {str(output)!r} yet", hint=f"dialogkit train {name}")
    if path.is_file() and path.suffix != ".gguf":
        raise ModelError(
            f"{name!r} is a file, and neither a model file (.json) nor GGUF",
            hint=f"dialogkit evaluate --dataset {name}",
        )
    if path.exists():
        if RunDir(path).exists or RunDir(path).is_damaged:
            return _from_run(RunDir(path))
        if path.is_dir() and not holds_model(path) and not list(path.glob("*.gguf")):
            raise ModelError(without_model(name), hint="dialogkit models list")
        if path.parent.resolve() == output.resolve() and (published := _published(path.name, output)) is not None:
            return published
        around = RunDir(path.parent)  # a checkpoint, or the model itself, is known by its run
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
    if HUB_ID.match(name):
        return Loadable(name, ModelConfig(name=folder_name(name.split("/")[-1]), source=name))
    if looks_like_path(name):
        raise ModelError(f"there is no file or folder {name!r}")
    known = [*model_names(), *(run.name for run, _ in list_runs(output))]
    is_prompt = re.search(r"[\s!?,]", name) is not None
    raise ModelError(
        f"no model or run {name!r}{did_you_mean(name, known)}",
        hint=f"dialogkit generate --prompt {json.dumps(name)}" if is_prompt else "dialogkit models list",
    )


def _published(name: str, output: Path) -> Loadable | None:
    """Return the newest finished model of a name; its folder's spelling counts as the name as well."""
    folder = published_dir(output, name)
    if not holds_model(folder):
        return None
    # What lies there came from the newest finished run of that model, unless that is deleted.
    for run, record in list_runs(output):
        made = trained_name(record)
        if record.status == "completed" and published_dir(output, made) == folder and _made(run, folder):
            return Loadable(made, model_of_folder(made, folder), run)
    return Loadable(name, model_of_folder(name, folder))


def lasting_source(model: ModelConfig, output: Path) -> ModelConfig:
    """Return the model with the folder of the run that made it as its source, where it is a published one.

    The next finished training of that name replaces what is published; an adapter needs its base for good.
    """
    folder = Path(model.source or "").expanduser()
    if not folder.is_dir() or folder.parent.resolve() != output.resolve():
        return model
    found = _published(folder.name, output)
    if found is None or found.run is None or not _weights(found.run.model_dir):
        return model
    return model.model_copy(update={"source": str(found.run.model_dir)})


def is_published(run: RunDir, record: RunRecord, output: Path) -> bool:
    """Return whether the finished model of a run lies in the output folder under its name as well."""
    return bool(_weights(run.model_dir)) and _made(run, published_dir(output, trained_name(record)))


def _made(run: RunDir, folder: Path) -> bool:
    """Return whether a run made the weights in a folder; it may have, where its own are gone."""
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
    """Raise ModelError, with the command that goes on with the run, if it has no finished model."""
    record = run.read()
    if not holds_model(run.model_dir):
        raise ModelError(
            f"the run {run.name!r} has no finished model (it is {record.status})", hint=_command_that_goes_on(run)
        )


def _command_that_goes_on(run: RunDir) -> str:
    """Return what to type to go on with a run that is not finished."""
    from dialogkit.engine.checkpoints import read_progress, steps_aside

    if run.is_held:
        return f"dialogkit runs show {known_as(run)}"
    checkpoints = [path for path in run.remains if path != run.model_dir]
    is_lost = not any(read_progress(path) for path in checkpoints) and (checkpoints or steps_aside(run.path))
    return f"dialogkit train --resume {known_as(run)}" + (" --force" if is_lost else "")


def _inside_run(run: RunDir, name: str) -> Loadable:
    """Return a checkpoint of a run, or its model, by the name of the folder."""
    if name == run.model_dir.name:
        return _from_run(run)
    checkpoints = run.checkpoints()
    folder = checkpoints.get(name)
    refuse_parts(run, run.path / name)
    if folder is None:
        known = f"has {' and '.join(checkpoints)}" if checkpoints else "has none"
        newest = f"/{list(checkpoints)[-1]}" if checkpoints else ""
        raise ModelError(
            f"the run {run.name!r} has no checkpoint {name!r}: it {known}",
            hint=f"dialogkit evaluate {run.name}{newest}",
        )
    return Loadable(f"{run.name}/{name}", model_of_folder(name, folder), run)


def refuse_parts(run: RunDir, checkpoint: Path) -> None:
    """Raise ModelError if a checkpoint holds the parts of a sharded model, which is none for transformers."""
    if checkpoint.parent == run.path and (checkpoint / PARTS).is_dir():
        finished = holds_model(run.model_dir)
        raise ModelError(
            f"'{run.name}/{checkpoint.name}' holds the parts of a sharded model, which only --resume reads",
            hint=f"dialogkit generate {known_as(run)}" if finished else _command_that_goes_on(run),
        )


def name_to_type(name: str, run: RunDir, output: Path) -> str:
    """Return what MODEL has to be for the model of a run: its name, or the run's where the name means another."""
    with suppress(DialogKitError):
        if (found := resolve_model(name, output=output).run) is not None and found.name == run.name:
            return name
    return run.name


def model_of_folder(name: str, folder: Path) -> ModelConfig:
    """Return the settings of a model that lies in a folder."""
    # A model that brings its template is rendered by it; `auto` recognises the formats of ours.
    return ModelConfig(name=folder_name(name), source=str(folder))


def find_dataset(record: RunRecord) -> str:
    """Return the dataset of a run as it is known from here; a relative file may lie where the run was started.

    Raises: DataError if a file is in neither folder: another dataset would give figures of something else.
    """
    name = str(record.config["data"]["dataset"])
    there = Path(str(record.environment.get("folder", ""))) / name
    if record.config["data"].get("streaming") and not Path(name).expanduser().exists() and there.is_dir():
        return str(there)
    if name in NAMED or Path(name).expanduser().exists() or not looks_like_file(name):
        return name
    if there.is_file():
        return str(there)
    raise DataError(
        f"the dataset of the run {record.name!r} is neither {name!r} here nor {str(there)!r}",
        hint=f"dialogkit runs show {record.name}",
    )
