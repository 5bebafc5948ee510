"""The vocabulary of a GGUF file, from a byte-level BPE tokenizer."""

from typing import NamedTuple

from dialogkit.models.byte_level import composes_accents, merges_of, pre_tokenizer_of, rules_of
from dialogkit.models.tokenizer import ChatTokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Types of tokens, by their numbers in GGUF."""


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
    rules = rules_of(tokenizer)
    pre_tokenizer = pre_tokenizer_of(rules)
    notes = []
    if composes_accents(rules):
        notes.append("the tokenizer composes accents (NFC) and llama.cpp does not: texts that are not NFC differ")
    tokens = [f"[PAD{number}]" for number in range(entries)]
    types = [_UNUSED] * entries
    for token, number in rules["model"]["vocab"].items():
        tokens[number], types[number] = token, _NORMAL
    for added in rules["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    return GgufVocabulary(tokens, types, merges_of(rules), pre_tokenizer, tuple(notes))
