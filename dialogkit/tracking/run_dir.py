"""The run folder: the truth about a run, read without torch and without a server.

Only this module knows the names of the files in it. Every file is written beside its place and renamed.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dialogkit.config.model import NAME_PATTERN
from dialogkit.config.paths import MANIFEST, holds_model
from dialogkit.errors import CheckpointError, ModelError, StorageError, did_you_mean
from dialogkit.hints import Call, Change
from dialogkit.redaction import redact
from dialogkit.system.files import keep, write_text
from dialogkit.system.ownership import (
    FILE_LIST,
    add_to_list,
    entry_of,
    exclusive,
    is_as_written,
    read_list,
    regular_files,
    write_list,
)
from dialogkit.text import lines_of
from dialogkit.tracking.record import RunRecord, now

logger = logging.getLogger(__name__)


SAMPLES_FILE = "samples.jsonl"
EVALUATION_FOLDER = "evaluation"
REPORT_FILE = "report.html"
TASKS_FOLDER = "tasks"
EVENTS_FOLDER = "tensorboard"
EVENTS = re.compile(r"events\.out\.tfevents\.\d+\..+\.\d+\.\d+(\.v2)?")
"""The names of TensorBoard's files."""
LOGS_LIST = "run"
"""What the list of the logs is called in it, whatever the run's folder is called."""
_LOGS = ("metrics.jsonl", "samples.jsonl", "histograms.jsonl", "console.log")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})", re.ASCII)
RECORD_FILE = "run.json"
RUN_FILES = (RECORD_FILE, "metrics.jsonl", SAMPLES_FILE, "histograms.jsonl", "console.log", REPORT_FILE)
PRUNED_FILE = ".pruned.json"
"""What the record of a run is called while the run is deleted: no run any more, and known to be none."""


_EARLIEST = datetime.min.replace(tzinfo=UTC)
_AHEAD = timedelta(days=1)


