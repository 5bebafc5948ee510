"""Forecasts lie between the ends of reference runs, and say where no run was so short or so long."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.load import load_run_config
from dialogkit.services.planning.reference import (
    Reference,
    ReferenceRun,
    read_references,
    reference_of,
    references,
    settings_of,
)


def run(dialogs: int, bits: float, right: float | None = None) -> ReferenceRun:
    figures: dict[str, Any] = {"steps": dialogs // 32, "tokens": 0, "supervised_tokens": 0, "seed": 1}
    named = {"revision": "r", "version": "0", "date": "2000-01-01"}
    return ReferenceRun(dialogs=dialogs, bits_per_byte=bits, right_answers=right, **figures, **named)


def reference(*runs: ReferenceRun) -> Reference:
    return Reference(settings={}, runs=list(runs))


def test_between_two_runs_the_figures_follow_the_logarithm_of_the_dialogs() -> None:
    found = reference(run(1000, 2.0, 0.2), run(4000, 1.0, 0.6)).forecast(2000)
    assert (found.bits_per_byte, found.right_answers, found.range) == pytest.approx((1.5, 0.4, "within"))


@pytest.mark.parametrize(
    ("dialogs", "bits", "where"), [(999, 2.0, "below"), (1000, 2.0, "within"), (4000, 1.0, "within")]
)
def test_outside_of_the_runs_a_forecast_is_a_bound(dialogs: int, bits: float, where: str) -> None:
    found = reference(run(1000, 2.0), run(4000, 1.0))
    assert (found.forecast(dialogs).bits_per_byte, found.forecast(dialogs).range) == (bits, where)
    beyond = found.forecast(4001)
    assert (beyond.bits_per_byte, beyond.range, beyond.right_answers) == (1.0, "above", None)


@pytest.mark.parametrize(("share", "dialogs"), [(0.1, 1000), (0.4, 2000), (0.6, 4000), (0.7, None)])
def test_the_dialogs_for_a_share_of_right_answers(share: float, dialogs: int | None) -> None:
    found = reference(run(1000, 2.0, 0.2), run(4000, 1.0, 0.6)).dialogs_for(share)
    assert found == (dialogs if dialogs is None else pytest.approx(dialogs, abs=1))


def test_runs_of_other_settings_say_nothing_of_a_training() -> None:
    config = load_run_config("custom-nano", preset="talk")
    known = {"custom-nano/talk": Reference(settings=settings_of(config), runs=[run(1000, 2.0)])}
    for same in ({"train.max_steps": 7}, {"train.budget_s": 60.0}, {"train.seed": 3}):
        assert reference_of(load_run_config("custom-nano", preset="talk", overrides=same), known) is not None
    for other in ({"train.batch_size": 8}, {"data.dataset": "starter"}, {"train.learning_rate": 0.1}):
        assert reference_of(load_run_config("custom-nano", preset="talk", overrides=other), known) is None


def test_the_runs_that_ship_are_of_the_settings_that_ship() -> None:
    assert "custom-pico/talk" in references()
    for name, found in references().items():
        model, preset = name.split("/")
        assert found.settings == settings_of(load_run_config(model, preset=preset)), name
        seen = [one.dialogs for one in found.runs]
        assert seen == sorted(set(seen))
        assert all(one.steps * found.settings["train.batch_size"] == one.dialogs for one in found.runs)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = {"custom-nano/talk": reference(run(1000, 2.0, 0.2))}
    path = tmp_path / "runs.json"
    assert read_references(path) == {}
    path.write_text(json.dumps({name: found.model_dump() for name, found in written.items()}))
    assert read_references(path) == written
