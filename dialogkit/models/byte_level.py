"""How byte-level BPE tokenizers split texts, by the names that other programs know them by."""

import json
from collections.abc import Mapping
from typing import Any

from dialogkit.errors import ModelError
from dialogkit.models.tokenizer import ChatTokenizer

_CLITICS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUITED = (
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
"""How a text is split before BPE, by llama.cpp's names: the rules, and whether whole words skip the merges."""


def rules_of(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Return the content of a tokenizer's tokenizer.json."""
    rules: dict[str, Any] = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    return rules


def pre_tokenizer_of(rules: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer splits texts. Raises: ModelError if it has none."""
    model = rules["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise ModelError(
            f"the tokenizer is {model['type']}{' with byte fallback' if model.get('byte_fallback') else ''}, "
            "and only byte-level BPE can be exported",
            hint=SUITED,
        )
    steps = rules["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    own = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, (known, skips_merges) in _KNOWN.items():
        same = [{**_defaults(step), **step} for step in own] == known
        if same and bool(model.get("ignore_merges")) == skips_merges:
            return name
    raise ModelError(
        f"the tokenizer splits texts as none that is known here does ({_kinds(rules['pre_tokenizer'])})",
        hint=SUITED,
    )


def composes_accents(rules: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer composes accents (NFC) before it splits a text.

    Raises: ModelError if it changes texts in another way.
    """
    normalizer = rules["normalizer"]
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise ModelError(
            f"the tokenizer normalizes texts ({_kinds(normalizer)}), which cannot be exported", hint=SUITED
        )
    return normalizer is not None


def merges_of(rules: Mapping[str, Any]) -> list[str]:
    """Return the rules of BPE, the first ones first, each as two parts with a space between."""
    # Older files hold the two parts of a merge as one text.
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in rules["model"]["merges"]]


def _defaults(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return what older files leave out."""
    return {"use_regex": True} if step.get("type") == "ByteLevel" else {}


def _kinds(rule: Mapping[str, Any] | None) -> str:
    """Return the kinds of a rule's steps."""
    if rule is None:
        return "not at all"
    steps = rule.get("pretokenizers") or rule.get("normalizers") or [rule]
    return ", ".join(str(step.get("type")) for step in steps)
