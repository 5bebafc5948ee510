"""The run folder: the truth about a run, read without torch and without a server.

Only this module knows the names of the files in it. Every file is written beside its place and renamed.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dialogkit.config.model import NAME_PATTERN
from dialogkit.errors import ModelError, StorageError, did_you_mean

Status = Literal["running", "completed", "failed", "interrupted", "diverged"]

CHECKPOINT = re.compile(r"^checkpoint-\d+$")


class RunRecord(BaseModel):
    """The content of `run.json`. Parts that are not known yet are empty."""

    model_config = ConfigDict(extra="ignore")

    name: str
    status: Status = "running"
    created: str
    finished: str | None = None
    command: list[str] = []
    config: dict[str, Any] = {}
    origins: dict[str, str] = {}
    runtime: dict[str, Any] = {}
    model: dict[str, Any] = {}
    data: dict[str, Any] = {}
    versions: dict[str, str] = {}
    schedule: dict[str, int] = {}
    metrics: dict[str, float] = {}
    replies: dict[str, float] = {}
    wandb: dict[str, Any] = {}
    error: str | None = None


class RunDir:
    """One run's folder under `<output>/runs/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def model_dir(self) -> Path:
        """Folder of the finished model."""
        return self.path / "model"

    @classmethod
    def create(cls, output: Path, name: str) -> "RunDir":
        """Make the folder of a new run.

        Raises: StorageError if there is such a run already, or the folder cannot be made.
        """
        path = output / "runs" / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise StorageError(
                f"there is a run {name!r} in {str(output)!r} already", hint="--name ANOTHER_NAME"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{str(path)!r} cannot be made: {(error.strerror or str(error)).lower()}",
                hint="--set runtime.output_dir=DIR",
            ) from None
        return cls(path)

    def write(self, record: RunRecord) -> None:
        """Write `run.json`."""
        write_text(self.path / "run.json", record.model_dump_json(indent=2) + "\n")

    def read(self) -> RunRecord:
        """Return the record of the run. Raises: ModelError if it cannot be read."""
        try:
            return RunRecord.model_validate_json((self.path / "run.json").read_bytes())
        except (OSError, ValidationError):
            raise ModelError(f"{str(self.path)!r} holds no readable run.json") from None

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append one logged point to `metrics.jsonl`; it is on disk when this returns."""
        self._append("metrics.jsonl", {"step": step, "time": now(), **metrics})

    def append_sample(self, sample: dict[str, Any]) -> None:
        """Append one reply to `samples.jsonl`."""
        self._append("samples.jsonl", sample)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged points; a last line that a crash cut off is left out."""
        points = []
        with suppress(OSError), (self.path / "metrics.jsonl").open(encoding="utf-8") as file:
            for line in file:
                with suppress(ValueError):
                    points.append(json.loads(line))
        return points

    def _append(self, file: str, record: dict[str, Any]) -> None:
        with (self.path / file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run; nothing else in the folder is touched."""
        for path in self.path.iterdir():
            if CHECKPOINT.match(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


def now() -> str:
    """Return the present time as ISO 8601 in UTC, with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_name(model: str, preset: str, output: Path) -> str:
    """Return `{model}-{preset}-{timestamp}`, made unique in the output folder."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = base = f"{model[:32]}-{preset[:12]}-{stamp}"
    number = 2
    while (output / "runs" / name).exists():
        name, number = f"{base}-{number}", number + 1
    return name


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is never half there."""
    try:
        descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {(error.strerror or str(error)).lower()}") from None


def ordinary_permissions(folder: Path) -> None:
    """Give the files of a folder the permissions that the umask allows: safetensors writes mode 0600."""
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def published_dir(output: Path, model: str) -> Path:
    """Return the folder of the newest finished model of a name."""
    return output / model.replace("-", "_")


def publish(model_dir: Path, target: Path) -> None:
    """Replace `target` by the files of a finished run, by hard links where the file system has them.

    The old folder is moved aside first and removed last: at every moment one of the two is whole.
    Raises: StorageError if `target` holds something else than a model.
    """
    if target.exists() and not (target / "config.json").is_file():
        raise StorageError(f"{str(target)!r} is there already and is no model, so it is left as it is")
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(model_dir, beside, copy_function=_link_or_copy)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        beside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"{str(target)!r} cannot be written: {(error.strerror or str(error)).lower()}; the model is in "
            f"{str(model_dir)!r}"
        ) from None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def list_runs(output: Path) -> Iterator[tuple[RunDir, RunRecord]]:
    """Yield the runs of an output folder, newest first; folders without a record are passed over."""
    runs: list[tuple[RunDir, RunRecord]] = []
    with suppress(OSError):
        for path in (output / "runs").iterdir():
            with suppress(ModelError):
                runs.append((RunDir(path), RunDir(path).read()))
    yield from sorted(runs, key=lambda run: (run[1].created, run[0].path.name), reverse=True)


def find_run(output: Path, name: str) -> RunDir:
    """Return a run by its name. Raises: ModelError if there is none."""
    names = [run.name for run, _ in list_runs(output)]
    if name not in names or not re.match(NAME_PATTERN, name):
        raise ModelError(
            f"no run {name!r} in {str(output)!r}{did_you_mean(name, names)}", hint="dialogkit models list"
        )
    return RunDir(output / "runs" / name)
