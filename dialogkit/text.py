"""How text from outside is made harmless to look at, and how figures are written for people."""

import re
import shlex
from json import JSONDecodeError
from pathlib import Path

# Control characters of every kind, the marks that reorder, break or hide text, and halves of surrogate pairs,
# which no output can hold: a dataset's text must not steer a terminal or a page.
_MARKS = (0x61C, 0xFEFF, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070))
UNSAFE = {
    **{code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"},
    **{code: f"\\u{code:04x}" for code in (*_MARKS, *range(0xD800, 0xE000))},
    **{code: f"\\U{code:08x}" for code in range(0xE0000, 0xE0080)},
}


def sanitize(text: str) -> str:
    """Return text from outside with control characters and reordering marks made visible."""
    return text.translate(UNSAFE)


def lines_of(text: str) -> list[str]:
    r"""Return the lines of a text, which only `\n` and `\r\n` end.

    `str.splitlines` also splits at characters that text may hold, such as U+2028, form feeds and U+0085.
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def json_problem(error: JSONDecodeError) -> str:
    """Return what keeps a text from being JSON; the place, at which the decoder's own words end, is left out."""
    reason = re.sub(r"( starting)? at$", "", error.msg)
    return f"not valid JSON: {reason[0].lower()}{reason[1:]}"


_MARKED = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Encodings by the byte-order marks with which their texts begin, the longer ones first."""


def wide_encoding(head: bytes) -> str | None:
    """Return the encoding of a text, by its beginning, if it is UTF-16 or UTF-32; None for all others.

    Without a byte-order mark it is known by its zero bytes: in Latin text the same ones of each character.
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


def convert_command(path: Path, encoding: str) -> str:
    """Return the command that writes a text file, which may be gzipped, as UTF-8 beside it."""
    source, suffix = shlex.quote(str(path)), path.suffix
    if suffix == ".gz":
        path = path.with_suffix("")
    target = shlex.quote(str(path.with_name(f"{path.stem}-utf8{path.suffix}")))
    convert = f"iconv -f {encoding} -t UTF-8"
    return f"gunzip -c {source} | {convert} > {target}" if suffix == ".gz" else f"{convert} {source} > {target}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
