"""The one place that prints. Results go to stdout, everything else to stderr."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from textwrap import shorten
from typing import IO, TYPE_CHECKING, Any, TypeVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from dialogkit.cli import hints
from dialogkit.cli.terminal import WordWrap, between_words, no_echo
from dialogkit.errors import DialogKitError
from dialogkit.hints import Hint
from dialogkit.redaction import redact
from dialogkit.system.loading import LOADING, loads_libraries
from dialogkit.text import UNSAFE, counted, sanitize

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dialogkit.inference.results import ReplyResult

Row = TypeVar("Row")

_ESCAPES = {code: json.dumps(chr(code))[1:-1] for code in UNSAFE if code >= 127}

_NEXT, _TRY = "next: ", "try: "
WANDB = "W&B: "
_OF_COMMANDS = (_NEXT, _TRY, WANDB)
"""Labels of lines that are a command."""
UNBOUNDED = 10_000
"""Width of a file or a pipe, which has no edge: no line of a table is folded, and no column is left out."""
REPLY_COLUMN = 32
"""Minimum width of a column of replies; a narrower terminal shows them one below the other."""


def _write_json(content: Mapping[str, Any]) -> None:
    """Print JSON."""
    sys.stdout.write(_printable(json.dumps(content, ensure_ascii=False, indent=2)) + "\n")


def _printable(drawn: str) -> str:
    """Return JSON for a terminal: control characters are JSON escapes, which parse back to the same text.

    So is all that is not ASCII unless stdout is UTF-8: the escapes of other encodings are not JSON's.
    """
    is_utf8 = str(sys.stdout.encoding).lower().startswith("utf")
    if not is_utf8 and not drawn.isascii():
        drawn = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in drawn)
    return drawn.translate(_ESCAPES)


def untrusted(text: str, style: str = "") -> Text:
    """Return text from outside as something rich prints as it is."""
    return Text(sanitize(text), style=style)


class _Aside(Console):
    """The console of stderr. If its reader leaves, as `| head` does, the work goes on silently."""

    def on_broken_pipe(self) -> None:
        """Print nothing from now on."""
        self.quiet = True
        # Libraries and the interpreter's exit write there as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def escape_unencodable() -> None:
    """Make stdout and stderr escape what their encoding lacks; by default they would fail, after all the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if closed; a notebook has streams of its own
            stream.reconfigure(errors="backslashreplace")


def print_item(console: Console, item: RenderableType) -> None:
    """Print an item; in a file or a pipe, lines have no trailing blanks."""
    if console.is_terminal or console.quiet:
        console.print(item)
        return
    with console.capture() as drawn:
        console.print(item)
    try:
        console.file.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))
        console.file.flush()
    except BrokenPipeError:
        if not isinstance(console, _Aside):
            raise
        console.on_broken_pipe()


