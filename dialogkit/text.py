"""Makes untrusted text safe to show, reads small files, and formats numbers for people."""

import math
import os
import re
import select
import shlex
import stat
import time
from collections.abc import Iterable, Sequence
from json import JSONDecodeError
from pathlib import Path

# Control characters of every kind, the marks that reorder, break or hide text, and halves of surrogate pairs,
# which cannot be encoded: the text of a dataset must not control a terminal or a page.
_MARKS = (0x61C, 0xFEFF, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070))
UNSAFE = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"},
    **{code: f"\\u{code:04x}" for code in (*_MARKS, *range(0xD800, 0xE000))},
    **{code: f"\\U{code:08x}" for code in range(0xE0000, 0xE0080)},
}

_NO_BYTES = {code: f"\\u{code:04x}" for code in (*range(0xD800, 0xDC80), *range(0xDD00, 0xE000))}
"""Surrogates that do not stand for a byte."""

PIPE_WAIT_S = 5.0
"""Seconds that the writer of a pipe may take."""
_MARKED = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Encodings by their byte-order marks, longer ones first."""


def sanitize(text: str) -> str:
    """Return text from outside with control characters and reordering marks made visible."""
    return text.translate(UNSAFE)


def without_surrogates(text: str) -> str:
    """Return a typed text with its surrogates as what they stand for; those that stand for nothing are escaped.

    Python reads the bytes of a terminal that it cannot decode as surrogates, and a settings file may write a
    character as a pair of them.
    """
    paired = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return paired.translate(_NO_BYTES).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def lines_of(text: str) -> list[str]:
    r"""Return the lines of a text, which only `\n` and `\r\n` end.

    `str.splitlines` also splits at characters that text may hold, such as U+2028, form feeds and U+0085.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_small(path: Path, longest: int, *, pipes: bool = False) -> bytes:
    """Return the content of a file, or its first `longest` + 1 bytes if it is longer. Never waits for long.

    Args:
        path: a regular file.
        longest: most bytes of a file that the caller accepts.
        pipes: also read a pipe, such as a shell's `<(command)`, which has 5 s to write everything.

    Raises: OSError if it cannot be read or is not a regular file.
    """
    with open(path, "rb", buffering=0, opener=open_without_waiting) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) and not (pipes and stat.S_ISFIFO(mode)):
            raise OSError(None, "not a regular file", str(path))
        content, until = b"", time.monotonic() + PIPE_WAIT_S
        while len(content) <= longest:
            if stat.S_ISFIFO(mode) and not select.select([file], [], [], max(0.0, until - time.monotonic()))[0]:
                raise OSError(None, "nothing was written to this pipe", str(path))
            piece = file.read(longest + 1 - len(content))
            if not piece:
                break
            content += piece
        return content


def open_without_waiting(path: str | Path, flags: int) -> int:
    """Open a file for `open(opener=...)`; opening a pipe otherwise waits for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def json_problem(error: JSONDecodeError) -> str:
    """Return the problem that the JSON decoder reports, without the position at its end."""
    reason = re.sub(r"( starting)? at$", "", error.msg)
    return f"not valid JSON: {reason[0].lower()}{reason[1:]}"


def wide_encoding(head: bytes) -> str | None:
    """Return the encoding of a text if its beginning is UTF-16 or UTF-32; None otherwise.

    Without a byte-order mark, it is recognised by zero bytes, which Latin text has at the same place in each
    character.
    """
    if (mark := next((mark for mark in _MARKED if head.startswith(mark)), None)) is not None:
        return _MARKED[mark]
    head = head[: len(head) // 4 * 4]
    zeros = [head[place::4].count(0) * 4 > len(head) // 2 for place in range(4)]
    layouts = {
        (False, True, True, True): "UTF-32LE",
        (True, True, True, False): "UTF-32BE",
        (False, True, False, True): "UTF-16LE",
        (True, False, True, False): "UTF-16BE",
    }
    return layouts.get((zeros[0], zeros[1], zeros[2], zeros[3])) if len(head) >= 8 else None


def convert_command(path: Path, encoding: str) -> tuple[str, Path]:
    """Return the shell command that writes a text file, which may be gzipped, as UTF-8, and what it writes."""
    source, suffix = shlex.quote(str(path)), path.suffix
    if suffix == ".gz":
        path = path.with_suffix("")
    written = path.with_name(f"{path.stem}-utf8{path.suffix}")
    target, convert = shlex.quote(str(written)), f"iconv -f {encoding} -t UTF-8"
    command = f"gunzip -c {source} | {convert} > {target}" if suffix == ".gz" else f"{convert} {source} > {target}"
    return command, written


def duration(seconds: float) -> str:
    """Return seconds as people say them: 8 s, 3 min 20 s, 2 h 5 min."""
    if not math.isfinite(seconds):  # in a record that was damaged
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


_UNITS_S = {"y": 365 * 24 * 3600, "w": 7 * 24 * 3600, "d": 24 * 3600, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS_S), re.ASCII)


def parse_duration(text: str) -> float | None:
    """Return the seconds of a time such as `90s`, `20m`, `1h30m`, `1.5h`, `2d` or `2w`; None for anything else."""
    found = _DURATION.fullmatch(text.strip().lower().replace(" ", ""))
    if found is None or not any(found.groups()):
        return None
    parts = zip(_UNITS_S.values(), found.groups(), strict=True)
    return sum(unit * min(float(part or 0), 1e9) for unit, part in parts)


def duration_word(seconds: float) -> str:
    """Return seconds as `parse_duration` reads them: `90s`, `1h30m`, `2d`."""
    rest, words = max(0, round(seconds)), ""
    for letter in "dhms":
        count, rest = divmod(rest, _UNITS_S[letter])
        words += f"{count}{letter}" if count else ""
    return words or "0s"


def known_from_training(dialogs: str, prompts: int | None, answers: int | None) -> str | None:
    """Return how many dialogs share their prompt or answer with training; None if none do, or if unknown."""
    parts = [f"the {what} of {n:,}" for what, n in (("answer", answers), ("prompt", prompts)) if n]
    return f"of {dialogs}, training contains {' and '.join(parts)}" if parts else None


WRONG_ANSWERS = "wrong answers"
"""The fault of a model that answers questions wrongly whose answers the dataset checks."""


def no_fault(checks: Sequence[str]) -> str:
    """Return a sentence for a model in which no check found a fault."""
    listed = f" ({', '.join(checks)})" if checks else ""
    unmeasured = "" if WRONG_ANSWERS in checks else "; whether what it says is true is not measured"
    return f"none of the checks made{listed} found a fault{unmeasured}"


def counted(number: int, thing: str) -> str:
    """Return a number with its noun, such as `1 step` or `2 steps`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(items: Iterable[object], word: str = "and") -> str:
    """Return at least one item as a list in a sentence, such as `a`, `a and b` or `a, b and c`."""
    *first, last = map(str, items)
    return f"{', '.join(first)} {word} {last}" if first else last


def percent(fraction: float) -> str:
    """Return a fraction in percent; only exactly 0 gives 0%, and only exactly 1 gives 100%."""
    if fraction in (0, 1):
        return f"{fraction:.0%}"
    if 0.001 <= fraction <= 0.999:
        return f"{fraction:.1%}"
    return "over 99.9%" if fraction > 0.5 else "under 0.1%"


def byte_size(count: float) -> str:
    """Return a number of bytes as MiB or GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def percentage_of(part: int, whole: int) -> str:
    """Return `part` of `whole` in percent."""
    return percent(part / whole if whole else 0.0)
