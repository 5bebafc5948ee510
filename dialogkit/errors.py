"""The errors that a user can cause or must act on, each with an exit code and the next thing to type.

Everything else that is raised is a bug and keeps its traceback.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from dialogkit.hints import Call, Change, Hint
from dialogkit.redaction import redact

LONGEST = 800
"""Longest message in characters."""


def shortened(text: str, longest: int = LONGEST) -> str:
    """Return text, longer than `longest` only as its beginning and end."""
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 4 :]}"


class DialogKitError(Exception):
    """One sentence with the offending value, and what to do about it.

    Attributes:
        message: what is wrong, in one sentence.
        hint: what to do about it: that of the place where it was raised, else `default_hint`. It speaks of verbs
            and settings; the command line renders it as what to type.
        code: a stable word for programs (`error.code` in JSON output).
        settings: the settings with which the message and the details begin, in this order; an empty text for none.
            The command line names the flag instead, where one was typed.
        exit_code: 1 run-time or I/O, 2 the input was wrong, 3 diverged, 130/143 stopped by a signal.
    """

    code = "failed"
    exit_code = 1
    default_hint: Hint | None = None

    def __init__(
        self, message: str, *, hint: Hint | None = None, details: Sequence[str] = (), settings: Sequence[str] = ()
    ) -> None:
        message = shortened(redact(message))  # a value that somebody gave can be of any length, and a secret
        super().__init__(message)
        self.message = message
        self.hint: Hint | None = hint or self.default_hint
        self.details = tuple(shortened(redact(detail)) for detail in details)
        self.settings = tuple(settings)


class ConfigError(DialogKitError):
    """A setting, a flag or a configuration file is wrong."""

    code = "bad_config"
    exit_code = 2
    default_hint = Call("config show")


class DataError(DialogKitError):
    """A dataset cannot be found, read or understood, or leaves nothing to train on."""

    code = "bad_data"
    exit_code = 2
    default_hint = Call("data list")


class ModelError(DialogKitError):
    """A model, run or tokenizer cannot be found or used."""

    code = "bad_model"
    exit_code = 2
    default_hint = Call("models list")


class UnavailableError(DialogKitError):
    """Something outside is missing: the network, a device, an optional package."""

    code = "unavailable"
    exit_code = 2


class StorageError(DialogKitError):
    """A file or folder cannot be written."""

    code = "storage"
    exit_code = 2
    default_hint = Change({"runtime.output_dir": "my-models"})


class CheckpointError(DialogKitError):
    """A checkpoint cannot be written (the disk is full, for example) or trusted; other checkpoints remain."""

    code = "checkpoint"


class ProcessLostError(DialogKitError):
    """A process of a distributed run was lost."""

    code = "process_lost"


class OutOfMemoryError(DialogKitError):
    """The device has not enough memory for one step."""

    code = "out_of_memory"


class DivergedError(DialogKitError):
    """The loss or a gradient is no longer finite."""

    code = "diverged"
    exit_code = 3


class InterruptedRunError(DialogKitError):
    """Training was stopped by a signal; the run can be resumed."""

    code = "interrupted"

    def __init__(
        self, message: str, *, exit_code: int, hint: Hint | None = None, details: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.exit_code = exit_code

    def add(self, words: str) -> None:
        """Continue the message with what became known of the run since."""
        self.message = f"{self.message} {words}"
        self.args = (self.message,)


def is_interruption(error: BaseException) -> bool:
    """Return whether an error is an interruption, such as Ctrl-C or `sys.exit`, rather than a failure."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_interruption, error.exceptions))
    return isinstance(error, InterruptedRunError) or not isinstance(error, Exception)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a program that ends with this error."""
    if isinstance(error, DialogKitError):
        return error.exit_code
    if isinstance(error, BaseExceptionGroup):
        return exit_code_of(next(filter(is_interruption, error.exceptions), error.exceptions[0]))
    if isinstance(error, SystemExit) and error.code is not None and not isinstance(error.code, int):
        return 1  # a message, which Python prints
    if isinstance(error, SystemExit) and error.code:
        return int(error.code)
    return 130 if is_interruption(error) else 1


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest known word, or an empty string.

    A word that continues what was typed is nearer than any other; one that contains it is the last resort.
    """
    words = list(known)
    if len(word) > 2 and (longer := [name for name in words if name.lower().startswith(word.lower())]):
        return f" (did you mean {get_close_matches(word, longer, n=1, cutoff=0.0)[0]!r}?)"
    containing = [name for name in words if len(word) > 2 and word.lower() in re.split("[-_.]", name.lower())]
    nearest = get_close_matches(word, words, n=1, cutoff=0.6) or containing
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def os_reason(error: OSError | ValueError) -> str:
    """Return why the system refused an operation, such as `permission denied`."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def wrong_setting(name: str, problem: str, hint: Hint) -> ConfigError:
    """Return the error of a setting; the command line names the flag instead, where one was typed."""
    return ConfigError(f"{name}: {problem}", hint=hint, settings=(name,))