class RunDir:
    """One run's folder under `<output>/runs/`."""

    def __init__(self, path: Path, *, made: Sequence[Path] = ()) -> None:
        self.path = path
        self.made = made
        """Folders that were made for this one."""
        self._trained: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Name of the run: that of its folder, also where the folder was renamed."""
        return os.path.basename(os.path.abspath(self.path))

    @property
    def output(self) -> Path | None:
        """The folder of models and runs that this run lies in; None where it lies outside of one."""
        whole = Path(os.path.abspath(self.path))
        if whole.parent.name != "runs":
            return None
        output = whole.parent.parent
        return output if self.path.is_absolute() else Path(os.path.relpath(output))

    @property
    def is_gone(self) -> bool:
        """Whether the folder that this process trains in was removed or moved, or another stands in its place."""
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
        """File of the record; `train --config` takes it."""
        return self.path / "run.json"

    @property
    def report_path(self) -> Path:
        """File of the run as a page."""
        return self.path / REPORT_FILE

    @classmethod
    def create(cls, output: Path, name: str) -> "RunDir":
        """Make the folder of a new run.

        Raises: StorageError if there is such a run already, or the folder cannot be made.
        """
        path = output / "runs" / name
        made = [folder for folder in path.parents if not folder.exists()]
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if _holds_only_a_lock(path):  # of a run that was killed before it began
                return cls(path)
            if (path / PRUNED_FILE).exists():
                raise StorageError(
                    f"the run {name!r} was being deleted, and is not quite gone", hint=Call("runs prune", yes=True)
                ) from None
            is_run = cls(path).exists or cls(path).is_damaged
            there = f"there is a run {name!r} in {str(output)!r}" if is_run else f"{str(path)!r} is there"
            raise StorageError(f"{there} already", hint=Change({"name": f"{name}-2"})) from None
        except OSError as error:
            raise StorageError(
                f"{str(path)!r} cannot be made: {(error.strerror or str(error)).lower()}",
            ) from None
        return cls(path, made=made)

    @property
    def exists(self) -> bool:
        """Whether the folder is that of a run."""
        return os.path.isfile(self.record_path)  # unlike pathlib's, it answers for any text

    def checkpoints(self) -> dict[str, Path]:
        """Return the folders of checkpoints that hold a model by their names, the oldest first."""
        found = [path for path in self.path.glob("checkpoint-*") if holds_model(path)]
        known = [path for path in found if _CHECKPOINT.fullmatch(path.name)]
        return {path.name: path for path in sorted(known, key=lambda path: int(path.name.partition("-")[2]))}

    def write(self, record: RunRecord) -> None:
        """Write `run.json`."""
        self.require_there()
        kept = record.model_copy(update={"name": record._made_as or record.name})
        write_text(self.record_path, kept.model_dump_json(indent=2) + "\n")

    def read(self) -> RunRecord:
        """Return the record of the run, under the name that its folder has now.

        Raises: ModelError, with what still lies there, if it cannot be read.
        """
        try:
            # What is no file, as a pipe that would never end, counts as missing.
            content = self.record_path.read_bytes() if self.exists else None
            if content is not None:
                record = RunRecord.model_validate_json(content)
                if record.name != self.name:
                    record._made_as, record.name = record.name, self.name
                return record
            problem = "is missing"
        except OSError as error:
            problem = f"cannot be read ({(error.strerror or str(error)).lower()})"
        except ValidationError as error:
            problem = f"is damaged ({_reason(error)})"
        raise self._unreadable(problem)

    @property
    def remains(self) -> list[Path]:
        """What a run leaves that can be gone on with: its finished model, and its checkpoints, the newest first.

        A checkpoint without a manifest was never whole.
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
        """Whether this is the folder of a run whose record cannot be read."""
        try:
            names = {path.name for path in self.path.iterdir()}
            self.read()
        except (OSError, ValueError):  # nothing is there, or could be: a null character
            return False
        except ModelError:
            return PRUNED_FILE not in names and (bool(self.remains) or not names.isdisjoint(RUN_FILES))
        return False

    def _unreadable(self, problem: str) -> ModelError:
        """Return the error of a run whose record cannot be read: why, and what to do with what lies there."""
        remains = self.remains
        names = [path.name if path != self.model_dir else "its finished model" for path in remains]
        there = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        there = f"{str(self.path)!r} still holds {there or 'no checkpoint'}"
        told = f"run.json of the run {self.name!r} {problem}; {there}"
        if remains and remains[0] == self.model_dir:
            hint = Call("generate", self.model_dir, prompt="Hello!")
        elif remains:
            hint = Call("train", **{"from": remains[0]}, name=f"{plain_name(self.name)}-2")
        else:
            hint = Call("train", name=f"{plain_name(self.name)}-2")
        return ModelError(told, hint=hint)

    def list_files(self) -> None:
        """List the logs and TensorBoard's files as a training leaves them; a resumed one goes on with them."""
        if self.is_gone:
            return
        with suppress(OSError):
            logs = [self.path / name for name in _LOGS]
            listed = {path.name: entry_of(path) for path in logs if path.is_file()}
            write_list(self.path, listed, name=LOGS_LIST)
            events = self.path / EVENTS_FOLDER
            if events.is_dir():
                written = [path for path in regular_files(events) if EVENTS.fullmatch(path.name)]
                add_to_list(events, *written)

    def unlist_files(self) -> None:
        """Drop the list of the logs, which are written on."""
        for folder in (self.path, self.path / EVENTS_FOLDER):
            (folder / FILE_LIST).unlink(missing_ok=True)

    def cut_after(self, step: int) -> None:
        """Leave out of the run's files what was told of later steps: a resumed training tells it again."""
        for name in ("metrics.jsonl", SAMPLES_FILE, "histograms.jsonl"):
            path = self.path / name
            lines = lines_of(path.read_bytes().decode("utf-8", "replace")) if path.is_file() else []
            kept = [line for line in lines if _step_of(line) <= step]
            if len(kept) < len(lines):
                write_text(path, "".join(f"{line}\n" for line in kept))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing into this folder. Raises: StorageError if one does already."""
        self._require_no_links(self.path.rglob("*"))
        with self.held():
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out, whatever else there is in the folder. Raises: StorageError."""
        path = self.path / ".lock"
        self._require_no_links([path])
        if os.path.lexists(path) and not path.is_file():  # a pipe would never end
            raise StorageError(f"{str(path)!r} is no file, so the run {self.name!r} is left as it is")
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with path.open("a+", encoding="utf-8") as file:
            place = os.stat(self.path)
            try:
                # Let go by the system when the process ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise StorageError(
                    f"the run {self.name!r} is being trained by process {file.read().strip() or '?'}",
                    hint=Call("runs show", self.name),
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
        """Whether another process trains this run now."""
        try:
            import fcntl
        except ImportError:  # Windows, where that cannot be told from a run that was killed
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

    def _require_no_links(self, inside: Iterable[Path]) -> None:
        """Raise StorageError if a link in the folder would lead what is written out of it."""
        if link := next((path for path in (self.path, *inside) if path.is_symlink()), None):
            raise StorageError(
                f"the run {self.name!r} holds a link, {str(link)!r}, which dialogkit does not follow",
                hint=Call("runs show", self.name),
            )

    def append_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Append one logged point to `metrics.jsonl`; it is on disk when this returns."""
        self._append("metrics.jsonl", {"step": step, "time": now(), **metrics})

    def append_histograms(self, step: int, histograms: Mapping[str, tuple[Any, Any]]) -> None:
        """Append histograms, each as counts and edges, to `histograms.jsonl`."""
        drawn = {
            name: {"low": float(edges[0]), "high": float(edges[-1]), "counts": [int(count) for count in counts]}
            for name, (counts, edges) in histograms.items()
        }
        self._append("histograms.jsonl", {"step": step, "time": now(), **drawn})

    def append_sample(self, sample: dict[str, Any]) -> None:
        """Append one reply to `samples.jsonl`."""
        self._append(SAMPLES_FILE, sample)

    def write_evaluation(
        self,
        dataset: str,
        result: dict[str, Any],
        *,
        worst: Sequence[dict[str, Any]],
        replies: Sequence[dict[str, Any]],
    ) -> Path:
        """Keep an evaluation, in place of an earlier one on as many dialogs of the dataset; return its file.

        Raises: StorageError.
        """
        folder = self._evaluation_folder()
        stem = _stem(dataset, "dataset")
        if isinstance(dialogs := result.get("dialogs"), int):
            stem += f"-{dialogs}-dialogs" if dialogs != 1 else "-1-dialog"
        path = folder / f"{stem}.json"
        _write_listed(folder, path, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
        for rows, beside in ((worst, worst_beside(path)), (replies, replies_beside(path))):
            _write_listed(folder, beside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path

    def write_task(self, name: str, result: dict[str, Any]) -> None:
        """Keep the result of a task, in place of an earlier one of the same. Raises: StorageError."""
        text = json.dumps(result, ensure_ascii=False, indent=2)
        path = self._evaluation_folder(TASKS_FOLDER) / f"{_stem(name, 'task')}.json"
        _write_listed(self.path / EVALUATION_FOLDER, path, text + "\n")

    def _evaluation_folder(self, inside: str = "") -> Path:
        folder = self.path / EVALUATION_FOLDER / inside
        self._require_no_links(self.path.rglob("*"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{str(folder)!r} cannot be made: {(error.strerror or str(error)).lower()}"
            ) from None
        return folder

    def evaluations(self) -> list[dict[str, Any]]:
        """Return of each dataset the kept evaluation that says most; what cannot be read is left out.

        It is that on the most dialogs, but one on dialogs of the training only where there is no other.
        """
        telling: dict[str, dict[str, Any]] = {}
        for kept in self.all_evaluations():
            dataset = str(kept.get("dataset"))
            if dataset not in telling or _weight(kept) > _weight(telling[dataset]):
                telling[dataset] = kept
        return list(telling.values())

    def all_evaluations(self) -> list[dict[str, Any]]:
        """Return the kept evaluations on any number of dialogs; what cannot be read is left out."""
        return _objects(self.path / EVALUATION_FOLDER)

    def tasks(self) -> list[dict[str, Any]]:
        """Return the kept results of tasks, one for each; what cannot be read is left out."""
        return _objects(self.path / EVALUATION_FOLDER / TASKS_FOLDER)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged points; a line that is none, as the last that a crash cut off, is left out."""
        return [
            {name: value for name, value in point.items() if name == "time" or _is_figure(value)}
            for point in self._lines("metrics.jsonl")
        ]

    def samples(self) -> list[dict[str, Any]]:
        """Return the replies; a line that is none, as the last that a crash cut off, is left out."""
        lines = self._lines(SAMPLES_FILE)
        return [
            line for line in lines if isinstance(line.get("prompt"), str) and isinstance(line.get("reply"), str)
        ]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        lines, path = [], self.path / name
        if not path.is_file():  # a pipe would never end
            return []
        with suppress(OSError), path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                with suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                        lines.append(entry)
        return lines

    def append_console(self, line: str) -> None:
        """Append one line of what was told to `console.log`."""
        self._append_line("console.log", f"{now()} {redact(line)}")

    def _append_line(self, file: str, line: str) -> None:
        """Append a line. Raises: CheckpointError if it cannot be written, as when the disk is full."""
        self.require_there()
        try:
            with (self.path / file).open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CheckpointError(f"{str(self.path / file)!r} cannot be written: {reason}") from None

    def _append(self, file: str, record: dict[str, Any]) -> None:
        # JSON knows no NaN; what is no number is written as text.
        clean = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in record.items()}
        self._append_line(file, json.dumps(clean, ensure_ascii=False, allow_nan=False))


