"""Files that are no dataset: names them by their first lines, with the command that converts them."""

import gzip
import json
import re
import shlex
import zlib
from collections.abc import Collection
from pathlib import Path

from dialogkit.data.hints import USE_STARTER, use_rewritten
from dialogkit.data.open_files import MAX_ROW, open_file
from dialogkit.errors import DataError, shortened
from dialogkit.hints import Either, Hint, Shell
from dialogkit.text import convert_command, wide_encoding

HEAD_BYTES = 64 * 1024
"""What is read of a file to recognise it."""

_AS_MESSAGES: Hint = Either(
    'convert it to JSONL, one {"messages": [{"role": "user", "content": "..."}, ...]} per line', USE_STARTER
)
_KINDS: tuple[tuple[str, str, Hint], ...] = (
    (r"version https://git-lfs", "a Git LFS pointer, not the file itself", Shell("git lfs pull")),
    (r"<!doctype html|<html", "a web page", Either("download the file itself, not its page", USE_STARTER)),
    (r"PK\x03\x04", "a spreadsheet or an archive", Either("save it as CSV, or unpack it", USE_STARTER)),
    (r"%PDF-", "a PDF document", _AS_MESSAGES),
    (r".*__eou__", "DailyDialog text", _AS_MESSAGES),
    (r"\[?\d{1,4}[./-]\d{1,2}[./-]\d{1,4},? .*?\d:\d\d.*?: ", "a WhatsApp chat export", _AS_MESSAGES),
    (r"(---\s+)?(categories|conversations|version):\s", "YAML", _AS_MESSAGES),
    (r"\d+ your persona: ", "PersonaChat text", _AS_MESSAGES),
    (r"<\?xml", "XML", _AS_MESSAGES),
)
"""Beginnings of files that are no data: a pattern, what it is, and what to do."""


def named_file(path: Path, *, not_utf8: bool = False) -> DataError | None:
    """Return the error that says what a file is if its beginning shows that it is no dataset, else None.

    A file that is known not to be UTF-8 is read further, for its encoding.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile):
        return None
    if wide_encoding(head) is not None:
        return None
    text = head.decode("latin-1").removeprefix("\xef\xbb\xbf").lstrip()
    for pattern, kind, hint in _KINDS:
        if re.match(pattern, text, re.IGNORECASE):
            return DataError(f"{path.name} is {kind}", hint=hint)
    if b"\0" in head:
        return None
    return _almost_json(path, text) or (wrong_encoding(path) if not_utf8 else None)


_ENCODINGS = [
    *("cp1252", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1250", "cp1251", "cp1253", "cp1254"),
    *("cp1255", "cp1256", "koi8_r", "mac_roman"),
]
"""What texts are in, if not in UTF-8 or UTF-16. Of all encodings there are, a short text fits many."""
_LATIN = ("cp1252", "cp1250", "cp1254", "mac_roman")
"""The Latin alphabet in Windows in most of the world, in Central Europe and in Turkey, and in old Macs."""
_ALIKE = 0.1
"""Greatest difference in the disorder of a text between two Windows code pages that may both be right."""
_SYMBOL_IN_WORD = re.compile(
    r"[^\W\d_](?:[\xb2\xb3\xb9\xbc-\xbe]|[^\x00-\x7f\w\s\xab\xad\xb7\xbb\u2010-\u2026])[^\W\d_]"
)


def wrong_encoding(path: Path) -> DataError | None:
    """Return the error of a text in another encoding than UTF-8, with the likely one, else None."""
    from charset_normalizer import from_bytes

    line, sample = 0, b""
    with open_file(path) as file:
        for number, text in enumerate(iter(lambda: file.readline(MAX_ROW), b""), 1):
            if len(sample) > HEAD_BYTES:
                break
            try:
                text.decode()
            except UnicodeDecodeError:
                line = line or number
                sample += text[:HEAD_BYTES]
    if not line:
        return None
    best = (guesses := from_bytes(sample, cp_isolation=_ENCODINGS)).best()
    if best is None or b"\0" in sample:
        return DataError(f"{path.name}:{line}: not UTF-8 text", hint=Either("save it as UTF-8", USE_STARTER))
    # Short Chinese texts are valid in other encodings too.
    equal = {name for guess in guesses if guess.chaos <= best.chaos for name in guess.could_be_from_charset}
    encoding = "gb18030" if "gb18030" in equal else best.encoding
    names, shown = [encoding], encoding.replace("_", "-")
    if equal & {*_LATIN}:
        close = {name for g in guesses if g.chaos <= best.chaos + _ALIKE for name in g.could_be_from_charset}
        readings = _latin_readings(sample, close - {"mac_roman"} | equal)
        names = list(readings)
        shown = " or ".join(
            f"{name.replace('_', '-')} ({word!r})" if word else name.replace("_", "-")
            for name, word in readings.items()
        )
    commands = [use_rewritten(*convert_command(path, name.upper().replace("_", "-"))) for name in names]
    return DataError(
        f"{path.name}:{line}: not UTF-8 text, but most likely {shown}",
        hint=commands[0] if len(commands) == 1 else Either(*commands),
    )


def _latin_readings(sample: bytes, names: Collection[str]) -> dict[str, str]:
    """Return each of the Latin code pages in which a text reads differently, with a word that shows it.

    They differ in few letters, so only people can see which is right. One that puts a symbol inside a word
    is wrong if another one fits.
    """
    texts: dict[str, str] = {}
    for name in _LATIN:
        if name in names and (text := sample.decode(name, "replace")) not in texts.values():
            texts[name] = text
    words = {name: text for name, text in texts.items() if not _SYMBOL_IN_WORD.search(text)} or texts
    if len(words) > 1:
        words.pop("mac_roman", None)
    if len(words) == 1:
        return dict.fromkeys(words, "")
    read = zip(*(re.findall(r"[^\s\"',;]+", text) for text in words.values()), strict=False)
    shown = max(read, key=lambda readings: len(set(readings)))
    return dict(zip(words, (shortened(word.strip(".:!?()[]{}"), 30) for word in shown), strict=True))


def _almost_json(path: Path, text: str) -> DataError | None:
    """Return the error of lines that are nearly JSON."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix == ".gz" or not lines or not lines[0].startswith("{"):
        return None
    target = path.with_name(f"{path.stem}-fixed.jsonl")
    source, fixed = shlex.quote(str(path)), shlex.quote(str(target))
    if lines[0].endswith(",") and _is_json(lines[0].rstrip(",")):
        return DataError(
            f"{path.name}:1: the lines end in commas, which is neither JSONL nor a JSON array",
            hint=use_rewritten(f"sed 's/,[[:space:]]*$//' {source} > {fixed}", target),
        )
    if re.match(r"\{\s*'", lines[0]):
        program = "import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]"
        return DataError(
            f"{path.name}:1: written with single quotes, as Python prints it, which is not JSON",
            hint=use_rewritten(f'python3 -c "{program}" < {source} > {fixed}', target),
        )
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
