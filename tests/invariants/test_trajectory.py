"""Trainings that must go the same way, however they are run."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dialogkit.config.generate import GenerateConfig
from dialogkit.data.collate import collate_dialogs
from dialogkit.data.tokens import DialogTokens
from dialogkit.dialog import Message
from dialogkit.inference.replies import continue_prompts

RUN: dict[str, Any] = {
    "max_steps": 6,
    "eval_every_steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "keep": "last",
}


ALSO_GPT2 = ["llama", pytest.param("gpt2", marks=pytest.mark.faults)]
ALSO_LLAMA = [("gpt2", 0.1), pytest.param("llama", 0.0, marks=pytest.mark.faults)]


def run(
    small: Any,
    *,
    architecture: str = "llama",
    dropout: float = 0.0,
    dialogs: DialogTokens | None = None,
    collate: Any = collate_dialogs,
    workers: int = 0,
    **settings: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the loss of each step and the weights at the end."""
    model, losses = small.model(architecture, dropout=dropout), list[float]()
    small.fit(
        model,
        small.train.select(range(10)) if dialogs is None else dialogs,
        sink=lambda _, metrics: losses.extend(value for name, value in metrics.items() if name == "train/loss"),
        collate=collate,
        workers=workers,
        log_every_steps=1,
        **{**RUN, **settings},
    )
    return losses, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def assert_close(one: Any, other: Any, *, tolerance: float) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=tolerance, atol=tolerance, msg=name)