class Output:
    """Prints results as tables for people or as one JSON envelope for programs."""

    out: Console
    err: Console

    def __init__(self, *, json_mode: bool = False, file: IO[str] | None = None) -> None:
        """Prepare to print.

        Args:
            json_mode: print for programs.
            file: where to print everything, as plain text; None: stdout and stderr.
        """
        self.json_mode = json_mode
        self._growing: WordWrap | None = None
        if file is not None:
            # In a notebook rich would display instead of writing to the file.
            plain = Console(file=file, force_terminal=False, force_jupyter=False, highlight=False, width=100)
            self.out = self.err = plain
            return
        escape_unencodable()
        self.out = Console(highlight=False, soft_wrap=False)
        self.err = _Aside(stderr=True, highlight=False)
        for console in (self.out, self.err):
            if not console.is_terminal and "COLUMNS" not in os.environ:
                console.width = UNBOUNDED

    def result(
        self,
        result: "BaseModel | Sequence[BaseModel]",
        render: Callable[["Output"], None],
        *,
        hint: Hint | None = None,
    ) -> None:
        """Print a result: `{"data": ..., "hint": ...}`, or what `render` draws."""
        if not self.json_mode:
            render(self)
            if hint:
                self.hint(hint)
            return
        data = (
            [item.model_dump(mode="json") for item in result]
            if isinstance(result, Sequence)
            else result.model_dump(mode="json")
        )
        _write_json({"data": data, "hint": hints.render(hint)})

    def error(self, error: DialogKitError) -> None:
        """Print an error: one sentence, its details, and what to try."""
        self._growing = None  # a reply that failed has no end
        hint = hints.render(error.hint)
        hint = redact(hint) if hint else None
        settings = [*error.settings, *[""] * (1 + len(error.details) - len(error.settings))]
        message, *details = map(hints.in_flags, [error.message, *error.details], settings)
        if self.json_mode:
            body = {"code": error.code, "message": message, "hint": hint, "details": details}
            _write_json({"error": body})
            return
        self.note(message, label=("error: ", "bold red"))
        for detail in details[:10]:
            self.note(f"       {detail}")
        if hint:
            self.note(hint, label=(_TRY, "bold"))

    def skipped(self, runs: Sequence[str]) -> None:
        """Report the runs that are missing because their records cannot be read."""
        if runs:
            self.note(f"skipped, as the record cannot be read: {', '.join(runs)}")

    def hint(self, hint: Hint) -> None:
        """Print the next command to type."""
        self.note(redact(hints.render(hint) or ""), label=(_NEXT, "bold"))

    def note(self, text: str, style: str = "", *, label: tuple[str, str] = ("", "")) -> None:
        """Print text from outside to stderr after a label in its style.

        A terminal breaks the lines of commands, which are then copied whole; others are broken between words.
        """
        if self.err.is_terminal and label[0] not in _OF_COMMANDS:
            text = between_words(sanitize(text), self.err.width, column=len(label[0]))
        self.err.print(Text.assemble(label, untrusted(text, style)), soft_wrap=True)

    def print(self, *items: RenderableType) -> None:
        """Print items to stdout, one below the other."""
        for item in items:
            print_item(self.out, item)

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines of JSON as they come."""
        for line in lines:
            sys.stdout.write(_printable(line))

    def text(self, text: str) -> None:
        """Print text as it is to stdout, whatever the width of the terminal."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def reply(self, reply: "ReplyResult", *, prompt: bool, model: str | None = None) -> None:
        """Print a reply, with its prompt if `prompt` and the name of its model, and its statistics to stderr."""
        if prompt:
            self.print(untrusted(f"> {reply.prompt}", "bold"))
        if model is not None:
            self.print(untrusted(f"[{model}]", "cyan"))
        self.print(untrusted(reply.reply or "(empty)"))
        self.reply_statistics(reply, model=model)

    def reply_statistics(self, reply: "ReplyResult", *, model: str | None = None) -> None:
        """Print to stderr the length of a reply, its time and what stopped it, after the name of its model."""
        line = "" if model is None else f"{model}: "
        line += f"{counted(reply.tokens, 'token')}, {reply.seconds:.2f} s, stopped by {reply.stop_reason}"
        if reply.cut_tokens:
            line += f"; the first {counted(reply.cut_tokens, 'token')} of the prompt did not fit the context"
        self.note(line, "dim")

    @contextmanager
    def busy(self, text: str) -> "Iterator[Callable[[], None]]":
        """Show an activity in a terminal until it ends, or until the yielded function is called."""
        if self.json_mode or not self.err.is_terminal:
            yield lambda: None
            return
        with no_echo(), self.err.status(untrusted(text), spinner=spinner(self.err)) as status:
            yield status.stop

    def loading(self) -> None:
        """Report in a line that libraries are loaded, if they are not yet; a terminal shows an activity anyway."""
        if loads_libraries() and not (self.json_mode or self.err.is_terminal):
            self.note(f"{LOADING} ...")

    @contextmanager
    def progress(self) -> "Iterator[Callable[[str, float], None]]":
        """Yield a function that takes the current activity and the fraction done (0 to 1).

        A terminal shows a bar; elsewhere each new activity is printed as a line.
        """
        if self.json_mode:
            yield lambda activity, done: None
            return
        if not self.err.is_terminal:
            yield self._line_by_line()
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        # A fixed width: a text that grows and shrinks would move the columns beside it.
        text = Column(width=max(10, self.err.width - 40), no_wrap=True, overflow="ellipsis")
        columns = (
            BarColumn(bar_width=24),
            TimeRemainingColumn(table_column=Column(width=len("0:00:00"))),
            TextColumn("{task.description}", table_column=text),
        )
        with Progress(*columns, console=self.err, transient=True, refresh_per_second=4) as drawn:
            task = drawn.add_task("", total=None)

            def update(activity: str, done: float) -> None:
                # Until the first part is done, the bar moves back and forth.
                drawn.update(
                    task, total=1.0 if done else None, completed=done, description=escape(sanitize(activity))
                )

            yield update

    def _line_by_line(self) -> "Callable[[str, float], None]":
        before = ""

        def update(activity: str, done: float) -> None:
            nonlocal before
            if activity != before:
                before = activity
                self.note(f"{activity} ...")

        return update

    def stream(self, text: str) -> None:
        """Print a piece of a growing text to stdout; in a terminal up to its last whole word."""
        if self.out.is_terminal:
            self._growing = self._growing or WordWrap(sys.stdout.write, self.out.width)
            self._growing.add(sanitize(text))
        else:
            sys.stdout.write(sanitize(text))
        sys.stdout.flush()

    def end_stream(self, *, instead: str = "") -> None:
        """Print the rest of a growing text and end its line; if it stayed empty, print `instead`."""
        if self._growing is not None:
            self._growing.end()
            self._growing = None
        self.text(instead)


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in dialogkit's style."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(untrusted(column), justify="right" if column in right else "left", overflow="fold")
    return made


