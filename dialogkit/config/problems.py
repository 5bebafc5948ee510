"""Turns validation errors of settings into one sentence each, and suggests a valid value."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dialogkit.config.base import CONFLICT
from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError, did_you_mean, wrong_setting
from dialogkit.hints import Call, Change, Hint
from dialogkit.redaction import redact

FOREIGN_NAMES = {
    "lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "steps": "train.max_steps",
    "gradient_accumulation_steps": "train.accumulation_steps",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "train.eval_batch_size",
    "warmup_ratio": "train.warmup_fraction",
    "warmup_steps": "train.warmup_fraction",
    "lr_scheduler_type": "train.schedule",
    "optim": "train.optimizer",
    "gradient_checkpointing": "train.activation_checkpointing",
    "eval_steps": "train.eval_every_steps",
    "save_steps": "train.eval_every_steps",
    "save_every_steps": "train.eval_every_steps",
    "checkpoint_every_steps": "train.eval_every_steps",
    "save_total_limit": "train.keep_checkpoints",
    "logging_steps": "train.log_every_steps",
    "lora_r": "train.lora_rank",
    "target_modules": "train.lora_targets",
    "bf16": "runtime.precision",
    "fp16": "runtime.precision",
    "fsdp": "runtime.sharding",
    "torch_compile": "runtime.compile",
    "dataloader_num_workers": "runtime.workers",
    "max_length": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "report_to": "tracking.trackers",
}
"""Settings by the names that HF's arguments and other tools give them. Evaluations also save checkpoints here."""


def known_settings() -> list[str]:
    """Return the dotted names of all settings."""
    return [
        f"{section}.{field}" if fields else section
        for section, fields in _sections().items()
        for field in (fields or {"": None})
    ]


def _sections() -> dict[str, Mapping[str, Any]]:
    """Return the fields of each section; none for a setting outside sections."""
    return {name: getattr(field.annotation, "model_fields", {}) for name, field in RunConfig.model_fields.items()}


def config_error(problems: Sequence[str], hint: Hint | None = None) -> ConfigError:
    """Return the error of one problem or several: the first, their number, and the others as details."""
    more = {0: "", 1: " (and 1 more problem)"}.get(len(problems) - 1, f" (and {len(problems) - 1} more problems)")
    settings = [problem.setting if isinstance(problem, Problem) else "" for problem in problems]
    return ConfigError(f"{problems[0]}{more}", hint=hint, details=problems[1:], settings=settings)


def require_number(
    name: str, value: object, *, least: float, most: float | None = None, usual: float, whole: bool = True
) -> None:
    """Raise ConfigError if an argument of a function is not a number in its range.

    Args:
        name: the argument.
        value: what was given.
        least: the lowest value.
        most: the highest value; None: any.
        usual: a valid value, to suggest.
        whole: whether it must be an integer.
    """
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if is_number and least <= float(value) <= (math.inf if most is None else most):  # type: ignore[arg-type]
        return
    bounds = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"
    raise wrong_setting(
        name, f"must be a{' whole' * whole} number {bounds} (got {value!r})", Change({name: usual})
    )


class Problem(str):
    """What is wrong with one setting: a sentence that begins with the setting's name, as most do."""

    setting: str

    def __new__(cls, sentence: str, setting: str) -> "Problem":
        """Keep the setting beside the sentence."""
        made = super().__new__(cls, sentence)
        made.setting = setting
        return made


def list_problems(error: ValidationError) -> list[Problem]:
    """Return one sentence for each problem, as `train.learning_rate: must be greater than 0 (got -1)`."""
    return [Problem(_problem(item), _name(item)) for item in error.errors()]


