"""A dialog with a model, turn by turn."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT, nearest_file
from dialogkit.config.problems import list_problems
from dialogkit.data.sources import find_source, read_dialogs
from dialogkit.dialog import Message, check_dialog
from dialogkit.errors import ConfigError, DataError, DialogKitError, StorageError, did_you_mean, os_reason
from dialogkit.hints import Call
from dialogkit.inference.results import ReplyResult, StreamSink, reply_results
from dialogkit.services.inference import hints_for, sampling_of
from dialogkit.services.inference_memory import replies_at_once
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.system.compute_lock import alone
from dialogkit.text import without_surrogates

SETTINGS = tuple(
    name for name in GenerateConfig.model_fields if name not in ("test_prompts", "use_model_settings")
)
"""Settings that can be changed during a dialog."""
StopCheck = Callable[[], bool]
"""Called after each token of a reply; True stops the reply there and keeps it."""
_FILE = "chat.jsonl"


class Saved(NamedTuple):
    """A file that a dialog was saved to."""

    path: Path
    dialogs: int
    """Dialogs in it now."""
    was_there: bool
    """Whether the file existed before."""
    trains: bool
    """Whether it has two different dialogs, which training needs."""
    problem: str | None
    """Why training skips this dialog, such as an empty reply; None if it does not."""


class Chat:
    """A dialog with one model that is loaded once.

    Attributes:
        name: the model.
        messages: the dialog so far, the system text included.
        left_out: turns at its beginning, each a question and its reply, that did not fit into the context of the
            last reply.
        config: the sampling settings.
        notes: what was used of the model's own sampling settings, if `use_model_settings` is on, that weights were
            rounded, and how the dialog was changed to fit the chat template.
    """

    @alone()
    def __init__(
        self,
        model: str | Path | None = None,
        *,
        system: str | None = None,
        config: GenerateConfig | None = None,
        output: str | Path = DEFAULT_OUTPUT,
        device: str = "auto",
        int8: bool = False,
    ) -> None:
        """Load a model, with weights of 8 bits if `int8`. Raises: ModelError, UnavailableError."""
        loadable = resolve_model(None if model is None else str(model), output=output)
        (self.config,), self.notes = sampling_of(
            [loadable], config or GenerateConfig(), verb="chat", output=output
        )
        from dialogkit.inference.replies import Conversation
        from dialogkit.services.runs.loading import int8_note, load_for_replies

        with hints_for(loadable):
            loaded = load_for_replies(loadable, device=device, int8=int8)
        if int8:
            self.notes = [*self.notes, int8_note(loadable)]
        self._loadable = loadable
        self.name = loaded.name
        self.messages: list[Message] = []
        self.left_out = 0
        self._attempt = 0
        self._finished: tuple[GenerateConfig, list[Message]] | None = None
        """The dialog after the last reply that was not stopped, and the settings of that reply."""
        self._loaded, self._tokenizer = loaded, loaded.tokenizer
        self._conversation = Conversation(
            loaded.model, loaded.tokenizer, context=loaded.context, device=loaded.device
        )
        if system:
            self.set_system(system)
            self.notes += self.changes()

    def changes(self) -> list[str]:
        """Return what is changed in the dialog to fit the model's chat template."""
        return [f"{self.name}: {change}" for change in self._tokenizer.changes(self.messages)]

    @property
    def system(self) -> str | None:
        """The system text; None without one."""
        return self.messages[0].content if self._first else None

    @property
    def turns(self) -> int:
        """Number of messages, without the system text."""
        return len(self.messages) - self._first

    @property
    def _first(self) -> int:
        return 1 if self.messages and self.messages[0].role == "system" else 0

    def say(
        self, text: str, *, on_text: StreamSink | None = None, should_stop: StopCheck | None = None
    ) -> ReplyResult:
        """Say something and return the reply; both become part of the dialog.

        Args:
            text: what the user says.
            on_text: receives the reply as it grows.
            should_stop: called after each token; True stops the reply there and keeps it.

        Raises: ConfigError if the text is empty.
        """
        if not text.strip():
            raise ConfigError("the message is empty", hint=Call("chat help"))
        self._attempt = 0
        said = Message("user", without_surrogates(text).strip())
        return self._reply([*self.messages, said], on_text, should_stop)

    def retry(self, *, on_text: StreamSink | None = None, should_stop: StopCheck | None = None) -> ReplyResult:
        """Replace the last reply by one with another seed, and return it.

        Raises: ConfigError without a turn, or if the reply would be the same.
        """
        self._require_turn()
        if self._finished == (self.config, self.messages) and (name := self._greedy_setting()):
            problem = f"{name} {getattr(self.config, name):g} always takes the most probable token"
            usual = getattr(GenerateConfig(), name)
            raise ConfigError(f"{problem}: the reply would be the same", hint=Call("chat set", name, usual))
        self._attempt += 1
        return self._reply(self.messages[:-1], on_text, should_stop)

    def _greedy_setting(self) -> str | None:
        """Return the setting that makes every reply to the same dialog the same; None if replies are sampled."""
        return "temperature" if self.config.temperature == 0 else "top_k" if self.config.top_k == 1 else None

    def undo(self) -> str:
        """Remove the last turn with its reply, and return what the user said. Raises: ConfigError."""
        self._require_turn()
        taken = self.messages[-2].content
        self.messages = self.messages[:-2]
        return taken

    def reset(self) -> int:
        """Restart the dialog and keep the system text; return the number of messages removed."""
        removed = self.turns
        self.messages = self.messages[: self._first]
        self.left_out = 0
        return removed

    def set_system(self, text: str) -> bool:
        """Set the system text, or remove it with an empty one; return whether one is set."""
        text = without_surrogates(text).strip()
        system = [Message("system", text)] if text else []
        self.messages = [*system, *self.messages[self._first :]]
        return bool(system)

    def get(self, name: str) -> Any:
        """Return a sampling setting. Raises: ConfigError for an unknown one."""
        if name not in SETTINGS:
            problem = f"unknown setting {name!r}{did_you_mean(name, SETTINGS)}; known are {', '.join(SETTINGS)}"
            raise ConfigError(problem, hint=Call("chat set"))
        return getattr(self.config, name)

    def set(self, name: str, value: str) -> Any:
        """Change a sampling setting and return its value. Raises: ConfigError if the name or value is wrong."""
        self.get(name)
        try:
            number: Any = json.loads(value)
        except ValueError:
            number = value
        try:
            self.config = GenerateConfig.model_validate({**self.config.model_dump(), name: number})
        except ValidationError as error:
            hint = Call("chat set", name, getattr(self.config, name))
            raise ConfigError(f"{list_problems(error)[0]}; {_range_of(name)}", hint=hint) from None
        return number

    def save(self, path: str | Path) -> Saved:
        """Append the dialog to a JSONL file, which can be trained on; create the file if necessary.

        Raises: ConfigError without a turn, or for another kind of file; StorageError if it cannot be written.
        """
        self._require_turn()
        path = Path(os.path.expanduser(path))
        if path.suffix != ".jsonl":
            hint = Call("chat save", path.with_suffix(".jsonl") if path.name else _FILE)
            raise ConfigError(f"{str(path)!r} does not end in .jsonl: dialogs are saved one per line", hint=hint)
        messages = [message.turn() for message in self.messages]
        line = json.dumps({"messages": messages}, ensure_ascii=False)
        try:
            was_there = path.exists()
            dialogs, different, last = _read(path)
            start = "" if last.endswith("\n") else "\n"
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{start}{line}\n")
        except OSError as error:
            hint = Call("chat save", _FILE)
            raise StorageError(f"{str(path)!r} cannot be written: {os_reason(error)}", hint=hint) from None
        except (ValueError, RecursionError):
            raise ConfigError(
                f"{str(path)!r} exists and is not a file of `messages`, one dialog per line; it is left as it is",
                hint=Call("chat save", path.with_stem(f"{path.stem}-2")),
            ) from None
        problem = check_dialog(self.messages)
        trains = len(different) > 1 or (problem is None and different not in ([], [messages]))
        return Saved(path, dialogs + 1, was_there, trains, problem)

    def load(self, path: str | Path) -> int:
        """Replace the dialog by the last one of a file, and return its number of messages without the system text.

        The present system text stays if the dialog of the file has none.

        Raises: DataError.
        """
        near = nearest_file(Path(os.path.expanduser(path)), (".jsonl",))
        hint = Call("chat load", near) if near else Call("chat help")
        try:
            dialogs = read_dialogs(find_source(DataConfig(dataset=str(path))), DataConfig()).dialogs
        except DialogKitError as error:
            error.hint = hint  # its own would change a setting of `train`
            raise
        if problem := check_dialog(dialogs[-1]):
            raise DataError(f"{str(path)!r}: {problem}", hint=hint)
        present, loaded = self.messages[: self._first], list(dialogs[-1])
        self.messages = loaded if loaded[0].role == "system" else [*present, *loaded]
        self.left_out = 0
        return self.turns

    def _require_turn(self) -> None:
        if self.turns < 2:
            raise ConfigError("nothing was said yet", hint=Call("chat help"))

    @alone()
    def _reply(
        self, messages: list[Message], on_text: StreamSink | None, should_stop: StopCheck | None
    ) -> ReplyResult:
        from dialogkit.inference.replies import fitting

        config = self.config.model_copy(update={"seed": (self.config.seed + self._attempt) % 2**32})
        with hints_for(self._loadable):
            seen = fitting(self._tokenizer, messages, self._conversation.room(self.config))
            replies_at_once(
                self._loaded,
                [len(self._tokenizer.encode_prompt(seen))],
                config,
                1,
                held=self._conversation.held,
                shorter=lambda tokens: Call("chat set", "max_new_tokens", tokens),
            )
            made = self._conversation.reply(seen, config, on_text=on_text, should_stop=should_stop)
        self.left_out = (len(messages) - len(seen)) // 2  # only whole turns are left out
        self.messages = [*messages, Message("assistant", made.text)]
        self._finished = None if made.stop_reason == "interruption" else (self.config, self.messages)
        return reply_results(self.name, [messages[-1].content], [made])[0]


def _range_of(name: str) -> str:
    """Return a phrase that says which values a setting takes."""
    field = GenerateConfig.model_json_schema()["properties"][name]
    low = f"more than {field['exclusiveMinimum']:g}" if "exclusiveMinimum" in field else f"{field['minimum']:g}"
    return f"it takes {field['type']}s from {low} to {field['maximum']:,}"


def _read(path: Path) -> tuple[int, list[Any], str]:
    """Return the number of dialogs in a JSONL file, the first two different ones, and its last line.

    Raises: OSError; ValueError or RecursionError for anything else than dialogs.
    """
    different: list[Any] = []
    dialogs, line = 0, "\n"
    if not path.exists():
        return dialogs, different, line
    if not path.is_file():  # a pipe would never end
        raise OSError("not a file")
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            if not isinstance(row := json.loads(line), dict) or "messages" not in row:
                raise ValueError  # a dataset has one format, so a dialog among other rows would not count
            dialogs += 1
            if len(different) < 2 and row["messages"] not in different:
                different.append(row["messages"])
    return dialogs, different, line
