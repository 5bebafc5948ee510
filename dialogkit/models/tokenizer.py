"""Tokenizers: loading, training, and the ids of dialogs under a chat format."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers import __version__ as tokenizers_version

from dialogkit.config.model import ModelConfig
from dialogkit.dialog import (
    END_OF_TURN,
    PAD_TOKEN,
    PLAIN_FORMAT,
    SPECIAL_TOKENS,
    Dialog,
    Encoded,
    Message,
    Remarks,
    Rendered,
    Span,
    TurnFormat,
    native_format,
    plain_format,
    turns_format,
)
from dialogkit.errors import ConfigError, ModelError
from dialogkit.hints import Call, Change
from dialogkit.models.adapter_source import tokenizer_source
from dialogkit.models.chat_template import Refused, TemplateFormat
from dialogkit.models.folder import require_sound
from dialogkit.models.generation import read_stop_ids
from dialogkit.models.limits import panics_raised
from dialogkit.models.sources import find_gguf, unusable
from dialogkit.models.vocabulary import load_vocabulary

SHIPPED_TOKENIZER = Path(__file__).parent / "shipped_tokenizer"
_SHIPPED = {None: SHIPPED_TOKENIZER, "smalltalk": SHIPPED_TOKENIZER.with_name("smalltalk_tokenizer")}

MOST_GROWTH = 100
"""Most characters that a tokenizer's rules may put in place of one."""
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_BYTE_OF = {chr(byte): byte for byte in _PRINTED} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""The byte of each letter in byte-level BPE (GPT-2's table): printable bytes stand for themselves."""
_FALLBACK = re.compile("<0x([0-9A-F]{2})>")  # a byte where SentencePiece has no token


class ChatTokenizer:
    """A transformers tokenizer together with one chat format.

    Attributes:
        hf: the transformers tokenizer; its `chat_template` holds the format, so that a saved model has it.
        stop_ids: ids that end a turn.
        reply_stop_ids: ids that end a reply: `stop_ids`, and those that a model's files name.
    """

    def __init__(self, hf: Any, turn_format: TurnFormat | None) -> None:
        """Wrap a tokenizer; `turn_format` None uses its own chat template."""
        self.hf = hf
        self._backend: Tokenizer = hf.backend_tokenizer
        _require_bounded(self._backend)
        added = [token.content for token in hf.added_tokens_decoder.values() if token.special]
        special = sorted(map(str, hf.all_special_tokens + added), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._format: TurnFormat | TemplateFormat
        if turn_format is not None:
            self._format = turn_format
            hf.chat_template = turn_format.template()
            ends = {turn_format.end_of_turn}
            needed = turn_format.special_tokens
        else:
            self._format = TemplateFormat(hf, self._special)
            ends = {self._format.end_of_turn} | ({hf.eos_token} if hf.eos_token else set())
            needed = frozenset(ends)
        if unknown := sorted(token for token in needed if self._backend.token_to_id(token) is None):
            raise ModelError(
                f"the tokenizer has no token {unknown[0]!r}, which its chat format needs", hint=PLAIN_FORMAT
            )
        self.stop_ids = frozenset(map(self._id_of, ends))
        self.reply_stop_ids = self.stop_ids
        self._joins_pieces = not self._tokenizes_by_piece()

    @cached_property
    def _ids(self) -> dict[str, int]:
        return dict(self.hf.get_vocab())

    def _id_of(self, token: str) -> int:
        number = self._backend.token_to_id(token)
        assert number is not None
        return number

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return len(self.hf)

    @property
    def highest_id(self) -> int:
        """The highest id of the vocabulary, which may have gaps."""
        return max(self._ids.values(), default=-1)

    def tokens_from(self, lowest: int) -> list[tuple[int, str]]:
        """Return ids and names of the tokens whose id is at least `lowest`, by id."""
        return sorted((number, token) for token, number in self._ids.items() if number >= lowest)

    @property
    def end_of_turn_id(self) -> int:
        """The id that ends an answer."""
        return self._id_of(self._format.end_of_turn)

    @property
    def turn_format(self) -> TurnFormat | None:
        """The chat format; None if it is the model's own template."""
        return self._format if isinstance(self._format, TurnFormat) else None

    @property
    def pad_id(self) -> int:
        """The padding id; never attended to."""
        return self.hf.pad_token_id if self.hf.pad_token_id is not None else self.end_of_turn_id

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary, its rules, the chat format and the library's version."""
        named = sorted((name, str(token)) for name, token in self.hf.special_tokens_map.items())
        parts = [
            *(self._backend.to_str(), str(self.hf.chat_template), type(self._format).__name__),
            *(named, sorted(self.stop_ids), self._special.pattern, tokenizers_version),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def encode_dialogs(self, dialogs: Sequence[Dialog]) -> list[Encoded]:
        """Return the ids of each dialog; supervised are its answers, each with its end of turn.

        A dialog that the model's own template refuses has no ids, and the reason among its remarks.

        Raises: DataError if the template takes too much time or memory.
        """
        rendered = [self._rendered(dialog) for dialog in dialogs]
        encoded = self._encode([spans for spans, _ in rendered])
        return [each._replace(remarks=remarks) for each, (_, remarks) in zip(encoded, rendered, strict=True)]

    def _rendered(self, dialog: Dialog) -> Rendered:
        try:
            return self._format.render(dialog)
        except Refused as error:
            return Rendered([], Remarks(refused=error.message))

    def changes(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """Return what is changed in a dialog to fit the model's own template."""
        return self._format.changes(messages)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which the reply to `messages` starts, a prefix of what training would see.

        Raises: DataError if the model's own template refuses the dialog.
        """
        # A terminal may pass invalid UTF-8; data was checked when it was read.
        clean = [Message(m.role, m.content.encode("utf-8", "replace").decode()) for m in messages]
        return self._encode([self._format.render(clean, reply=True).spans])[0].input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids without special tokens and surrounding white space."""
        with _own_rules("decode"):
            return str(self.hf.decode(list(ids), skip_special_tokens=True)).strip()

    def prompt_text(self, ids: Sequence[int]) -> str:
        """Return the text before a first answer: the user's, after the system's in parentheses.

        The opening of the answer and role labels are left out where the format can tell them apart.
        """
        turns: list[list[int]] = [[]]
        for token in ids:
            turns[-1].append(token)
            if token in self.stop_ids:
                turns.append([])
        if len(turns) == 1:  # a format that does not end the turns of others
            return self.decode(ids)
        texts = [self.decode(turn) for turn in turns[:-1]]
        *before, said = (self._format.without_label(text) for text in texts)
        system = " ".join(filter(None, before))
        return f"(system: {system}) {said}" if system else said

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return each token's text; for a part of a character, its bytes with backslashes."""
        added = {number: token.content for number, token in self.hf.added_tokens_decoder.items()}
        byte_level = "ByteLevel" in repr(self._backend.decoder)
        texts = []
        for number, token in zip(ids, self.hf.convert_ids_to_tokens(list(ids)), strict=True):
            if number in added:
                texts.append(added[number])
            elif byte_level and all(letter in _BYTE_OF for letter in token):
                texts.append(bytes(_BYTE_OF[letter] for letter in token).decode("utf-8", "backslashreplace"))
            elif byte := _FALLBACK.fullmatch(token):
                texts.append(bytes.fromhex(byte[1]).decode("utf-8", "backslashreplace"))
            else:
                texts.append(token.replace("\u2581", " "))  # how SentencePiece writes a space
        return texts

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that never result from a person's text."""
        added = self.hf.added_tokens_decoder.items()
        return frozenset(self.hf.all_special_ids) | {number for number, token in added if token.special}

    def save(self, folder: Path) -> None:
        """Write the tokenizer with its chat template."""
        self.hf.save_pretrained(str(folder))

    def _tokenizes_by_piece(self) -> bool:
        """Return whether pieces of a text get the same ids separately and joined.

        True for byte-level BPE. SentencePiece-like tokenizers may add a space at the start of a text, and some
        special tokens swallow adjacent white space.
        """
        token = self._format.end_of_turn
        pieces = ("Hi there. ", token, " Hi there.\n", "Hi there.")
        with _own_rules("encode"):
            separate = [self._backend.encode(piece, add_special_tokens=False).ids for piece in pieces]
            joint = self._backend.encode("".join(pieces), add_special_tokens=False).ids
        return separate[1] == [self._id_of(token)] and joint == [i for ids in separate for i in ids]

    def _encode(self, dialogs: Sequence[Sequence[Span]]) -> list[Encoded]:
        if self._joins_pieces:
            return [self._encode_joined(spans) for spans in dialogs]
        texts = [p.text for spans in dialogs for span in spans for p in span.pieces if not p.special]
        self._backend.encode_special_tokens = True  # what a person typed is text, whatever it looks like
        try:
            with _own_rules("encode"):
                encoded = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        finally:
            self._backend.encode_special_tokens = False
        result = []
        for spans in dialogs:
            ids: list[int] = []
            supervised: list[bool] = []
            for span in spans:
                for piece in span.pieces:
                    ids += [self._id_of(piece.text)] if piece.special else next(encoded).ids
                supervised += [span.supervised] * (len(ids) - len(supervised))
            result.append(Encoded(ids, supervised))
        return result

    def _encode_joined(self, spans: Sequence[Span]) -> Encoded:
        """Encode a dialog as one text, for tokenizers that treat the start of a text differently."""
        text = ""
        answers: list[range] = []
        for span in spans:
            start = len(text)
            for piece in span.pieces:
                # Text cannot be kept apart here, so one space breaks what looks like a special token.
                text += piece.text if piece.special else self._special.sub(_broken, piece.text)
            if span.supervised:
                answers.append(range(start, len(text)))
        with _own_rules("encode"):
            encoding = self._backend.encode(text, add_special_tokens=False)
        supervised = [any(start in answer for answer in answers) for start, _ in encoding.offsets]
        return Encoded(list(encoding.ids), supervised)


def _require_bounded(backend: Tokenizer) -> None:
    """Raise ModelError if a tokenizer's rules can make a text more than `MOST_GROWTH` times as long.

    Rust aborts the process when it runs out of memory.
    """
    for part in (backend.normalizer, backend.decoder):
        growth = 1
        for rule in _rules(json.loads(part.__getstate__())) if part is not None else ():
            if (added := {"Replace": "content", "Prepend": "prepend"}.get(str(rule.get("type")))) is not None:
                growth *= max(1, len(str(rule.get(added, ""))))
        if growth > MOST_GROWTH:
            raise ModelError(
                f"the tokenizer replaces one character by up to {growth:,}; the limit is {MOST_GROWTH}"
            )


def _rules(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = rule.get("normalizers") or rule.get("decoders")
    if not inner:
        yield rule
    for part in inner or ():
        yield from _rules(part)


@contextmanager
def _own_rules(task: str) -> Iterator[None]:
    """Raise ModelError if a tokenizer's rules, which are untrusted patterns, fail on a text."""
    try:
        with panics_raised():
            yield
    except ValueError as error:
        raise ModelError(f"the tokenizer cannot {task} a text by its own rules: {error}") from None


def _broken(match: re.Match[str]) -> str:
    return f"{match[0][0]} {match[0][1:]}"


def shipped_tokenizer(config: ModelConfig) -> Path | None:
    """Return the folder of the shipped tokenizer that a model uses; None if it uses another one."""
    return _SHIPPED.get(config.tokenizer) if config.from_scratch or config.tokenizer else None


def load_tokenizer(config: ModelConfig) -> ChatTokenizer:
    """Return the tokenizer of a model with its chat format.

    Raises: ModelError if it cannot be found or read; UnavailableError if it is on an unreachable hub.
    """
    from transformers import PreTrainedTokenizerFast

    if config.tokenizer is not None or config.from_scratch:
        folder = shipped_tokenizer(config) or Path(config.tokenizer or "").expanduser()
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"no tokenizer.json in {str(folder)!r}", hint=Call("tokenizer train", help=True))
        require_sound(folder)
        try:
            with panics_raised():
                hf = PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception as error:
            raise unusable(str(folder), error) from None
        return with_format(hf, config)
    source = tokenizer_source(config)
    hf = load_vocabulary(source)
    tokenizer = with_format(hf if find_gguf(source) is None else _without_strays(hf), source)
    tokenizer.reply_stop_ids |= {token for token in read_stop_ids(config) if token <= tokenizer.highest_id}
    return tokenizer


def _without_strays(hf: Any) -> Any:
    """Remove from a tokenizer read from GGUF what the file has no entry for.

    Transformers adds GPT-2's `<|endoftext|>` to every byte-level vocabulary, past the end of the embeddings.
    """
    from transformers import PreTrainedTokenizerFast

    rules = json.loads(hf.backend_tokenizer.to_str())
    entries = hf.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["id"] < entries]
    known = {token["content"] for token in rules["added_tokens"]}
    named = {name: token for name, token in hf.special_tokens_map.items() if str(token) in known}
    clean = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)), clean_up_tokenization_spaces=False, **named
    )
    clean.chat_template = hf.chat_template
    return clean


