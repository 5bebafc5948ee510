"""`dialogkit chat`."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from dialogkit.cli import complete, options
from dialogkit.cli.generate import sampling
from dialogkit.cli.output import Output, untrusted
from dialogkit.cli.terminal import no_echo, read_turns
from dialogkit.errors import ConfigError, DialogKitError, did_you_mean
from dialogkit.text import counted

if TYPE_CHECKING:
    from dialogkit.inference.results import ReplyResult
    from dialogkit.services.chat import Chat

HELP = """\
/system TEXT     set the system text; without TEXT, remove it
/set NAME VALUE  how replies are sampled: max_new_tokens, temperature, top_k,
                 top_p, repetition_penalty, seed; /set alone shows them
/retry           get another reply to the last turn
/undo            remove the last turn
/reset           start a new dialog
/history         show the dialog so far
/save FILE       append the dialog to a JSONL file, which train --dataset reads
/load FILE       continue the last dialog of a file
/help            show this list
End a line with \\ to continue on the next one; pasted lines are one turn.
Ctrl-C stops a reply; Ctrl-D or /exit leaves the chat."""


_MEANT = {
    **dict.fromkeys(("/clear", "/new", "/restart"), "/reset"),
    **dict.fromkeys(("/again", "/regenerate"), "/retry"),
    **dict.fromkeys(("/back", "/delete"), "/undo"),
    **dict.fromkeys(("/settings", "/params"), "/set"),
    **dict.fromkeys(("/bye", "/q", "/stop"), "/exit"),
    **dict.fromkeys(("/messages", "/show", "/print"), "/history"),
    "/?": "/help",
}
"""Commands by the names that other tools give them."""
_LEAVE = ("/exit", "/quit")
_ONE_PROMPT = 'dialogkit generate --prompt "Hello!"'


def chat_command(
    context: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System text.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="MODEL",
            help="A second model that replies as well.",
            autocompletion=complete.models,
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    temperature: options.TemperatureOption = None,
    seed: options.SeedOption = None,
    use_model_settings: options.ModelSettingsOption = False,
    int8: options.Int8Option = False,
    no_cuda: options.NoCudaOption = False,
    output_dir: options.OutputOption = "models",
) -> None:
    """Talk to MODEL, turn by turn; /help lists the commands."""
    from dialogkit.services.chat import Chat

    output = Output()
    if sys.stdin is None:
        raise ConfigError("standard input is closed, so there is nothing to reply to", hint=_ONE_PROMPT)
    config, device = sampling(context.params, "chat"), "cpu" if no_cuda else "auto"
    model = options.one_model(model, model_option)
    names = [model, compare] if compare else [model]
    with output.busy("loading the model"):
        chats = [
            Chat(name, system=system, config=config, output=output_dir, device=device, int8=int8) for name in names
        ]
    output.note(f"{' and '.join(chat.name for chat in chats)}; /help lists the commands")
    for note in (note for chat in chats for note in chat.notes):
        output.note(note)
    line = None
    for line in _turns(output):
        if line in _LEAVE:
            break
        try:
            _answer(output, chats, line)
        except DialogKitError as error:
            output.error(error)
    if line is None and not sys.stdin.isatty():
        output.note(f"standard input was empty: nothing was said; to ask once: {_ONE_PROMPT}")


def _turns(output: Output) -> Iterator[str]:
    """Yield what is typed, turn by turn."""

    def unreadable(encoding: str) -> None:
        output.error(ConfigError(f"what was typed is not {encoding} text", hint="/help"))

    return read_turns(output.note, on_interrupt="Ctrl-D leaves", on_unreadable=unreadable)


def _with_changes(chat: "Chat", text: str) -> str:
    """Return text with the changes that fit the dialog to the model's chat template."""
    return "; ".join([text, *chat.changes()])


