"""Templates that models bring: what is learned under them, what is changed for them, and what is said about it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from dialogkit.config.data import DataConfig
from dialogkit.config.model import ModelConfig
from dialogkit.data.prepare import PreparedData, prepare_data
from dialogkit.dialog import (
    ANSWERS_CHANGED,
    GREETING_LEFT_OUT,
    SHOWN_OTHERWISE,
    SYSTEM_FOLDED,
    Message,
    plain_format,
)
from dialogkit.errors import DataError
from dialogkit.models.tokenizer import ChatTokenizer, with_format
from tests.conftest import typed
from tests.models.foreign import CHATML, INST, byte_level, sentencepiece_like

TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}"
TURNS = "{% for m in messages %}" + TURN + "{% endfor %}"
REPLY = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
BEGUN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n[plan]\\n' }}{% endif %}"
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('Only user and assistant') }}{% endif %}"
USER_FIRST = (
    "{% set talk = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{% if talk[0].role != 'user' %}{{ raise_exception('The user speaks first') }}{% endif %}"
)

TEMPLATES = {
    "plain turns": TURNS + REPLY,
    "begins with bos": "{{ bos_token }}" + TURNS + REPLY,
    "default system text": CHATML,
    "opens replies with a plan": TURNS + BEGUN,
    "refuses system texts": REFUSES_SYSTEM + TURNS + REPLY,
    "ignores system texts": "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + REPLY,
    "wants the user first": USER_FIRST + TURNS + REPLY,
    "ends the last turn only": TURNS + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}" + REPLY,
    "drops plans of earlier answers": (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}"
        "{{ '<|im_start|>assistant\\n' + m['content'].split('[/plan]')[-1] + '<|im_end|>\\n' }}{% else %}"
        + TURN
        + "{% endif %}{% endfor %}"
        + REPLY
    ),
    "system text with the last question": (
        "{% set talk = messages | rejectattr('role', 'equalto', 'system') | list %}"
        "{% set reported = messages[0].content ~ '\\n' if messages[0].role == 'system' else '' %}"
        "{% set ns = namespace(last=0) %}"
        "{% for m in talk if m.role == 'user' %}{% set ns.last = loop.index %}{% endfor %}"
        "{% set ns.seen = 0 %}{% for m in talk %}{% if m.role == 'user' %}{% set ns.seen = ns.seen + 1 %}"
        "{{ '[INST] ' ~ (reported if ns.seen == ns.last else '') ~ m.content ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m.content ~ '<|im_end|>' }}{% endif %}{% endfor %}"
    ),
    "no token opens an answer": INST.replace("</s>", "<|im_end|>"),
    "no generation prompt": TURNS,
    "no generation prompt, labels": (
        "{% for m in messages %}{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: ', 'system': 'SYSTEM: '}[m.role] "
        "~ m.content ~ ('<|im_end|>' if m.role == 'assistant' else '\\n') }}{% endfor %}"
    ),
}
"""Templates of the kinds that models bring, written anew."""
WITHOUT_PROMPT = [name for name in TEMPLATES if name.startswith("no generation prompt")]

QUESTION = (Message("user", "Where is Oslo?"), Message("assistant", "Far up north."))
LONGER = (*QUESTION, Message("user", "Thanks."), Message("assistant", "Bye."))
SYSTEM = (Message("system", "Be brief."),)
GREETING = (Message("assistant", "Welcome!", learned=False),)
DIALOGS = (QUESTION, LONGER, SYSTEM + QUESTION, SYSTEM + LONGER)


def tokenizer_with(template: str, *, kind: str = "byte level") -> ChatTokenizer:
    return ChatTokenizer(adding_bos(template, kind), None)


def adding_bos(template: str | None = None, kind: str = "byte level") -> Any:
    """Return a tokenizer that adds a token before each text that is tokenized, as Llama's does."""
    if kind == "byte level":
        hf = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", eos="<|im_end|>", template=template)
        hf.bos_token = "<|endoftext|>"
    else:
        hf = sentencepiece_like(template)
        hf.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]})
    bos = (hf.bos_token, hf.bos_token_id)
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{bos[0]} $A", None, [bos])
    assert hf("Hi")["input_ids"][0] == hf.bos_token_id
    return hf


def others_see(tokenizer: ChatTokenizer, dialog: Any, *, reply: bool = False) -> list[int]:
    turns = [message.turn() for message in dialog]
    return list(tokenizer.hf.apply_chat_template(turns, add_generation_prompt=reply)["input_ids"])


