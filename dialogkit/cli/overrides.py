"""Flags of the command line as settings, and settings as flags."""

import re
from typing import TYPE_CHECKING

from dialogkit.errors import ConfigError
from dialogkit.hints import Hint

if TYPE_CHECKING:
    from dialogkit.config.run import RunConfig


FLAGS = {
    "data.samples": "--samples",
    "data.dataset": "--dataset",
    "data.max_bad_rows": "--max-bad-rows",
    "tracking.project": "--project",
    "tracking.wandb": "--wandb",
    "tracking.tags": "--tag",
    "tracking.trackers": "--tracker",
    "name": "--name",
    "train.budget_s": "--budget",
    "runtime.devices": "--devices",
    "train.method": "--method",
}
"""Settings that have flags whose values can be wrong."""


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as `90s`, `20m` or `1h30m`. Raises: ConfigError for anything else."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower().replace(" ", ""))
    hours, minutes, seconds = (min(int(part or 0), 10**9) for part in (found.groups() if found else (0, 0, 0)))
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise ConfigError(f"--budget {text!r} is not a time such as 90s, 20m or 1h30m", hint="--budget 20m")
    return float(total)


def number_of(text: str) -> int | str:
    """Return the number of devices of a word. Raises: ConfigError unless it is one, or `auto`."""
    if text == "auto" or re.fullmatch(r"[1-9][0-9]{0,3}", text):
        return text if text == "auto" else int(text)
    raise ConfigError(f"--devices {text!r} is not a number of devices, or auto", hint="--devices auto")


def require_lora(config: "RunConfig", *, no_merge: bool) -> None:
    """Raise ConfigError for `--no-merge` where there will be nothing to merge: all weights would be trained."""
    if no_merge and config.train.method != "lora":
        raise ConfigError(
            f"--no-merge keeps what LoRA learned, and --method is {config.train.method!r}",
            hint="--method lora --no-merge",
        )


def as_flags(error: ConfigError, given: list[str]) -> ConfigError:
    """Return the error in words of the flags that were typed, in place of the settings that they stand for."""
    told: list[str] = [error.message, *error.details]
    hint: Hint | None = error.hint
    for name in given:
        if flag := FLAGS.get(name):
            # Of an option that may be repeated each word is a setting with a number.
            told = [re.sub(rf"^{re.escape(name)}(\.\d+)?:", f"{flag}:", line) for line in told]
            hint = hint.replace(f"--set {name}=", f"{flag} ") if isinstance(hint, str) else hint
    if told[0].startswith("--tracker:"):
        hint = "--tracker tensorboard"
    return ConfigError(told[0], hint=hint, details=told[1:])