def with_format(hf: Any, config: ModelConfig) -> ChatTokenizer:
    """Return the tokenizer with the chat format that the model's settings name."""
    if not getattr(hf, "is_fast", False):
        raise ModelError(f"the tokenizer of {config.name!r} has no fast (tokenizer.json) form")
    match config.chat_format:
        case "dialogkit":
            return ChatTokenizer(hf, native_format())
        case "plain" | "turns":
            if hf.eos_token is None:
                raise ModelError(
                    f"the tokenizer of {config.name!r} has no end-of-text token for the format "
                    f"{config.chat_format!r}"
                )
            make = plain_format if config.chat_format == "plain" else turns_format
            return ChatTokenizer(hf, make(hf.eos_token, _first_token(hf)))
        case "auto":
            return ChatTokenizer(hf, _recognised_format(hf))


def _recognised_format(hf: Any) -> TurnFormat | None:
    """Return our format that matches the tokenizer's template; None for any other template."""
    formats = [native_format()]
    if hf.eos_token is not None:
        starts = dict.fromkeys((_first_token(hf), ""))
        formats += [make(hf.eos_token, start) for start in starts for make in (plain_format, turns_format)]
    if hf.chat_template is not None:
        return next((f for f in formats if f.template() == hf.chat_template), None)
    if formats[0].special_tokens <= hf.get_vocab().keys():
        return formats[0]
    if hf.eos_token is None:
        raise ModelError("the tokenizer has neither a chat template nor an end-of-text token")
    return formats[1]


def _first_token(hf: Any) -> str:
    """Return the token that a tokenizer puts before each text, which its model saw there; empty for none."""
    bos = hf.bos_token_id
    return str(hf.bos_token) if bos is not None and hf("a")["input_ids"][:1] == [bos] else ""


def train_tokenizer(texts: Iterable[str], *, vocabulary: int, output: Path) -> int:
    """Train a byte-level BPE tokenizer, write it with its chat template, and return its number of entries.

    The same texts in the same order give the same file. The vocabulary includes the 6 special tokens and the 256
    bytes.

    Raises: ConfigError if the vocabulary cannot hold the bytes and the special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    smallest = 256 + len(SPECIAL_TOKENS)
    if vocabulary < smallest:
        raise ConfigError(f"a vocabulary of {vocabulary} is too small", hint=Change({"vocab_size": smallest}))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TURN, pad_token=PAD_TOKEN, clean_up_tokenization_spaces=False
    )
    hf.chat_template = native_format().template()
    hf.save_pretrained(str(output))
    return int(tokenizer.get_vocab_size())
