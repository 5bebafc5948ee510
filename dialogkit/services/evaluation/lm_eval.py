"""Tasks of the lm-evaluation-harness: which there are, and what models come to in them.

The harness chooses the questions and computes the figures; how a model is asked is in `respondent`.
"""

import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partialmethod
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.errors import DataError, DialogKitError, UnavailableError, did_you_mean
from dialogkit.services.evaluation.lm_eval_model import SEED, Respondent
from dialogkit.services.evaluation.results import Interval, TaskFigure, TaskRow

if TYPE_CHECKING:
    from dialogkit.services.runs.loading import LoadedModel

_PACKAGE = "lm_eval"
_FILES = (".yaml", ".yml")
_RESAMPLES = 1000


class TaskSuite:
    """Tasks that are loaded, with their questions, and can be asked of several models."""

    def __init__(self, names: Sequence[str]) -> None:
        """Load tasks by their names, `name*` for several, or from files of the harness's own format.

        Such a file is a program: it can name functions that run.

        Raises: UnavailableError without the harness, or for data that cannot be fetched; DataError for a task that
        is not known or cannot be loaded.
        """
        if find_spec(_PACKAGE) is None:
            raise UnavailableError(
                "tasks need the lm-evaluation-harness, which is not installed",
                hint="pip install 'dialogkit[lm-eval]'",
            )
        with _quiet():
            manager = _manager(names)
            self._loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
            for name in _expanded(names, manager):
                for part, found in _load(manager, name).items():
                    self._loaded[part].update(found)
            for task in self._loaded["tasks"].values():
                if task.get_config("num_fewshot") is None:
                    task.set_config(key="num_fewshot", value=0)
                task.set_fewshot_seed(seed=SEED)

    def ask(
        self,
        loaded: "LoadedModel",
        *,
        limit: int | None = None,
        batch_size: int = 8,
        told: Callable[[str, float], None] = lambda what, share: None,
    ) -> list[TaskRow]:
        """Return what a model comes to in each task.

        Args:
            loaded: the model.
            limit: ask only so many questions of each task, the first ones.
            batch_size: questions at once; changes no figure.
            told: takes what goes on and the part of it that is behind.

        Raises: DataError if a task cannot be asked.
        """
        from lm_eval.api.model import LM
        from lm_eval.evaluator import evaluate

        # The harness wants its own base class, which cannot be imported before it is there.
        make: Any = type("DialogModel", (Respondent, LM), {})
        respondent = make(loaded, list(self._loaded["tasks"]), batch_size=batch_size, told=told)
        with _quiet(), _seeded():
            try:
                results = evaluate(
                    lm=respondent,
                    task_dict=self._loaded,
                    limit=limit,
                    bootstrap_iters=_RESAMPLES,
                    log_samples=False,
                    apply_chat_template=True,
                    fewshot_as_multiturn=True,
                )
            except (DialogKitError, RuntimeError):  # ours, and torch's
                raise
            except Exception as error:  # tasks are input as well: what they say may be wrong in every way
                raise DataError(
                    f"{' or '.join(map(repr, self._loaded['tasks']))} cannot be asked: {_first_line(error)}",
                    hint="dialogkit evaluate --help",
                ) from error
        return list(_rows(results, respondent.cut))


def _manager(names: Sequence[str]) -> Any:
    """Return the harness's list of tasks; of files alone it need not be read, which takes seconds."""
    from lm_eval.tasks import TaskManager

    alone = all(_is_file(name) and not re.search(r"(?m)^group\s*:", _text_of(name)) for name in names)
    return TaskManager(include_defaults=not alone)


def _is_file(name: str) -> bool:
    return Path(name).suffix in _FILES


def _text_of(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error)).lower()
        )
        raise DataError(f"the task file {name!r} cannot be read: {reason}", hint="--tasks FILE.yaml") from None


def _expanded(names: Sequence[str], manager: Any) -> list[str]:
    """Return the names with patterns replaced by what they match. Raises: DataError for an unknown one."""
    known: list[str] = manager.all_tasks
    found: list[str] = []
    for name in names:
        matching = manager.match_tasks([name]) if re.search(r"[*?\[]", name) else [name]
        if not matching or not (_is_file(name) or set(matching) <= set(known)):
            raise DataError(
                f"unknown task {name!r}{did_you_mean(name, known)}", hint="lm-eval ls tasks, or --tasks FILE.yaml"
            )
        found += matching
    return list(dict.fromkeys(found))


