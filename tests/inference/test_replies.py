"""Replies: the same however they are batched, streamed or seeded, and within the model's context."""

import copy
import math
import random
from collections.abc import Sequence
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.inference.replies import Conversation, Reply, continue_prompts
from tests.models.foreign import GENERATION_SETTINGS, together

CONTEXT = 256
TOKENS = 12
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0}
PROMPTS = [
    "Hello!",
    "What is the capital of France?",
    "a",
    "One two three four five six seven eight. " * 3,
    "Grüße 👋",
]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, small: Any) -> Any:
    """Return a model with large weights: every token and every position changes what comes next."""
    return small.model(request.param, seed=1, initializer_range=0.4)


def replies(model: Any, small: Any, prompts: Sequence[str], **options: Any) -> list[Reply]:
    call = {key: options.pop(key) for key in ("batch_size", "on_text", "context") if key in options}
    tokenizer = options.pop("tokenizer", small.tokenizer)
    return continue_prompts(
        model,
        tokenizer,
        [tokenizer.encode_prompt([Message("user", prompt)]) for prompt in prompts],
        GenerateConfig(**{"max_new_tokens": TOKENS, **options}),
        **{"context": CONTEXT, **call},
        device="cpu",
    )


@pytest.mark.parametrize(
    ("batch_size", "max_new_tokens"), [(2, TOKENS), pytest.param(5, 110, marks=pytest.mark.faults)]
)
def test_replies_in_a_batch_are_the_replies_one_by_one(
    model: Any, small: Any, batch_size: int, max_new_tokens: int
) -> None:
    options = {"context": 128, "max_new_tokens": max_new_tokens, **GREEDY}
    alone = [replies(model, small, [prompt], **options)[0] for prompt in PROMPTS]
    batched = replies(model, small, PROMPTS, batch_size=batch_size, **options)
    assert batched == alone
    assert len({reply.text for reply in alone}) == len(PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_reply_is_that_of_a_naive_loop_without_a_cache(model: Any, small: Any, prompt: str) -> None:
    ids = small.tokenizer.encode_prompt([Message("user", prompt)])
    start = len(ids)
    while len(ids) < start + TOKENS and (len(ids) == start or ids[-1] not in small.tokenizer.stop_ids):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    (reply,) = replies(model, small, [prompt], **GREEDY)
    assert (reply.text, reply.tokens) == (small.tokenizer.decode(ids[start:]), len(ids) - start)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_sampled_reply_is_the_same_whatever_is_beside_it(model: Any, small: Any, batch_size: int) -> None:
    options = {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.5}
    alone = [replies(model, small, [prompt], **options)[0] for prompt in PROMPTS]
    assert len({reply.text for reply in alone}) == len(PROMPTS)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [1, 1, 0]):
        together = replies(model, small, [PROMPTS[i] for i in order], batch_size=batch_size, **options)
        assert together == [alone[i] for i in order]


def test_neither_the_prompt_nor_padding_counts_as_repetition(small: Any) -> None:
    model = small.model()
    ((likely,), (other,)) = ids_of(small, "q"), ids_of(small, "z")
    model.forward = constant(model, {likely: 1.0, other: 0.9})
    options: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 10.0, "max_new_tokens": 2}
    assert [reply.text for reply in replies(model, small, ["q", "q q q q z"], **options)] == ["qz", "qz"]
    conversation = Conversation(model, small.tokenizer, context=CONTEXT, device="cpu")
    turns = [Message("user", "q"), Message("assistant", "qz"), Message("user", "q")]
    assert conversation.reply(turns, GenerateConfig(**options)).text == "qz"


def test_the_repetition_penalty_is_that_of_transformers_without_the_prompt(model: Any, small: Any) -> None:
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor as Penalty

    prompt = small.tokenizer.encode_prompt([Message("user", PROMPTS[1])])
    made = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        logits_processor=[Penalty(1.3, prompt_ignore_length=len(prompt))], do_sample=False, max_new_tokens=40,
        eos_token_id=sorted(small.tokenizer.reply_stop_ids), pad_token_id=small.tokenizer.pad_id,
    )  # fmt: skip
    (reply,) = replies(model, small, [PROMPTS[1]], temperature=0.0, repetition_penalty=1.3, max_new_tokens=40)
    stops = small.tokenizer.reply_stop_ids
    ids = [token for token in made[0, len(prompt) :].tolist() if token not in stops]
    assert reply.text == small.tokenizer.decode(ids)


