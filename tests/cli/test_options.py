"""Options: the times that they take, and the settings that they give."""

from collections.abc import Callable
from typing import Any

import pytest

from dialogkit.cli.options import age, budget, columns, given_settings, sets_of, time_limit
from dialogkit.cli.train import train_command
from dialogkit.config.load import load_run_config
from dialogkit.config.problems import known_settings
from dialogkit.errors import ConfigError
from dialogkit.hints import Change

FLAGS: dict[str, Callable[[str], Any]] = {"--budget": budget, "--older-than": age, "--time": time_limit}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *[("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800), ("2w", 1_209_600)],
        *[("1 H 5 s", 3605), (" 60s ", 60)],
    ],
)
def test_every_option_takes_the_same_times(flag: str, text: str, seconds: int) -> None:
    assert FLAGS[flag](text) == seconds


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("text", ["", "20", "soon", "-5m", "5m1h", "1:30", "h", "1.h", "1e3s", "\u0663m", "1h 30"])
def test_no_option_takes_anything_else(flag: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a time such as 90s, 20m, 1h30m, 1\.5h or 2d") as refused:
        FLAGS[flag](text)
    assert refused.value.message.startswith(f"{flag}: {text!r}")
    hint = refused.value.hint
    assert isinstance(hint, Change)
    [(name, value)] = hint.settings.items()
    assert f"--{name.replace('_', '-')}" == flag
    assert FLAGS[flag](value) > 0


def test_a_number_without_a_unit_is_suggested_with_one() -> None:
    for flag, number, suggested in (
        *(("--budget", "3", "3m"), ("--budget", " 1.5 ", "1.5m"), ("--budget", "-3", "20m")),
        ("--older-than", "7", "7d"),
    ):
        with pytest.raises(ConfigError) as refused:
            FLAGS[flag](number)
        assert isinstance(refused.value.hint, Change)
        assert [*refused.value.hint.settings.values()] == [suggested]


def test_a_part_of_columns_that_is_no_role_is_a_part_as_well() -> None:
    parts = ["prompt=die Frage, kurz", "system=s", "weight=weight"]
    assert columns([", ".join(parts)]) == parts
    with pytest.raises(ConfigError, match="'weight' is not a column role: there are prompt, response") as refused:
        load_run_config("custom-tiny", overrides={"data.columns": [*parts, "respons=a"]})
    assert refused.value.hint == Change({"data.columns": [*parts[:2], "response=a"]})


def test_a_time_is_bounded_by_what_it_is_for() -> None:
    with pytest.raises(ConfigError, match="--budget: '0s' leaves no time to train"):
        budget("0s")
    assert age("0s") == 0
    assert age("9" * 400 + "y") == 1000 * 365 * 86_400
    for text in ("30s", "0h", "9" * 30 + "h", "2000d"):
        with pytest.raises(ConfigError, match=r"--time: .* is not from 1 minute to 999 days"):
            time_limit(text)
    assert (age(None), time_limit(None)) == (None, None)


@pytest.mark.parametrize(("text", "seconds"), [("12:00:00", 43_200), ("2-12:00:00", 216_000), ("0:01:00", 60)])
def test_the_time_of_a_job_may_be_written_as_slurm_does(text: str, seconds: int) -> None:
    assert time_limit(text) == seconds


@pytest.mark.parametrize("text", ["25:61:61", "1-2", "12:00", "-1:00:00"])
def test_other_clocks_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--time"):
        time_limit(text)


def test_the_options_of_train_give_settings_that_exist() -> None:
    assert {sets.setting for sets in sets_of(train_command).values()} <= set(known_settings())


def test_only_what_was_typed_gives_a_setting() -> None:
    given: dict[str, Any] = dict.fromkeys(sets_of(train_command))
    assert given_settings(train_command, given) == {}
    given |= {"no_merge": False, "log_model": False, "tags": [], "trackers": ()}
    assert given_settings(train_command, given) == {}
    given |= {"samples": 0, "no_cuda": True, "no_merge": True, "tags": ["a"], "budget": "1h", "devices": "2"}
    assert given_settings(train_command, given) == {
        "data.samples": 0,
        "runtime.device": "cpu",
        "runtime.devices": 2,
        "tracking.tags": ["a"],
        "train.budget_s": 3600,
        "train.merge": False,
    }
