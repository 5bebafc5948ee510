"""The evaluations and task results in a run folder."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dialogkit.errors import StorageError, os_reason
from dialogkit.system.files import keep, write_text
from dialogkit.system.ownership import add_to_list, exclusive, is_as_written, read_list
from dialogkit.tracking.run_dir import RunDir

logger = logging.getLogger(__name__)

EVALUATION_FOLDER = "evaluation"
TASKS_FOLDER = "tasks"


Rows = Sequence[dict[str, Any]]


def write_evaluation(
    run: RunDir, dataset: str, result: dict[str, Any], *, worst: Rows, replies: Rows, scores: Rows = ()
) -> Path:
    """Store an evaluation, replacing one on the same dataset and number of dialogs; return its file.

    Raises: StorageError.
    """
    folder = _made(run)
    path = folder / _file_of(dataset, result.get("dialogs"))
    _write_listed(folder, path, json.dumps(result, ensure_ascii=False, indent=2) + "\n")
    besides = ((worst, worst_beside(path)), (replies, replies_beside(path)), (scores, scores_beside(path)))
    for rows, beside in besides:
        _write_listed(folder, beside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def write_task(run: RunDir, name: str, result: dict[str, Any]) -> None:
    """Store the result of a task, replacing an earlier one. Raises: StorageError."""
    folder = _made(run, TASKS_FOLDER)
    path = folder / f"{_stem(name, 'task')}.json"
    _write_listed(folder.parent, path, json.dumps(result, ensure_ascii=False, indent=2) + "\n")


def best_evaluations(run: RunDir) -> list[dict[str, Any]]:
    """Return the most informative evaluation on each dataset; skip unreadable ones.

    It is the one on the most dialogs. Training dialogs count only if nothing else was evaluated.
    """
    best: dict[str, dict[str, Any]] = {}
    for evaluation in all_evaluations(run):
        dataset = str(evaluation.get("dataset"))
        if dataset not in best or _weight(evaluation) > _weight(best[dataset]):
            best[dataset] = evaluation
    return list(best.values())


def all_evaluations(run: RunDir) -> list[dict[str, Any]]:
    """Return all stored evaluations; skip unreadable ones."""
    return _read_objects(run.path / EVALUATION_FOLDER)


def dialog_scores(run: RunDir, dataset: str, dialogs: int) -> dict[str, tuple[float, float]]:
    """Return the nats and bytes of the answers of each dialog of a stored evaluation; empty if not known."""
    path = scores_beside(run.path / EVALUATION_FOLDER / _file_of(dataset, dialogs))
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        return {str(row["dialog"]): (float(row["nats"]), float(row["bytes"])) for row in rows}
    return {}


def task_results(run: RunDir) -> list[dict[str, Any]]:
    """Return the stored result of each task; skip unreadable ones."""
    return _read_objects(run.path / EVALUATION_FOLDER / TASKS_FOLDER)


def _read_objects(folder: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in the files of a folder; skip what cannot be read."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, RecursionError):
            found.append(json.loads(path.read_bytes() if path.is_file() else "null"))
    return [content for content in found if isinstance(content, dict)]


def _made(run: RunDir, inside: str = "") -> Path:
    """Make a folder for evaluations, and return it. Raises: StorageError, also for a link in the run."""
    folder = run.path / EVALUATION_FOLDER / inside
    run.require_no_links(run.path.rglob("*"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {str(folder)!r}: {os_reason(error)}") from None
    return folder


def _write_listed(folder: Path, path: Path, text: str) -> None:
    """Write a file and add it to the list of a folder; a foreign file in its place is renamed first.

    Raises: StorageError.
    """
    try:
        with exclusive(folder, "writing into"):
            written = (read_list(folder) or {}).get(path.relative_to(folder).as_posix())
            if os.path.lexists(path) and (written is None or not is_as_written(path, written)):
                kept = keep(path)
                logger.warning("%s is not the file that dialogkit wrote: renamed to %s", path, kept.name)
            write_text(path, text)
            add_to_list(folder, path)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {os_reason(error)}") from None


def worst_beside(evaluation: Path) -> Path:
    """Return the file with the worst dialogs of an evaluation."""
    return evaluation.with_name(f"{evaluation.stem}-worst.jsonl")


def replies_beside(evaluation: Path) -> Path:
    """Return the file with the replies of an evaluation."""
    return evaluation.with_name(f"{evaluation.stem}-replies.jsonl")


def scores_beside(evaluation: Path) -> Path:
    """Return the file with the score of each dialog of an evaluation."""
    return evaluation.with_name(f"{evaluation.stem}-scores.jsonl")


def _file_of(dataset: str, dialogs: object) -> str:
    """Return the name of the file of an evaluation."""
    stem = _stem(dataset, "dataset")
    if isinstance(dialogs, int):
        stem += f"-{dialogs}-dialogs" if dialogs != 1 else "-1-dialog"
    return f"{stem}.json"


def _weight(evaluation: Mapping[str, Any]) -> tuple[bool, float]:
    dialogs = evaluation.get("dialogs")
    if not isinstance(dialogs, int):
        return False, -1
    return evaluation.get("trained_on") is not True, dialogs


def _stem(name: str, otherwise: str) -> str:
    """Return a name as a file stem."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or otherwise
