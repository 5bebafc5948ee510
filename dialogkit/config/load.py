"""Reads and merges settings; the only reader of the `configs/` folder.

Merge order, lowest first: section defaults, model file, preset, a settings file, then what the caller overrides.
Each layer is a JSON object with the sections of `RunConfig`; `$schema` and `description` are for people.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from dialogkit.config.model import NAME_PATTERN
from dialogkit.config.paths import NEWEST, configs_dir, holds_model, nearest_file, shipped_names, without_model
from dialogkit.config.problems import config_error, known_settings, list_problems, suggestion
from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError, DialogKitError, ModelError, did_you_mean, os_reason
from dialogkit.hints import Call, Change, Hint, Shell
from dialogkit.text import convert_command, json_problem, read_small, wide_encoding

MAX_FILE_BYTES = 1_000_000
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")

LORA_LEARNING_RATE = 1e-3
"""Peak learning rate of LoRA: matrices that start at zero take larger steps than trained weights."""

Layer = dict[str, Any]


@dataclass(frozen=True)
class LoadedConfig:
    """A validated configuration, with the layer that determined each setting by its dotted name."""

    config: RunConfig
    origins: dict[str, str]


def model_names() -> list[str]:
    """Return the catalogue's names: pretrained first, then from scratch by size."""
    order = {"pico": -2, "nano": -1, "tiny": 0, "small": 1, "medium": 2, "large": 3}
    return sorted(
        shipped_names("models"),
        key=lambda n: (n.startswith("custom"), n.split("-")[0] != "gpt2", order.get(n.split("-")[-1], 9), n),
    )


def preset_names() -> list[str]:
    """Return the presets' names, by effort."""
    order = {"test": 0, "talk": 1, "development": 2, "production": 3}
    return sorted(shipped_names("presets"), key=lambda n: (order.get(n, 9), n))


def describe(kind: str, name: str) -> str:
    """Return the description of a shipped model (`models`) or preset (`presets`)."""
    return str(_read_object(configs_dir() / kind / f"{name}.json").get("description", ""))


