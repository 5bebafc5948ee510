"""Run commands in a terminal and draw what it shows: the picture in the README.

Needs the packages pyte (a terminal emulator) and rich. The further lines of an argument are typed at the prompts
of the command in its first line, and then Ctrl-D.

    python benchmarks/terminal_session.py --columns 100 --svg .github/session.svg 'dialogkit models list' ...
"""

import argparse
import fcntl
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text


def run_in_terminal(commands: list[str], *, columns: int, lines: int) -> list[Text]:
    """Return the lines of a terminal after the commands, and what is typed at their prompts, have run in turn."""
    screen = pyte.HistoryScreen(columns, lines, history=100_000, ratio=1)
    stream = pyte.ByteStream(screen)
    for number, (command, *typed) in enumerate(map(str.splitlines, commands)):
        if number:
            stream.feed(b"\r\n")
        stream.feed(f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m\r\n".encode())
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
        process = subprocess.Popen(
            command, shell=True, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
        )
        os.close(theirs)
        try:
            while piece := os.read(ours, 65_536):
                stream.feed(piece)
                if _prompts(screen):
                    os.write(ours, f"{typed.pop(0)}\n".encode() if typed else b"\x04")
        except OSError:  # the terminal's other side was closed
            pass
        process.wait()
        os.close(ours)
    rows = [*screen.history.top, *(screen.buffer[y] for y in range(screen.lines))]
    drawn = [_text(row, columns) for row in rows]
    while drawn and not drawn[-1].plain.strip():
        drawn.pop()
    return drawn


def _prompts(screen: pyte.Screen) -> bool:
    """Return whether the cursor stands behind a prompt."""
    return bool(screen.display[screen.cursor.y].rstrip() == ">" and screen.cursor.x == 2)


def _text(row: dict[int, pyte.screens.Char], columns: int) -> Text:
    line = Text()
    for x in range(columns):
        cell = row[x]
        color = "" if cell.fg == "default" else f"#{cell.fg}" if len(cell.fg) == 6 else cell.fg
        color = {"brown": "yellow", "brightblack": "bright_black"}.get(color, color)
        line.append(cell.data, style=f"{'bold ' if cell.bold else ''}{color}".strip())
    line.rstrip()
    return line


def main() -> None:
    """Print the terminal's lines, and draw them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--svg", type=Path)
    words = parser.parse_args()
    lines = run_in_terminal(words.commands, columns=words.columns, lines=words.lines)
    console = Console(width=words.columns, record=True, force_terminal=True)
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print()  # the picture ends in the midst of its last line
    if words.svg:
        words.svg.parent.mkdir(exist_ok=True)
        words.svg.write_text(console.export_svg(title="dialogkit"), encoding="utf-8")


if __name__ == "__main__":
    main()
