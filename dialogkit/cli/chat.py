"""`dialogkit chat`."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli.generate import sampling
from dialogkit.cli.options import NoCudaOption, OutputOption
from dialogkit.cli.output import Output, untrusted
from dialogkit.errors import ConfigError, DialogKitError, did_you_mean

if TYPE_CHECKING:
    from dialogkit.services.chat import Chat
    from dialogkit.services.generate import ReplyResult

HELP = """\
/system TEXT     set the system text; without TEXT take it away
/set NAME VALUE  how replies are sampled: max_new_tokens, temperature, top_k,
                 top_p, repetition_penalty, seed
/retry           another reply to the last turn
/undo            take the last turn back
/reset           begin again
/save FILE       append the dialog to a JSONL file, which train --dataset reads
/load FILE       go on with the last dialog of a file
/help            this list
Ctrl-C stops a reply, Ctrl-D or /exit leaves."""


def chat_command(
    model: Annotated[
        str | None,
        typer.Argument(help="Catalogue name, run, folder or hub id. Default: the newest finished run."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System text.")] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="MODEL", help="A second model that answers as well.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest reply, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0: always the most probable.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="The same seed gives the same replies.")] = None,
    no_cuda: NoCudaOption = False,
    output_dir: OutputOption = "models",
) -> None:
    """Talk to MODEL, turn by turn; /help lists what can be typed."""
    from dialogkit.services.chat import Chat

    output = Output()
    config = sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    device = "cpu" if no_cuda else "auto"
    names = [model, compare] if compare else [model]
    with output.busy("loading the model"):
        chats = [Chat(name, system=system, config=config, output=output_dir, device=device) for name in names]
    output.err.print(untrusted(f"{' and '.join(chat.name for chat in chats)}; /help lists what can be typed"))
    for line in _lines(output):
        if line in ("/exit", "/quit"):
            break
        try:
            _answer(output, chats, line)
        except DialogKitError as error:
            output.error(error)


def _lines(output: Output) -> Iterator[str]:
    """Yield what is typed, until Ctrl-D or the end of the input."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` the arrow keys and a history
    prompt = "> " if sys.stdin is not None and sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except KeyboardInterrupt:
            output.err.print("\nCtrl-D leaves")
            continue
        except (EOFError, RuntimeError):  # the latter where standard input is closed
            if prompt:
                output.text("")
            return
        except UnicodeDecodeError:
            output.error(ConfigError("what was typed is not UTF-8 text", hint="/help"))
            continue
        if line:
            yield line


def _answer(output: Output, chats: "list[Chat]", line: str) -> None:
    """Do what a command says, or reply."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    commands: dict[str, Callable[[Chat], str | None]] = {
        "/system": lambda chat: "system text set" if chat.set_system(rest) else "no system text",
        "/set": lambda chat: f"{rest.partition(' ')[0]} is {chat.set(*_two(rest))}",
        "/undo": lambda chat: f"taken back: {chat.undo()}",
        "/reset": lambda chat: f"the dialog begins again, {chat.reset()} messages forgotten",
        "/save": lambda chat: f"saved: {chat.save(rest)}" if rest else _needs("/save chat.jsonl"),
        "/load": lambda chat: f"{chat.load(rest)} turns loaded" if rest else _needs("/load chat.jsonl"),
    }
    if word == "/help":
        output.text(HELP)
    elif word == "/retry":
        _reply(output, chats, lambda chat: chat.retry)
    elif word in commands:
        told = [commands[word](chat) for chat in (chats[:1] if word == "/save" else chats)]
        output.err.print(untrusted(told[0] or ""))
    elif word.startswith("/"):
        known = [*commands, "/help", "/retry", "/exit"]
        raise ConfigError(f"unknown command {word!r}{did_you_mean(word, known)}", hint="/help")
    else:
        _reply(output, chats, lambda chat: lambda **how: chat.say(line, **how))


def _two(rest: str) -> tuple[str, str]:
    name, _, value = rest.partition(" ")
    if not value:
        _needs("/set temperature 0.5")
    return name, value.strip()


def _needs(example: str) -> str:
    raise ConfigError("something is missing", hint=example)


def _reply(output: Output, chats: "list[Chat]", how: "Callable[[Chat], Callable[..., ReplyResult]]") -> None:
    """Print the reply of each model as it grows."""
    for chat in chats:
        if len(chats) > 1:
            output.print(untrusted(f"[{chat.name}]", "cyan"))
        with _ctrl_c() as stopped:
            reply = how(chat)(on_text=output.stream, leave=lambda: bool(stopped))
        output.text("" if reply.reply else "(empty)")
        output.how(reply)
        if chat.left_out:
            output.err.print(f"the context is full: the first {chat.left_out} turns were left out")
        if stopped:
            break


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Note Ctrl-C instead of raising it, so that a reply ends between two tokens; the second one raises."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