def learned(tokenizer: ChatTokenizer, dialog: Any) -> str:
    """Return the learned text, with its special tokens."""
    (encoded,) = tokenizer.encode_dialogs([dialog])
    kept = [i for i, mark in zip(encoded.input_ids, encoded.supervised, strict=True) if mark]
    return str(tokenizer.hf.decode(kept))


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_trained_and_prompted_is_what_other_tools_see(name: str, kind: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name], kind=kind)
    for dialog in DIALOGS:
        if dialog[0].role == "system" and tokenizer.changes(dialog):
            continue
        (encoded,) = tokenizer.encode_dialogs([dialog])
        assert encoded.input_ids == others_see(tokenizer, dialog)
        assert any(encoded.supervised)
        prompt = tokenizer.encode_prompt(dialog[:-1])
        if name in WITHOUT_PROMPT:  # others prompt for the label as well
            assert encoded.input_ids[: len(prompt)] == prompt
        else:
            assert prompt == others_see(tokenizer, dialog[:-1], reply=True)
        bos = tokenizer.hf.bos_token_id
        assert (encoded.input_ids[:2] + prompt[:2]).count(bos) in (0, 2)
        assert encoded.input_ids[:2] != [bos, bos]


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
@pytest.mark.parametrize("chat_format", ["plain", "turns"])
def test_a_token_that_begins_each_text_begins_a_dialog_in_formats_of_ours(chat_format: Any, kind: str) -> None:
    config = ModelConfig(source="somewhere", chat_format=chat_format)
    tokenizer = with_format(adding_bos(kind=kind), config)
    bos = tokenizer.hf.bos_token_id
    (encoded,) = tokenizer.encode_dialogs([SYSTEM + LONGER])
    prompt = tokenizer.encode_prompt(SYSTEM + LONGER[:-1])
    assert encoded.input_ids == others_see(tokenizer, SYSTEM + LONGER)
    assert prompt == others_see(tokenizer, SYSTEM + LONGER[:-1], reply=True)
    assert (encoded.input_ids.count(bos), prompt.count(bos), prompt[0]) == (1, 1, bos)
    assert (
        tokenizer.prompt_text(tokenizer.encode_prompt(SYSTEM + LONGER[:1])) == "(system: Be brief.) Where is Oslo?"
    )
    # A saved model keeps its format, also one that was saved without the token.
    older = plain_format(tokenizer.hf.eos_token).template()
    for template in (str(tokenizer.hf.chat_template), older):
        again = with_format(adding_bos(template, kind), ModelConfig(source="somewhere"))
        assert again.hf.chat_template == template
        assert again.prompt_text(again.encode_prompt(LONGER[:1])) == "Where is Oslo?"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_is_learned_or_has_a_reason(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    lost = {"system text with the last question": 1}.get(name, 0)
    (encoded,) = tokenizer.encode_dialogs([SYSTEM + LONGER])
    assert encoded.remarks.not_learned == (SHOWN_OTHERWISE,) * lost
    said = [text.strip() for text in learned(tokenizer, SYSTEM + LONGER).split("<|im_end|>")]
    assert said == (["Far up north.", "Bye.", ""])[lost:]


@pytest.mark.parametrize("name", WITHOUT_PROMPT)
def test_without_a_generation_prompt_a_reply_starts_after_the_opening_of_an_answer(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    prompt = tokenizer.hf.decode(tokenizer.encode_prompt(QUESTION[:1]))
    assert prompt.endswith("<|im_start|>assistant\n" if name == "no generation prompt" else "\nASSISTANT:")


def test_an_answer_that_begins_as_the_prompt_opens_it_is_learned_from_there() -> None:
    tokenizer = tokenizer_with(TEMPLATES["opens replies with a plan"])
    planned = (QUESTION[0], Message("assistant", "[plan]\nThink north.\n[/plan]\nFar."))
    assert learned(tokenizer, planned) == "Think north.\n[/plan]\nFar.<|im_end|>"
    assert learned(tokenizer, QUESTION) == "Far up north.<|im_end|>"
    notes = [encoded.remarks.notes for encoded in tokenizer.encode_dialogs([planned, QUESTION])]
    assert notes[0] == ()
    assert "opens each reply with '[plan]'" in notes[1][0]


def test_an_answer_of_which_the_template_leaves_out_a_part_is_reported() -> None:
    tokenizer = tokenizer_with(TURNS.replace("m['content']", "m['content'].split('[/plan]')[-1]") + REPLY)
    planned = (QUESTION[0], Message("assistant", "[plan]Think.[/plan]  Far\n\nup."))
    plain = (QUESTION[0], Message("assistant", "Far\n\nup."))
    assert learned(tokenizer, planned) == learned(tokenizer, plain) == "Far\n\nup.<|im_end|>"
    notes = [encoded.remarks.notes for encoded in tokenizer.encode_dialogs([planned, plain])]
    assert notes == [(ANSWERS_CHANGED,), ()]


@pytest.mark.parametrize("name", ["refuses system texts", "ignores system texts"])
def test_a_system_text_without_a_role_goes_before_the_first_question(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    folded = (Message("user", "Be brief.\n\nWhere is Oslo?"), *LONGER[1:])
    one, other = tokenizer.encode_dialogs([SYSTEM + LONGER, folded])
    assert (one.input_ids, one.supervised) == (other.input_ids, other.supervised)
    assert (one.remarks.notes, other.remarks.notes) == ((SYSTEM_FOLDED,), ())
    assert tokenizer.encode_prompt(SYSTEM + QUESTION[:1]) == tokenizer.encode_prompt(folded[:1])
    assert tokenizer.changes(SYSTEM + QUESTION[:1]) == (SYSTEM_FOLDED,)


@pytest.mark.parametrize("before", [(), SYSTEM], ids=["greeting", "system text and greeting"])
def test_a_greeting_is_left_out_only_where_the_user_has_to_be_first(before: Any) -> None:
    strict, free = (tokenizer_with(TEMPLATES[name]) for name in ("wants the user first", "plain turns"))
    one, other = strict.encode_dialogs([before + GREETING + QUESTION, before + QUESTION])
    assert (one.input_ids, one.supervised) == (other.input_ids, other.supervised)
    assert one.remarks.notes == (GREETING_LEFT_OUT,)
    (kept,) = free.encode_dialogs([before + GREETING + QUESTION])
    assert kept.input_ids == others_see(free, before + GREETING + QUESTION)
    assert kept.remarks.notes == ()
    assert learned(free, before + GREETING + QUESTION) == "Far up north.<|im_end|>"


def prepared(dialogs: list[Any], tokenizer: ChatTokenizer) -> PreparedData:
    lines = [json.dumps({"messages": [message.turn() for message in dialog]}) for dialog in dialogs]
    Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return prepare_data(DataConfig(dataset="rows.jsonl"), tokenizer, context=256, cache=Path("cache"))


def named(dialog: Any, name: str) -> Any:
    return tuple(message._replace(content=message.content.replace("Oslo", name)) for message in dialog)


@pytest.mark.parametrize(
    ("name", "dialog", "reported"),
    [
        ("plain turns", SYSTEM + LONGER, []),
        (
            "system text with the last question",
            SYSTEM + LONGER,
            [f"3 of 6 answers are not learned: {SHOWN_OTHERWISE}"],
        ),
        ("refuses system texts", SYSTEM + QUESTION, [f"3 dialogs: {SYSTEM_FOLDED}"]),
        ("wants the user first", GREETING + QUESTION, [f"3 dialogs: {GREETING_LEFT_OUT}"]),
        (
            "plain turns",
            GREETING + QUESTION,
            ["3 dialogs: opening message of the assistant kept as context, not learned"],
        ),
    ],
)
def test_the_ledger_says_what_the_template_does_to_the_dialogs(
    name: str, dialog: Any, reported: list[str]
) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    for from_cache in (False, True):
        data = prepared([named(dialog, city) for city in ("Oslo", "Lima", "Bern")], tokenizer)
        assert (data.from_cache, data.ledger.remarks(), data.ledger.kept) == (from_cache, reported, 3)


def test_a_dialog_that_the_template_refuses_costs_its_row_alone() -> None:
    tokenizer = tokenizer_with(
        "{% for m in messages if 'Lima' in m.content %}{{ raise_exception('not there') }}{% endfor %}"
        + TURNS
        + REPLY
    )
    lima = named(QUESTION, "Lima")
    ledger = prepared([QUESTION, named(QUESTION, "Bern"), lima], tokenizer).ledger
    assert (ledger.kept, ledger.unusable) == (2, 1)
    refused = "rows.jsonl:3: the model's chat template refuses a dialog: not there"
    assert ledger.first_bad_row == refused
    wordless = (QUESTION[0],)
    ledger = prepared([wordless, QUESTION, named(QUESTION, "Bern"), lima], tokenizer).ledger
    assert str(ledger.first_bad_row).startswith("rows.jsonl:1: ")
    assert ledger.remarks()[-1] == f"1 dialog: left out; the first: {refused.replace(':3:', ':4:')}"
    with pytest.raises(
        DataError, match=r"none of the 2 dialogs of rows\.jsonl can be learned; the first: rows"
    ) as none:
        prepared([lima, named(QUESTION, "Lima or Quito")], tokenizer)
    assert typed(none.value) == "--set model.chat_format=plain"