def _problem(item: ErrorDetails) -> str:
    name, kind, message, given = _name(item), item["type"], item["msg"], item["input"]
    if kind == "extra_forbidden" and isinstance(given, dict):
        known = [section for section, fields in _sections().items() if fields]
        return f"unknown section {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}"
    if kind == "extra_forbidden":
        return f"unknown setting {name!r}{_nearest_setting(name)}"
    if kind == "missing":
        return f"{name}: is required"
    if kind in ("value_error", CONFLICT):
        sentence = message.removeprefix("Value error, ")
        return f"{name}: {sentence}" if name else sentence  # settings that do not go together have no one name
    if kind in ("bool_type", "bool_parsing"):
        message = "must be true or false"
    if kind == "tuple_type":
        message = "must be a list of values"
    if kind == "string_pattern_mismatch":  # names are the only settings with a pattern
        message = "must be at most 64 letters, digits, dots, dashes or underscores, a letter or digit first"
    message = message.partition(", unable to parse")[0]
    if given in ("NaN", "Infinity", "-Infinity") and kind.endswith(("_type", "_parsing")):
        # Words of a command line that JSON does not know as numbers are taken as text.
        return f"{name}: must be a finite number (got {given})"
    text = "must be a JSON object" if kind == "model_type" else re.sub(r"^\w+ should ", "must ", message)
    shown = redact(json.dumps(given, default=str, ensure_ascii=False))  # before a part of it is left out
    shown = shown if len(shown) <= 60 else shown[:57] + "..." + '"' * shown.startswith('"')
    return f"{name}: {text} (got {shown})"


def _name(item: ErrorDetails) -> str:
    return ".".join(str(part) for part in item["loc"])


def suggestion(error: ValidationError, origins: Mapping[str, str]) -> Hint | None:
    """Return a hint for the first wrong value: to check its file, or a value that is valid.

    `origins` are the layers that determined the settings, by dotted names.
    """
    item = error.errors()[0]
    name, location, context = _name(item), item["loc"], item.get("ctx", {})
    if item["type"] == CONFLICT:
        return Change({context["setting"]: context["value"]})
    if (origin := origins.get(name, "")).endswith(".json"):
        return Call("config validate", origin)
    fields: Mapping[str, Any] = RunConfig.model_fields
    for part in location[:-1]:
        fields = _sections().get(str(part), {}) if fields is RunConfig.model_fields else {}
    field = fields.get(str(location[-1])) if location else None
    right = (field.examples or [field.default])[0] if field is not None else None
    right = context.get("right") or right  # the check of a setting may know better than its example
    if isinstance(right, bool) and str(item["input"]).lower() in ("yes", "on", "1", "no", "off", "0"):
        right = str(item["input"]).lower() in ("yes", "on", "1")
    if item["type"] == "literal_error" and field is not None:
        allowed = re.findall(r"'([^']*)'", context["expected"])
        right = next(iter(get_close_matches(str(item["input"]).lower(), allowed, n=1)), right)
    if item["type"] == "literal_error" and isinstance(location[-1], int):  # one of a list
        name, right = name.rpartition(".")[0], re.findall(r"'([^']*)'", context["expected"])[:1]
    if right is None or isinstance(right, BaseModel | tuple) or "." not in name:
        return Change({"name": "my-run"}) if name == "name" else None
    return Change({name: right})


def setting_of(word: str) -> str | None:
    """Return the setting with this name without its section, or by a foreign name; None if unknown."""
    return FOREIGN_NAMES.get(word) or next((name for name in known_settings() if name.endswith(f".{word}")), None)


def _nearest_setting(name: str) -> str:
    """Return a suggestion by the last part of a name, preferring settings of the same section."""
    section, _, key = name.rpartition(".")
    meant = FOREIGN_NAMES.get(key)
    if meant is not None and section in ("", "train", meant.partition(".")[0]):
        return f" (did you mean {meant!r}?)"
    known = sorted([*_sections(), *known_settings()], key=lambda k: k.rpartition(".")[0] == section)
    names = {setting.rpartition(".")[2]: setting for setting in known}
    return "".join(f" (did you mean {names[nearest]!r}?)" for nearest in get_close_matches(key, names, n=1))