def load_run_config(
    model: str = "custom-tiny",
    *,
    preset: str = "test",
    config_file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the validated configuration of a run.

    Args:
        model: a catalogue name, a model file (`.json`), a model folder, a GGUF file or a hub id.
        preset: test, talk, development or production.
        config_file: a JSON file with any settings; it overrides the model file and the preset.
        overrides: dotted names to values, such as `{"train.max_steps": 5}`; they override everything.

    Raises: ConfigError naming every problem; ModelError for an unknown model.
    """
    require_overrides(overrides)
    return load_with_origins(model, preset=preset, config_file=config_file, overrides=overrides).config


def require_overrides(overrides: object) -> None:
    """Raise ConfigError for overrides that are no mapping, such as words of the command line."""
    if isinstance(overrides, Mapping | None):
        return
    words = [overrides] if isinstance(overrides, str) else overrides
    pairs = [word for word in words if isinstance(word, str)] if isinstance(words, Sequence) else []
    named = dict(word.split("=", 1) for word in pairs if word.find("=") > 0)
    raise ConfigError(
        f"overrides must be a dict of settings by dotted names, not {overrides!r}",
        hint=Change({name: _value_of(text) for name, text in named.items()} or {"train.max_steps": 5}),
    )


def load_with_origins(
    model: str | None = "custom-tiny",
    *,
    preset: str | None = "test",
    config_file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """Return the configuration with the origin of every setting; see `load_run_config`.

    With `model=None` or `preset=None` that layer is the configuration file's own, if it has one.
    """
    file_layer = read_layer(Path(config_file)) if config_file is not None else {}
    layers: list[tuple[str, Layer]] = []
    if model is not None or not _describes_model(file_layer):
        layers.append(model_layer("custom-tiny" if model is None else model))
    if preset is not None or not file_layer:
        layers.append(preset_layer("test" if preset is None else preset))
    if file_layer:
        layers.append((str(config_file), _without_model(file_layer) if model is not None else file_layer))
    if overrides:
        layers.append(("command line", _nested(overrides)))
    layers = _with_lora_rate(layers)
    origins = {name: origin for origin, layer in layers for name, _ in flatten(layer)}
    try:
        config = RunConfig.model_validate(_merged(*(layer for _, layer in layers)))
    except ValidationError as error:
        raise config_error(list_problems(error), suggestion(error, origins)) from None
    if config.name == NEWEST:
        raise ConfigError(
            f"name: must not be {NEWEST!r}, which means the newest unfinished run",
            hint=Change({"name": "my-run"}),
            settings=("name",),
        )
    names = sorted(name for name, _ in flatten(config.model_dump()))
    return LoadedConfig(config, {name: origins.get(name, "default") for name in names})


def _with_lora_rate(layers: list[tuple[str, Layer]]) -> list[tuple[str, Layer]]:
    """Return the layers, with LoRA's learning rate above the shipped ones if LoRA is used and no rate is given."""
    sections = [(origin, section) for origin, layer in layers if isinstance(section := layer.get("train"), dict)]
    methods = [section["method"] for _, section in sections if "method" in section]
    shipped = ("model ", "preset ")
    given = any("learning_rate" in section for origin, section in sections if not origin.startswith(shipped))
    if methods[-1:] != ["lora"] or given:
        return layers
    above = max((number + 1 for number, (origin, _) in enumerate(layers) if origin.startswith(shipped)), default=0)
    rate: tuple[str, Layer] = ("method lora", {"train": {"learning_rate": LORA_LEARNING_RATE}})
    return [*layers[:above], rate, *layers[above:]]


def load_changed(saved: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """Return a saved configuration with changes by dotted names. Raises: ConfigError."""
    try:
        return RunConfig.model_validate(_merged(saved, _nested(changes)))
    except ValidationError as error:
        raise config_error(list_problems(error)) from None


def _describes_model(layer: Layer) -> bool:
    """Return whether a file's layer defines a model, rather than only changing settings of one."""
    model = layer.get("model")
    return isinstance(model, dict) and ("source" in model or "layers" in model)


def _without_model(layer: Layer) -> Layer:
    """Return a file's layer as changes of another MODEL.

    A section with its own source, as in every `run.json`, describes a different model and is left out.
    """
    model = layer.get("model")
    if not isinstance(model, dict):
        return layer
    changes = {} if "source" in model else {key: value for key, value in model.items() if key != "name"}
    return {**layer, "model": changes}


def looks_like_path(name: str) -> bool:
    """Return whether a name can only be a path, as it is no hub id."""
    return not HUB_ID.match(name) and re.search(r"^[~.]|[/\\]|\.(gguf|json)$", name) is not None


def model_layer(model: str) -> tuple[str, Layer]:
    """Return the origin and settings of MODEL as `train` understands it.

    Raises: ModelError if it is no catalogue name, file, folder or hub id.
    """
    if model in shipped_names("models"):
        layer = _read_json(configs_dir() / "models" / f"{model}.json")
        return f"model {model}", _with_model_name(layer, model)
    # Unlike pathlib's, these functions accept any text, even one that is too long for a file name.
    path = Path(os.path.expanduser(model))
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)
    has_rows = is_file and path.suffix == ".json" and holds_list(path)
    if has_rows or (is_file and path.suffix in (".jsonl", ".ndjson", ".csv", ".parquet", ".gz")):
        problem = f"{model!r} {'holds rows of data' if has_rows else 'is data'} and no model"
        raise ModelError(problem, hint=Call("train", settings={"data.dataset": model}))
    if path.suffix == ".json" and not is_folder:
        if not is_file:
            raise _missing("model file", path, ModelError, "train")
        layer = read_layer(path)
        if "model" not in layer:
            raise ModelError(
                f"{model!r} holds settings, but neither the shape nor the source of a model",
                hint=Call("train", config=model),
            )
        return model, _with_model_name(layer, path.stem)
    if is_folder and not holds_model(path) and not any(path.glob("*.gguf")):
        raise ModelError(without_model(model))
    if is_folder or (is_file and path.suffix == ".gguf"):
        stem = path.parent.name if path.name == "model" else path.stem if is_file else path.name
        return f"model {model}", {"model": {"name": folder_name(stem), "source": str(path)}}
    if HUB_ID.match(model) and not is_file and path.suffix != ".gguf":
        return f"model {model}", {"model": {"name": folder_name(model.split("/")[-1]), "source": model}}
    if is_file:
        raise ModelError(f"{model!r} is a file, and neither a model file (.json) nor GGUF")
    if looks_like_path(model):
        raise ModelError(f"there is no file or folder {model!r}")
    raise ModelError(f"unknown model {model!r}{did_you_mean(model, shipped_names('models'))}")


def holds_list(path: Path) -> bool:
    """Return whether a JSON file holds a list, as data does and settings do not."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return False


def preset_layer(preset: str) -> tuple[str, Layer]:
    """Return the origin and settings of a preset. Raises: ConfigError for an unknown preset."""
    names = preset_names()
    if preset not in names:
        raise ConfigError(
            f"unknown preset {preset!r}{did_you_mean(preset, names)}; there are {', '.join(names)}",
            hint=Change({"preset": next((name for name in names if name.startswith(preset[:3])), names[0])}),
        )
    layer = _read_json(configs_dir() / "presets" / f"{preset}.json")
    return f"preset {preset}", {**layer, "preset": preset}


def folder_name(text: str) -> str:
    """Return text as a safe folder name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-_")[:64]
    if re.fullmatch(r"[0-9a-f]{40}", name):  # a commit, as in the hub's cache; unshortened, it looks like a key
        name = name[:12]
    return name if re.match(NAME_PATTERN, name) else "model"


def _with_model_name(layer: Layer, name: str) -> Layer:
    section = layer.get("model", {})
    if not isinstance(section, dict):
        return layer
    return {**layer, "model": {"name": folder_name(name), **section}}


def read_layer(path: Path, *, hint: Hint | None = None) -> Layer:
    """Return a user's settings file; a run's own `run.json` gives its configuration.

    `hint` says what to do about a file that is not valid JSON: by default, to validate it.

    Raises: ConfigError naming the file for anything that is not one JSON object of at most 1 MB.
    """
    layer = _read_json(path, hint)
    config = layer.get("config")
    # A run that repeats another gets its own name.
    return {key: value for key, value in config.items() if key != "name"} if isinstance(config, dict) else layer


def _read_json(path: Path, hint: Hint | None = None) -> Layer:
    return {key: value for key, value in _read_object(path, hint).items() if key not in ("$schema", "description")}


def _read_object(path: Path, hint: Hint | None = None) -> Layer:
    check = hint or Call("config validate", path)
    try:
        content = read_small(path, MAX_FILE_BYTES, pipes=True)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than 1 MB, so it is not a settings file")
        if (encoding := wide_encoding(content[:4096])) is not None:
            raise ConfigError(
                f"{path} is {encoding} and not UTF-8 text", hint=Shell(convert_command(path, encoding)[0])
            )
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise _missing("settings file", path, ConfigError, "config validate") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})", hint=check) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os_reason(error)}") from None
    try:
        layer = json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: {json_problem(error)}", hint=check) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply", hint=check) from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", hint=check) from None
    if not isinstance(layer, dict):
        raise ConfigError(f"{path} holds no JSON object", hint=check)
    return layer


