"""Select the run to resume, check that the requested settings are compatible, and choose its checkpoint."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import flatten, folder_name, load_changed, load_run_config
from dialogkit.config.paths import NEWEST, holds_model
from dialogkit.config.run import RunConfig
from dialogkit.distributed import process_group
from dialogkit.errors import CheckpointError, ConfigError, ModelError, wrong_setting
from dialogkit.hints import Call, Change
from dialogkit.models.shape import read_shape
from dialogkit.services.runs.resolve import call_on, output_of, refuse_sharded, require_finished_model
from dialogkit.system.packages import package_versions
from dialogkit.text import counted
from dialogkit.tracking.record import ModelInfo, Resumption, RunRecord, now
from dialogkit.tracking.run_dir import RunDir, plain_name
from dialogkit.tracking.run_list import damaged_runs, find_run, list_runs

if TYPE_CHECKING:
    from dialogkit.engine.checkpoints import Progress
    from dialogkit.services.training.lifecycle import TrainingRun
    from dialogkit.services.training.setup import TrainingSetup

_HARMLESS = (
    *("tracking.", "generate.", "runtime.devices", "runtime.workers", "runtime.output_dir"),
    *("train.keep_checkpoints", "train.fit_batch", "train.merge"),
)
"""Settings that do not change what is learned."""
_LIBRARIES = ("torch", "transformers")


def find_resumable(name: str, *, model: str | None, output: Path) -> RunDir:
    """Return a run by its name or folder; `last` is the newest unfinished one (of a model).

    Raises: ModelError if no run matches; ConfigError if the settings in its record are not valid.
    """
    if name != NEWEST:
        run = _named(name, output)
        record = run.read()
        made = record.settings("model").get("name")
        if model is not None and model != made:
            raise ModelError(f"the run {run.name!r} trains {made}, not {model}", hint=resume_hint(run))
        _require_valid(run, record)
        return run
    for run, summary in list_runs(output):
        if summary.status != "completed" and model in (None, summary.model_name):
            _require_valid(run, run.read())
            return run
    of_model = f" of {model}" if model else ""
    problem = f"there is no unfinished run{of_model} in {str(output)!r}"
    if damaged := damaged_runs(output):  # the unfinished run may be among them
        raise ModelError(f"{problem} whose record can be read", hint=call_on(damaged[0], "runs show"))
    raise ModelError(problem, hint=Call("runs list", **output_of(output)))


def find_start(name: str, *, output: Path) -> tuple[Path, str]:
    """Return the folder of the weights to start a new run from, and the name of their model.

    Args:
        name: a finished run by its name or folder, or a checkpoint: `run/checkpoint-10`, or its folder, or that of
            any model.
        output: folder of models and runs.

    Raises: ModelError if nothing matches, or the run is not finished.
    """
    path = Path(os.path.expanduser(name))
    if re.fullmatch(r"[^/]+/checkpoint-\d+", name) and not os.path.isdir(path):
        path = output / "runs" / name
        refuse_sharded(RunDir(path.parent), path)
    is_run = os.sep not in name and (output / "runs" / name).is_dir()
    if not is_run and os.path.isdir(path) and holds_model(path):
        around = RunDir(path.parent)
        if not (around.exists or around.is_damaged):
            return path, folder_name(path.name)
        if path != around.model_dir:
            _require_valid_checkpoint(path, around)
        return path, folder_name(around.name) if around.is_damaged else around.read().model_name
    run = _named(name, output)
    require_finished_model(run)
    return run.model_dir, run.read().model_name


def started_from(config: RunConfig, name: str) -> RunConfig:
    """Return settings that start from the weights of a finished run or a checkpoint; the model keeps its name.

    Raises: what `find_start` raises; ConfigError if the settings describe a model of another shape.
    """
    start, _ = find_start(name, output=Path(config.runtime.output_dir))
    shape = read_shape(start)
    for field in ("layers", "width", "heads", "context"):
        wanted, there = getattr(config.model, field), shape.get(field)
        if None not in (wanted, there) and wanted != there:
            raise wrong_setting(
                f"model.{field}",
                f"{wanted} in the settings, but {name!r} has a model with {there}",
                Change({f"model.{field}": there}),
            )
    model = load_run_config(str(start), overrides={"model.name": config.model.name}).model
    return config.model_copy(update={"model": model})


def _require_valid_checkpoint(checkpoint: Path, run: RunDir) -> None:
    """Raise ModelError, with the newest valid checkpoint, if this one is damaged."""
    from dialogkit.engine.checkpoints import read_progress

    if read_progress(checkpoint) is not None:
        return
    valid = next((path for path in run.remains if path != run.model_dir and read_progress(path)), None)
    instead = {"from": str(valid)} if valid else {"name": f"{plain_name(run.name)}-2"}
    raise ModelError(
        f"the checkpoint {str(checkpoint)!r} is torn or damaged", hint=Call("train", settings=instead)
    )


def _named(name: str, output: Path) -> RunDir:
    """Return a run by its name or folder. Raises: ModelError if no run matches."""
    run = RunDir(Path(os.path.expanduser(name)))
    return run if run.exists or run.is_damaged else find_run(output, name)


def _require_valid(run: RunDir, record: RunRecord) -> None:
    """Raise ConfigError if the settings in a run's record are not valid, as after an edit by hand."""
    try:
        load_changed(record.config, {})
    except ConfigError as error:
        raise ConfigError(
            f"the settings in {run.record_path.name} of the run {run.name!r} are not valid: {error.message}",
            hint=Call("config validate", run.record_path),
            details=error.details,
        ) from None


