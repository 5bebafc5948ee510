"""Which weights a run leaves, in the model and on the disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.config.train import TrainConfig
from dialogkit.errors import OutOfMemoryError
from tests.conftest import typed


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


class ScriptedScore:
    """Gives the evaluation losses of a script, and remembers the weights that each was given to."""

    def __init__(self, model: Any, losses: list[float]) -> None:
        self._model, self._losses = model, iter(losses)
        self.seen: list[torch.Tensor] = []

    def __call__(self) -> dict[str, float]:
        self.seen.append(weights(self._model))
        return {"nats_per_token": next(self._losses)}


def checkpoints(folder: str = "fit") -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in Path(folder).glob("checkpoint-*"))


def test_keeping_the_best_restores_the_weights_of_the_lowest_evaluation_loss(small: Any) -> None:
    model = small.model()
    score = ScriptedScore(model, [5.0, 4.0, 4.5, 3.0, 3.5])
    fitted = small.fit(model, small.train, max_steps=5, eval_every_steps=1, keep="best", score=score)
    assert (fitted.steps, fitted.best_step, fitted.kept_step) == (5, 4, 4)
    assert torch.equal(weights(model), score.seen[3])
    assert not torch.equal(score.seen[4], score.seen[3])


def test_keeping_the_last_leaves_the_weights_of_the_last_step(small: Any) -> None:
    model = small.model()
    score = ScriptedScore(model, [5.0, 4.0, 4.5, 3.0, 3.5])
    fitted = small.fit(model, small.train, max_steps=5, eval_every_steps=1, keep="last", score=score)
    assert fitted.kept_step == 5
    assert torch.equal(weights(model), score.seen[4])


def test_the_final_score_is_the_lowest_of_the_evaluations(small: Any) -> None:
    model, held_out = small.model(), small.evaluation.select(range(4))
    points: list[float] = []
    # Few dialogs and a high rate: the loss on others soon rises again.
    small.fit(
        model, small.train.select(range(2)), max_steps=40, eval_every_steps=4, batch_size=2, learning_rate=2e-2,
        score=lambda: small.score(model, held_out).figures(),
        sink=lambda _, metrics: points.extend(v for k, v in metrics.items() if k == "eval/nats_per_token"),
    )  # fmt: skip
    assert len(points) == 10
    assert min(points) < points[-1]
    assert small.score(model, held_out).figures()["nats_per_token"] == min(points)


def test_a_last_step_between_two_evaluations_is_evaluated_too(small: Any) -> None:
    model = small.model()
    score = ScriptedScore(model, [3.0, 2.0, 1.0])
    fitted = small.fit(model, small.train, max_steps=5, eval_every_steps=2, score=score)
    assert fitted.best_step == 5
    assert len(score.seen) == 3


@pytest.mark.parametrize("keep", ["best", "last"])
def test_early_stopping_waits_as_long_as_its_patience(small: Any, keep: str) -> None:
    model = small.model()
    score = ScriptedScore(model, [3.0, 4.0, 2.0, 2.5, 2.0, 9.0])
    fitted = small.fit(
        model, small.train, max_steps=20, eval_every_steps=2, early_stopping_patience=2, keep=keep, score=score
    )
    assert (fitted.steps, fitted.best_step) == (10, 6)  # 2.0 again is no improvement
    assert torch.equal(weights(model), score.seen[2 if keep == "best" else 4])


@pytest.mark.parametrize(
    ("losses", "keep_checkpoints", "left"),
    [
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 2, [5, 6]),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, [1, 6]),
        ([6.0, 1.0, 4.0, 3.0, 2.0, 5.0], 3, [2, 5, 6]),
        ([6.0, 1.0, 4.0, 3.0, 2.0, 5.0], 2, [2, 6]),
    ],
)
def test_so_many_checkpoints_are_left_the_best_and_the_newest_among_them(
    small: Any, losses: list[float], keep_checkpoints: int, left: list[int]
) -> None:
    model = small.model()
    small.fit(
        model, small.train, max_steps=6, eval_every_steps=1, keep_checkpoints=keep_checkpoints,
        score=ScriptedScore(model, losses),
    )  # fmt: skip
    assert checkpoints() == left


def test_a_checkpoint_is_an_ordinary_model(small: Any) -> None:
    from transformers import LlamaForCausalLM

    model = small.model()
    small.fit(model, small.train, max_steps=2, keep="last")
    loaded = LlamaForCausalLM.from_pretrained("fit/checkpoint-2")
    assert torch.equal(weights(loaded), weights(model))


def fail() -> dict[str, float]:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("score", [lambda: {"nats_per_token": 1.0}, fail])
def test_the_model_has_its_own_forward_and_attention_again(
    small: Any, score: Callable[[], dict[str, float]]
) -> None:
    model = small.model()
    try:
        small.fit(model, small.train, max_steps=1, score=score)
    except OutOfMemoryError:
        assert score is fail
    assert "forward" not in vars(model)
    assert model.config._attn_implementation == "sdpa"
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, small.vocabulary)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"batch_size": 8}, "--fit-batch"),
        ({"batch_size": 6, "accumulation_steps": 2}, "--fit-batch"),
        ({"batch_size": 4, "accumulation_steps": 4}, "--set train.activation_checkpointing=true"),
        ({"batch_size": 1, "activation_checkpointing": True}, "--set data.max_tokens=256"),
    ],
)
def test_too_little_memory_is_an_error_whose_hint_is_a_valid_setting(
    small: Any, settings: dict[str, Any], hint: str
) -> None:
    with pytest.raises(OutOfMemoryError) as error:
        small.fit(small.model(), small.train, max_steps=1, score=fail, **settings)
    assert typed(error.value) == hint
    if hint.startswith("--set train."):
        name, value = hint.removeprefix("--set train.").split("=")
        TrainConfig(**{**settings, name: json.loads(value)})
