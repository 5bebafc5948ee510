"""Tokenizers: the ids of dialogs under every kind of chat format, loading, and training."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.config.model import SHIPPED_VOCABULARIES, ModelConfig
from dialogkit.data.sources import STARTER
from dialogkit.dialog import SPECIAL_TOKENS, Dialog, Message, native_format, plain_format, turns_format
from dialogkit.errors import ConfigError, DataError, ModelError
from dialogkit.models.tokenizer import (
    SHIPPED_TOKENIZER,
    ChatTokenizer,
    load_tokenizer,
    train_tokenizer,
    with_format,
)
from tests.conftest import typed
from tests.models.foreign import CHATML, CHATS, byte_level, chatml, gpt2_like, save, sentencepiece_like

SCRATCH: dict[str, Any] = {"layers": 1, "width": 8, "heads": 1, "context": 64}


def dialog(*turns: str, system: str | None = None) -> Dialog:
    roles = ("user", "assistant") * len(turns)
    opening: Dialog = (Message("system", system),) if system is not None else ()
    return opening + tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))  # type: ignore[arg-type]


DIALOGS = [
    dialog("Hello!", "Hi."),
    dialog("Hello!", "Hi.", "How are you?", "Fine, thanks.", "Bye", "Bye!"),
    dialog("Who are you?", "A model.", system="You are brief."),
    dialog("Code?", "def f(x):\n    return x\n\n\nprint(f(1))\t# one"),
    dialog(
        "Zwölf Boxkämpfer", "\u4f60\u597d, \u0645\u0631\u062d\u0628\u0627, \u043f\u0440\u0438\u0432\u0435\u0442"
    ),
    dialog(
        "Faces: \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "e\u0301 is not \u00e9, \u00a0 no \u2028 break",
    ),
    dialog("  1+1=?", "2 . it 's , do n't !", "and 12345678901234567890?", "(that) is [a] {lot} 'of' \"it\""),
    dialog("x " * 200, "y" * 300),
]


@cache
def chat(kind: str) -> ChatTokenizer:
    return CHATS[kind]()


def template_ids(tokenizer: ChatTokenizer, messages: Dialog, **options: Any) -> list[int]:
    """Return what every other tool would see of a dialog."""
    plain = [message._asdict() for message in messages]
    return list(tokenizer.hf.apply_chat_template(plain, tokenize=True, **options)["input_ids"])


def special_ids(tokenizer: ChatTokenizer, ids: list[int]) -> list[int]:
    special = {i for i, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
    return [i for i in ids if i in special]


def answers(tokenizer: ChatTokenizer, messages: Dialog) -> list[list[int]]:
    """Return the ids of each supervised stretch."""
    encoded = tokenizer.encode_dialogs([messages])[0]
    stretches: list[list[int]] = []
    before = False
    for token, supervised in zip(encoded.input_ids, encoded.supervised, strict=True):
        if supervised and not before:
            stretches.append([])
        if supervised:
            stretches[-1].append(token)
        before = supervised
    return stretches


@pytest.mark.parametrize("kind", CHATS)
def test_ids_are_those_of_the_chat_template(kind: str) -> None:
    tokenizer = chat(kind)
    for messages in DIALOGS:
        assert tokenizer.encode_dialogs([messages])[0].input_ids == template_ids(tokenizer, messages)


@pytest.mark.parametrize("kind", CHATS)
def test_the_prompt_is_what_the_chat_template_makes_for_a_reply(kind: str) -> None:
    tokenizer = chat(kind)
    for messages in DIALOGS:
        prompt = template_ids(tokenizer, messages[:-1], add_generation_prompt=True)
        assert tokenizer.encode_prompt(messages[:-1]) == prompt


GREETING = [("Hello!", None), ("Hello!", "You are brief.\nVery."), ("User: Hi\nthere", "a")]


@pytest.mark.parametrize("kind", [kind for kind in CHATS if kind != "sentencepiece template"])
@pytest.mark.parametrize(("said", "system"), GREETING)
def test_in_the_text_of_a_prompt_the_system_text_stands_apart(kind: str, said: str, system: str | None) -> None:
    if system is None and kind.startswith("template"):
        system = "You are a helpful assistant."  # what this template says of itself
    text = chat(kind).prompt_text(chat(kind).encode_prompt(dialog(said, system=system)))
    assert text == (said if system is None else f"(system: {system}) {said}")


def test_of_a_format_that_ends_no_turns_but_answers_the_prompt_is_shown_as_it_is() -> None:
    tokenizer = chat("sentencepiece template")
    text = tokenizer.prompt_text(tokenizer.encode_prompt(dialog("Hello there", system="Be brief")))
    assert text.index("Be brief") < text.index("Hello there")


def test_the_starter_dialogs_have_the_ids_of_the_chat_template() -> None:
    rows = [json.loads(line)["messages"] for line in STARTER.read_text(encoding="utf-8").splitlines()]
    dialogs = [tuple(Message(turn["role"], turn["content"]) for turn in row) for row in rows]
    encoded = chat("native").encode_dialogs(dialogs)
    assert [e.input_ids for e in encoded] == [template_ids(chat("native"), d) for d in dialogs]


def test_dialogs_have_the_same_ids_alone_and_in_a_batch() -> None:
    for kind in CHATS:
        tokenizer = chat(kind)
        assert tokenizer.encode_dialogs(DIALOGS) == [tokenizer.encode_dialogs([d])[0] for d in DIALOGS]


INJECTIONS = [
    *SPECIAL_TOKENS, "<|endoftext|>", "<|im_start|>system\n", "<|im_end|>", "</s>", "<s>", "<unk>", "<</s>/s>",
    "<<|im_end|>|im_end|>", "\ue0f0", "\ue0f1", "\ue0f00\ue0f1", "\ue0f0<|im_end|>\ue0f1", "{{ 1 }}", "{% if %}",
    "\\n", "'",
]  # fmt: skip
CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CONTENT = (
    st.lists(CHARACTERS | st.sampled_from(INJECTIONS), min_size=1, max_size=4)
    .map("".join)
    .map(str.strip)
    .filter(bool)
)
EXCHANGES = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", CHATS)
@settings(max_examples=12, derandomize=True, deadline=None, database=None)
@given(system=st.none() | CONTENT, exchanges=EXCHANGES)
def test_a_prompt_is_a_prefix_of_training_and_the_answer_follows(
    kind: str, system: str | None, exchanges: list[tuple[str, str]]
) -> None:
    tokenizer = chat(kind)
    messages = dialog(*(text for exchange in exchanges for text in exchange), system=system)
    trained = tokenizer.encode_dialogs([messages])[0]
    stretches = iter(answers(tokenizer, messages))
    learned = [False] * len(trained.supervised)
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt, answer = tokenizer.encode_prompt(messages[:index]), next(stretches)
        end = len(prompt) + len(answer)
        assert trained.input_ids[:end] == prompt + answer
        assert answer[-1] == tokenizer.end_of_turn_id
        if "sentencepiece" not in kind and "," not in kind:
            assert tokenizer.decode(answer) == message.content
        learned[len(prompt) : end] = [True] * len(answer)
    assert trained.supervised == learned
    assert next(stretches, None) is None
    # Whatever the texts hold, the special tokens are those of the format.
    harmless = tuple(Message(m.role, "x") for m in messages)
    expected = tokenizer.encode_dialogs([harmless])[0].input_ids
    assert special_ids(tokenizer, trained.input_ids) == special_ids(tokenizer, expected)


@pytest.mark.parametrize("kind", CHATS)
def test_answers_decode_to_what_was_said(kind: str) -> None:
    tokenizer = chat(kind)
    for messages in DIALOGS:
        said = [message.content for message in messages if message.role == "assistant"]
        assert [tokenizer.decode(ids) for ids in answers(tokenizer, messages)] == said


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize(
    "text", ["<|end_of_turn|>", "<|assistant|>", "<|im_end|>", "<|endoftext|>", "</s>", "<s>"]
)
def test_a_special_token_that_a_user_types_stays_text(kind: str, text: str) -> None:
    tokenizer = chat(kind)
    typed, harmless = (tokenizer.encode_prompt([Message("user", f"a {word} b")]) for word in (text, "x"))
    assert special_ids(tokenizer, typed) == special_ids(tokenizer, harmless)
    if "sentencepiece" not in kind and "," not in kind:
        assert f"a {text} b" in tokenizer.decode(typed)


def test_encoding_leaves_the_tokenizer_as_other_tools_expect_it() -> None:
    tokenizer = CHATS["template"]()
    tokenizer.encode_dialogs(DIALOGS)
    assert tokenizer.hf.backend_tokenizer.encode("<|im_end|>").ids == [tokenizer.end_of_turn_id]


@pytest.mark.parametrize("kind", CHATS)
def test_a_saved_tokenizer_is_recognised_as_the_same_format(kind: str, tmp_path: Path) -> None:
    tokenizer = chat(kind)
    tokenizer.save(tmp_path / "model")
    again = load_tokenizer(ModelConfig(source=str(tmp_path / "model")))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.stop_ids == tokenizer.stop_ids
    assert again.encode_dialogs(DIALOGS) == tokenizer.encode_dialogs(DIALOGS)
    prompt = [Message("user", "a <|end_of_turn|> </s> b")]
    assert again.encode_prompt(prompt) == tokenizer.encode_prompt(prompt)


def test_fingerprints_distinguish_vocabularies_and_formats() -> None:
    hf = [gpt2_like(), gpt2_like(), byte_level("<|endoftext|>", "<|more|>", eos="<|endoftext|>")]
    formats = [plain_format("<|endoftext|>"), turns_format("<|endoftext|>"), plain_format("<|endoftext|>")]
    assert len({ChatTokenizer(h, f).fingerprint for h, f in zip(hf, formats, strict=True)}) == 3


def test_half_a_surrogate_pair_in_a_prompt_is_encoded_as_unknown() -> None:
    prompt = chat("native").encode_prompt([Message("user", "a\udcffb")])
    assert prompt == chat("native").encode_prompt([Message("user", "a?b")])


def test_generation_ends_at_the_end_of_turn_and_at_the_end_of_text() -> None:
    hf = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", eos="<|endoftext|>", template=CHATML)
    tokenizer = ChatTokenizer(hf, None)
    assert tokenizer.hf.convert_ids_to_tokens(sorted(tokenizer.stop_ids)) == ["<|endoftext|>", "<|im_end|>"]
    assert tokenizer.hf.convert_ids_to_tokens(tokenizer.end_of_turn_id) == "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "reported"),
    [
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}", "would never stop"),
        ("{{ raise_exception('not for you') }}", "not for you"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "refuses a dialog"),
        ("{% for m in messages %}", "refuses a dialog"),
        (
            "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}",
            "does not show the text",
        ),
    ],
    ids=["no special token after an answer", "raises", "type error", "syntax error", "wants parts"],
)
def test_a_template_that_cannot_be_trained_with_is_refused(template: str, reported: str) -> None:
    with pytest.raises((ModelError, DataError), match=reported) as refused:
        ChatTokenizer(chatml(template), None)
    assert typed(refused.value) == "--set model.chat_format=plain"


def test_a_dialog_that_the_template_refuses_has_no_ids_and_the_reason() -> None:
    template = "{% if messages[0]['content'] == 'Hush' %}{{ raise_exception('not that') }}{% endif %}" + CHATML
    tokenizer = ChatTokenizer(chatml(template), None)
    refused, taken = tokenizer.encode_dialogs([dialog("Hush", "Hi"), dialog("Hello", "Hi")])
    assert (refused.input_ids, refused.supervised) == ([], [])
    assert refused.remarks.refused == "the model's chat template refuses a dialog: not that"
    assert tokenizer.decode(taken.input_ids).endswith("Hi")
    with pytest.raises(DataError, match="not that") as error:
        tokenizer.encode_prompt([Message("user", "Hush")])
    assert typed(error.value) == "--set model.chat_format=plain"


def test_answers_that_a_template_shortens_later_are_not_supervised() -> None:
    content = (
        "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
        "{% else %}{{ m['content'] }}{% endif %}"
    )
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        + content
        + "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokenizer = ChatTokenizer(chatml(template), None)
    messages = dialog("1?", "<think>a</think>one", "2?", "two", "3?", "<think>c</think>three")
    assert tokenizer.encode_dialogs([messages])[0].input_ids == template_ids(tokenizer, messages)
    learned = [tokenizer.decode(ids) for ids in answers(tokenizer, messages)]
    assert learned == ["two", "<think>c</think>three"]


def test_auto_finds_the_format_of_a_tokenizer_without_a_template() -> None:
    auto = ModelConfig(source="somewhere")
    assert with_format(gpt2_like(), auto).hf.chat_template == plain_format("<|endoftext|>").template()
    ours = byte_level(*SPECIAL_TOKENS, eos="<|end_of_turn|>")
    assert with_format(ours, auto).hf.chat_template == native_format().template()
    # One of our tokens alone does not make the format ours.
    other = byte_level("</s>", "<|end_of_turn|>", eos="</s>")
    assert with_format(other, auto).hf.chat_template == plain_format("</s>").template()


def test_a_named_format_takes_the_place_of_a_template() -> None:
    config = ModelConfig(source="somewhere", chat_format="turns")
    tokenizer = with_format(chatml(), config)
    ids = tokenizer.encode_dialogs([dialog("Hello", "Hi")])[0].input_ids
    assert tokenizer.hf.decode(ids) == "Hello<|im_end|>Hi<|im_end|>"


@pytest.mark.parametrize("chat_format", ["auto", "plain", "turns"])
def test_a_tokenizer_without_an_end_of_text_token_is_refused(chat_format: str) -> None:
    config = ModelConfig.model_validate({"source": "somewhere", "chat_format": chat_format})
    with pytest.raises(ModelError, match="end-of-text token"):
        with_format(byte_level(), config)


def test_our_format_needs_all_of_its_tokens() -> None:
    config = ModelConfig(source="somewhere", chat_format="dialogkit")
    with pytest.raises(ModelError, match=r"no token '<\|assistant\|>'") as refused:
        with_format(byte_level("<|end_of_turn|>", "<|user|>", "<|system|>"), config)
    assert typed(refused.value) == "--set model.chat_format=plain"


def test_a_tokenizer_without_a_fast_form_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ModelError, match="no fast"):
        with_format(ByT5Tokenizer(), ModelConfig(source="somewhere"))


@pytest.mark.parametrize("kind", CHATS)
def test_the_texts_of_the_tokens_are_the_text(kind: str) -> None:
    tokenizer = chat(kind)
    (encoded,) = tokenizer.encode_dialogs([dialog("Hello there, you!", "It's 25 degrees.", system="Be brief.")])
    texts = tokenizer.token_texts(encoded.input_ids)
    whole = tokenizer.hf.decode(encoded.input_ids, skip_special_tokens=False)
    assert "".join(texts).split() == whole.split()
    special = [
        text for number, text in zip(encoded.input_ids, texts, strict=True) if number in tokenizer.special_ids
    ]
    assert tokenizer.hf.convert_tokens_to_ids(special) == [
        i for i in encoded.input_ids if i in tokenizer.special_ids
    ]


def test_parts_of_a_character_are_shown_as_their_bytes() -> None:
    tokenizer = chat("plain")
    ids = tokenizer.hf.encode("\u00fc \U0001f600", add_special_tokens=False)
    assert tokenizer.token_texts(ids) == ["\\xc3", "\\xbc", " ", "\\xf0", "\\x9f", "\\x98", "\\x80"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\xff"])
def test_a_damaged_tokenizer_file_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    for config in (ModelConfig(tokenizer=str(tmp_path), **SCRATCH), ModelConfig(source=str(tmp_path))):
        with pytest.raises(ModelError, match="cannot be loaded: ") as refused:
            load_tokenizer(config)
        assert "\n" not in refused.value.message


def test_a_folder_without_a_tokenizer_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json") as refused:
        load_tokenizer(ModelConfig(tokenizer=str(tmp_path), **SCRATCH))
    assert typed(refused.value) == "dialogkit tokenizer train --help"


def test_a_tokenizer_folder_may_stand_in_for_the_shipped_one(tmp_path: Path) -> None:
    save(sentencepiece_like(), tmp_path)
    tokenizer = load_tokenizer(ModelConfig(tokenizer=str(tmp_path), **SCRATCH))
    assert tokenizer.hf.chat_template == plain_format("</s>").template()


@pytest.mark.parametrize(("name", "vocabulary"), SHIPPED_VOCABULARIES.items())
def test_the_shipped_tokenizers_have_the_native_format(name: str | None, vocabulary: int) -> None:
    tokenizer = load_tokenizer(ModelConfig(tokenizer=name, **SCRATCH))
    assert tokenizer.vocabulary == vocabulary
    assert tokenizer.hf.convert_ids_to_tokens(range(6)) == list(SPECIAL_TOKENS)
    assert [token.special for token in tokenizer.hf.added_tokens_decoder.values()] == [True] * 6
    assert sorted(tokenizer.hf.get_vocab().values()) == list(range(vocabulary))
    assert tokenizer.hf.chat_template == native_format().template()
    template = (SHIPPED_TOKENIZER / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == native_format().template()
    assert tokenizer.stop_ids == {SPECIAL_TOKENS.index("<|end_of_turn|>")}
    assert tokenizer.pad_id == SPECIAL_TOKENS.index("<|pad|>")


@given(CHARACTERS)
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
def test_the_shipped_tokenizer_knows_every_text(text: str) -> None:
    ids = chat("native").hf.encode(text, add_special_tokens=False)
    assert chat("native").hf.decode(ids) == text


def test_the_same_texts_train_the_same_tokenizer(tmp_path: Path) -> None:
    texts = STARTER.read_text(encoding="utf-8").splitlines()[:60]
    for name in ("one", "two"):
        assert train_tokenizer(iter(texts), vocabulary=600, output=tmp_path / name) == 600
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "tokenizer.json" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_trained_tokenizer_has_the_chat_format_and_knows_every_byte(tmp_path: Path) -> None:
    assert train_tokenizer(["abc"], vocabulary=262, output=tmp_path) == 262
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == native_format().template()
    tokenizer = load_tokenizer(ModelConfig(tokenizer=str(tmp_path), **SCRATCH))
    assert tokenizer.hf.convert_ids_to_tokens(range(6)) == list(SPECIAL_TOKENS)
    for messages in DIALOGS:
        assert [tokenizer.decode(ids) for ids in answers(tokenizer, messages)] == [
            m.content for m in messages if m.role == "assistant"
        ]


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="261 is too small") as refused:
        train_tokenizer(["abc"], vocabulary=261, output=tmp_path / "new")
    assert typed(refused.value, "tokenizer", "train") == "--vocab-size 262"
    assert not (tmp_path / "new").exists()
