"""The terminal of a dialog: turns that are typed or pasted, and replies that grow by whole words."""

import codecs
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.cells import cell_len

_PROMPT, _CONTINUED = "> ", "  "
_GLUE = "\ue000"
"""Stands for a blank at which no line is broken."""


def read_turns(
    said: Callable[[str], None], *, on_interrupt: str, on_unreadable: Callable[[str], None]
) -> Iterator[str]:
    r"""Yield each turn of the input, until its end or Ctrl-D.

    A turn is one line; a backslash at its end continues it on the next one. Lines that are pasted into a terminal
    are one turn, if Python was built with GNU readline.

    Args:
        said: prints a line to stderr.
        on_interrupt: message to print on Ctrl-C.
        on_unreadable: receives the encoding that a line was not in.
    """
    terminal = sys.stdin.isatty()
    if terminal:
        _use_readline()
    read, encoding = _line_reader(terminal=terminal)
    begun: list[str] = []
    while True:
        try:
            line = read((_CONTINUED if begun else _PROMPT) if terminal else "").removesuffix("\r")
        except KeyboardInterrupt:
            said(f"\n{on_interrupt}")
            begun = []
            continue
        except EOFError:
            if terminal:
                sys.stdout.write("\n")
            if turn := "\n".join(begun).strip():
                yield turn
            return
        except UnicodeDecodeError:
            on_unreadable(encoding.upper())
            continue
        if line.endswith("\\"):
            begun.append(line[:-1])
            continue
        turn, begun = "\n".join([*begun, line]).strip(), []
        if turn:
            yield turn


def _use_readline() -> None:
    """Give `input` the arrow keys, a history, and pastes of several lines."""
    with suppress(ImportError):
        import readline

        # libedit, in its place on macOS, knows no bracketed paste; a dumb terminal would show its marks.
        if "libedit" not in (readline.__doc__ or "") and os.environ.get("TERM", "dumb") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")


def _line_reader(*, terminal: bool) -> tuple[Callable[[str], str], str]:
    """Return what reads a line of standard input after a prompt, and the encoding that it reads.

    Of a file or a pipe, lines are decoded one by one: a text stream drops all that it has read with a line that it
    cannot decode, or reads the same bytes for ever.
    """
    encoding = str(getattr(sys.stdin, "encoding", "utf-8"))
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return input, encoding
    if codecs.lookup(encoding).name == "ascii":
        sys.stdin.reconfigure(encoding="utf-8")  # which ASCII is a part of
        encoding = "utf-8"
    if terminal:
        return input, encoding
    lines, errors = sys.stdin.buffer, sys.stdin.errors or "strict"

    def read(_: str) -> str:
        if not (line := lines.readline()):
            raise EOFError
        return str(line.removesuffix(b"\n"), encoding, errors)  # a carriage return does not end a line

    return read, encoding


@contextmanager
def no_echo() -> Iterator[None]:
    """Keep what is typed meanwhile, and the `^C` of Ctrl-C, off the screen; the next prompt shows it."""
    restore = _without_echo()
    try:
        yield
    finally:
        restore()


def _without_echo() -> Callable[[], None]:
    """Stop the echo of the terminal, and return what restores it; both do nothing without a terminal."""
    try:
        import termios
    except ImportError:  # Windows
        return lambda: None
    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        if os.tcgetpgrp(terminal) != os.getpgrp():  # in the background, a change would stop this process
            return lambda: None
        changed: list[Any] = list(before)
        changed[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, changed)
    except (AttributeError, ValueError, OSError, termios.error):  # closed, or no terminal
        return lambda: None

    def restore() -> None:
        with suppress(OSError, termios.error):  # it may be gone
            termios.tcsetattr(terminal, termios.TCSANOW, before)

    return restore


def between_words(text: str, width: int, *, column: int = 0) -> str:
    """Return text that begins in a column with lines broken between words; a command in backticks is one word."""
    written: list[str] = []
    wrap = WordWrap(written.append, width, column=column)
    wrap.add(re.sub("`[^`\n]*`", lambda command: command[0].replace(" ", _GLUE), text))
    wrap.end()
    return "".join(written).replace(_GLUE, " ")


class WordWrap:
    """Writes a growing text so that no word is broken at the edge of the terminal."""

    def __init__(self, write: Callable[[str], object], width: int, *, column: int = 0) -> None:
        self._write, self._width = write, width
        self._column = column
        self._blanks = self._word = ""
        """Blanks and the following word that are not written yet: the word may grow."""

    def add(self, text: str) -> None:
        """Write a piece of the text, up to its last whole word."""
        for letter in text:
            if letter == "\n":
                self._end_word()
                self._write("\n")
                self._column, self._blanks = 0, ""
            elif letter in " \t":
                self._end_word()
                self._blanks += "    " if letter == "\t" else letter
            elif cell_len(letter) > 1:  # scripts of wide letters have no blanks, and break between any two
                self._end_word()
                self._word = letter
                self._end_word()
            else:
                self._word += letter

    def end(self) -> None:
        """Write the last word."""
        self._end_word()

    def _end_word(self) -> None:
        if not self._word:
            return
        word = self._blanks + self._word
        if self._column and self._column + cell_len(word) > self._width:
            self._write("\n")
            self._column, word = 0, self._word
        self._write(word)
        self._column += cell_len(word)
        if self._column > self._width:  # longer than a line: the terminal breaks it
            self._column %= self._width
        self._blanks = self._word = ""
