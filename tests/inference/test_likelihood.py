"""The published figures, against a naive computation of each."""

import math
from typing import Any

import pytest
import torch

from dialogkit.data.tokens import DialogTokens
from dialogkit.dialog import Dialog, Message

DIALOGS: list[Dialog] = [
    (Message("user", "What is the capital of France?"), Message("assistant", "Paris.")),
    (
        Message("user", "hi"),
        Message("assistant", "Hello! 👋🏽"),
        Message("user", "Grüße"),
        Message("assistant", "Ja!"),
    ),
    (Message("system", "Be brief."), Message("user", "7 plus 5?"), Message("assistant", "12")),
    (Message("user", "Write of the sea.\nTwo lines."), Message("assistant", "  The sea,\n\nthe sea — 海\t")),
    *((Message("user", f"{n} " * n), Message("assistant", f"You said {n}, {n} times.")) for n in range(1, 30)),
]


def tokens_of(small: Any, dialogs: list[Dialog]) -> DialogTokens:
    encoded = small.tokenizer.encode_dialogs(dialogs)
    answers = [sum(len(m.content.encode()) for m in dialog if m.role == "assistant") for dialog in dialogs]
    return DialogTokens.from_dialogs(
        {**e._asdict(), "answer_bytes": size} for e, size in zip(encoded, answers, strict=True)
    )


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a model that learned a little: some of its opinions are right, most are wrong."""
    made = small.model(request.param)
    folder = tmp_path_factory.mktemp("fit")
    small.fit(made, tokens_of(small, DIALOGS), folder=folder, max_steps=20, learning_rate=2e-2)
    return made


def naive_figures(model: Any, small: Any) -> dict[str, float]:
    """Go through the dialogs one by one and the answers token by token, in float64."""
    end = small.tokenizer.end_of_turn_id
    nats, answer_nats, right, near, count, ends, size = 0.0, 0.0, 0, 0, 0, 0, 0
    for dialog, encoded in zip(DIALOGS, small.tokenizer.encode_dialogs(DIALOGS), strict=True):
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([encoded.input_ids])).logits[0]
        for position, learned in enumerate(encoded.supervised):
            if not learned:
                continue
            token = encoded.input_ids[position]
            probabilities = torch.softmax(logits[position - 1].double(), 0)
            nats -= math.log(probabilities[token])
            answer_nats -= math.log(probabilities[token]) if token != end else 0.0
            right += int(probabilities.argmax()) == token
            near += token in probabilities.topk(5).indices
            ends += token == end
            count += 1
        size += len("".join(m.content for m in dialog if m.role == "assistant").encode())
    return {
        "nats_per_token": nats / count,
        "perplexity": math.exp(nats / count),
        "bits_per_byte": answer_nats / math.log(2) / size,
        "accuracy": right / count,
        "top5_accuracy": near / count,
        "end_of_turn_nats": (nats - answer_nats) / ends,
    }


def test_the_figures_are_those_of_a_naive_loop(model: Any, small: Any) -> None:
    expected = naive_figures(model, small)
    scored = small.score(model, tokens_of(small, DIALOGS))
    assert scored.figures() == pytest.approx(expected, rel=1e-5)
    assert scored.figures()["accuracy"] == expected["accuracy"]
    assert scored.figures()["top5_accuracy"] == expected["top5_accuracy"]
    assert 0.05 < expected["accuracy"] < 0.95


def test_the_figures_do_not_depend_on_the_batch_size(model: Any, small: Any) -> None:
    dialogs = tokens_of(small, DIALOGS)
    one, *others = [small.score(model, dialogs, batch_size=size) for size in (1, 2, 8, 32)]
    for other in others:
        assert other.figures() == pytest.approx(one.figures(), rel=1e-6)
        for counted in ("tokens", "answer_bytes", "ends", "correct", "likely"):
            assert getattr(other, counted).tolist() == getattr(one, counted).tolist()


def test_the_figures_do_not_depend_on_the_order(model: Any, small: Any) -> None:
    dialogs = tokens_of(small, DIALOGS)
    turned = dialogs.select(range(len(DIALOGS) - 1, -1, -1))
    assert small.score(model, turned).figures() == pytest.approx(small.score(model, dialogs).figures(), rel=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_untrained_model_is_about_as_unsure_as_its_vocabulary_is_large(architecture: str, small: Any) -> None:
    scored = small.score(small.model(architecture))
    assert scored.figures()["nats_per_token"] == pytest.approx(math.log(small.vocabulary), rel=0.02)


def test_every_supervised_token_is_scored_once(small: Any) -> None:
    scored = small.score(small.model())
    assert scored.tokens.sum() == small.evaluation.supervised_tokens
    assert scored.answer_bytes.tolist() == small.evaluation.answer_bytes.tolist()


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_scoring_and_the_mode_is_given_back(training: bool, small: Any) -> None:
    model = small.model("gpt2", dropout=0.5).train(training)
    assert small.score(model).nats.tolist() == small.score(model).nats.tolist()
    assert model.training is training
    with pytest.raises(TypeError):
        small.score(model, [None])
    assert model.training is training


def test_scoring_builds_no_graph(small: Any) -> None:
    model, graphs = small.model(), list[bool]()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: graphs.append(logits.requires_grad))
    small.score(model)
    assert graphs
    assert not any(graphs)


def test_a_hopeless_perplexity_is_large_and_finite(small: Any) -> None:
    model = small.model(initializer_range=1.0)
    with torch.no_grad():
        model.lm_head.weight *= 1e4
    figures = small.score(model).figures()
    assert figures["nats_per_token"] > 700
    assert math.isfinite(figures["perplexity"])