def fitting(
    console: Console,
    columns: Mapping[str, Callable[[Row], str]],
    rows: Sequence[Row],
    *,
    right: Sequence[str],
    dispensable: Sequence[str],
) -> "Table | PlainTable":
    """Return a table of rows with the columns that fit the console.

    Args:
        console: where the table will be printed.
        columns: the cell of a row in each column, by title.
        rows: one per line.
        right: right-aligned columns.
        dispensable: columns to leave out if they do not fit, the first ones first.
    """
    cells = {title: [sanitize(cell(row)) for row in rows] for title, cell in columns.items()}
    for left_out in range(len(dispensable) + 1):
        shown = {title: cells[title] for title in columns if title not in dispensable[:left_out]}
        plain = PlainTable(shown, right)
        if plain.width <= console.width:
            break
    if plain.width <= console.width and plain.is_printable:
        return plain
    made = table(*shown, right=right)
    for texts in zip(*shown.values(), strict=True):
        made.add_row(*map(Text, texts))
    return made


class PlainTable:
    """A table in the style of `table` that is as wide as its cells: rich would measure each of them many times.

    Args:
        columns: the cells of each column, by title.
        right: right-aligned columns.
    """

    def __init__(self, columns: Mapping[str, Sequence[str]], right: Sequence[str]) -> None:
        self._columns = [(title in right, [title, *texts]) for title, texts in columns.items()]
        self._widths = [max(map(cell_len, texts)) for _, texts in self._columns]
        self.width = sum(self._widths) + 2 * (len(self._widths) - 1)
        self.is_printable = all(text.isprintable() for _, texts in self._columns for text in texts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, the first one bold."""
        padded = [
            [_pad(text, width, to_right) for text in texts]
            for (to_right, texts), width in zip(self._columns, self._widths, strict=True)
        ]
        for number, texts in enumerate(zip(*padded, strict=True)):
            yield Segment("  ".join(texts), None if number else Style(bold=True))
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the only width at which this is drawn."""
        return Measurement(self.width, self.width)


def _pad(text: str, width: int, to_right: bool) -> str:
    blanks = " " * (width - cell_len(text))
    return blanks + text if to_right else text + blanks


def fits(console: Console, drawn: "Table | PlainTable") -> bool:
    """Return whether a table fits the width of a console."""
    return console.measure(drawn, options=console.options.update(width=UNBOUNDED)).maximum <= console.width


def encodes(console: Console, text: str) -> bool:
    """Return whether a console can show a text."""
    try:
        text.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def spinner(console: Console) -> str:
    """Return the name of the spinner, one of rich's, that a console can show."""
    return "dots" if encodes(console, "\u280b") else "line"


def replies_table(
    console: Console, models: Sequence[str], rows: Iterable[tuple[str, Iterable[str]]]
) -> Table | None:
    """Return a table of prompts and the replies of models side by side.

    None if the console is too narrow, or has no width to which whole replies could be folded.
    """
    if console.width < REPLY_COLUMN * (len(models) + 1) or console.width == UNBOUNDED:
        return None
    made = table("prompt", *models)
    for prompt, replies in rows:
        made.add_row(untrusted(prompt), *(untrusted(reply or "(empty)") for reply in replies))
    return made


def values_grid(values: Mapping[str, str]) -> Table:
    """Return names, in bold, and values one below the other; long values are folded."""
    grid = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for name, value in values.items():
        grid.add_row(Text(name, style="bold"), untrusted(value))
    return grid


def date(created: str) -> str:
    """Return a timestamp of a record as local time."""
    try:
        return f"{datetime.fromisoformat(created).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return created


def parameters(count: int | None) -> str:
    """Return an exact number of parameters with thousands separators."""
    return "?" if count is None else f"{count:,}"


def settings_table(values: Mapping[str, object], title: str = "") -> Table:
    """Return a table of names and values; text as it is, all else as JSON."""
    made = table(title, "")
    made.show_header = bool(title)
    for name, value in values.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        made.add_row(untrusted(name), untrusted(shown))
    return made


def options_table(rows: Sequence[tuple[str, Any, str]]) -> Table:
    """Return a table of settings with values and origins; a long list is shortened (`--json` gives all of it)."""
    made = table("setting", "value", "from")
    made.columns[0].no_wrap = True
    for name, value, origin in rows:
        shown = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and len(shown) > 60:
            shown = f"{shorten(shown, 60, placeholder=' ...')} ({len(value)} in all)"
        made.add_row(untrusted(name), untrusted(shown), untrusted(origin, "dim"))
    return made
