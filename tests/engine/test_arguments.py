"""The schedule, and the arguments passed to HF."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.config.train import TrainConfig
from dialogkit.engine.arguments import StepCounts, resolve_schedule, training_arguments
from dialogkit.engine.device import Runtime
from dialogkit.engine.task import FitTask


@pytest.mark.parametrize(
    ("dialogs", "settings", "steps"),
    [
        (100, {"batch_size": 2}, 50),
        (101, {"batch_size": 2}, 51),
        (7, {"batch_size": 8}, 1),
        (10, {"batch_size": 4, "accumulation_steps": 4}, 3),
        (10, {"batch_size": 4, "epochs": 3.0}, 9),
        (10, {"batch_size": 4, "epochs": 2.5}, 8),
        (10, {"batch_size": 4, "epochs": 0.4}, 2),
        (10, {"batch_size": 4, "epochs": 0.001}, 1),
        (10, {"batch_size": 4, "epochs": 3.0, "max_steps": 5}, 5),
        (10, {"batch_size": 4, "max_steps": 400}, 400),
    ],
)
def test_the_epochs_or_the_maximum_give_the_steps(dialogs: int, settings: dict[str, Any], steps: int) -> None:
    assert resolve_schedule(TrainConfig(**settings), dialogs).total_steps == steps


@pytest.mark.parametrize(
    ("steps", "settings", "log", "evaluate"),
    [
        (1, {}, 1, 1),
        (10, {}, 1, 3),
        (50, {}, 1, 13),
        (400, {}, 4, 100),
        (5000, {}, 10, 1250),
        (5001, {}, 10, 1251),
        (50, {"log_every_steps": 7, "eval_every_steps": 20}, 7, 20),
        (50, {"log_every_steps": 51, "eval_every_steps": 1000}, 50, 50),
    ],
)
def test_logs_and_evaluations_are_spread_over_the_run(
    steps: int, settings: dict[str, Any], log: int, evaluate: int
) -> None:
    config = TrainConfig(max_steps=steps, **settings)
    assert resolve_schedule(config, 10) == StepCounts(steps, log, evaluate)


TWO_HUNDRED = StepCounts(total_steps=200, log_every_steps=2, eval_every_steps=50)


def arguments(
    *,
    device: Any = "cpu",
    precision: Any = "fp32",
    steps: StepCounts = TWO_HUNDRED,
    compile: bool = False,
    workers: int = 0,
    **settings: Any,
) -> Any:
    task = FitTask(
        model=None,
        train_set=None,
        config=TrainConfig(**settings),
        runtime=Runtime(device, "", "", precision, ""),
        schedule=steps,
        collate=dict,
        score=dict,
        folder=Path("run"),
        compile=compile,
        workers=workers,
    )
    return training_arguments(task)


# A setting, its value, and what HF must get in a run of 200 steps.
ARRIVES = [
    ("batch_size", 12, {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1}),
    ("accumulation_steps", 4, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    ("learning_rate", 0.003, {"learning_rate": 0.003}),
    ("weight_decay", 0.3, {"weight_decay": 0.3}),
    ("adam_beta1", 0.8, {"adam_beta1": 0.8}),
    ("adam_beta2", 0.9, {"adam_beta2": 0.9}),
    ("adam_epsilon", 1e-6, {"adam_epsilon": 1e-6}),
    ("max_grad_norm", 0.5, {"max_grad_norm": 0.5}),
    ("seed", 7, {"seed": 7}),
    ("keep", "best", {"load_best_model_at_end": True}),
    ("keep", "last", {"load_best_model_at_end": False}),
]
STEPS = {"epochs", "max_steps", "log_every_steps", "eval_every_steps"}


@pytest.mark.parametrize(("name", "value", "expected"), ARRIVES)
def test_a_setting_arrives(name: str, value: Any, expected: dict[str, Any]) -> None:
    made = arguments(**{name: value})
    assert {key: getattr(made, key) for key in expected} == expected


@pytest.mark.parametrize("wanted", [True, False])
def test_activation_checkpointing_arrives_under_its_name_of_the_installed_transformers(wanted: bool) -> None:
    made = arguments(activation_checkpointing=wanted)
    names = [n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(made, n)]
    assert bool(getattr(made, names[0])) is wanted


# Fields of TrainConfig that are not implemented by TrainingArguments.
NOT_MAPPED = frozenset(
    {
        "budget_s",
        "dropout",
        "early_stopping_patience",
        "eval_batch_size",
        "fit_batch",
        "keep_checkpoints",
        "lora_alpha",
        "lora_dropout",
        "lora_rank",
        "lora_targets",
        "merge",
        "method",
        "micro_batch_tokens",
        "optimizer",
        "schedule",
        "warmup_fraction",
    }
)


def test_no_setting_is_forgotten() -> None:
    arriving = {name for name, _, _ in ARRIVES} | {"activation_checkpointing"}
    assert arriving | STEPS | NOT_MAPPED == set(TrainConfig.model_fields)
    assert not NOT_MAPPED & (arriving | STEPS)


def test_the_schedule_and_the_runtime_arrive() -> None:
    made = arguments(steps=StepCounts(99, 3, 33), precision="bf16", compile=True, workers=2)
    assert (made.max_steps, made.logging_steps, made.eval_steps, made.save_steps) == (99, 3, 33, 33)
    assert (made.bf16, made.torch_compile, made.dataloader_num_workers) == (True, True, 2)
    assert made.device == torch.device("cpu")
    assert not arguments().bf16


def test_nothing_that_is_ours_is_left_to_HF() -> None:
    made = arguments()
    assert made.report_to == []
    assert made.disable_tqdm
    assert not made.remove_unused_columns
    assert not made.logging_nan_inf_filter
    assert (made.metric_for_best_model, made.greater_is_better) == ("eval_nats_per_token", False)


def test_several_gpus_neither_multiply_the_batch_nor_split_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments

    def four(self: Any) -> torch.device:
        if not hasattr(self, "_n_gpu"):
            self._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(four))
    made = arguments(batch_size=6)
    assert (made.n_gpu, made.train_batch_size) == (1, 6)


def test_no_name_is_deprecated(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arguments(activation_checkpointing=True)
    assert "deprecated" not in capfd.readouterr().err
