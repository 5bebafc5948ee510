"""The generation settings that a model brings, which only apply if the user asks for them.

Transformers fills every setting that a caller leaves unset from the model's own, fails on some of them, and
refuses to save others. Loaded models therefore carry none; this module reads them on request.
"""

import json
import os
import stat
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.model import ModelConfig
from dialogkit.config.problems import list_problems
from dialogkit.errors import ModelError, os_reason
from dialogkit.hints import Hint
from dialogkit.models.adapter_source import find_adapter, model_file
from dialogkit.models.sources import find_gguf, local_source
from dialogkit.text import read_small

GENERATION_CONFIG = "generation_config.json"
_LEGACY = "config.json"
_MAX_BYTES = 1_000_000
_MOST_STOP_IDS = 100
_NAMED = 12
"""Most settings that a note names."""

_EQUIVALENT = ("temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
"""Settings with the same meaning here and in transformers."""
_NO_STEERING = frozenset(
    {
        "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version",
        "use_cache", "_from_model_config", "_commit_hash",
    }
)  # fmt: skip
"""Settings that do not affect sampling. `read_stop_ids` reads where replies end."""


@dataclass(frozen=True)
class ModelSettings:
    """Generation settings that a model brings.

    Attributes:
        file: name of their file.
        values: by transformers' names, unchecked.
        problem: why the file cannot be used; None if it can.
    """

    file: str = GENERATION_CONFIG
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def without_generation_settings(config: Any) -> Any:
    """Remove the generation and output settings of a transformers config, in place, so that callers decide them.

    Old models keep generation settings in their config.json. Fields that a config class declares stay, since they
    describe the model.
    """
    from transformers import GenerationConfig

    for part in (config, config.get_text_config(decoder=True)):
        declared = {entry.name for entry in fields(part)}
        for name in {*vars(GenerationConfig()), "task_specific_params"} - declared - _NO_STEERING:
            part.__dict__.pop(name, None)
        part.output_attentions, part.output_hidden_states, part.return_dict = False, False, True
    return config


def read_model_settings(model: ModelConfig) -> ModelSettings:
    """Return the generation settings in a model's files; for an adapter without any, those of its base.

    Raises: ModelError for an adapter that cannot be used.
    """
    if model.from_scratch:
        return ModelSettings()
    adapter = find_adapter(model)
    for source in (model,) if adapter is None else (model, adapter.base):
        if find_gguf(source) is not None:
            continue
        if (path := _find(source, GENERATION_CONFIG)) is not None:
            return _read(path)
        if (path := _find(source, _LEGACY)) is not None and (values := _legacy(_read(path).values)):
            return ModelSettings(_LEGACY, values)
    return ModelSettings()


def read_stop_ids(model: ModelConfig) -> frozenset[int]:
    """Return the token ids that end a reply according to a model's files, besides the end of turn.

    Raises: ModelError for an adapter that cannot be used.
    """
    named = read_model_settings(model).values.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return frozenset(token for token in ids[:_MOST_STOP_IDS] if type(token) is int and token >= 0)


def choose_settings(
    config: GenerateConfig, model: ModelConfig, *, hint: Hint
) -> tuple[GenerateConfig, str | None]:
    """Return the settings for the replies of a model, and a note.

    The note names which of the model's own settings are used and which are not; None if it brings none.

    With `use_model_settings`, the model's own replace those that the user has not set, if they have an
    equivalent. Without, they are only named in the note.

    Raises: ModelError, with this hint, if the model's settings are requested but unreadable or out of range.
    """
    own_settings = read_model_settings(model)
    if not config.use_model_settings:
        return config, own_settings.problem or _sentence(own_settings, [], _unused(own_settings, set()))
    if own_settings.problem:
        raise ModelError(f"the model's own settings cannot be used: {own_settings.problem}", hint=hint)
    given, values = config.model_fields_set, own_settings.values
    own = {name: values[name] for name in _EQUIVALENT if values.get(name) is not None and name not in given}
    if values.get("do_sample") is False and "temperature" not in given:
        own["temperature"] = 0.0
    try:
        config = GenerateConfig.model_validate({**config.model_dump(), **own})
    except ValidationError as error:
        raise ModelError(
            f"the model's own settings cannot be used: {own_settings.file}: {list_problems(error)[0]}", hint=hint
        ) from None
    used = {name for name in _EQUIVALENT if name in values and values[name] == getattr(config, name)}
    if isinstance(values.get("do_sample"), bool) and values["do_sample"] == (config.temperature > 0):
        used.add("do_sample")
    shown = [f"{name} {json.dumps(values[name])}" for name in values if name in used]
    note = _sentence(own_settings, shown, _unused(own_settings, used))
    return config, note or "the model brings no generation settings of its own"


def _unused(own_settings: ModelSettings, used: set[str]) -> list[str]:
    """Return the names of the settings that are not used, except those that are off anyway."""
    return [
        _printable(name)
        for name, value in own_settings.values.items()
        if name not in _NO_STEERING | used and value is not None and (value is not False or name == "do_sample")
    ]


def _sentence(own_settings: ModelSettings, used: list[str], unused: list[str]) -> str | None:
    if len(unused) > _NAMED:
        unused = [*unused[:_NAMED], f"and {len(unused) - _NAMED} more"]
    if used:
        rest = f"; not used: {', '.join(unused)}" if unused else ""
        return f"used from {own_settings.file}: {', '.join(used)}{rest}"
    return f"not used from {own_settings.file}: {', '.join(unused)}" if unused else None


def _printable(name: str) -> str:
    return name if name.isidentifier() and len(name) <= 40 else ascii(name[:40])


def _find(source: ModelConfig, file: str) -> Path | None:
    local = local_source(source.source or "")
    if local is None:
        return model_file(source, file)
    return local / file if os.path.lexists(local / file) else None


def _read(path: Path) -> ModelSettings:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            problem = "is not a regular file and is not used"
        elif len(content := read_small(path, _MAX_BYTES)) > _MAX_BYTES:
            problem = f"is not used: it is larger than {_MAX_BYTES:,} bytes"
        elif isinstance(values := json.loads(content), dict):
            return ModelSettings(path.name, values)
        else:
            problem = "holds no JSON object and is not used"
    except OSError as error:
        problem = f"cannot be read and is not used: {os_reason(error)}"
    except (ValueError, RecursionError):
        problem = "is not valid JSON and is not used"
    return ModelSettings(path.name, problem=f"{path.name} {problem}")


def _legacy(config: dict[str, Any]) -> dict[str, Any]:
    """Return the generation settings in a model's config."""
    from transformers import GenerationConfig

    names = set(vars(GenerationConfig())) - _NO_STEERING - {"output_attentions", "output_hidden_states"}
    return {name: value for name, value in config.items() if name in names and value is not None}
