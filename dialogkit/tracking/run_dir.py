"""The folder of a run: its record, logs, checkpoints and evaluations, readable without torch and without a server.

The record and the evaluations are written to a temporary file first and then renamed.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dialogkit.config.paths import MANIFEST, holds_model
from dialogkit.errors import CheckpointError, ModelError, StorageError, os_reason
from dialogkit.hints import Call, Change, Either
from dialogkit.redaction import redact
from dialogkit.system.files import write_text
from dialogkit.system.ownership import FILE_LIST, add_to_list, entry_of, regular_files, write_list
from dialogkit.text import lines_of
from dialogkit.tracking.record import RunRecord, now

RECORD_FILE = "run.json"
REPORT_FILE = "report.html"
SAMPLES_FILE = "samples.jsonl"
METRICS_FILE = "metrics.jsonl"
_HISTOGRAMS_FILE, _CONSOLE_FILE = "histograms.jsonl", "console.log"
_LOGS = (METRICS_FILE, SAMPLES_FILE, _HISTOGRAMS_FILE, _CONSOLE_FILE)
RUN_FILES = (RECORD_FILE, *_LOGS, REPORT_FILE)
PRUNED_FILE = ".pruned.json"
"""Name of the record while the run is being deleted, when the folder no longer counts as a run."""
EVENTS_FOLDER = "tensorboard"
EVENTS = re.compile(r"events\.out\.tfevents\.\d+\..+\.\d+\.\d+(\.v2)?")
"""Names of TensorBoard's files."""
LOGS_LIST = "run"
"""Name inside the list of the logs; it does not depend on the name of the run's folder."""
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})", re.ASCII)


