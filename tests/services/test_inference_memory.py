"""Replies and scores take the memory that is there: fewer at once, or one sentence instead of a killed process."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.api.inference import evaluate
from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.errors import OutOfMemoryError
from dialogkit.hints import Call, Change
from dialogkit.inference import replies
from dialogkit.services import inference_memory
from dialogkit.services.chat import Chat
from dialogkit.services.generate import generate
from dialogkit.services.inference_memory import replies_at_once, scored_at_once
from dialogkit.services.runs.loading import LoadedModel, load_for_inference
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.services.serving.engine import Begun, Ended, Engine, Job
from tests.conftest import Trained

GREEDY = GenerateConfig(temperature=0.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def loaded(trained: Trained) -> LoadedModel:
    return load_for_inference(resolve_model("shared-run", output=trained.output), device="cpu")


def leave(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(inference_memory, "free_bytes", lambda: free)


def test_the_keys_and_values_are_those_of_the_cache(loaded: LoadedModel) -> None:
    with torch.no_grad():
        cache = loaded.model(input_ids=torch.ones(1, 40, dtype=torch.long), use_cache=True).past_key_values
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert inference_memory.bytes_of_cache(loaded) * 40 == held


def test_as_many_are_computed_at_once_as_fit(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    one = inference_memory.bytes_of_reply(loaded, 20, GREEDY, 0)
    several = one + inference_memory._MASK_BYTES * 20**2  # of different lengths, which takes a mask
    for free, at_once in ((None, 32), (100 * several, 32), (3 * several, 3), (one, 1)):
        leave(monkeypatch, free)
        assert replies_at_once(loaded, [5, 20], GREEDY, 32) == at_once
    lengths = [10, 20, 30]
    leave(monkeypatch, None)
    assert scored_at_once(loaded, lengths, 8) == 8
    leave(monkeypatch, 2**40)
    assert scored_at_once(loaded, lengths, 8) == 8
    for dialogs in (1, 2):
        leave(
            monkeypatch,
            inference_memory.bytes_of_logits(loaded) + dialogs * inference_memory.bytes_of_layer(loaded, 30),
        )
        assert scored_at_once(loaded, lengths, 8) == dialogs


def test_replies_and_metrics_are_the_same_with_little_memory(
    loaded: LoadedModel, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[int] = []
    answer = replies.continue_prompts

    def counting(*asked: Any, batch_size: int, **rest: Any) -> Any:
        at_once.append(batch_size)
        return answer(*asked, batch_size=batch_size, **rest)

    monkeypatch.setattr(replies, "continue_prompts", counting)
    prompts = ["Hello!", "Who are you?", "What is a dog?"]
    longest = max(len(loaded.tokenizer.encode_prompt([Message("user", text)])) for text in prompts)
    found = []
    for free in (None, inference_memory.bytes_of_reply(loaded, longest, GREEDY, 0)):
        leave(monkeypatch, free)
        said = generate("shared-run", prompts, config=GREEDY, output=trained.output, device="cpu")
        found.append([reply.reply for reply in said.replies])
    assert at_once == [replies.AT_ONCE, 1]
    assert found[0] == found[1]
    bits = []
    for free in (
        None,
        inference_memory.bytes_of_logits(loaded) + inference_memory.bytes_of_layer(loaded, loaded.context),
    ):
        leave(monkeypatch, free)
        of = evaluate("shared-run", quick=True, output=trained.output, device="cpu")
        bits.append(of.rows[0].bits_per_byte)
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)


def test_what_does_not_fit_is_told_with_what_does(
    loaded: LoadedModel, trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leave(monkeypatch, inference_memory.bytes_of_reply(loaded, 30, GREEDY, 0))
    where: dict[str, Any] = {"output": trained.output, "device": "cpu"}
    long = GREEDY.model_copy(update={"max_new_tokens": 128})
    with pytest.raises(
        OutOfMemoryError, match=r"a reply of up to 128 tokens to a prompt of \d+ takes about"
    ) as told:
        generate("shared-run", "Hello!", config=long, **where)
    assert isinstance(told.value.hint, Change)
    limit = told.value.hint.settings["max_new_tokens"]
    generate("shared-run", "Hello!", config=long.model_copy(update={"max_new_tokens": limit}), **where)

    chat = Chat("shared-run", config=long, **where)
    with pytest.raises(OutOfMemoryError) as told:
        chat.say("Hello!")
    assert told.value.hint == Call("chat set", "max_new_tokens", limit)
    chat.set("max_new_tokens", str(limit))
    assert chat.say("Hello!").tokens <= limit

    leave(monkeypatch, 1000)
    with pytest.raises(OutOfMemoryError, match="to score a dialog of") as told:
        evaluate("shared-run", quick=True, **where)
    assert told.value.hint == Call("models list")


def test_a_reply_that_does_not_fit_beside_others_begins_after_them(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [Message("user", "Hello!")]
    tokens = len(loaded.tokenizer.encode_prompt(prompt))
    leave(monkeypatch, inference_memory.bytes_of_reply(loaded, tokens, GREEDY, 0))
    events, done = list[tuple[str, object]](), threading.Event()

    def deliver(name: str, event: object) -> None:
        events.append((name, event))
        if len(events) == 4:
            done.set()

    engine = Engine({"it": loaded}, at_once=8, queue=8)
    engine.submit([Job("it", prompt, GREEDY, partial(deliver, name)) for name in ("first", "second")])
    assert done.wait(60)
    assert [(name, type(event)) for name, event in events] == [
        (name, kind) for name in ("first", "second") for kind in (Begun, Ended)
    ]
    leave(monkeypatch, 1)
    done.clear()
    events.clear()
    engine.submit([Job("it", prompt, GREEDY, partial(deliver, "third")) for _ in range(4)])
    assert done.wait(60)
    engine.close()
    assert [getattr(error, "status", None) for _, error in events] == [503] * 4