def _write_listed(folder: Path, path: Path, text: str) -> None:
    """Write a file and enter it in the list of a folder; what somebody else wrote in its place is renamed first.

    Raises: StorageError.
    """
    try:
        with exclusive(folder, "writing into"):
            written = (read_list(folder) or {}).get(path.relative_to(folder).as_posix())
            if os.path.lexists(path) and (written is None or not is_as_written(path, written)):
                kept = keep(path)
                logger.warning("%s was not as dialogkit wrote it: it is kept as %s", path, kept.name)
            write_text(path, text)
            add_to_list(folder, path)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {(error.strerror or str(error)).lower()}") from None


def worst_beside(evaluation: Path) -> Path:
    """Return the file of the dialogs that a kept evaluation found worst."""
    return evaluation.with_name(f"{evaluation.stem}-worst.jsonl")


def replies_beside(evaluation: Path) -> Path:
    """Return the file of the replies of a kept evaluation."""
    return evaluation.with_name(f"{evaluation.stem}-replies.jsonl")


def _weight(evaluation: Mapping[str, Any]) -> tuple[bool, float]:
    dialogs = evaluation.get("dialogs")
    if not isinstance(dialogs, int):
        return False, -1
    return evaluation.get("trained_on") is not True, dialogs


def _reason(error: ValidationError) -> str:
    """Return in a few words why a record is none."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return "not valid JSON"
    if not first["loc"]:
        return "no JSON object"
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {first['msg'].removeprefix('Value error, ')}".replace("Input should", "must")


def _objects(folder: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a folder's files."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, RecursionError):
            found.append(json.loads(path.read_bytes() if path.is_file() else "null"))
    return [content for content in found if isinstance(content, dict)]


def _stem(name: str, otherwise: str) -> str:
    """Return a name as that of a file."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or otherwise