class RunDir:
    """One run's folder under `<output>/runs/`."""

    def __init__(self, path: Path, *, made: Sequence[Path] = ()) -> None:
        self.path = path
        self.made = made
        """Parent folders that were created for this run."""
        self._trained: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Name of the run: the name of its folder, even if that was renamed."""
        return os.path.basename(os.path.abspath(self.path))

    @property
    def output(self) -> Path | None:
        """The folder of models and runs that contains this run; None if no such folder does."""
        whole = Path(os.path.abspath(self.path))
        if whole.parent.name != "runs":
            return None
        output = whole.parent.parent
        return output if self.path.is_absolute() else Path(os.path.relpath(output))

    def _to_show(self) -> Call:
        return Call("runs show", self.name, output_dir=self.output and str(self.output))

    @property
    def is_gone(self) -> bool:
        """Whether the folder in which this process trains was removed, moved or replaced."""
        if self._trained is None:
            return False
        try:
            found = os.stat(self.path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._trained

    def require_there(self) -> None:
        """Raise CheckpointError if the folder was removed or moved while this process trains in it."""
        if self.is_gone:
            raise CheckpointError(f"the run folder {str(self.path)!r} was removed or moved while training")

    @property
    def model_dir(self) -> Path:
        """Folder of the finished model."""
        return self.path / "model"

    @property
    def record_path(self) -> Path:
        """File of the record; a new run can take its settings."""
        return self.path / RECORD_FILE

    @property
    def report_path(self) -> Path:
        """The report page of the run."""
        return self.path / REPORT_FILE

    @classmethod
    def create(cls, output: Path, name: str) -> "RunDir":
        """Create the folder of a new run.

        Raises: StorageError if the run exists already, or the folder cannot be created.
        """
        path = output / "runs" / name
        made = [folder for folder in path.parents if not folder.exists()]
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            cls.require_free(output, name)
            return cls(path)
        except OSError as error:
            raise StorageError(f"cannot create {str(path)!r}: {os_reason(error)}") from None
        return cls(path, made=made)

    @classmethod
    def require_free(cls, output: Path, name: str) -> None:
        """Raise StorageError if a run has this name already, or something else its folder."""
        path = output / "runs" / name
        if not os.path.lexists(path) or _holds_only_a_lock(path):  # of a run that was killed before it started
            return
        if (path / PRUNED_FILE).exists():
            raise StorageError(
                f"the run {name!r} was only partly deleted",
                hint=Call("runs prune", name, yes=True, output_dir=str(output)),
            )
        run, other = cls(path), Change({"name": f"{name}-2"})
        is_run = run.exists or run.is_damaged
        taken = f"the run {name!r} in {str(output)!r}" if is_run else repr(str(path))
        if is_run and not run.is_damaged and not run.is_held and run.read().status != "completed":
            resume = Call("train", resume=name, output_dir=str(output))
            raise StorageError(f"{taken} exists already, and is not finished", hint=Either(resume, other))
        raise StorageError(f"{taken} exists already", hint=other)

    @property
    def exists(self) -> bool:
        """Whether this is the folder of a run."""
        return os.path.isfile(self.record_path)  # pathlib's raises for some names

    def checkpoints(self) -> dict[str, Path]:
        """Return the checkpoint folders that hold a model, by name, oldest first."""
        found = [path for path in self.path.glob("checkpoint-*") if holds_model(path)]
        known = [path for path in found if _CHECKPOINT.fullmatch(path.name)]
        return {path.name: path for path in sorted(known, key=lambda path: int(path.name.partition("-")[2]))}

    def write(self, record: RunRecord) -> None:
        """Write `run.json`."""
        self.require_there()
        kept = record.model_copy(update={"name": record._made_as or record.name})
        write_text(self.record_path, kept.model_dump_json(indent=2) + "\n")

    def read(self) -> RunRecord:
        """Return the record of the run, with the present name of its folder.

        Raises: ModelError, which names what can still be used, if the record cannot be read.
        """
        try:
            # Anything but a regular file counts as missing: reading a pipe would never end.
            content = self.record_path.read_bytes() if self.exists else None
            if content is not None:
                record = RunRecord.model_validate_json(content)
                if record.name != self.name:
                    record._made_as, record.name = record.name, self.name
                return record
            problem = "is missing"
        except OSError as error:
            problem = f"cannot be read ({os_reason(error)})"
        except ValidationError as error:
            problem = f"is damaged ({_reason(error)})"
        raise self._unreadable(problem)

    @property
    def remains(self) -> list[Path]:
        """The finished model and the complete checkpoints, newest first: what is usable without a record.

        A checkpoint without a manifest was never complete.
        """
        found: list[tuple[int, Path]] = []
        with suppress(OSError):
            for path in self.path.iterdir():
                if (step := _CHECKPOINT.fullmatch(path.name)) and os.path.isfile(path / MANIFEST):
                    found.append((int(step[1]), path))
        is_finished = os.path.isfile(self.model_dir / "README.md") and holds_model(self.model_dir)
        model = [self.model_dir] if is_finished else []
        return [*model, *(path for _, path in sorted(found, reverse=True))]

    @property
    def is_damaged(self) -> bool:
        """Whether this is the folder of a run with an unreadable record."""
        try:
            names = {path.name for path in self.path.iterdir()}
            self.read()
        except (OSError, ValueError):  # no such folder, or a name with a null character
            return False
        except ModelError:
            return PRUNED_FILE not in names and (bool(self.remains) or not names.isdisjoint(RUN_FILES))
        return False

    def _unreadable(self, problem: str) -> ModelError:
        """Return the error for an unreadable record: the reason, what is left, and what to do with it."""
        remains = self.remains
        names = [path.name if path != self.model_dir else "its finished model" for path in remains]
        left = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "no checkpoint"
        message = f"run.json of the run {self.name!r} {problem}; {str(self.path)!r} still holds {left}"
        if remains and remains[0] == self.model_dir:
            return ModelError(message, hint=Call("generate", self.model_dir, prompt="Hello!"))
        start: dict[str, Any] = {"from": remains[0]} if remains else {}  # a keyword of Python
        return ModelError(message, hint=Call("train", **start, name=f"{plain_name(self.name)}-2"))

    def list_files(self) -> None:
        """List the logs and TensorBoard's files as training left them; a resumed run appends to them."""
        if self.is_gone:
            return
        with suppress(OSError):
            logs = [self.path / name for name in _LOGS]
            listed = {path.name: entry_of(path) for path in logs if path.is_file()}
            write_list(self.path, listed, name=LOGS_LIST)
            events = self.path / EVENTS_FOLDER
            if events.is_dir():
                add_to_list(events, *(path for path in regular_files(events) if EVENTS.fullmatch(path.name)))

    def unlist_files(self) -> None:
        """Delete the list of the logs before they are appended to."""
        for folder in (self.path, self.path / EVENTS_FOLDER):
            (folder / FILE_LIST).unlink(missing_ok=True)

    def cut_after(self, step: int) -> None:
        """Remove later steps from the logs: a resumed run logs them again."""
        for name in (METRICS_FILE, SAMPLES_FILE, _HISTOGRAMS_FILE):
            path = self.path / name
            lines = lines_of(path.read_bytes().decode("utf-8", "replace")) if path.is_file() else []
            kept = [line for line in lines if _step_of(line) <= step]
            if len(kept) < len(lines):
                write_text(path, "".join(f"{line}\n" for line in kept))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here. Raises: StorageError if one does already, or for a link."""
        self.require_no_links(self.path.rglob("*"))
        with self.held():
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Do the same without a check for links in the folder. Raises: StorageError."""
        path = self.path / ".lock"
        self.require_no_links([path])
        if os.path.lexists(path) and not path.is_file():  # reading a pipe would never end
            raise StorageError(f"{str(path)!r} is not a regular file, so the run {self.name!r} was left unchanged")
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with path.open("a+", encoding="utf-8") as file:
            place = os.stat(self.path)
            try:
                # The system releases the lock when the process ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise StorageError(
                    f"the run {self.name!r} is being trained by process {file.read().strip() or '?'}",
                    hint=self._to_show(),
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self._trained = place.st_dev, place.st_ino
            try:
                yield
            finally:
                self._trained = None

    @property
    def is_held(self) -> bool:
        """Whether another process is training this run."""
        try:
            import fcntl
        except ImportError:  # Windows, where a killed run looks the same
            return self.exists and self.read().status == "running"
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def require_no_links(self, inside: Iterable[Path]) -> None:
        """Raise StorageError if a link in the folder could redirect writes out of it."""
        if link := next((path for path in (self.path, *inside) if path.is_symlink()), None):
            raise StorageError(
                f"the run {self.name!r} holds a link, {str(link)!r}, which dialogkit does not follow",
                hint=self._to_show(),
            )

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append one point to `metrics.jsonl`; it is on disk when this returns."""
        self._append(METRICS_FILE, {"step": step, "time": now(), **metrics})

    def append_histograms(self, step: int, histograms: Mapping[str, tuple[Any, Any]]) -> None:
        """Append histograms, each as counts and edges, to `histograms.jsonl`."""
        drawn = {
            name: {"low": float(edges[0]), "high": float(edges[-1]), "counts": [int(count) for count in counts]}
            for name, (counts, edges) in histograms.items()
        }
        self._append(_HISTOGRAMS_FILE, {"step": step, "time": now(), **drawn})

    def append_sample(self, sample: dict[str, Any]) -> None:
        """Append one reply to `samples.jsonl`."""
        self._append(SAMPLES_FILE, sample)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged points; skip invalid lines, such as a last line cut off by a crash."""
        return [
            {name: value for name, value in point.items() if name == "time" or _is_metric(value)}
            for point in self._lines(METRICS_FILE)
        ]

    def samples(self) -> list[dict[str, Any]]:
        """Return the logged replies; skip invalid lines, such as a last line cut off by a crash."""
        lines = self._lines(SAMPLES_FILE)
        return [
            line for line in lines if isinstance(line.get("prompt"), str) and isinstance(line.get("reply"), str)
        ]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        lines, path = [], self.path / name
        if not path.is_file():  # reading a pipe would never end
            return []
        with suppress(OSError), path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                        lines.append(entry)
        return lines

    def append_console(self, line: str) -> None:
        """Append one line to `console.log`."""
        self._append_line(_CONSOLE_FILE, f"{now()} {redact(line)}")

    def _append_line(self, file: str, line: str) -> None:
        """Append a line. Raises: CheckpointError if that fails, for example because the disk is full."""
        self.require_there()
        try:
            with (self.path / file).open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")
        except OSError as error:
            raise CheckpointError(f"{str(self.path / file)!r} cannot be written: {os_reason(error)}") from None

    def _append(self, file: str, record: dict[str, Any]) -> None:
        # JSON has no NaN or infinity: they are written as text.
        clean = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in record.items()}
        self._append_line(file, json.dumps(clean, ensure_ascii=False, allow_nan=False))


def _reason(error: ValidationError) -> str:
    """Return in a few words what is wrong with a record."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return "not valid JSON"
    if not first["loc"]:
        return "not a JSON object"
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {first['msg'].removeprefix('Value error, ')}".replace("Input should", "must")


def _holds_only_a_lock(path: Path) -> bool:
    try:
        return {entry.name for entry in path.iterdir()} <= {".lock"}
    except OSError:
        return False


def _is_metric(value: Any) -> bool:
    return isinstance(value, int | float) or value in ("nan", "inf", "-inf")


def _step_of(line: str) -> float:
    """Return the step of a log line; infinity for a line cut off by a crash."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def plain_name(name: str) -> str:
    """Return a valid start of a run name, made from the name of any folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:60] or "run"
