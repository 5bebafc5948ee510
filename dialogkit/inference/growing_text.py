"""The text of a reply while it grows."""

from collections.abc import Sequence

from dialogkit.dialog import ChatTokenizer

WINDOW = 32
"""Tokens that are decoded again with each new one, at least."""


class GrowingText:
    """Turns the tokens of a reply into pieces of text that no later token changes.

    Attributes:
        text: all pieces so far.
        stopped: whether a stop string was found; the text ends before it.
    """

    def __init__(self, tokenizer: ChatTokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self.text = ""
        self.stopped = False
        self._head, self._from = "", 0
        """The text of the ids before this place, which is not decoded again."""

    def add(self, ids: Sequence[int]) -> str:
        """Return the new text of a reply that has these ids so far."""
        text = self._head + self._tokenizer.decode(ids[self._from :])
        if text.endswith("\ufffd"):  # a multi-byte character may still be incomplete
            return ""
        if len(ids) - self._from >= 2 * WINDOW:
            at = len(ids) - WINDOW
            tail = self._tokenizer.decode(ids[at:])
            if tail and text.endswith(tail):  # else it begins within a character
                self._head, self._from = text.removesuffix(tail), at
        return self._grow(text, ends=False)

    def end(self, ids: Sequence[int]) -> str:
        """Return the rest of the text of a reply that has ended."""
        return self._grow(self._tokenizer.decode(ids), ends=True)

    def _grow(self, text: str, *, ends: bool) -> str:
        if self.stopped:
            return ""
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            text = text[: min(found)]
        elif not ends:
            text = text[: len(text) - self._beginning_of_stop(text)]
        if not text.startswith(self.text):
            return ""
        new = text[len(self.text) :]
        self.text = text
        return new

    def _beginning_of_stop(self, text: str) -> int:
        """Return how many characters at the end of a text may become a stop string."""
        lengths = (
            length
            for stop in self._stops
            for length in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:length])
        )
        return max(lengths, default=0)
