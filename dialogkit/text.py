"""How text from outside is made harmless to look at, and how figures are written for people."""

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


def duration(seconds: float) -> str:
    """Return seconds as people say them: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