def _answer(output: Output, chats: "list[Chat]", line: str) -> None:
    """Run a command, or reply."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    commands: dict[str, Callable[[Chat], str]] = {
        "/system": lambda chat: _with_changes(
            chat, "system text set" if chat.set_system(rest) else "no system text"
        ),
        "/set": lambda chat: _set(chat, rest),
        "/undo": lambda chat: f"removed: {chat.undo()}",
        "/reset": lambda chat: f"new dialog, {counted(chat.reset(), 'message')} forgotten",
        "/save": lambda chat: _save(chats, rest),
        "/load": lambda chat: _with_changes(chat, _load(chat, _file(word, rest))),
    }
    if word == "/help":
        output.text(HELP)
    elif word == "/history":
        _show(output, chats)
    elif word == "/retry":
        _reply(output, chats, lambda chat: chat.retry)
    elif word in commands:
        answers = [commands[word](chat) for chat in (chats[:1] if word == "/save" else chats)]
        output.note(answers[0])
    elif word in _LEAVE and "\n" not in line:  # to leave by mistake would lose the dialog
        raise ConfigError(f"{word} stands alone (got {rest!r} behind it)", hint=word)
    elif word.startswith("/") and "\n" not in line:  # otherwise a text that was pasted
        known = [*commands, "/help", "/history", "/retry", "/exit"]
        meant = f" (did you mean {_MEANT[word]!r}?)" if word in _MEANT else did_you_mean(word, known)
        raise ConfigError(f"unknown command {word!r}{meant}", hint="/help")
    else:
        _reply(output, chats, lambda chat: lambda **how: chat.say(line, **how))


def _set(chat: "Chat", rest: str) -> str:
    """Set `name value` or `name=value`; without a value, return the current one, or all of them."""
    from dialogkit.services.chat import SETTINGS

    if not rest:
        return "\n".join(f"{name:<20}{chat.get(name)}" for name in SETTINGS)
    name, _, value = rest.replace("=", " ", 1).partition(" ")
    return f"{name} is {chat.set(name, value.strip()) if value.strip() else chat.get(name)}"


def _file(word: str, rest: str) -> str:
    """Return the file name after a command. Raises: ConfigError if it is missing."""
    if not rest:
        raise ConfigError(f"{word} needs the name of a file", hint=f"{word} chat.jsonl")
    return rest


def _load(chat: "Chat", file: str) -> str:
    """Load a dialog, and return what was loaded and which system text is used from now on."""
    before = chat.system
    line = f"{counted(chat.load(file), 'message')} loaded"
    if before is None:
        return line
    return f"{line}; the system text {'stays' if chat.system == before else 'is now that of the file'}"


def _save(chats: "list[Chat]", rest: str) -> str:
    """Save the dialog with the first model, and return what the file then contains."""
    saved = chats[0].save(_file("/save", rest))
    holds = f", which now holds {counted(saved.dialogs, 'dialog')}" if saved.was_there else ", a new file"
    line = f"{'appended to' if saved.was_there else 'saved to'} {saved.path}{holds}"
    if len(chats) > 1:
        line += f"; it has the replies of {chats[0].name}, not those of {chats[1].name}"
    if saved.problem:
        line += f"; training will skip it: {saved.problem}"
    if not saved.trains:
        line += "; train --dataset needs at least 2 different dialogs: save another one to the same file"
    return line


def _show(output: Output, chats: "list[Chat]") -> None:
    """Print the dialog so far; with two models, that of each."""
    for chat in chats:
        if len(chats) > 1:
            output.print(untrusted(f"[{chat.name}]", "cyan"))
        for message in chat.messages:
            mark = {"user": "> ", "system": "system: "}.get(message.role, "")
            output.print(untrusted(f"{mark}{message.content or '(empty)'}", "" if not mark else "bold"))
    if not any(chat.messages for chat in chats):
        output.note("nothing was said yet")


def _reply(output: Output, chats: "list[Chat]", how: "Callable[[Chat], Callable[..., ReplyResult]]") -> None:
    """Print the reply of each model as it grows."""
    for chat in chats:
        if len(chats) > 1:
            output.print(untrusted(f"[{chat.name}]", "cyan"))
        with no_echo(), _ctrl_c() as stopped:
            reply = how(chat)(on_text=output.stream, should_stop=lambda: bool(stopped))
        output.end_stream(instead="" if reply.reply else "(empty)")
        output.reply_statistics(reply, model=chat.name if len(chats) > 1 else None)
        if chat.left_out:
            first = "turn was" if chat.left_out == 1 else f"{chat.left_out:,} turns were"
            output.note(f"the context is full: the first {first} left out")
        if stopped:
            break


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Note Ctrl-C instead of raising it, so that a reply ends between two tokens; a second one raises."""
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