def assert_same(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


@pytest.mark.parametrize("architecture", ALSO_GPT2)
def test_accumulation_changes_nothing(small: Any, architecture: str) -> None:
    # Ten dialogs in batches of four: the last batch of an epoch is smaller.
    # AdamW divides its first gradient by its own size: with the usual epsilon, rounding shows in tiny ones.
    whole, *parts = (
        run(small, architecture=architecture, adam_epsilon=1e-5, accumulation_steps=n) for n in (1, 2, 4)
    )
    parts += [run(small, architecture=architecture, adam_epsilon=1e-5, micro_batch_tokens=n) for n in (1, 70)]
    parts.append(
        run(small, architecture=architecture, adam_epsilon=1e-5, micro_batch_tokens=50, accumulation_steps=2)
    )
    for part in parts:
        assert_close(part, whole, tolerance=1e-6)


@pytest.mark.parametrize(("architecture", "dropout"), ALSO_LLAMA)
def test_a_seed_repeats_a_run_bit_for_bit(small: Any, architecture: str, dropout: float) -> None:
    one, again = (run(small, architecture=architecture, dropout=dropout, seed=7) for _ in range(2))
    assert_same(one, again)


def test_what_was_drawn_before_changes_nothing(small: Any) -> None:
    one = run(small, architecture="gpt2", dropout=0.1)
    torch.rand(5)
    np.random.rand(5)
    assert_same(run(small, architecture="gpt2", dropout=0.1), one)


def test_another_seed_is_another_order_of_the_dialogs(small: Any) -> None:
    one, other = run(small, seed=7), run(small, seed=8)
    assert all(a != b for a, b in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize(("architecture", "dropout"), ALSO_LLAMA)
def test_activation_checkpointing_changes_nothing(small: Any, architecture: str, dropout: float) -> None:
    plain, saving = (
        run(small, architecture=architecture, dropout=dropout, activation_checkpointing=on) for on in (False, True)
    )
    assert_close(saving, plain, tolerance=1e-6)


def test_a_process_that_assembles_batches_changes_nothing(small: Any) -> None:
    assert_same(run(small, workers=1), run(small))


def test_evaluating_in_between_changes_nothing(small: Any) -> None:
    assert_same(run(small, eval_every_steps=1), run(small))


@pytest.mark.parametrize(
    ("schedule", "architecture"),
    [
        ("linear", "gpt2"),
        ("cosine", "llama"),
        *(
            pytest.param(*some, marks=pytest.mark.faults)
            for some in (("linear", "llama"), ("cosine", "gpt2"), ("constant", "gpt2"), ("constant", "llama"))
        ),
    ],
)
def test_the_steps_are_those_of_a_plain_loop_over_padded_batches(
    small: Any, architecture: str, schedule: str
) -> None:
    batches: list[Any] = []

    def remember(dialogs: Any) -> dict[str, Any]:
        batches.append(dialogs)
        return collate_dialogs(dialogs)

    losses, weights = run(
        small,
        architecture=architecture,
        collate=remember,
        schedule=schedule,
        warmup_fraction=0.34,
        max_grad_norm=0.5,
    )
    model = small.model(architecture).train()
    optimizer = adamw(model)
    expected = [plain_step(model, optimizer, step, batches[step], schedule) for step in range(RUN["max_steps"])]
    assert losses == pytest.approx(expected, abs=1e-4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def adamw(model: Any) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices only."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": RUN["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)


def plain_step(model: Any, optimizer: torch.optim.Optimizer, step: int, dialogs: Any, schedule: str) -> float:
    longest = max(len(dialog["input_ids"]) for dialog in dialogs)
    ids, mask = torch.zeros(len(dialogs), longest, dtype=torch.long), torch.zeros(len(dialogs), longest)
    labels = torch.full_like(ids, -100)
    for row, dialog in enumerate(dialogs):
        own = torch.from_numpy(dialog["input_ids"].astype(np.int64))
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
        labels[row, : len(own)] = own.where(torch.from_numpy(dialog["supervised"]), -100)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    for group in optimizer.param_groups:
        group["lr"] = RUN["learning_rate"] * rate(step, schedule)
    optimizer.step()
    return float(loss.detach())


def rate(step: int, schedule: str, warmup: int = 2) -> float:
    """Return the share of the peak learning rate: up by a line to the peak, then down to zero or not."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / (RUN["max_steps"] - warmup)
    rates: dict[str, float] = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return rates[schedule]


@pytest.mark.parametrize("architecture", ALSO_GPT2)
def test_the_first_loss_is_that_of_knowing_nothing(small: Any, architecture: str) -> None:
    losses, _ = run(small, architecture=architecture, max_steps=1)
    assert losses[0] == pytest.approx(math.log(small.vocabulary), rel=0.02)


QUESTIONS = {
    "What is the capital of France?": "Paris.",
    "What is the capital of Portugal?": "Lisbon.",
    "What is 7 plus 5?": "12",
    "Say hello.": "Hello! 👋 How are you?",
    "Name a colour.": "Blue, like the sky on a clear day.",
    "Name two colours.": "Red and green.",
    "How many legs has a spider?": "Eight legs.",
    "Goodbye!": "Goodbye, and thank you!",
}


@pytest.mark.faults
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_model_learns_eight_dialogs_by_heart(small: Any, architecture: str) -> None:
    encoded = small.tokenizer.encode_dialogs(
        [(Message("user", question), Message("assistant", answer)) for question, answer in QUESTIONS.items()]
    )
    dialogs = DialogTokens.from_dialogs(
        {**e._asdict(), "answer_bytes": len(answer.encode())}
        for e, answer in zip(encoded, QUESTIONS.values(), strict=True)
    )
    model, losses = small.model(architecture), list[float]()
    small.fit(
        model, dialogs, max_steps=150, eval_every_steps=150, log_every_steps=50, batch_size=8, learning_rate=2e-2,
        sink=lambda _, metrics: losses.extend(v for name, v in metrics.items() if name == "train/loss"),
    )  # fmt: skip
    replies = continue_prompts(
        model,
        small.tokenizer,
        [small.tokenizer.encode_prompt([Message("user", question)]) for question in QUESTIONS],
        GenerateConfig(temperature=0.0, repetition_penalty=1.0, max_new_tokens=40),
        context=256,
        device="cpu",
    )
    assert losses[-1] < 0.2
    assert [reply.text for reply in replies] == list(QUESTIONS.values())
    assert {reply.stop_reason for reply in replies} == {"end of turn"}
