"""Shared fixtures: an isolated home, a run of the command line, and one small trained model for many tests."""

import atexit
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Before any library reads them: a separate home, no network, no colours, a fixed width, no W&B server. And one
# thread: two are no faster for models of this size, and wait for each other on a machine that is busy.
HOME = Path(tempfile.mkdtemp(prefix="dialogkit-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HOME=str(HOME),
    XDG_CACHE_HOME=str(HOME / ".cache"),
    DIALOGKIT_CACHE=str(HOME / ".cache/dialogkit"),
    HF_HOME=str(HOME / ".cache/huggingface"),
    NETRC=str(HOME / ".netrc"),
    MPLCONFIGDIR=str(REPOSITORY / "build/matplotlib"),  # kept: to look for fonts anew takes seconds
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    NO_COLOR="1",
    COLUMNS="100",
    WANDB_MODE="offline",
    TERM="dumb",
)
for name in ("WANDB_API_KEY", "HF_TOKEN", "FORCE_COLOR", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)
# Else each of the processes compiles the package anew, and each worker rewrites all tests: half a minute in all.
sys.dont_write_bytecode = False

TOKENIZER, VOCABULARY = REPOSITORY / "tests/tokenizer", 512
"""A tokenizer that was trained on the starter dialogs, and its entries.

With the 32,768 entries of the shipped one, nearly all weights of a small model are embeddings.
"""

TINY: dict[str, Any] = {
    "model.tokenizer": str(TOKENIZER),
    "model.layers": 2,
    "model.width": 32,
    "model.heads": 2,
    "model.context": 256,
    "train.optimizer": "adamw",
    "train.adam_beta2": 0.95,
}
"""Overrides that make custom-nano a model of 2 layers, small enough for many runs.

Of so narrow a model AdamW learns more in few steps.
"""

SMALL: dict[str, Any] = {
    **TINY,
    "data.samples": 8,
    "data.eval_fraction": 0.005,
    "data.eval_min_dialogs": 2,
    "train.max_steps": 4,
    "train.eval_every_steps": 4,
    "runtime.device": "cpu",
    "tracking.wandb": "disabled",
    "tracking.report": False,
    "tracking.histogram_every_steps": 0,
    "tracking.held_out_replies": 0,
    "generate.test_prompts": ["Hello!"],
    "generate.max_new_tokens": 8,
}
"""Overrides that make a whole run of custom-nano last a second: 4 steps, one prompt, no W&B, no page."""


LONGEST = ("test_readme.py", "test_notebook.py", "test_probes.py", "test_hints_run.py", "test_shapes.py")
"""Files that take minutes: begun first, they do not keep one of two processes busy at the end, alone."""


@cache
def forks(path: Path) -> bool:
    """Return whether tests of a file fork a process that has the libraries loaded."""
    text = path.read_text(encoding="utf-8")
    return "tests.forks" in text or "tests.faults.training" in text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST and not forks(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker a file at a time, and all that fork to one of them: to load the libraries takes seconds."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "forking" if forks(REPOSITORY / file) else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def isolated_home() -> Path:
    """Home and caches of this process and of those that tests start: a temporary folder."""
    return HOME


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in its own empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def log_as_found() -> Iterator[None]:
    """Each test leaves the log of the package as it found it: training from Python shows it."""
    logger = logging.getLogger("dialogkit")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    for handler in set(logger.handlers) - set(before[0]):
        handler.close()
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture(autouse=True)
def nothing_typed() -> Iterator[None]:
    """Each test begins without a command that was typed: hints take the output folder from it."""
    yield
    if hints := sys.modules.get("dialogkit.cli.hints"):
        hints.remember(())


@pytest.fixture(autouse=True)
def frozen_libraries(request: pytest.FixtureRequest) -> None:
    """Spare the collector the objects of the libraries, once they are loaded: each run calls it, for 0.5 s."""
    if "transformers.trainer" in sys.modules and request.path not in _frozen:
        _frozen.add(request.path)
        gc.collect()
        gc.freeze()


_frozen: set[Path] = set()
"""The test files before whose tests the collector was spared."""


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write files, by their paths in a folder."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


class Finished(NamedTuple):
    """A finished command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@contextmanager
def piped(text: str) -> Iterator[None]:
    """Make a text the standard input of this process, in a pipe."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        yield


@pytest.fixture
def dialogkit(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run the shipped entry point in this process."""

    def run(*words: str, stdin: str | None = None) -> Finished:
        from dialogkit.cli.app import main

        capfd.readouterr()
        with nullcontext() if stdin is None else piped(stdin), pytest.raises(SystemExit) as exit_info:
            main(list(words))
        out, err = capfd.readouterr()
        return Finished(int(exit_info.value.code or 0), out, err)

    return run


def run_process(*words: str, cwd: Path | None = None, stdin: str = "", **environment: str) -> Finished:
    """Run `dialogkit WORDS` in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "dialogkit", *words],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Trained(NamedTuple):
    """A finished small training."""

    result: Any
    trainer: Any
    output: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, isolated_home: Path) -> Trained:
    """A 2-layer custom-nano trained on 40 starter dialogs with W&B offline; shared by many tests."""
    from dialogkit.config.load import load_run_config
    from dialogkit.services.train import TrainRequest, run_training

    output = tmp_path_factory.mktemp("trained") / "models"
    config = load_run_config(
        "custom-nano",
        overrides={
            **TINY,
            "data.samples": 40,
            "train.learning_rate": 1e-2,
            "runtime.output_dir": str(output),
            "runtime.device": "cpu",
            "name": "shared-run",
            "generate.max_new_tokens": 16,
        },
    )
    result, trainer = run_training(TrainRequest(config=config, command=("dialogkit",)))
    return Trained(result, trainer, output)


Architecture = Literal["gpt2", "llama"]


class Small:
    """The parts of a small training, made by the package itself: 512 token ids, dialogs, models, fits, scores.

    Attributes:
        vocabulary, tokenizer: the small tokenizer of the tests, and its entries.
        train, evaluation: the starter dialogs as its ids.
    """

    def __init__(self, folder: Path) -> None:
        from dialogkit.config.data import DataConfig
        from dialogkit.config.model import ModelConfig
        from dialogkit.data.prepare import prepare_data
        from dialogkit.models.tokenizer import load_tokenizer

        self.vocabulary = VOCABULARY
        self.shape = {
            name.removeprefix("model."): value for name, value in TINY.items() if name.startswith("model.")
        }
        self.tokenizer = load_tokenizer(ModelConfig(**self.shape))
        prepared = prepare_data(DataConfig(), self.tokenizer, context=256, cache=folder)
        self.train, self.evaluation = prepared.train, prepared.evaluation

    def model(
        self,
        architecture: Architecture = "llama",
        *,
        seed: int = 0,
        dropout: float = 0.0,
        **shape: Any,
    ) -> Any:
        """Return a new model of 2 layers."""
        from dialogkit.config.model import ModelConfig
        from dialogkit.models.build import build_model

        config = ModelConfig(architecture=architecture, **(self.shape | shape))
        return build_model(config, self.tokenizer, seed=seed, dropout=dropout)

    def score(self, model: Any, dialogs: Any = None, *, batch_size: int = 8, device: str = "cpu") -> Any:
        """Return the likelihood of the evaluation dialogs."""
        from dialogkit.data.collate import batches_of
        from dialogkit.engine.attention import use_packed_attention
        from dialogkit.inference.likelihood import score_batches

        use_packed_attention(model)
        chosen = self.evaluation if dialogs is None else dialogs
        batches = batches_of(chosen, batch_size)
        return score_batches(model, batches, self.tokenizer.stop_ids, device=device)

    def fit(
        self, model: Any, dialogs: Any, *, folder: Path | None = None, score: Any = None, sink: Any = None,
        collate: Any = None, workers: int = 0, device: str = "cpu", precision: str = "fp32",
        resume_from: Path | None = None, **settings: Any,
    ) -> Any:  # fmt: skip
        """Train a model in place; `settings` are those of `TrainConfig`."""
        from dialogkit.config.train import TrainConfig
        from dialogkit.data.collate import collate_dialogs
        from dialogkit.engine.arguments import resolve_schedule
        from dialogkit.engine.checkpoints import read_progress
        from dialogkit.engine.device import Runtime
        from dialogkit.engine.fit import fit
        from dialogkit.engine.task import FitTask

        config = TrainConfig.model_validate(settings)
        progress = None if resume_from is None else read_progress(resume_from)
        task = FitTask(
            model=model,
            train_set=dialogs,
            config=config,
            runtime=Runtime(device, "", "", precision, ""),  # type: ignore[arg-type]
            schedule=resolve_schedule(config, len(dialogs)),
            collate=collate or collate_dialogs,
            score=score or (lambda: {"nats_per_token": 1.0}),
            folder=folder or Path("fit"),
            workers=workers,
            resume_from=None if resume_from is None or progress is None else (resume_from, progress),
        )
        return fit(task, sink or (lambda step, metrics: None))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, isolated_home: Path) -> Small:
    """The parts of a small training; shared by the tests of the engine and of replies."""
    return Small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small_config() -> Callable[..., Any]:
    """Make the configuration of a run of about a second, with further dotted settings."""
    from dialogkit.config.load import load_run_config

    def make(settings: dict[str, Any] | None = None, *, model: str = "custom-nano") -> Any:
        return load_run_config(model, overrides={**SMALL, **(settings or {})})

    return make


def typed(error: Any, *words: str) -> str | None:
    """Return the hint of an error as the command line renders it for a command that was typed."""
    from dialogkit.cli import hints

    hints.remember(words or ("train",))
    return hints.render(error.hint)
