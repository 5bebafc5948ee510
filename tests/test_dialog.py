"""Dialogs and their chat formats, without any tokenizer."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment, TemplateError

from dialogkit.dialog import (
    SPECIAL_TOKENS,
    Message,
    Role,
    Span,
    TurnFormat,
    check_dialog,
    native_format,
    plain_format,
    turns_format,
)

AWKWARD = TurnFormat(
    name="awkward",
    end_of_turn="<'end\\n\">",
    system=("[s]", "it's:\n"),
    user=("[u]", "'"),
    assistant=("[a]", "\\{{"),
    separator="\t",
)
"""A format with every part, and with all that must be escaped in a template."""

FORMATS = [native_format(), plain_format("<|endoftext|>"), turns_format("</s>"), AWKWARD]


def text_of(spans: list[Span]) -> str:
    return "".join(piece.text for span in spans for piece in span.pieces)


def render(template: str, messages: list[Message], *, reply: bool = False) -> str:
    """Render as transformers does."""

    def refuse(reason: str) -> None:
        raise TemplateError(reason)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.globals["raise_exception"] = refuse
    plain: list[dict[str, Any]] = [message._asdict() for message in messages]
    return environment.from_string(template).render(messages=plain, add_generation_prompt=reply)


ROLES: tuple[Role, Role] = ("user", "assistant")
CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=15) | st.sampled_from(SPECIAL_TOKENS)
MESSAGES = st.builds(
    lambda system, pairs: (
        system + [Message(role, text) for pair in pairs for role, text in zip(ROLES, pair, strict=True)]
    ),
    st.lists(st.builds(Message, st.just("system"), CONTENT), max_size=1),
    st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=4),
)
few = settings(max_examples=20, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize("turn_format", FORMATS, ids=lambda f: f.name)
@few
@given(messages=MESSAGES)
def test_the_template_is_the_same_format(turn_format: TurnFormat, messages: list[Message]) -> None:
    template = turn_format.template()
    assert render(template, messages) == text_of(turn_format.spans(messages))
    prompt = messages[:-1]
    assert render(template, prompt, reply=True) == text_of(turn_format.spans(prompt, reply=True))


@pytest.mark.parametrize("turn_format", FORMATS, ids=lambda f: f.name)
@few
@given(messages=MESSAGES)
def test_the_spans_of_a_prompt_begin_those_of_training(turn_format: TurnFormat, messages: list[Message]) -> None:
    spans = turn_format.spans(messages)
    for index, message in enumerate(messages):
        if message.role == "assistant":
            prompt = turn_format.spans(messages[:index], reply=True)
            assert spans[: len(prompt)] == prompt
            answer = spans[len(prompt)]
            assert answer.supervised
            said, end = answer.pieces
            assert said == (turn_format.separator + message.content, False)
            assert end == (turn_format.end_of_turn, True)
    assert sum(span.supervised for span in spans) == sum(m.role == "assistant" for m in messages)


@pytest.mark.parametrize("turn_format", FORMATS, ids=lambda f: f.name)
@few
@given(messages=MESSAGES)
def test_only_the_format_writes_special_tokens(turn_format: TurnFormat, messages: list[Message]) -> None:
    special = [piece.text for span in turn_format.spans(messages) for piece in span.pieces if piece.special]
    expected = [token for m in messages for token in (getattr(turn_format, m.role)[0], turn_format.end_of_turn)]
    assert special == [token for token in expected if token]
    assert set(special) <= turn_format.special_tokens


def test_the_formats_look_as_documented() -> None:
    messages = [Message("system", "S"), Message("user", "U"), Message("assistant", "A")]
    native, plain, turns, _ = (text_of(turn_format.spans(messages)) for turn_format in FORMATS)
    end = "<|end_of_turn|>"
    assert native == f"<|system|>S{end}<|user|>U{end}<|assistant|>A{end}"
    assert plain == "System: S<|endoftext|>User: U<|endoftext|>Assistant: A<|endoftext|>"
    assert turns == "S</s>U</s>A</s>"


def test_the_template_refuses_an_unknown_role() -> None:
    with pytest.raises(TemplateError, match="unknown role tool"):
        render(native_format().template(), [Message("tool", "x")])  # type: ignore[arg-type]


U, A, S = Message("user", "u"), Message("assistant", "a"), Message("system", "s")


@pytest.mark.parametrize("messages", [(U, A), (S, U, A), (U, A, U, A), (U, A, U), (S, U, A, U)])
def test_a_dialog_of_turns_is_valid(messages: tuple[Message, ...]) -> None:
    assert check_dialog(messages) is None


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((), "no message from the assistant"),
        ((S,), "no message from the assistant"),
        ((U,), "no message from the assistant"),
        ((S, U), "no message from the assistant"),
        ((A,), "message 1 is from 'assistant' instead of 'user'"),
        ((S, A), "message 2 is from 'assistant' instead of 'user'"),
        ((U, U, A), "message 2 is from 'user' instead of 'assistant'"),
        ((U, A, A), "message 3 is from 'assistant' instead of 'user'"),
        ((S, S, U, A), "message 2 is from 'system' instead of 'user'"),
        ((U, A, S, A), "message 3 is from 'system' instead of 'user'"),
        ((Message("user", " \n"), A), "message 1 (user) is empty"),
        ((S, U, Message("assistant", "")), "message 3 (assistant) is empty"),
    ],
)
def test_what_is_wrong_with_a_dialog_is_reported_with_its_place(
    messages: tuple[Message, ...], problem: str
) -> None:
    assert check_dialog(messages) == problem
