"""A plan names the model that does best in the time on this machine, and says what even that will not do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dialogkit import plan
from dialogkit.config.load import load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.data.sources import RawData, read_dialogs
from dialogkit.engine.device import resolve_runtime
from dialogkit.errors import ConfigError, OutOfMemoryError
from dialogkit.services.planning.measuring import Measured, SharedData, measure
from dialogkit.services.planning.reference import references, settings_of
from dialogkit.services.train import train
from dialogkit.services.training.setup import TrainingSetup
from tests.conftest import SMALL, Finished

Run = Callable[..., Finished]

RIGHT = {
    "custom-pico": [0.3, 0.4, 0.5],
    "custom-nano": [0.2, 0.6, 0.7],
    "custom-tiny": [0.1, 0.8, 0.9],
    "custom-small": [0.0, 0.3, 1.0],
}
"""Right answers of made-up runs that saw 320, 3,200 and 32,000 dialogs."""


def write_runs(path: Path, right: dict[str, list[float]]) -> None:
    reply = {"prompt": "Where is Rome?", "reply": "Rome is in France.", "answer": "Rome is in Italy."}
    made = {}
    for model, shares in right.items():
        runs = [
            {
                **{"steps": 10 ** (n + 1), "dialogs": 32 * 10 ** (n + 1), "tokens": 0, "supervised_tokens": 0},
                **{"bits_per_byte": 2.0 - share, "right_answers": share, "reply": reply},
                **{"revision": "r", "seed": 1, "version": "0", "date": "2000-01-01"},
            }
            for n, share in enumerate(shares)
        ]
        settings = settings_of(load_run_config(model, preset="talk"))
        made[f"{model}/talk"] = {"settings": settings, "runs": runs}
    path.write_text(json.dumps(made))


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of made-up reference runs in place of the one that ships."""
    path = tmp_path / "runs.json"
    write_runs(path, RIGHT)
    monkeypatch.setattr("dialogkit.services.planning.reference.RUNS", path)
    references.cache_clear()
    yield path
    references.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Choose the seconds of a step of custom-nano; pico takes half as long, tiny 3 times, small 20 times."""

    def choose(step_s: float, *, dialogs: int = 38_400, tokens: int = 1000, small_fits: bool = True) -> None:
        def measured(config: RunConfig, data: SharedData) -> Measured:
            model = config.model.name
            if model == "custom-small" and not small_fits:
                raise OutOfMemoryError("a step takes about 9 GiB and 2 GiB are free")
            took = step_s * {"custom-pico": 0.5, "custom-nano": 1, "custom-tiny": 3, "custom-small": 20}[model]
            counts = config.model.parameter_counts()
            assert counts is not None
            sizes = (counts.total, counts.without_embeddings)
            return Measured(*sizes, "cpu (made up)", "r", dialogs, 2.0, tokens / took, took, step_s)

        monkeypatch.setattr("dialogkit.services.plan.measure", measured)

    return choose


@pytest.mark.parametrize(
    ("step_s", "chosen"),
    [(6.0, "custom-pico"), (2.0, "custom-nano"), (0.05, "custom-tiny"), (0.005, "custom-small")],
)
def test_the_model_with_the_most_right_answers_is_chosen(
    step_s: float, chosen: str, known: Path, machine: Callable[..., None]
) -> None:
    machine(step_s)
    made = plan(180)
    assert made.chosen == chosen
    row = made.row
    # The start, and evaluations: two beside those of the training, which are four if 18 s suffice for all.
    evaluations = 2 + max(1, min(4, int(18 / step_s) - 2))
    assert row.steps == pytest.approx((180 - 2 - evaluations * step_s) / (1000 / (row.tokens_per_s or 1)), abs=1)


def test_a_model_that_would_see_fewer_dialogs_than_any_run_is_not_preferred(
    known: Path, machine: Callable[..., None]
) -> None:
    write_runs(known, {**RIGHT, "custom-small": [0.9, 0.9, 0.9]})
    machine(2.0)
    made = plan(180)
    assert made.chosen == "custom-nano"
    forecast = made.rows[-1].forecast
    assert forecast is not None
    assert forecast.range == "below"


def test_the_command_shows_the_models_and_what_to_type(
    known: Path, machine: Callable[..., None], dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    machine(0.05)
    done = dialogkit("plan", "--time", "3m")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    rows = [line for line in done.out.splitlines() if line.startswith("custom-")]
    assert [row.split()[0] for row in rows] == list(RIGHT)
    assert "at least 90%" in rows[2]
    assert " 47% " in rows[3]
    assert "Rome is in France." in done.out
    assert done.err.endswith("next: dialogkit train custom-tiny --preset talk --budget 3m\n")
    assert "wrong than right" not in done.out


def test_programs_get_all_of_it(known: Path, machine: Callable[..., None], dialogkit: Run) -> None:
    machine(0.05)
    made = dialogkit("plan", "--time", "3m", "--no-cuda", "--json").json
    assert made["hint"] == "dialogkit train custom-tiny --preset talk --no-cuda --budget 3m"
    data = made["data"]
    assert (data["chosen"], data["dataset"], data["budget_s"], data["train_dialogs"]) == (
        *("custom-tiny", "smalltalk-core", 180.0, 38_400),
    )
    assert [row["model"] for row in data["rows"]] == list(RIGHT)
    assert data["rows"][0]["forecast"]["nearest"]["reply"]["reply"] == "Rome is in France."
    assert "training" not in data


def test_a_weak_machine_is_told_what_it_cannot_do_and_what_would_be_enough(
    known: Path, machine: Callable[..., None]
) -> None:
    machine(4.0)
    made = plan(180)
    assert made.chosen == "custom-nano"
    (line,) = made.remarks
    assert "more questions wrong than right (44.1% right)" in line
    nano = made.rows[1]
    assert nano.half_right_s is not None
    assert "to answer half of them right, custom-nano takes 4 min 14 s" in line
    enough = plan(nano.half_right_s).row.forecast
    assert enough is not None
    assert enough.right_answers is not None
    assert enough.right_answers >= 0.5


def test_how_long_is_unknown_if_no_run_came_so_far(known: Path, machine: Callable[..., None]) -> None:
    write_runs(known, {"custom-nano": [0.1, 0.2, 0.3]})
    machine(4.0)
    made = plan(180)
    assert "the time needed is unknown: no reference run got half of them right" in made.remarks[0]
    assert [row.forecast is None for row in made.rows] == [True, False, True, True]


def test_a_dataset_that_changed_since_its_runs_is_named(known: Path, machine: Callable[..., None]) -> None:
    known.write_text(known.read_text().replace('"revision": "r"', '"revision": "older"'))
    machine(0.05)
    (line,) = plan(180).remarks
    assert line == "smalltalk-core has changed since the runs behind this forecast, so it may be off"


@pytest.mark.parametrize(
    ("step_s", "dialogs", "tokens", "command"),
    [
        # A pass over 40 dialogs is 5 steps: an hour would be hundreds of passes.
        (0.5, 40, 1000, "train custom-pico --preset production --dataset shop.jsonl --epochs 30"),
        (0.5, 40_000, 1000, "train custom-nano --preset production --dataset shop.jsonl --budget 1h"),
        (0.01, 40_000, 2000, "train custom-small --preset production --dataset shop.jsonl --budget 1h"),
        (0.01, 40_000, 100, "train custom-tiny --preset production --dataset shop.jsonl --budget 1h"),
    ],
)
def test_on_data_without_runs_the_size_decides(
    step_s: float,
    dialogs: int,
    tokens: int,
    command: str,
    known: Path,
    machine: Callable[..., None],
    dialogkit: Run,
) -> None:
    machine(step_s, dialogs=dialogs, tokens=tokens)
    done = dialogkit("plan", "--time", "1h", "--dataset", "shop.jsonl")
    assert done.code == 0
    assert "no reference runs on shop.jsonl with these settings (there are some on smalltalk-core)" in done.out
    assert "bits per byte" not in done.out
    assert done.err.endswith(f"next: dialogkit {command}\n")


def test_a_model_that_does_not_fit_into_memory_is_left_out(known: Path, machine: Callable[..., None]) -> None:
    machine(0.005, small_fits=False)
    made = plan(180)
    assert made.chosen == "custom-tiny"
    assert made.remarks == ["custom-small is left out: a step takes about 9 GiB and 2 GiB are free"]


def test_a_time_that_is_too_short_is_refused_with_one_that_is_enough(
    known: Path, machine: Callable[..., None], dialogkit: Run
) -> None:
    machine(4.0)
    done = dialogkit("plan", "--time", "10s")
    assert done.code == 2
    assert "10 s is too short to train on this machine" in done.err
    assert done.err.endswith("try: --time 4m\n")
    assert plan(240).chosen == "custom-nano"


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["--time", "3"], "--time: '3' is not a time such as 90s", "--time 3m"),
        (["--time", "5x"], "--time: '5x' is not a time such as 90s", "--time 20m"),
        (["--time", "0s"], "--time: '0s' leaves no time to train", "--time 20m"),
        (["--dataset", "startr"], "did you mean 'starter'?", "dialogkit data list"),
    ],
)
def test_wrong_words_are_refused_with_what_to_type(words: list[str], said: str, hint: str, dialogkit: Run) -> None:
    done = dialogkit("plan", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert hint in done.err.splitlines()[-1]


def test_what_is_measured_is_what_a_training_takes(small_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = small_config({"data.samples": 30, "train.budget_s": 60.0})
    measured = measure(config, SharedData())
    assert list(tmp_path.iterdir()) == []
    assert measured.train_dialogs == 30
    assert measured.costs.keys() == {"start_s", "step_s", "evaluation_s"}
    assert min(measured.tokens_per_s, *measured.costs.values()) > 0


def test_of_a_world_few_dialogs_are_made_and_once_for_a_tokenizer(
    small_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def read(*words: Any, **named: Any) -> RawData:
        raw = read_dialogs(*words, **named)
        made.append(len(raw.dialogs))
        return raw

    monkeypatch.setattr("dialogkit.data.prepare.read_dialogs", read)
    monkeypatch.setattr("dialogkit.data.worlds.dialogs.DIALOGS", 3000)
    config = small_config({"data.dataset": "smalltalk-core", "data.samples": None, "train.budget_s": 60.0})
    data = SharedData()
    measured = measure(config, data)
    fewer = {"data": config.data.model_copy(update={"samples": 2500})}
    assert measure(config.model_copy(update=fewer), data).train_dialogs == 2500
    assert made == [2000]
    # What was made in part is not taken for the whole later.
    whole = TrainingSetup(config, resolve_runtime(config.runtime)).data
    assert made == [2000, 3000]
    assert measured.train_dialogs == pytest.approx(whole.size, rel=0.02)
    # And the whole is used if it is there.
    assert measure(config, SharedData()).train_dialogs == whole.size
    assert made == [2000, 3000]


def test_a_training_that_will_be_poor_says_so(
    known: Path, small_config: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    changed = {"data.dataset": "starter", "train.budget_s": 300.0, "train.max_steps": 3}
    config = load_run_config("custom-nano", preset="talk", overrides={**SMALL, **changed})
    (found,) = (json.loads(known.read_text())["custom-nano/talk"],)
    found["settings"] = settings_of(config)
    known.write_text(json.dumps({"custom-nano/talk": found}))
    references.cache_clear()
    with caplog.at_level("INFO", "dialogkit"):
        train(config)
    assert "after about 96 dialogs, custom-nano answers less than 20.0% of the questions right" in caplog.text


def test_a_word_is_no_number_of_seconds() -> None:
    with pytest.raises(ConfigError, match=r"train\.budget_s"):
        plan(0)
