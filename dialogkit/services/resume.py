"""Which run is gone on with, and whether it may be with what is asked for now."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.load import flatten, load_changed
from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError, ModelError
from dialogkit.services.versions import package_versions
from dialogkit.tracking.rundir import RunDir, RunRecord, find_run, list_runs

if TYPE_CHECKING:
    from dialogkit.services.parts import Parts

HARMLESS = (
    "tracking.",
    "generate.",
    "runtime.devices",
    "runtime.workers",
    "runtime.output_dir",
    "train.keep_checkpoints",
    "train.fit_batch",
    "train.merge",
)
"""Settings that do not change what is learned."""


def find_resumable(name: str, *, model: str | None, output: Path) -> RunDir:
    """Return a run by its name or folder; `last` is the newest unfinished one (of a model).

    Raises: ModelError if there is none.
    """
    if name != "last":
        path = Path(name).expanduser()
        run = RunDir(path) if RunDir(path).exists else find_run(output, name)
        made = run.read().config.get("model", {}).get("name")
        if model is not None and model != made:
            raise ModelError(
                f"the run {run.name!r} trains {made}, not {model}", hint=f"dialogkit train --resume {run.name}"
            )
        return run
    for run, record in list_runs(output):
        if record.status != "completed" and model in (None, record.config.get("model", {}).get("name")):
            return run
    of_model = f" of {model}" if model else ""
    raise ModelError(f"there is no unfinished run{of_model} in {str(output)!r}", hint="dialogkit runs list")


def resumed_config(record: RunRecord, changes: Mapping[str, Any], *, force: bool) -> tuple[RunConfig, list[str]]:
    """Return the settings with which a run goes on, and what is told of harmless changes.

    Raises: ConfigError for a change that would alter what is learned, unless `force`.
    """
    config = load_changed(record.config, changes)
    new = dict(flatten(config.model_dump(mode="json")))
    differing = [
        f"{name} is {old!r}, not {new.get(name)!r}" for name, old in flatten(record.config) if new.get(name) != old
    ]
    altering = [told for told in differing if not told.startswith(HARMLESS)]
    if altering and not force:
        raise _refusal(record, altering)
    return config, differing


def require_same(record: RunRecord, parts: "Parts", *, force: bool) -> list[str]:
    """Return what differs on this machine from where the run was; most of it alters the last digits of figures.

    Raises: ConfigError if anything does, unless `force`.
    """
    now = {
        **{f"version of {name}": package_versions().get(name) for name in ("torch", "transformers")},
        **{f"runtime.{name}": value for name, value in asdict(parts.runtime).items() if "reason" not in name},
        "data revision": parts.data.ledger.revision,
        # Of a stream they are counted as they come.
        "training dialogs": None if parts.streamed else parts.data.size,
        # Whole weights are in a checkpoint; an adapter's base is not.
        "the base of the adapter": _base_of(parts.model_facts),
    }
    before = {
        **{f"version of {name}": record.versions.get(name) for name in ("torch", "transformers")},
        **{name: record.runtime.get(name.removeprefix("runtime.")) for name in now if name.startswith("runtime.")},
        "data revision": record.data.get("revision"),
        "training dialogs": None if parts.streamed else record.data.get("train_dialogs"),
        "the base of the adapter": _base_of(record.model),
    }
    if before["runtime.processes"] not in (None, now["runtime.processes"]):
        # The batches stay the same: only the last digits differ, as the sums are made in another order.
        for name in ("runtime.processes", "runtime.device_name"):
            del now[name], before[name]
    # What a run that was killed very early has not recorded cannot differ.
    differing = [f"{name} was {before[name]!r} and is {now[name]!r}" for name in now if before[name] != now[name]]
    differing = [told for told in differing if " was None" not in told]
    if differing and not force:
        raise _refusal(record, differing)
    return differing


def _base_of(facts: Mapping[str, Any]) -> Any:
    """Return the commit or the digest of the weights that an adapter was trained on, wherever they lie."""
    base = facts.get("adapter_base")
    return (base.get("revision") or base.get("metadata")) if isinstance(base, dict) else None


def _refusal(record: RunRecord, differing: list[str]) -> ConfigError:
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return ConfigError(
        f"the run {record.name!r} would not go on as it began: {differing[0]}{more}",
        hint=f"dialogkit train --resume {record.name}, with --force to go on all the same",
        details=differing[1:],
    )
