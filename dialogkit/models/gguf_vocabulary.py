"""The vocabulary of a GGUF file, from a byte-level BPE tokenizer."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from dialogkit.errors import ModelError
from dialogkit.models.tokenizer import ChatTokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Types of tokens, by their numbers in GGUF."""

_CLITICS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUITED = (
    "a tokenizer made by dialogkit, or one split like those of GPT-2, Llama 3, Qwen2 or SmolLM, can be exported"
)


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_KNOWN: Mapping[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([_bytes(use_regex=True)], False),
    "llama-bpe": ([_split(rf"{_CLITICS}\p{{N}}{{1,3}}{_REST}"), _bytes(use_regex=False)], True),
    "qwen2": ([_split(rf"{_CLITICS}\p{{N}}{_REST}"), _bytes(use_regex=False)], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)], False),
}
"""How llama.cpp splits a text before BPE, by its names: the rules, and whether whole words skip the merges."""


class GgufVocabulary(NamedTuple):
    """The tokens of a GGUF file, by id, and how texts become tokens.

    Attributes:
        tokens: a name for each embedding; those without a token have a made-up one.
        types: the type of each token, as GGUF numbers them.
        merges: the rules of BPE, the first ones first.
        pre_tokenizer: llama.cpp's name for how a text is split before BPE.
        notes: where texts may become other tokens.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre_tokenizer: str
    notes: tuple[str, ...]


def gguf_vocabulary(tokenizer: ChatTokenizer, *, entries: int) -> GgufVocabulary:
    """Return the vocabulary of a GGUF file for a model with this number of embeddings.

    Raises: ModelError if llama.cpp would split texts into other tokens.
    """
    rules = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    pre_tokenizer = _pre_tokenizer(rules)
    notes = []
    if (rules["normalizer"] or {}).get("type") == "NFC":
        notes.append("the tokenizer composes accents (NFC) and llama.cpp does not: texts that are not NFC differ")
    elif rules["normalizer"] is not None:
        raise ModelError(
            f"the tokenizer normalizes texts ({_kinds(rules['normalizer'])}), and llama.cpp does not", hint=_SUITED
        )
    tokens = [f"[PAD{number}]" for number in range(entries)]
    types = [_UNUSED] * entries
    for token, number in rules["model"]["vocab"].items():
        tokens[number], types[number] = token, _NORMAL
    for added in rules["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    # Older files hold the two parts of a merge as one text.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in rules["model"]["merges"]]
    return GgufVocabulary(tokens, types, merges, pre_tokenizer, tuple(notes))


def _pre_tokenizer(rules: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer splits texts. Raises: ModelError if it has none."""
    model = rules["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ModelError(
            f"the tokenizer is {model['type']}{' with byte fallback' if model.get('byte_fallback') else ''}, "
            "and only byte-level BPE can be exported to GGUF",
            hint=_SUITED,
        )
    steps = rules["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    own = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, (known, skips_merges) in _KNOWN.items():
        same = [{**_defaults(step), **step} for step in own] == known
        if same and bool(model.get("ignore_merges")) == skips_merges:
            return name
    raise ModelError(
        "the tokenizer splits texts as no pre-tokenizer of llama.cpp that is known here does "
        f"({_kinds(rules['pre_tokenizer'])})",
        hint=_SUITED,
    )


def _defaults(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return what older files leave out."""
    return {"use_regex": True} if step.get("type") == "ByteLevel" else {}


def _kinds(rule: Mapping[str, Any] | None) -> str:
    """Return the kinds of a rule's steps."""
    if rule is None:
        return "not at all"
    steps = rule.get("pretokenizers") or rule.get("normalizers") or [rule]
    return ", ".join(str(step.get("type")) for step in steps)
