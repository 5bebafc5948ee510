"""Training from Python: what it reports, how it stops and resumes, and what it starts from."""

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import dialogkit
from dialogkit.api.training import summary
from dialogkit.cli.output import Output
from dialogkit.cli.train_view import render_training
from dialogkit.errors import ConfigError, InterruptedRunError, ModelError
from dialogkit.services.training.progress import TrainReporter, show_log
from dialogkit.system.stopping import beginning, raise_if_asked, stoppable
from tests.conftest import Trained

SmallConfig = Callable[..., Any]


class StopsAt(TrainReporter):
    """Asks the run to stop at a step, as another thread would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
        if step == self._step:
            assert dialogkit.stop()


def test_a_stopped_run_is_resumed(small_config: SmallConfig) -> None:
    whole = dialogkit.train(small_config({"name": "whole"}), quiet=True)
    with pytest.raises(
        InterruptedRunError, match=r"stopped by stop\(\) after step 2; its checkpoint is kept"
    ) as stop:
        dialogkit.train(small_config({"name": "parts"}), reporter=StopsAt(1))
    assert stop.value.exit_code == 130
    assert not dialogkit.stop(), "nothing runs"
    result = dialogkit.resume(quiet=True)
    assert result is not None
    assert (result.run, result.steps) == ("parts", 4)
    learned = [{k: v for k, v in made.metrics.items() if k.startswith("final/")} for made in (whole, result)]
    assert learned[0] == learned[1]
    assert [point["step"] for point in result.curve] == [0, 1, 2, 3, 4]
    assert dialogkit.resume(result, quiet=True) is None


def test_a_run_that_still_loads_libraries_can_be_stopped() -> None:
    with beginning():
        assert dialogkit.stop()
        with stoppable(), pytest.raises(InterruptedRunError):
            raise_if_asked()
        assert not dialogkit.stop(), "it has run"
    with beginning():
        assert dialogkit.stop()
    with stoppable():
        raise_if_asked()


def test_a_run_that_is_stopped_before_its_first_step_leaves_nothing(small_config: SmallConfig) -> None:
    with pytest.raises(InterruptedRunError, match=r"^stopped by stop\(\)$"):
        dialogkit.train(small_config(), reporter=StopsAt(0))
    with pytest.raises(InterruptedRunError, match=r"^stopped by stop\(\)$"):
        dialogkit.resume(reporter=StopsAt(0))
    result = dialogkit.resume(quiet=True)
    assert result is not None
    assert result.steps == 4


def test_a_run_starts_from_a_run(trained: Trained, small_config: SmallConfig, tmp_path: Path) -> None:
    models = shutil.copytree(trained.output, tmp_path / "models")  # others share the run
    output = {"runtime.output_dir": str(models), "data.samples": 40}
    wide = small_config({**output, "model.layers": 3})
    with pytest.raises(ConfigError, match=r"model\.layers: 3 in the settings, but '.*' has a model with 2"):
        dialogkit.train(wide, from_run="shared-run")
    config = small_config({**output, "model.name": "next", "name": "next-run", "train.max_steps": 1})
    result = dialogkit.train(config, from_run=trained.result, quiet=True)
    assert result.metrics["before/bits_per_byte"] < trained.result.metrics["before/bits_per_byte"]
    assert result.published_dir.endswith("next")
    with pytest.raises(ModelError, match="no-such-run"):
        dialogkit.train(config, from_run="no-such-run")


def test_a_run_ends_with_what_the_command_line_prints(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    render_training(Output(), trained.result)
    printed, aside = capsys.readouterr()
    text = summary(trained.result)
    statistics = set(aside.splitlines())
    lines = [line for line in text.splitlines() if line not in statistics]
    assert "\n".join(lines[1:-1]) == printed.rstrip()
    assert statistics <= set(text.splitlines())
    assert lines[-1] == f'next:   generate("shared-run", "Hello!", output="{trained.output}")'


def test_a_quiet_run_says_nothing_and_leaves_the_log(
    small_config: SmallConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("dialogkit")

    class Warns(TrainReporter):
        def step(self, step: int, total: int | None, metrics: Mapping[str, float]) -> None:
            logger.getChild("engine").warning("other programs keep cores busy")

    dialogkit.train(small_config({"train.max_steps": 1}), quiet=True, reporter=Warns())
    assert logger.handlers == []
    show_log()  # as an earlier run that was not quiet
    handlers = list(logger.handlers)
    dialogkit.train(small_config({"train.max_steps": 1}), quiet=True, reporter=Warns())
    assert capfd.readouterr() == ("", "")
    assert logger.handlers == handlers
    logger.warning("heard again")
    assert capfd.readouterr().out == "heard again\n"


def test_handlers_of_the_log_that_are_there_are_kept(small_config: SmallConfig) -> None:
    records: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.getLogger("dialogkit")
    logger.addHandler(Keeping())
    logger.setLevel(logging.INFO)
    dialogkit.train(small_config({"train.max_steps": 1}))
    assert len(logger.handlers) == 1
    assert logger.propagate
    assert "bits per byte" in records[-1].getMessage()
