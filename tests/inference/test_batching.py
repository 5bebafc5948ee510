"""Replies that join and leave a batch at any token are those that each would be alone."""

from typing import Any

import pytest
import torch

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.inference.batching import ReplyBatch, RunningReply
from dialogkit.inference.growing_text import WINDOW, GrowingText
from dialogkit.inference.replies import Reply, continue_prompts

CONTEXT = 256
PROMPTS = ["Hello!", "What is the capital of France?", "a", "One two three four five six seven eight. " * 3, "👋"]


def config(number: int, **settings: Any) -> GenerateConfig:
    """Return settings that differ from reply to reply, in what is drawn and in how."""
    temperatures = (1.5, 1.5, 0.0, 2.0, 1.5)
    return GenerateConfig(max_new_tokens=6 + 5 * number, temperature=temperatures[number], seed=number, **settings)


def prompt_ids(small: Any, text: str) -> list[int]:
    ids: list[int] = small.tokenizer.encode_prompt([Message("user", text)])
    return ids


def alone(model: Any, small: Any, number: int) -> Reply:
    ids = prompt_ids(small, PROMPTS[number])
    return continue_prompts(model, small.tokenizer, [ids], config(number), context=CONTEXT, device="cpu")[0]


def batch_of(model: Any, small: Any) -> ReplyBatch:
    return ReplyBatch(model, small.tokenizer, context=CONTEXT, device="cpu")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, small: Any) -> Any:
    return small.model(request.param, seed=1, initializer_range=0.4).eval()


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 4, 0, 2, 1]])
def test_a_reply_is_the_same_whatever_joins_and_leaves_beside_it(model: Any, small: Any, order: list[int]) -> None:
    batch, joined = batch_of(model, small), dict[int, RunningReply]()
    for number in order:
        joined[number] = batch.join(prompt_ids(small, PROMPTS[number]), config(number))
        for _ in range(number + 1):
            batch.step()
    while batch.rows:
        batch.step()
    for number, reply in joined.items():
        expected = alone(model, small, number)
        assert small.tokenizer.decode(reply.text_ids) == expected.text
        assert (len(reply.ids), reply.stop_reason) == (expected.tokens, expected.stop_reason)
    assert batch.length == 0


def test_the_cache_holds_no_more_than_the_longest_row_needs(model: Any, small: Any) -> None:
    batch = batch_of(model, small)
    long = batch.join(prompt_ids(small, PROMPTS[3]), GenerateConfig(temperature=0.0))
    short = batch.join(prompt_ids(small, PROMPTS[2]), GenerateConfig(temperature=0.0))
    assert batch.length == long.prompt_tokens
    long.stop_reason = "interruption"
    batch.step()
    assert batch.rows == [short]
    assert batch.length == short.prompt_tokens  # whose last token was read in this step


def test_what_was_read_for_another_reply_is_not_read_again(model: Any, small: Any) -> None:
    def finished(batch: ReplyBatch, dialog: list[Message], seed: int) -> RunningReply:
        reply = batch.join(small.tokenizer.encode_prompt(dialog), GenerateConfig(max_new_tokens=12, seed=seed))
        while reply.stop_reason is None:
            batch.step()
        return reply

    batch = ReplyBatch(model, small.tokenizer, context=CONTEXT, device="cpu", prefix_bytes=2**20)
    dialog = [Message("user", PROMPTS[3])]
    first = finished(batch, dialog, 1)
    assert first.reused == 0
    dialog += [Message("assistant", small.tokenizer.decode(first.text_ids)), Message("user", PROMPTS[1])]
    beside = batch.join(small.tokenizer.encode_prompt(dialog), GenerateConfig(max_new_tokens=99, seed=2))
    following = finished(batch, dialog, 2)
    assert beside.reused >= first.prompt_tokens
    assert following.reused == following.prompt_tokens - 1  # read for the reply beside it
    batch.forget()
    assert finished(batch, [Message("user", PROMPTS[3])], 1).ids == first.ids
    expected = finished(batch_of(model, small), dialog, 2)
    assert following.ids == expected.ids == beside.ids[: len(expected.ids)]


def test_a_sliding_window_is_kept_in_a_batch(small: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=small.vocabulary, num_key_value_heads=2, sliding_window=6, initializer_range=0.4, **shape
        )
    ).eval()
    batch = batch_of(model, small)
    assert batch.is_mergeable
    joined = {number: batch.join(prompt_ids(small, PROMPTS[number]), config(number)) for number in (3, 1, 4)}
    while batch.rows:
        batch.step()
    texts = {number: small.tokenizer.decode(reply.text_ids) for number, reply in joined.items()}
    assert texts == {number: alone(model, small, number).text for number in joined}


def test_a_recurrent_state_is_not_merged(small: Any) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers = {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2, "initializer_range": 0.4}
    model = Lfm2ForCausalLM(Lfm2Config(vocab_size=small.vocabulary, **layers, **shape)).eval()
    batch = batch_of(model, small)
    assert not batch.is_mergeable
    reply = batch.join(prompt_ids(small, PROMPTS[1]), config(1))
    while batch.rows:
        batch.step()
    assert small.tokenizer.decode(reply.text_ids) == alone(model, small, 1).text


def test_text_before_a_stop_string_is_held_back_until_it_is_decided() -> None:
    class Letters:
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    def grow(text: str, *stops: str) -> tuple[list[str], bool]:
        growing, pieces = GrowingText(Letters(), stops), []  # type: ignore[arg-type]
        for length in range(1, len(text) + 1):
            pieces.append(growing.add([*map(ord, text[:length])]))
        return [*pieces, growing.end([*map(ord, text)])], growing.stopped

    assert grow("one two") == ([*"one two", ""], False)
    assert grow("a END b", "END") == (["a", " ", "", "", "", "", "", ""], True)
    assert grow("a ENb", "END") == (["a", " ", "", "", "ENb", ""], False)
    assert grow("a EN", "END", "x") == (["a", " ", "", "", "EN"], False)


def test_a_long_text_grows_without_all_of_it_being_decoded_again(small: Any) -> None:
    ids = small.tokenizer.hf.encode("One 👋 two, three.\n\n  Four 👋👋 five? " * 20)
    decoded = 0

    class Counting:
        def decode(self, part: list[int]) -> str:
            nonlocal decoded
            decoded += len(part)
            return str(small.tokenizer.decode(part))

    growing = GrowingText(Counting())  # type: ignore[arg-type]
    pieces = [growing.add(ids[:length]) for length in range(1, len(ids) + 1)]
    assert decoded < 3 * WINDOW * len(ids) < len(ids) ** 2 / 2
    assert "".join([*pieces, growing.end(ids)]) == small.tokenizer.decode(ids)
    assert sum(map(len, pieces)) > len(growing.text) - 20
