"""A dialog with a model, turn by turn."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.dialog import Message, check_dialog
from dialogkit.errors import ConfigError, DataError, DialogKitError, StorageError, did_you_mean
from dialogkit.inference.results import ReplyResult, StreamSink, reply_results
from dialogkit.services.generate import sampling_of
from dialogkit.services.runs.resolve import resolve_model
from dialogkit.system.compute_lock import alone

if TYPE_CHECKING:
    from dialogkit.models.tokenizer import ChatTokenizer

SETTINGS = tuple(
    name for name in GenerateConfig.model_fields if name not in ("test_prompts", "use_model_settings")
)


class Saved(NamedTuple):
    """A file that a dialog was saved to.

    Attributes:
        path: the file.
        dialogs: dialogs that it holds now.
        was_there: whether there was such a file before.
        trains: whether two of its dialogs differ, which a training needs.
        problem: why a training leaves this dialog out, such as an empty reply; None where it does not.
    """

    path: Path
    dialogs: int
    was_there: bool
    trains: bool
    problem: str | None = None


class _Held(NamedTuple):
    """What a file of dialogs held: their number, different ones of them (two at most), whether its end is one."""

    dialogs: int
    different: list[Any]
    ended: bool


def _held_by(path: Path) -> _Held:
    """Return what a JSONL file holds. Raises: OSError; ValueError or RecursionError for what is no such file."""
    if not path.exists():
        return _Held(0, [], ended=True)
    if not path.is_file():  # a pipe would never end
        raise OSError("not a file")
    dialogs, line = 0, "\n"
    different: list[Any] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            if not isinstance(row := json.loads(line), dict):
                raise ValueError
            dialogs += 1
            if len(different) < 2 and row.get("messages", row) not in different:
                different.append(row.get("messages", row))
    return _Held(dialogs, different, ended=line.endswith("\n"))


class Chat:
    """A dialog with one model that is loaded once.

    Attributes:
        name: the model.
        messages: the dialog so far, the system text included.
        left_out: turns at its beginning that the last reply could not see, for want of context.
        config: how replies are sampled.
        notes: what was used of the model's own settings, where that was asked for.
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
    ) -> None:
        """Load a model. Raises: ModelError, UnavailableError."""
        loadable = resolve_model(None if model is None else str(model), output=output)
        (self.config,), self.notes = sampling_of(
            [loadable], config or GenerateConfig(), command="chat", output=output
        )
        from dialogkit.inference.replies import Conversation
        from dialogkit.services.runs.loading import load_for_inference

        loaded = load_for_inference(loadable, device=device)
        self.name = loaded.name
        self.messages: list[Message] = []
        self.left_out = 0
        self._attempt = 0
        self._tokenizer: ChatTokenizer = loaded.tokenizer
        self._conversation: Conversation = Conversation(
            loaded.model, loaded.tokenizer, context=loaded.context, device=loaded.device
        )
        if system:
            self.set_system(system)

    @property
    def turns(self) -> int:
        """Messages without the system text."""
        return len(self.messages) - self._first

    @property
    def _first(self) -> int:
        return 1 if self.messages and self.messages[0].role == "system" else 0

    def say(
        self, text: str, *, on_text: StreamSink | None = None, leave: Callable[[], bool] | None = None
    ) -> ReplyResult:
        """Say something, and return the reply; both belong to the dialog from then on.

        Args:
            text: what the user says.
            on_text: takes the reply as it grows.
            leave: asked after each token whether to stop; what was said until then is kept.

        Raises: ConfigError if there is no text.
        """
        if not text.strip():
            raise ConfigError("there is nothing to reply to", hint="/help")
        self._attempt = 0
        return self._reply([*self.messages, Message("user", text.strip())], on_text, leave)

    def retry(self, *, on_text: StreamSink | None = None, leave: Callable[[], bool] | None = None) -> ReplyResult:
        """Return another reply to what was said last, with another seed. Raises: ConfigError without a turn."""
        self._require_turn()
        self._attempt += 1
        return self._reply(self.messages[:-1], on_text, leave)

    def undo(self) -> str:
        """Take back the last turn and its reply, and return what the user had said. Raises: ConfigError."""
        self._require_turn()
        taken = self.messages[-2].content
        self.messages = self.messages[:-2]
        return taken

    def reset(self) -> int:
        """Begin again; the system text stays. Returns the messages that were forgotten."""
        forgotten = self.turns
        self.messages = self.messages[: self._first]
        self.left_out = 0
        return forgotten

    def set_system(self, text: str) -> bool:
        """Set the system text; an empty one takes it away. Returns whether there is one."""
        system = [Message("system", text.strip())] if text.strip() else []
        self.messages = [*system, *self.messages[self._first :]]
        return bool(system)

    def get(self, name: str) -> Any:
        """Return how replies are sampled now. Raises: ConfigError for an unknown setting."""
        if name not in SETTINGS:
            known = ", ".join(SETTINGS)
            raise ConfigError(
                f"unknown setting {name!r}{did_you_mean(name, SETTINGS)}; there are {known}", hint="/set"
            )
        return getattr(self.config, name)

    def set(self, name: str, value: str) -> Any:
        """Set how replies are sampled, and return the value. Raises: ConfigError."""
        from pydantic import ValidationError

        from dialogkit.config.problems import list_problems

        self.get(name)
        try:
            number: Any = json.loads(value)
        except ValueError:
            number = value
        try:
            self.config = GenerateConfig.model_validate({**self.config.model_dump(), name: number})
        except ValidationError as error:
            raise ConfigError(list_problems(error)[0], hint=f"/set {name} {getattr(self.config, name)}") from None
        return number

    def save(self, path: str | Path) -> Saved:
        """Append the dialog to a JSONL file that `train --dataset` reads, or begin one, and return what it holds.

        Raises: ConfigError without a turn, or for another kind of file; StorageError if it cannot be written.
        """
        self._require_turn()
        path = Path(os.path.expanduser(path))
        hint = f"/save {path.with_suffix('.jsonl')}" if path.name else "/save chat.jsonl"
        if path.suffix != ".jsonl":
            raise ConfigError(f"a file of dialogs, one a line, is a .jsonl file, and not {str(path)!r}", hint=hint)
        messages = [message._asdict() for message in self.messages]
        # A terminal may hand on bytes that are no text.
        line = json.dumps({"messages": messages}, ensure_ascii=False).encode("utf-8", "replace").decode()
        try:
            was_there = path.exists()
            held = _held_by(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{'' if held.ended else chr(10)}{line}\n")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StorageError(f"{str(path)!r} cannot be written: {reason}", hint="/save chat.jsonl") from None
        except (ValueError, RecursionError):
            raise ConfigError(
                f"{str(path)!r} is there and holds something else than a dialog a line, so it is left as it is",
                hint=f"/save {path.with_stem(f'{path.stem}-2')}",
            ) from None
        problem = check_dialog(self.messages)
        others = [other for other in held.different if other != messages]
        trains = len(held.different) > 1 or (problem is None and bool(others))
        return Saved(path, held.dialogs + 1, was_there, trains, problem)

    def load(self, path: str | Path) -> int:
        """Take the last dialog of a file in place of this one, and return its turns. Raises: DataError."""
        from dialogkit.config.data import DataConfig
        from dialogkit.data.sources import find_source, read_dialogs

        hint = "/load FILE"
        try:
            dialogs = read_dialogs(find_source(DataConfig(dataset=str(path))), DataConfig()).dialogs
        except DialogKitError as error:
            error.hint = hint  # what it proposes elsewhere cannot be typed in a dialog
            raise
        if problem := check_dialog(dialogs[-1]):
            raise DataError(f"{str(path)!r}: {problem}", hint=hint)
        self.messages, self.left_out = list(dialogs[-1]), 0
        return self.turns

    def _require_turn(self) -> None:
        if self.turns < 2:
            raise ConfigError("nothing was said yet", hint="/help")

    @alone()
    def _reply(
        self, messages: list[Message], on_text: StreamSink | None, leave: Callable[[], bool] | None
    ) -> ReplyResult:
        seen = self._that_fit(messages)
        self.left_out = len(messages) - len(seen)
        config = self.config.model_copy(update={"seed": (self.config.seed + self._attempt) % 2**32})
        made = self._conversation.reply(seen, config, on_text=on_text, leave=leave)
        self.messages = [*messages, Message("assistant", made.text)]
        return reply_results(self.name, [messages[-1].content], [made])[0]

    def _that_fit(self, messages: list[Message]) -> list[Message]:
        """Return the messages without as many of the oldest turns as the context has no room for."""
        first = 1 if messages[0].role == "system" else 0
        room, seen = self._conversation.room(self.config), messages
        while len(seen) > first + 2 and len(self._tokenizer.encode_prompt(seen)) > room:
            seen = [*seen[:first], *seen[first + 2 :]]
        return seen