def _holds_only_a_lock(path: Path) -> bool:
    try:
        return {entry.name for entry in path.iterdir()} <= {".lock"}
    except OSError:
        return False


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) or value in ("nan", "inf", "-inf")


def _step_of(line: str) -> float:
    """Return the step of a line of a run's file; a line that a crash cut off is later than all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def run_name(model: str, preset: str, output: Path) -> str:
    """Return `{model}-{preset}-{timestamp}`, made unique in the output folder."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = base = f"{model[:32]}-{preset[:12]}-{stamp}"
    number = 2
    while (output / "runs" / name).exists():
        name, number = f"{base}-{number}", number + 1
    return name


def plain_name(name: str) -> str:
    """Return the beginning of a name for a new run, from that of a folder, which may hold any characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:60] or "run"


def list_runs(output: Path) -> Iterator[tuple[RunDir, RunRecord]]:
    """Yield the runs of an output folder, newest first; folders without a readable record are passed over.

    Runs that do not say when they began come last, as those whose clock was ahead.
    """
    runs: list[tuple[RunDir, RunRecord]] = []
    with suppress(OSError):
        for path in (output / "runs").iterdir():
            with suppress(ModelError):
                runs.append((RunDir(path), RunDir(path).read()))
    yield from sorted(runs, key=lambda run: _age(*run), reverse=True)


def _age(run: RunDir, record: RunRecord) -> tuple[bool, datetime, str]:
    # Where this machine's own clock is behind, all runs are ahead of it, and keep their order.
    return began(record.created) is not None, _moment(record.created) or _EARLIEST, run.name


def began(created: str) -> datetime | None:
    """Return when a run began, by its record; None for what is no time, or is more than a day ahead of now.

    Such a time is of a clock that was wrong: the run would be the newest of all until then.
    """
    return None if is_ahead(created) else _moment(created)


def is_ahead(created: str) -> bool:
    """Return whether a run's record says that it begins more than a day from now."""
    when = _moment(created)
    return when is not None and when > datetime.now(UTC) + _AHEAD


def _moment(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def damaged_runs(output: Path) -> list[RunDir]:
    """Return the runs that `list_runs` passes over because their records cannot be read, by name."""
    with suppress(OSError):
        return [RunDir(path) for path in sorted((output / "runs").iterdir()) if RunDir(path).is_damaged]
    return []


def find_run(output: Path, name: str) -> RunDir:
    """Return a run by its name, or by the path of its folder.

    Raises: ModelError if there is none, or its record cannot be read.
    """
    if os.sep in name or name == os.curdir:
        run = RunDir(Path(os.path.expanduser(name)))
        if run.exists or run.is_damaged:
            run.read()
            return run
    run, is_name = RunDir(output / "runs" / name), bool(re.match(NAME_PATTERN, name))
    if is_name and run.is_damaged:
        run.read()
    names = [run.name for run, _ in list_runs(output)]
    if name not in names:
        raise ModelError(f"no run {name!r} in {str(output)!r}{did_you_mean(name, names)}", hint=Call("runs list"))
    return run