def _load(manager: Any, name: str) -> dict[str, Any]:
    """Return a task, or the tasks of a group, with their data. Raises: UnavailableError, DataError."""
    import datasets

    from dialogkit.system.network import from_hub

    def load(online: bool) -> dict[str, Any]:
        was_offline = datasets.config.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = was_offline or not online
        try:
            loaded: dict[str, Any] = manager.load([name])
            return loaded
        finally:
            datasets.config.HF_HUB_OFFLINE = was_offline

    hint = "--tasks FILE.yaml (a task whose data lies here)"
    if _is_file(name):
        with suppress(Exception):
            return load(False)
    try:
        return from_hub(load, lacking=f"the data of the task {name!r} is not in its cache", hint=hint)
    except UnavailableError as error:
        if _is_file(name) and type(error.__cause__) is FileNotFoundError:
            told = f"the task {name!r} cannot be loaded: {_first_line(error.__cause__)}"
            raise DataError(told, hint=hint) from error
        raise
    except FileNotFoundError as error:
        raise DataError(f"the task {name!r} cannot be loaded: {_first_line(error)}", hint=hint) from error
    except ConnectionError as error:
        told = f"the data of the task {name!r} cannot be fetched: {_first_line(error)}"
        raise UnavailableError(told, hint=hint) from None
    except ImportError as error:
        raise UnavailableError(
            f"the task {name!r} needs a package that is not installed: {_first_line(error)}",
            hint=f"pip install {error.name or 'lm-eval'}",
        ) from None
    except DialogKitError:
        raise
    except Exception as error:  # a task is input, and so is all that it names
        told = f"the task {name!r} cannot be loaded: {_first_line(error)}"
        raise DataError(told, hint=f"mend {name}" if _is_file(name) else hint) from error


def _first_line(error: BaseException) -> str:
    if (mark := getattr(error, "problem_mark", None)) is not None:  # YAML's errors begin with what was being read
        return f"line {mark.line + 1}: {getattr(error, 'problem', '')}"
    text = (str(error).strip().splitlines() or [""])[0]
    known = isinstance(error, OSError | ValueError) and text
    return text if known else f"{type(error).__name__}: {text}".rstrip(": ")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness from drawing bars, and from printing where our results go."""
    import datasets
    from tqdm import tqdm

    datasets.disable_progress_bars()
    logger, drawing = logging.getLogger(_PACKAGE), tqdm.__init__
    level, apart = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    tqdm.__init__ = partialmethod(drawing, disable=True)
    os.environ["DISABLE_MULTIPROC"] = "1"  # processes forked beside torch's threads may hang
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tqdm.__init__ = drawing
        if apart is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = apart


@contextmanager
def _seeded() -> Iterator[None]:
    """Let tasks that draw numbers draw the same ones each time, and others go on with theirs afterwards."""
    import numpy as np

    before, numbers = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numbers)


def _interval(figure: str, value: float, error: float) -> Interval:
    low, high = value - 1.96 * error, value + 1.96 * error
    share = figure.startswith(("acc", "exact_match", "f1", "em"))
    return (max(0.0, low), min(1.0, high)) if share else (low, high)


def _rows(results: Mapping[str, Any], cut: Mapping[str, set[int]]) -> Iterator[TaskRow]:
    for name, found in results["results"].items():
        better = results["higher_is_better"].get(name) or {}
        figures = []
        for key, value in found.items():
            figure, comma, read_by = key.partition(",")
            if not comma or figure.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(f"{figure}_stderr,{read_by}")
            figures.append(
                TaskFigure(
                    name=figure,
                    filter="" if read_by == "none" else read_by,
                    value=float(value),
                    interval=_interval(figure, value, error) if isinstance(error, int | float) else None,
                    better={True: 1, False: -1, None: 0}[better.get(figure)],
                )
            )
        number = results["n-samples"].get(name, {})
        if figures:
            yield TaskRow(
                name=name,
                version=str(results["versions"].get(name, "")).replace("Yaml", ""),  # none was given
                questions=int(number.get("effective", found.get("sample_len", 0))),
                of_questions=int(number.get("original", 0)),
                examples=int(results["n-shot"].get(name) or 0),
                cut=len(cut.get(name, ())),
                figures=figures,
            )