def test_replies_are_drawn_by_their_probabilities(small: Any) -> None:
    model = small.model()
    ((a,), (b,)) = ids_of(small, "a"), ids_of(small, "b")
    model.forward = constant(model, {a: math.log(0.75), b: math.log(0.25)})
    (reply,) = replies(model, small, ["hi"], max_new_tokens=200, temperature=1.0, top_p=1, repetition_penalty=1)
    assert 0.65 < reply.text.count("a") / len(reply.text) < 0.85


def test_a_seed_gives_the_same_replies_again_and_another_others(model: Any, small: Any) -> None:
    first, again, other = (replies(model, small, PROMPTS, temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert all(a.text != b.text for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_generators_of_random_numbers_are_left_as_they_were(
    model: Any, small: Any, temperature: float
) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    replies(model, small, PROMPTS, temperature=temperature)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before[1:]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_replying_and_the_mode_is_given_back(small: Any, training: bool) -> None:
    model = small.model("gpt2", dropout=0.5, initializer_range=0.4)
    without = replies(model.eval(), small, PROMPTS, **GREEDY)
    assert replies(model.train(training), small, PROMPTS, **GREEDY) == without
    assert model.training is training


def constant(model: Any, logits: dict[int, float]) -> Any:
    """Return a forward that gives these tokens, and no others, the same logits at every step."""
    forward = model.forward

    @wraps(forward)
    def say(*args: Any, **kwargs: Any) -> Any:
        made = forward(*args, **kwargs)
        made.logits = torch.full_like(made.logits, -torch.inf)
        made.logits[:, -1, list(logits)] = torch.tensor(list(logits.values()))
        return made

    return say


def scripted(small: Any, ids: Sequence[int]) -> Any:
    """Return a model that says these ids, whatever it is asked."""
    model = small.model()
    forward, script = model.forward, iter(ids)

    @wraps(forward)
    def say(*args: Any, **kwargs: Any) -> Any:
        made = forward(*args, **kwargs)
        made.logits = torch.zeros_like(made.logits)
        made.logits[:, -1, next(script)] = 1
        return made

    model.forward = say
    return model


def ids_of(small: Any, text: str) -> list[int]:
    return list(small.tokenizer.hf(text, add_special_tokens=False)["input_ids"])


def test_a_reply_ends_with_its_turn(small: Any) -> None:
    ids = ids_of(small, "Hello there.")
    for end in small.tokenizer.stop_ids:
        (reply,) = replies(scripted(small, [*ids, end]), small, ["hi"], **GREEDY)
        assert [reply] == [Reply("Hello there.", len(ids) + 1, 0, "end of turn")]


def test_any_of_several_ends_ends_a_reply(small: Any) -> None:
    tokenizer = copy.copy(small.tokenizer)
    tokenizer.reply_stop_ids = frozenset(
        {small.tokenizer.end_of_turn_id, small.tokenizer.hf.vocab["<|end_of_text|>"]}
    )
    ids = ids_of(small, "Yes")
    for end in tokenizer.reply_stop_ids:
        (reply,) = replies(scripted(small, [*ids, end]), small, ["hi"], tokenizer=tokenizer, **GREEDY)
        assert (reply.text, reply.stop_reason) == ("Yes", "end of turn")


def test_a_reply_that_ends_at_once_is_empty(small: Any) -> None:
    (reply,) = replies(scripted(small, [small.tokenizer.end_of_turn_id]), small, ["hi"], **GREEDY)
    assert [reply] == [Reply("", 1, 0, "end of turn")]


def test_a_reply_as_long_as_allowed_stops_for_its_length(small: Any) -> None:
    ids = ids_of(small, "and so on")
    (reply,) = replies(scripted(small, ids), small, ["hi"], max_new_tokens=len(ids), **GREEDY)
    assert [reply] == [Reply("and so on", len(ids), 0, "length")]


def test_a_reply_that_fills_the_context_stops_there(model: Any, small: Any) -> None:
    prompt = "word " * 20
    taken = len(small.tokenizer.encode_prompt([Message("user", prompt.strip())]))
    (reply,) = replies(model, small, [prompt.strip()], max_new_tokens=10_000, **GREEDY)
    assert (reply.stop_reason, reply.tokens) == ("context full", CONTEXT - taken)


class Asked:
    """Remembers the prompts that a model is asked to go on with, the padding left out."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[list[int]] = []
        forward = model.forward

        @wraps(forward)
        def remember(*, input_ids: torch.Tensor, **options: Any) -> Any:
            if input_ids.shape[1] > 1:
                masks = options.get("attention_mask")
                kept = torch.ones_like(input_ids) if masks is None else masks
                for row, mask in zip(input_ids, kept, strict=True):
                    self.ids.append(row[mask.bool()].tolist())
            return forward(input_ids=input_ids, **options)

        monkeypatch.setattr(model, "forward", remember)


@pytest.mark.parametrize(("max_new_tokens", "room"), [(TOKENS, TOKENS), (128, 128), (5000, 128)])
def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_answered(
    model: Any, small: Any, monkeypatch: pytest.MonkeyPatch, max_new_tokens: int, room: int
) -> None:
    asked = Asked(model, monkeypatch)
    prompt = " ".join(map(str, range(400)))
    whole = small.tokenizer.encode_prompt([Message("user", prompt)])
    (reply,) = replies(model, small, [prompt], max_new_tokens=max_new_tokens, **GREEDY)
    assert len(whole) > CONTEXT
    assert asked.ids == [whole[-(CONTEXT - room) :]]
    assert reply.cut_tokens == len(whole) - (CONTEXT - room)
    assert reply.stop_reason == "end of turn" or reply.tokens == room


def test_a_prompt_that_fits_is_asked_whole(model: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(model, monkeypatch)
    replies(model, small, PROMPTS)
    expected = [small.tokenizer.encode_prompt([Message("user", prompt)]) for prompt in PROMPTS]
    assert sorted(asked.ids) == sorted(expected)


def test_no_prompts_have_no_replies(small: Any) -> None:
    assert replies(small.model(), small, []) == []


@given(text=st.text(max_size=12))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_the_streamed_pieces_are_the_reply(small: Any, text: str) -> None:
    pieces: list[str] = []
    ids = ids_of(small, text)
    model = scripted(small, [*ids, small.tokenizer.end_of_turn_id])
    (reply,) = replies(model, small, ["hi"], max_new_tokens=100, on_text=pieces.append, **GREEDY)
    assert "".join(pieces) == reply.text == text.strip()
    assert all(pieces)


@given(ids=st.lists(st.integers(0, 511), min_size=1, max_size=12))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_the_streamed_pieces_are_the_reply_whatever_bytes_a_model_says(small: Any, ids: list[int]) -> None:
    pieces: list[str] = []
    model = scripted(small, ids)
    (reply,) = replies(model, small, ["hi"], max_new_tokens=len(ids), on_text=pieces.append, **GREEDY)
    assert "".join(pieces) == reply.text
    assert reply.text == small.tokenizer.decode(ids[: reply.tokens])


def test_a_character_is_shown_when_it_is_whole(small: Any) -> None:
    pieces: list[str] = []
    ids = ids_of(small, "a👋b")
    assert len(ids) > 3
    replies(scripted(small, ids), small, ["hi"], max_new_tokens=len(ids), on_text=pieces.append, **GREEDY)
    assert pieces == ["a", "👋", "b"]


def test_several_prompts_are_not_streamed(model: Any, small: Any) -> None:
    pieces: list[str] = []
    assert len(replies(model, small, PROMPTS, on_text=pieces.append)) == len(PROMPTS)
    assert pieces == []


def test_the_repetition_penalty_keeps_a_model_from_saying_the_same_again(model: Any, small: Any) -> None:
    plain, penalised = (
        replies(model, small, ["Hello!"], temperature=0.0, repetition_penalty=penalty, max_new_tokens=60)[0]
        for penalty in (1.0, 10.0)
    )
    assert len(set(ids_of(small, penalised.text))) > len(set(ids_of(small, plain.text)))


@pytest.mark.parametrize(
    "settings_tried", [together(GENERATION_SETTINGS), pytest.param(GENERATION_SETTINGS, marks=pytest.mark.faults)]
)
def test_generation_settings_of_a_model_change_no_reply(small: Any, settings_tried: list[dict[str, Any]]) -> None:
    model = small.model(seed=1, initializer_range=0.4)
    few = GenerateConfig(max_new_tokens=3)

    def talk() -> list[Any]:
        conversation = Conversation(model, small.tokenizer, context=CONTEXT, device="cpu")
        turns = [Message("user", "Hello!")]
        first = conversation.reply(turns, few)
        turns += [Message("assistant", first.text), Message("user", "And you?")]
        return [*replies(model, small, PROMPTS[:2], max_new_tokens=3), first, conversation.reply(turns, few)]

    plain, own = talk(), model.generation_config
    for brought in settings_tried:
        model.generation_config = held = copy.deepcopy(own)
        vars(held).update(brought)
        assert talk() == plain, brought
        assert model.generation_config is held
