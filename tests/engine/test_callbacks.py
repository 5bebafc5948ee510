"""Divergence, signals and metrics in real runs."""

import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dialogkit.engine import loss as loss_module
from dialogkit.engine.callbacks import MetricCallback, StopAtSignal, ThreadsCallback
from dialogkit.errors import DivergedError
from tests.conftest import TOKENIZER, typed
from tests.forks import command_line_into, start_forked

Points = list[tuple[int, dict[str, float]]]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the loss of one optimizer step no number."""

    def poison(step: int, value: float = math.nan) -> None:
        whole = loss_module.chunked_cross_entropy
        calls = iter(range(1, 10_000))
        monkeypatch.setattr(
            loss_module,
            "chunked_cross_entropy",
            lambda *args, **kw: whole(*args, **kw) * (value if next(calls) == step else 1.0),
        )

    return poison


def is_sound(checkpoint: Path) -> bool:
    from safetensors.torch import load_file

    def tensors(state: Any) -> Iterator[torch.Tensor]:
        if isinstance(state, torch.Tensor):
            yield state
        elif isinstance(state, dict | list):
            for part in state.values() if isinstance(state, dict) else state:
                yield from tensors(part)

    moments = list(tensors(torch.load(checkpoint / "optimizer.pt", weights_only=True)))
    weights = list(tensors(load_file(checkpoint / "model.safetensors")))
    assert len(moments) > len(weights)
    return all(bool(tensor.isfinite().all()) for tensor in moments + weights)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_at_its_step(small: Any, poisoned: Any, value: float) -> None:
    poisoned(3, value)
    with pytest.raises(DivergedError) as error:
        small.fit(
            small.model(), small.train, max_steps=9, eval_every_steps=1, log_every_steps=1, learning_rate=3e-3
        )
    assert f"loss is {value} at step 3" in error.value.message
    assert (typed(error.value), error.value.exit_code) == ("--lr 0.001", 3)
    assert sorted(path.name for path in Path("fit").iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_the_clock_waits_for_the_device_where_the_speed_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: now.__setitem__(0, now[0] + 10))
    metrics = MetricCallback(lambda step, logged: None)
    gpu = SimpleNamespace(device=torch.device("cuda"))
    metrics.on_train_begin(gpu, None, None)
    for should_log in (False, True):
        now[0] += 1  # the work was only given to the device
        metrics.on_step_end(gpu, None, SimpleNamespace(should_log=should_log))
    assert metrics.train_s == 12


@pytest.mark.parametrize("last", [3, 8])
def test_weights_that_are_no_numbers_are_never_saved(small: Any, poisoned: Any, last: int) -> None:
    model = small.model()
    poisoned(3)
    with pytest.raises(DivergedError):
        small.fit(
            model, small.train, max_steps=last, log_every_steps=8, eval_every_steps=2,
            score=lambda: small.score(model, small.train.select(range(2))).figures(),
        )  # fmt: skip
    assert [path.name for path in Path("fit").iterdir()] == ["checkpoint-2"]
    assert is_sound(Path("fit/checkpoint-2"))


def test_a_signal_saves_no_weights_that_are_no_numbers(small: Any, poisoned: Any) -> None:
    model = small.model()
    poisoned(3)
    calls = iter(range(1, 10))

    def interrupt(*_: Any) -> None:
        if model.training and next(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    model.model.norm.register_forward_hook(interrupt)
    with pytest.raises(DivergedError, match="at step 3 "):
        small.fit(model, small.train, max_steps=9, log_every_steps=9, eval_every_steps=9)
    assert not list(Path("fit").glob("checkpoint-*"))


def test_a_gradient_that_is_no_number_ends_the_run(small: Any) -> None:
    model = small.model()
    model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(DivergedError, match="grad_norm is nan at step 1 "):
        small.fit(model, small.train, max_steps=2)


def put_into_weights(model: Any, step: int, value: float) -> None:
    def put(*_: Any) -> None:
        if model.training and next(steps) == step:
            with torch.no_grad():
                model.model.layers[0].mlp.up_proj.weight[3, 5] = value

    steps = iter(range(1, 10_000))
    model.model.register_forward_pre_hook(put)


def put_into_gradients(model: Any, step: int, value: float) -> None:
    steps = iter(range(1, 10_000))
    model.model.layers[1].mlp.down_proj.weight.register_hook(
        lambda gradient: gradient.fill_diagonal_(value) if next(steps) == step else gradient
    )


def put_into_data(model: Any, step: int, value: float) -> None:
    """The numbers of a batch are ids and cannot be wrong: what they stand for can."""

    def put(module: Any, _: Any, embedded: Any) -> Any:
        if not model.training or next(steps) != step:
            return embedded
        wrong = torch.zeros_like(embedded)
        wrong[0, -1, 0] = value
        return embedded + wrong

    steps = iter(range(1, 10_000))
    model.get_input_embeddings().register_forward_hook(put)


PLACES = [put_into_weights, put_into_gradients, put_into_data]
OFTEN = [(3, 1.0, math.nan)]
POISONS = [
    pytest.param(put, value, step, clip, marks=[] if (step, clip, value) in OFTEN else pytest.mark.faults)
    for put in PLACES
    for value in (math.nan, math.inf, -math.inf)
    for step in (1, 3, 4, 5, 8, 9)
    for clip in (1.0, 0.0)
]


@pytest.mark.parametrize(("put", "value", "step", "clip"), POISONS)
def test_what_is_no_number_ends_the_run_within_an_interval_wherever_it_comes_in(
    small: Any, put: Any, value: float, step: int, clip: float
) -> None:
    model = small.model()
    put(model, step, value)
    with pytest.raises(DivergedError) as stopped:
        small.fit(
            model, small.train, max_steps=12, log_every_steps=4, eval_every_steps=2, max_grad_norm=clip,
            score=lambda: small.score(model, small.train.select(range(2))).figures(),
        )  # fmt: skip
    assert stopped.value.exit_code == 3
    found = re.search(r"at step (\d+) ", stopped.value.message)
    assert found is not None
    assert step <= int(found[1]) <= step + 4
    saved = sorted(Path("fit").glob("checkpoint-*")) if Path("fit").exists() else []
    assert all(is_sound(checkpoint) for checkpoint in saved)
    assert all(int(checkpoint.name.rpartition("-")[2]) < int(found[1]) for checkpoint in saved)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_tokens_logged_are_the_tokens_of_the_data(small: Any, accumulation: int) -> None:
    dialogs, points = small.train.select(range(10)), list[Any]()
    fitted = small.fit(
        small.model(), dialogs, sink=lambda *point: points.append(point),
        epochs=2.0, batch_size=4, accumulation_steps=accumulation,
    )  # fmt: skip
    steps = [metrics for _, metrics in points if "train/loss" in metrics]
    assert [step for step, metrics in points if "train/loss" in metrics] == [1, 2, 3, 4, 5, 6]
    for at, passes in ((2, 1), (5, 2)):  # the last step of each epoch is the smaller one
        assert steps[at]["train/tokens"] == passes * int(dialogs.lengths.sum())
        assert steps[at]["train/supervised_tokens"] == passes * dialogs.supervised_tokens
        assert steps[at]["train/epoch"] == passes
    assert (fitted.tokens, fitted.supervised_tokens) == (2 * dialogs.lengths.sum(), 2 * dialogs.supervised_tokens)


def test_the_logged_loss_is_the_mean_since_the_last_log(small: Any) -> None:
    dialogs = small.train.select(range(12))
    settings = {"max_steps": 6, "batch_size": 2, "learning_rate": 1e-2}
    points: dict[int, Points] = {1: [], 3: []}
    for every, logged in points.items():
        small.fit(
            small.model(),
            dialogs,
            sink=lambda *point, to=logged: to.append(point),
            log_every_steps=every,
            **settings,
        )
    each = {step: metrics["train/loss"] for step, metrics in points[1] if "train/loss" in metrics}
    third = {step: metrics["train/loss"] for step, metrics in points[3] if "train/loss" in metrics}
    # The first step is always logged, alone.
    expected = {1: each[1], 3: (each[2] + each[3]) / 2, 6: (each[4] + each[5] + each[6]) / 3}
    assert third == pytest.approx(expected, rel=1e-6)


def test_evaluations_are_reported_beside_the_steps(small: Any) -> None:
    points: Points = []
    values = iter([3.0, 2.0, 1.0])
    small.fit(
        small.model(), small.train, max_steps=5, eval_every_steps=2,
        score=lambda: {"nats_per_token": next(values), "accuracy": 0.5}, sink=lambda *point: points.append(point),
    )  # fmt: skip
    evaluations = [(step, metrics) for step, metrics in points if "eval/nats_per_token" in metrics]
    assert [(step, {k: v for k, v in metrics.items() if "eval" in k}) for step, metrics in evaluations] == [
        (step, {"eval/nats_per_token": value, "eval/accuracy": 0.5})
        for step, value in ((2, 3.0), (4, 2.0), (5, 1.0))
    ]
    tokens = {step: metrics["train/tokens"] for step, metrics in points if "train/loss" in metrics}
    assert [metrics["train/tokens"] for _, metrics in evaluations] == [tokens[step] for step in (2, 4, 5)]
    assert all(not key.startswith("eval") for _, metrics in points if "train/loss" in metrics for key in metrics)


TRAINING = [
    "train", "custom-nano", "--no-cuda", "--wandb", "disabled", "--name", "stopped",
    *(f"--set={setting}" for setting in (
        f"model.tokenizer={TOKENIZER}", "model.layers=1", "model.width=16", "model.heads=1", "model.context=128",
        "runtime.threads=1", "train.max_steps=100000", "train.log_every_steps=1", "train.eval_every_steps=50000",
    )),
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), pytest.param(signal.SIGTERM, 143, "SIGTERM", marks=pytest.mark.faults)],
)
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(
    number: int, code: int, name: str, tmp_path: Path
) -> None:
    process = start_forked(command_line_into, TRAINING, "said.txt", folder=tmp_path)
    assert process.pid is not None
    said = tmp_path / "said.txt"
    while not (said.exists() and "\nstep 1/" in said.read_text()):
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(120)
    lines = said.read_text().splitlines()
    run = tmp_path / "models/runs/stopped"
    record = json.loads((run / "run.json").read_text())
    (checkpoint,) = run.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (process.exitcode, record["status"]) == (code, "interrupted")
    assert f"error: stopped by {name} after step {step}; its checkpoint is kept" in lines
    assert "press Ctrl-C again to quit now" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert points[-1]["step"] == step
    assert is_sound(checkpoint)
    assert not (tmp_path / "models/custom_nano").exists()


def test_the_handlers_of_signals_are_given_back(small: Any, poisoned: Any) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    small.fit(small.model(), small.train, max_steps=1)
    assert [signal.getsignal(number) for number in numbers] == before
    poisoned(1)
    with pytest.raises(DivergedError):
        small.fit(small.model(), small.train, max_steps=1)
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_second_signal_ends_at_once() -> None:
    # Python's own handler: a process started in the background may have been set to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    heard: list[bool] = []
    stop = StopAtSignal(lambda: heard.append(True))
    stop.on_train_begin(None, None, None)
    try:
        signal.raise_signal(signal.SIGINT)
        assert heard == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.release()
        signal.signal(signal.SIGINT, before)


def test_a_run_outside_the_main_thread_runs_without_signals(small: Any) -> None:
    steps: list[int] = []
    torch.set_num_threads(1)
    thread = threading.Thread(
        target=lambda: steps.append(small.fit(small.model(), small.train, max_steps=2).steps)
    )
    thread.start()
    thread.join()
    assert steps == [2]


def test_threads_that_were_given_up_or_used_again_are_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = SimpleNamespace(now=2, most=2, adapt=lambda: None)
    monkeypatch.setattr("dialogkit.system.cpu_threads.of_process", threads)
    callback, state = ThreadsCallback(), SimpleNamespace(global_step=4)
    callback.on_train_begin(None, state, None)
    threads.now = 1  # during an evaluation
    callback.on_step_end(None, state, None)
    callback.on_step_end(None, state, None)
    threads.now = 2
    callback.on_step_end(None, state, None)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "from step 5 on, other programs keep cores busy",
        "from step 5 on, the cores are free again",
    ]