def _missing(kind: str, path: Path, error: type[DialogKitError], verb: str) -> DialogKitError:
    """Return the error of a JSON file that does not exist; its hint is the verb for a similar one beside it."""
    similar = nearest_file(path, (".json",))
    meant = f" (did you mean {str(similar)!r}?)" if similar else ""
    return error(f"the {kind} {str(path)!r} does not exist{meant}", hint=Call(verb, similar) if similar else None)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> Layer:
    """Refuse duplicate keys, of which JSON readers silently keep the last."""
    layer: Layer = {}
    for key, value in pairs:
        if key in layer:
            raise ValueError(f"the key {key!r} appears twice")
        layer[key] = value
    return layer


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")


def parse_sets(words: Sequence[str]) -> dict[str, Any]:
    """Return `a.b=value` words as dotted overrides; a value is JSON where it can be, else text.

    Raises: ConfigError for words without `=`, which then also lists problems of the others.
    """
    wrong = [f"{word!r} is not of the form name=value" for word in words if word.find("=") < 1]
    pairs = (word.split("=", 1) for word in words if word.find("=") >= 1)
    overrides = {name: _value_of(text) for name, text in pairs}
    if wrong:
        colons = (word.partition(":") for word in words)
        names = known_settings()
        meant = next(({name: _value_of(text)} for name, _, text in colons if text and name in names), None)
        try:  # most problems do not depend on the model
            others = _problems_of(model_layer("custom-tiny")[1], _nested(overrides))
        except ConfigError as error:
            others = [error.message]
        raise config_error([*wrong, *others], Change(meant) if meant else None)
    return overrides


def _value_of(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _problems_of(*layers: Layer) -> list[str]:
    """Return every problem of the merged layers."""
    try:
        RunConfig.model_validate(_merged(*layers))
    except ValidationError as error:
        return [*list_problems(error)]
    return []


def _nested(overrides: Mapping[str, Any]) -> Layer:
    nested: Layer = {}
    for name, value in overrides.items():
        *sections, key = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {section} is set to a value already")
        place[key] = value
    return nested


def _merged(*layers: Mapping[str, Any]) -> Layer:
    """Return the settings of all layers; later ones override earlier ones."""
    merged: Layer = {}
    for key, value in chain.from_iterable(layer.items() for layer in layers):
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def flatten(layer: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every setting of a layer."""
    for key, value in layer.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Setting(BaseModel):
    """One resolved setting, and the layer that determined it."""

    name: str
    value: object
    origin: str


def list_settings(loaded: LoadedConfig) -> list[Setting]:
    """Return every setting with its origin."""
    return [
        Setting(name=name, value=value, origin=loaded.origins[name])
        for name, value in flatten(loaded.config.model_dump(mode="json"))
    ]


def default_settings() -> dict[str, Any]:
    """Return the default values of settings in the form of a run's record."""
    fields = RunConfig.model_fields.items()
    defaults = {name: field.default for name, field in fields if not field.is_required()}
    return dict(flatten(to_jsonable_python(defaults)))


def validate_file(path: Path) -> list[str]:
    """Return every problem of a settings file; empty when it is valid.

    Settings that the file leaves out are those of custom-tiny, unless it has a model section of its own.
    Raises: ConfigError if it is not readable JSON.
    """
    layer = read_layer(path, hint=Call("config schema"))
    return _problems_of({} if _describes_model(layer) else model_layer("custom-tiny")[1], layer)


def schema_text() -> str:
    """Return the JSON Schema of a settings file, for editors. Every setting is optional in a file."""
    schema = RunConfig.model_json_schema()
    schema.pop("required", None)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"] |= {"$schema": {"type": "string"}, "description": {"type": "string"}}
    return json.dumps(schema, indent=2) + "\n"
