"""A training whose loss leaves the band of its model and preset gets one warning with the settings that differ."""

import pytest

from dialogkit.config.load import load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.services.training.loss_bands import (
    WINDOW_STEPS,
    Band,
    LossMonitor,
    affecting_loss,
    reference_curves,
)


def config(**overrides: object) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_run_config("custom-nano", preset="test", overrides=named)


def warnings_of(chosen: RunConfig, losses: list[float]) -> list[str]:
    """Return the warnings about a run with these losses, where 8 to 9 and then 6 to 7 are usual."""
    band = Band(settings=affecting_loss(config()), steps=[10, 20], low=[8.0, 6.0], high=[9.0, 7.0])
    monitor = LossMonitor(chosen, {"custom-nano/test": band})
    points = [monitor.point(step, {"train/loss": loss}) for step, loss in enumerate(losses, start=1)]
    return [point for point in points if point is not None]


def test_a_run_inside_its_band_has_no_warning() -> None:
    assert warnings_of(config(), [9.5, *[8.5] * 9, *[6.5] * 10, *[1.0] * 10]) == []


def test_a_run_that_leaves_its_band_has_one_warning_with_the_settings_that_differ() -> None:
    slow = config(train__learning_rate=1e-6, train__seed=7)
    (line,) = warnings_of(slow, [10.0] * 20)
    assert line.startswith("step 10: a loss of 10.00 is above the usual 8.00 to 9.00 of custom-nano, preset test")
    assert "train.learning_rate is 1e-06 instead of 0.01" in line
    assert "seed" not in line


def test_without_a_difference_the_data_or_the_machine_are_named() -> None:
    (line,) = warnings_of(config(), [8.5] * 10 + [2.0] * 10)
    assert "step 20: a loss of 2.00 is below" in line
    assert line.endswith("likely cause: the data or the machine (no setting differs)")


@pytest.mark.parametrize(
    "other", [{"data__samples": 50}, {"train__batch_size": 4}, {"train__max_steps": 500}, {"model__layers": 2}]
)
def test_a_run_with_an_expected_difference_is_not_compared(other: dict[str, object]) -> None:
    assert warnings_of(config(**other), [20.0] * 20) == []


def test_the_bands_that_ship_are_of_the_settings_that_ship() -> None:
    assert {"custom-nano/test", "custom-tiny/test", "custom-small/test"} <= set(reference_curves())
    for name, band in reference_curves().items():
        model, preset = name.split("/")
        assert band.settings == affecting_loss(load_run_config(model, preset=preset)), name
        assert band.steps == list(range(WINDOW_STEPS, 51, WINDOW_STEPS))
        assert all(low < high for low, high in zip(band.low, band.high, strict=True))
