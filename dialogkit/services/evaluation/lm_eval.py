"""Runs tasks of the lm-evaluation-harness.

The harness chooses the questions and computes the metrics; `lm_eval_model` answers them.
"""

import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partialmethod
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.errors import DataError, DialogKitError, UnavailableError, did_you_mean, os_reason
from dialogkit.hints import Change, Either, Shell
from dialogkit.services.evaluation.lm_eval_model import SEED, LmEvalModel
from dialogkit.services.evaluation.results import Interval, TaskFigure, TaskRow
from dialogkit.system.variables import changed_variables

if TYPE_CHECKING:
    from dialogkit.services.runs.loading import LoadedModel

_PACKAGE = "lm_eval"
_FILES = (".yaml", ".yml")
_RESAMPLES = 1000
_A_FILE = Change({"tasks": "FILE.yaml"})


class TaskSuite:
    """Loaded tasks, with their questions, that can be run on several models."""

    def __init__(self, names: Sequence[str]) -> None:
        """Load tasks by name, by pattern (`name*`), or from files of the harness's own format.

        Such a file can run code: it may name functions.

        Raises: UnavailableError without the harness, or for data that cannot be fetched; DataError for a task that
            is unknown or cannot be loaded.
        """
        if find_spec(_PACKAGE) is None:
            raise UnavailableError(
                "tasks need the lm-evaluation-harness, which is not installed",
                hint=Shell("pip install 'dialogkit[lm-eval]'"),
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

    def run(
        self,
        loaded: "LoadedModel",
        *,
        limit: int | None = None,
        batch_size: int = 8,
        report: Callable[[str, float], None] = lambda stage, fraction: None,
    ) -> list[TaskRow]:
        """Return the metrics of a model in each task.

        Args:
            loaded: the model.
            limit: ask only this many questions of each task, the first ones.
            batch_size: questions per batch; does not change the metrics.
            report: receives the current stage and the fraction that is done.

        Raises: DataError if a task fails.
        """
        from lm_eval.api.model import LM
        from lm_eval.evaluator import evaluate

        # The harness requires its own base class, which can only be imported where it is installed.
        make: Any = type("DialogModel", (LmEvalModel, LM), {})
        model = make(loaded, list(self._loaded["tasks"]), batch_size=batch_size, report=report)
        with _quiet(), _seeded():
            try:
                results = evaluate(
                    lm=model,
                    task_dict=self._loaded,
                    limit=limit,
                    bootstrap_iters=_RESAMPLES,
                    log_samples=False,
                    apply_chat_template=True,
                    fewshot_as_multiturn=True,
                )
            except (DialogKitError, RuntimeError):  # ours, and torch's
                raise
            except Exception as error:  # tasks are user input and can fail in any way
                names = " or ".join(map(repr, self._loaded["tasks"]))
                raise DataError(
                    f"the task {names} fails: {_first_line(error)}", hint="correct the task, or choose another"
                ) from error
        return list(task_rows(results, model.cut))


def _manager(names: Sequence[str]) -> Any:
    """Return the harness's list of tasks; if only files are named, skip reading it, which takes seconds."""
    from lm_eval.tasks import TaskManager

    only_files = all(_is_file(name) and not re.search(r"(?m)^group\s*:", _text_of(name)) for name in names)
    return TaskManager(include_defaults=not only_files)


def _is_file(name: str) -> bool:
    return Path(name).suffix in _FILES


def _text_of(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else os_reason(error)
        raise DataError(f"the task file {name!r} cannot be read: {reason}", hint=_A_FILE) from None


def _expanded(names: Sequence[str], manager: Any) -> list[str]:
    """Return the names, with each pattern replaced by its matches. Raises: DataError for an unknown one."""
    known: list[str] = manager.all_tasks
    found: list[str] = []
    for name in names:
        matching = manager.match_tasks([name]) if re.search(r"[*?\[]", name) else [name]
        if not matching or not (_is_file(name) or set(matching) <= set(known)):
            raise DataError(
                f"unknown task {name!r}{did_you_mean(name, known)}",
                hint=Either(Shell("lm-eval ls tasks"), _A_FILE),
            )
        found += matching
    return list(dict.fromkeys(found))


def _load(manager: Any, name: str) -> dict[str, Any]:
    """Load a task, or the tasks of a group, with their data. Raises: UnavailableError, DataError."""
    import datasets

    from dialogkit.system.hub import from_hub

    def load(online: bool) -> dict[str, Any]:
        was_offline = datasets.config.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = was_offline or not online
        try:
            loaded: dict[str, Any] = manager.load([name])
            return loaded
        finally:
            datasets.config.HF_HUB_OFFLINE = was_offline

    hint = Either(_A_FILE, "use a task whose data is on this machine")
    if _is_file(name):
        with suppress(Exception):
            return load(False)
    try:
        return from_hub(load, lacking=f"the data of the task {name!r} is not in its cache", hint=hint)
    except UnavailableError as error:
        if _is_file(name) and type(error.__cause__) is FileNotFoundError:
            raise DataError(_cannot_load(name, error.__cause__), hint=hint) from error
        raise
    except ConnectionError as error:
        message = f"the data of the task {name!r} cannot be fetched: {_first_line(error)}"
        raise UnavailableError(message, hint=hint) from None
    except ImportError as error:
        raise UnavailableError(
            f"the task {name!r} needs a package that is not installed: {_first_line(error)}",
            hint=Shell(f"pip install {error.name or 'lm-eval'}"),
        ) from None
    except DialogKitError:
        raise
    except Exception as error:  # a task is user input, and so is everything that it names
        is_faulty = _is_file(name) and not isinstance(error, FileNotFoundError)
        raise DataError(_cannot_load(name, error), hint=f"correct {name}" if is_faulty else hint) from error


def _cannot_load(name: str, error: BaseException) -> str:
    return f"the task {name!r} cannot be loaded: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    if (mark := getattr(error, "problem_mark", None)) is not None:  # YAML's errors begin with the context
        return f"line {mark.line + 1}: {getattr(error, 'problem', '')}"
    text = (str(error).strip().splitlines() or [""])[0]
    known = isinstance(error, OSError | ValueError) and text
    return text if known else f"{type(error).__name__}: {text}".rstrip(": ")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness from drawing progress bars, and from printing to standard output."""
    import datasets
    from tqdm import tqdm

    datasets.disable_progress_bars()
    logger, plain_init = logging.getLogger(_PACKAGE), tqdm.__init__
    level = logger.level
    logger.setLevel(logging.ERROR)
    tqdm.__init__ = partialmethod(plain_init, disable=True)
    no_forks = {"DISABLE_MULTIPROC": "1"}  # forking beside torch's threads may hang
    try:
        with redirect_stdout(StringIO()), changed_variables(no_forks):
            yield
    finally:
        logger.setLevel(level)
        tqdm.__init__ = plain_init


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed Python's and NumPy's random numbers for tasks that draw some, and restore them afterwards."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def task_rows(results: Mapping[str, Any], cut: Mapping[str, set[int]]) -> Iterator[TaskRow]:
    """Yield a row for each task with metrics in what the harness returned.

    Args:
        results: what the harness returned.
        cut: questions of each task that did not fit into the model's context.
    """
    for name, found in results["results"].items():
        better = results["higher_is_better"].get(name) or {}
        figures = []
        for key, value in found.items():
            metric, comma, read_by = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(f"{metric}_stderr,{read_by}")
            figures.append(
                TaskFigure(
                    name=metric,
                    filter="" if read_by == "none" else read_by,
                    value=float(value),
                    interval=_interval(metric, value, error) if isinstance(error, int | float) else None,
                    better={True: 1, False: -1, None: 0}[better.get(metric)],
                )
            )
        number = results["n-samples"].get(name, {})
        if figures:
            yield TaskRow(
                name=name,
                version=str(results["versions"].get(name, "")).replace("Yaml", ""),  # the task has no version
                questions=int(number.get("effective", found.get("sample_len", 0))),
                of_questions=int(number.get("original", 0)),
                examples=int(results["n-shot"].get(name) or 0),
                cut=len(cut.get(name, ())),
                figures=figures,
            )


def _interval(metric: str, value: float, error: float) -> Interval:
    """Return the 95% interval of a metric with this standard error."""
    low, high = value - 1.96 * error, value + 1.96 * error
    is_fraction = metric.startswith(("acc", "exact_match", "f1", "em"))
    return (max(0.0, low), min(1.0, high)) if is_fraction else (low, high)
