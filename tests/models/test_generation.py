"""Generation settings that come with a model decide nothing, unless the user asks for them."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.model import ModelConfig
from dialogkit.errors import ModelError
from dialogkit.hints import Call
from dialogkit.models.build import build_model, require_savable
from dialogkit.models.generation import GENERATION_CONFIG, choose_settings
from tests.models.foreign import FILE_ONLY, GENERATION_SETTINGS, together

Write = Callable[[str, Any], ModelConfig]
HINT = Call("generate", "model")


@pytest.fixture
def write(small: Any) -> Write:
    """Write a model whose generation settings are in a file, and return its source."""
    folder = Path("model").resolve()
    small.model(context=64).save_pretrained(folder)
    small.tokenizer.save(folder)
    (folder / GENERATION_CONFIG).unlink()
    shape = json.loads((folder / "config.json").read_text())

    def new(file: str, settings: Any) -> ModelConfig:
        (folder / GENERATION_CONFIG).unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(shape))
        content = json.dumps({**shape, **settings} if file == "config.json" else settings)
        (folder / file).write_text(content)
        return ModelConfig(source=str(folder))

    return new


@pytest.mark.parametrize(
    ("file", "every"),
    [
        (GENERATION_CONFIG, False),
        pytest.param(GENERATION_CONFIG, True, marks=pytest.mark.faults),
        pytest.param("config.json", True, marks=pytest.mark.faults),
    ],
)
def test_a_model_is_loaded_and_can_be_saved_as_one_without_settings(
    file: str, every: bool, small: Any, write: Write
) -> None:
    def loaded(settings: Any) -> list[dict[str, Any]]:
        source = write(file, settings)
        model = build_model(source, small.tokenizer)
        require_savable(model, source)
        return [model.config.to_dict(), model.generation_config.to_diff_dict()]

    plain = loaded({})
    assert plain[1].pop("transformers_version")
    assert plain[1] == {"eos_token_id": sorted(small.tokenizer.stop_ids), "pad_token_id": small.tokenizer.pad_id}
    tried = [*GENERATION_SETTINGS, {"task_specific_params": {"a": 1}}]
    # In a config.json these are no generation settings.
    others = {"eos_token_id", "pad_token_id", "use_cache", "of_a_later_release", "_from_model_config"}
    tried = [t for t in tried if not others & t.keys()] if file == "config.json" else tried + FILE_ONLY
    for settings in tried if every else together(tried):
        shape, kept = loaded(settings)
        assert kept.pop("transformers_version")
        assert [shape, kept] == plain, settings


def test_a_config_that_cannot_be_saved_is_found_before_it_has_to_be(small: Any, write: Write) -> None:
    source = write("config.json", {"validate": 1})
    model = build_model(source, small.tokenizer)
    with pytest.raises(ModelError, match="cannot be loaded: TypeError"):
        require_savable(model, source)


def chosen(source: ModelConfig, **given: Any) -> tuple[GenerateConfig, str | None]:
    return choose_settings(GenerateConfig(**given), source, hint=HINT)


@pytest.mark.parametrize(
    ("file", "settings", "note"),
    [
        (
            GENERATION_CONFIG,
            {"temperature": 0.9, "top_p": 0.6, "max_length": 20, "eos_token_id": 3, "top_k": None},
            "not used from generation_config.json: temperature, top_p, max_length",
        ),
        ("config.json", {"temperature": 0.9, "num_beams": 4}, "not used from config.json: temperature, num_beams"),
        (GENERATION_CONFIG, {"a\n\x1b[31m": 1}, r"not used from generation_config.json: 'a\n\x1b[31m'"),
        (
            GENERATION_CONFIG,
            {f"s{n}": n for n in range(14)},
            f"not used from generation_config.json: {', '.join(f's{n}' for n in range(12))}, and 2 more",
        ),
        (GENERATION_CONFIG, {"eos_token_id": [1, 2], "transformers_version": "4.0"}, None),
        (GENERATION_CONFIG, {}, None),
        (GENERATION_CONFIG, [], "generation_config.json holds no JSON object and is not used"),
        (GENERATION_CONFIG, None, "generation_config.json holds no JSON object and is not used"),
        (GENERATION_CONFIG, "x" * 10**6, "generation_config.json is not used: it is larger than 1,000,000 bytes"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_named_in_one_sentence(
    file: str, settings: Any, note: str | None, write: Write
) -> None:
    assert chosen(write(file, settings)) == (GenerateConfig(), note)


def cut_off(path: Path) -> None:
    path.write_text('{"temperature": ')


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("damage", [cut_off, nested, pipe, folder, dangling])
def test_a_file_that_cannot_be_read_is_left_out(damage: Callable[[Path], None], small: Any, write: Write) -> None:
    source = write(GENERATION_CONFIG, {})
    damage(Path("model") / GENERATION_CONFIG)
    note = chosen(source)[1]
    assert note is not None
    assert re.fullmatch(r"generation_config\.json .*is not used(: .*)?", note)
    build_model(source, small.tokenizer)
    with pytest.raises(
        ModelError, match=r"the model's own settings cannot be used: generation_config\.json"
    ) as reported:
        chosen(source, use_model_settings=True)
    assert reported.value.hint == HINT


OWN = {"do_sample": True, "temperature": 1.3, "top_p": 0.6, "top_k": 7, "num_beams": 2, "stop_strings": ["a"]}


@pytest.mark.parametrize("file", [GENERATION_CONFIG, "config.json"])
def test_settings_that_are_asked_for_take_the_place_of_those_not_given(file: str, write: Write) -> None:
    config, note = chosen(write(file, OWN), use_model_settings=True, top_p=0.8, max_new_tokens=9)
    expected = GenerateConfig(use_model_settings=True, temperature=1.3, top_p=0.8, top_k=7, max_new_tokens=9)
    assert config == expected
    assert note is not None
    used, unused = note.removeprefix(f"used from {file}: ").split("; not used: ")
    assert set(used.split(", ")) == {"do_sample true", "temperature 1.3", "top_k 7"}
    assert set(unused.split(", ")) == {"top_p", "num_beams", "stop_strings"}
    # Where a run is resumed, all settings are given, and these are still those of the model.
    again = choose_settings(GenerateConfig.model_validate(config.model_dump()), write(file, OWN), hint=HINT)
    assert again == (config, note)


@pytest.mark.parametrize(("given", "temperature"), [({}, 0.0), ({"temperature": 0.5}, 0.5)])
def test_a_model_that_does_not_sample_is_greedy_unless_a_temperature_is_given(
    given: dict[str, float], temperature: float, write: Write
) -> None:
    source = write(GENERATION_CONFIG, {"do_sample": False, "temperature": 0.9})
    assert chosen(source, use_model_settings=True, **given)[0].temperature == temperature


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"temperature": 50}, "temperature: must be less than or equal to 2 (got 50)"),
        ({"top_p": "all"}, 'top_p: must be a valid number (got "all")'),
        ({"top_k": -1}, "top_k: must be greater than or equal to 0 (got -1)"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty: must be a finite number (got NaN)"),
        ({"max_new_tokens": 10**12}, "max_new_tokens: must be less than or equal to 1000000 (got 1000000000000)"),
    ],
)
def test_a_value_out_of_range_is_one_sentence_where_it_is_asked_for(
    settings: dict[str, Any], problem: str, write: Write
) -> None:
    with pytest.raises(ModelError) as reported:
        chosen(write(GENERATION_CONFIG, settings), use_model_settings=True)
    assert reported.value.message == f"the model's own settings cannot be used: generation_config.json: {problem}"


def test_a_model_without_settings_says_so_where_they_are_asked_for(small: Any, write: Write) -> None:
    asked = GenerateConfig(use_model_settings=True)
    for source in (write(GENERATION_CONFIG, {"eos_token_id": 1}), ModelConfig(**small.shape)):
        assert choose_settings(asked, source, hint=HINT) == (
            asked,
            "the model brings no generation settings of its own",
        )