def resumed_config(
    run: RunDir, record: RunRecord, changes: Mapping[str, Any], *, force: bool
) -> tuple[RunConfig, list[str]]:
    """Return the settings of a resumed run, and a line for each that changed.

    The output folder is the one that contains the run, unless the changes name another.
    Raises: ConfigError for a change that alters the result, unless `force`.
    """
    if changes.get("name", record.name) != record.name:
        name = changes["name"]
        raise ConfigError(
            f"a run keeps its name: {record.name!r} cannot resume as {name!r}",
            hint=call_on(run, "train", by="from", name=name) if record.status == "completed" else resume_hint(run),
        )
    config = load_changed(record.config, {key: value for key, value in changes.items() if key != "name"})
    new = dict(flatten(config.model_dump(mode="json")))
    differing = [
        f"{name} is {old!r}, not {new.get(name)!r}" for name, old in flatten(record.config) if new.get(name) != old
    ]
    altering = [change for change in differing if not change.startswith(_HARMLESS)]
    if altering and not force:
        raise _refusal(run, altering)
    if "runtime.output_dir" not in changes and run.output is not None:
        runtime = config.runtime.model_copy(update={"output_dir": str(run.output)})
        config = config.model_copy(update={"runtime": runtime})
    return config, differing


def _require_same(run: RunDir, record: RunRecord, setup: "TrainingSetup") -> None:
    """Raise ConfigError if the environment of the run has changed; most changes affect only the last digits."""
    runtime, versions = asdict(setup.runtime), package_versions()
    # A stream is counted while it is read.
    dialogs = None if setup.config.data.streaming else record.data.train_dialogs
    if record.runtime.processes not in (None, runtime["processes"]):
        # The batches stay the same; only the last digits differ, because sums are in a different order.
        del runtime["processes"], runtime["device_name"]
    both = {
        **{f"version of {name}": (record.versions.get(name), versions.get(name)) for name in _LIBRARIES},
        **{
            f"runtime.{name}": (getattr(record.runtime, name, None), value)
            for name, value in runtime.items()
            if "reason" not in name
        },
        "data revision": (record.data.revision, setup.data.ledger.revision),
        "training dialogs": (dialogs, setup.data.size),
        # Checkpoints contain full weights, but not the base of an adapter.
        "the base of the adapter": (_base_of(record.model), _base_of(ModelInfo(**setup.model_info))),
    }
    # A run that was killed very early may not have recorded these.
    changes = [f"{name} was {old!r} and is {new!r}" for name, (old, new) in both.items() if old not in (None, new)]
    if changes:
        raise _refusal(run, changes, force=True)


def _base_of(model: ModelInfo) -> Any:
    """Return the commit or digest of an adapter's base weights, which does not depend on their location."""
    base = model.adapter_base
    return (base.revision or base.metadata) if base is not None else None


def _refusal(run: RunDir, differing: list[str], **options: bool) -> ConfigError:
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return ConfigError(
        f"the run {run.name!r} cannot resume with different conditions: {differing[0]}{more}",
        hint=resume_hint(run, **options),
        details=differing[1:],
    )


def resume_hint(run: RunDir, **options: Any) -> Call:
    """Return the hint to resume a run."""
    return call_on(run, "train", by="resume", **options)


def choose_checkpoint(run: "TrainingRun", setup: "TrainingSetup") -> "tuple[Path, Progress] | None":
    """Prepare a run's record and files to resume; return its newest valid checkpoint, None to restart.

    Rank 0 decides; every rank returns the same.
    Raises: CheckpointError if everything that was saved is damaged, unless the request forces a restart.
    """
    chosen = _choose_checkpoint(run, setup) if process_group.is_main_process() else None
    return process_group.broadcast(chosen)


def _choose_checkpoint(run: "TrainingRun", setup: "TrainingSetup") -> "tuple[Path, Progress] | None":
    from dialogkit.engine.checkpoints import newest_valid, steps_aside
    from dialogkit.engine.trainer import set_aside_torn_best

    folder, record, request = run.folder, run.record, run.request
    if not (request.force or request.restarted):
        _require_same(folder, record, setup)
    folder.unlist_files()
    checkpoint = newest_valid(folder.path, run.note)
    if checkpoint is not None and setup.config.data.streaming:
        setup.data.stream.require_position(checkpoint[0])  # type: ignore[union-attr]
    before, count = record.runtime.processes or 1, setup.runtime.processes
    if before != count:
        change = f"the number of processes was {before} and is {count}"
        run.note(f"{change}: from now on the last digits of metrics differ")
    record.runtime.processes = count
    logged = max((point["step"] for point in folder.metrics()), default=-1)
    if checkpoint is not None:
        if setup.config.train.keep == "best" and (lost := set_aside_torn_best(checkpoint[0])):
            run.note(lost)
    # A run that logged steps after a save had that checkpoint; one that ended in its first save never had one.
    elif (aside := steps_aside(folder.path)) and logged > aside[0] and not request.force:
        raise CheckpointError(
            f"no checkpoint of the run {folder.name!r} is complete; {counted(len(aside), 'torn one')} set aside",
            hint=resume_hint(folder, force=True),
        )
    else:
        run.note("no checkpoint to resume from: the run restarts")
    step = checkpoint[1].step if checkpoint else 0
    folder.cut_after(step if checkpoint else -1)
    record.config = setup.config.model_dump(mode="json")
    record.resumed.append(Resumption(time=now(), step=step, told_step=logged))
    record.status, record.finished, record.error, record.exit_code = "running", None, None, None
    return checkpoint
