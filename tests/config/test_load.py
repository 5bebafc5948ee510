"""Settings: every shipped file loads, layers merge in their order, and every problem is named."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dialogkit.config.load import (
    describe,
    flatten,
    folder_name,
    load_run_config,
    load_with_origins,
    model_names,
    parse_sets,
    preset_names,
    read_layer,
    schema_text,
    validate_file,
)
from dialogkit.config.paths import configs_dir
from dialogkit.config.problems import FOREIGN_NAMES, known_settings
from dialogkit.config.run import RunConfig
from dialogkit.errors import ConfigError, ModelError
from tests.conftest import Trained, typed

SHAPE = {"layers": 2, "width": 32, "heads": 2, "context": 64}


def write(name: str, content: Any) -> str:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return name


def problems_of(**settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run_config("custom-nano", overrides={name.replace("__", "."): v for name, v in settings.items()})
    return [caught.value.message, *caught.value.details]


# The shipped files


def test_the_catalogue_lists_pretrained_models_first_and_then_by_size() -> None:
    assert model_names() == [
        "gpt2-small", "gpt2-medium", "dialogpt-small", "dialogpt-medium",
        "custom-pico", "custom-nano", "custom-tiny", "custom-small", "custom-medium", "custom-large",
    ]  # fmt: skip
    assert preset_names() == ["test", "talk", "development", "production"]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("model", model_names())
def test_every_shipped_pair_loads_and_its_complete_copy_is_the_same(model: str, preset: str) -> None:
    config = load_run_config(model, preset=preset)
    assert (config.model.name, config.preset) == (model, preset)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("preset", "dataset", "samples", "epochs", "batch_size"),
    [
        ("test", "starter", 100, 1.0, 2),
        ("development", "alpaca-gpt4", 1000, 2.0, 4),
        ("production", "alpaca-gpt4", None, 3.0, 8),
    ],
)
def test_a_preset_is_effort_and_nothing_else(
    preset: str, dataset: str, samples: int | None, epochs: float, batch_size: int
) -> None:
    loaded = load_with_origins("custom-tiny", preset=preset)
    decided = {name for name, origin in loaded.origins.items() if origin == f"preset {preset}"}
    assert decided <= {"preset", "data.dataset", "data.samples", "train.epochs", "train.batch_size"}
    data, train = loaded.config.data, loaded.config.train
    assert (data.dataset, data.samples, train.epochs, train.batch_size) == (dataset, samples, epochs, batch_size)


def test_every_shipped_file_says_what_it_is() -> None:
    texts = [describe("models", name) for name in model_names()]
    texts += [describe("presets", name) for name in preset_names()]
    assert all(texts)
    assert len(set(texts)) == len(texts)


def test_the_schema_on_disk_is_the_one_of_the_code() -> None:
    assert (configs_dir() / "schema.json").read_text(encoding="utf-8") == schema_text()


def test_the_schema_knows_every_setting_and_requires_none() -> None:
    schema = json.loads(schema_text())
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    sections = {
        name: field["$ref"].split("/")[-1] for name, field in schema["properties"].items() if "$ref" in field
    }
    named = [
        f"{section}.{key}" for section, kind in sections.items() for key in schema["$defs"][kind]["properties"]
    ]
    assert set(known_settings()) == {*named, "name", "preset"}
    assert all(
        f.get("description") for kind in sections.values() for f in schema["$defs"][kind]["properties"].values()
    )


# The merge


def test_each_layer_overrides_those_below() -> None:
    train = {"weight_decay": 0.5, "batch_size": 3, "epochs": 5, "seed": 1, "adam_beta1": 0.1}
    model = write("mine.json", {"model": SHAPE, "train": train})
    settings = write("more.json", {"train": {"epochs": 7, "seed": 2}})
    loaded = load_with_origins(model, preset="test", config_file=settings, overrides={"train.seed": 3})
    decided = {name: (getattr(loaded.config.train, name), loaded.origins[f"train.{name}"]) for name in train}
    assert decided == {
        "weight_decay": (0.5, "mine.json"),
        "adam_beta1": (0.1, "mine.json"),
        "batch_size": (2, "preset test"),
        "epochs": (7, "more.json"),
        "seed": (3, "command line"),
    }
    assert (loaded.config.train.adam_beta2, loaded.origins["train.adam_beta2"]) == (0.95, "default")


def test_every_setting_has_an_origin_and_what_comes_from_no_layer_is_the_default() -> None:
    loaded = load_with_origins("gpt2-small", preset="development")
    values = dict(flatten(loaded.config.model_dump()))
    assert set(loaded.origins) == set(values) == set(known_settings())
    bare = dict(flatten(RunConfig.model_validate({"model": SHAPE}).model_dump()))
    defaults = [name for name, origin in loaded.origins.items() if origin == "default"]
    assert {name: values[name] for name in defaults} == {name: bare[name] for name in defaults}


def test_set_flags_and_a_settings_file_say_the_same() -> None:
    overrides = parse_sets(["train.max_steps=5", "data.dataset=mine.jsonl", 'tracking.tags=["a"]', "name=first"])
    nested = {
        "train": {"max_steps": 5}, "data": {"dataset": "mine.jsonl"}, "tracking": {"tags": ["a"]}, "name": "first",
    }  # fmt: skip
    by_words = load_run_config("custom-nano", overrides=overrides)
    assert by_words == load_run_config("custom-nano", config_file=write("settings.json", nested))
    assert by_words != load_run_config("custom-nano")


def test_a_file_without_a_model_changes_the_default_one() -> None:
    loaded = load_with_origins(None, preset=None, config_file=write("s.json", {"model": {"context": 128}}))
    assert (loaded.config.model.name, loaded.config.model.context) == ("custom-tiny", 128)


def test_a_file_with_a_model_needs_no_other() -> None:
    loaded = load_with_origins(
        None, preset=None, config_file=write("s.json", {"model": {"name": "mine", **SHAPE}})
    )
    assert (loaded.config.model.name, loaded.config.model.layers, loaded.config.preset) == ("mine", 2, "custom")


def test_a_runs_own_record_repeats_its_configuration(trained: Trained) -> None:
    record = Path(trained.result.run_dir) / "run.json"
    loaded = load_with_origins(None, preset=None, config_file=record)
    # All but the name: the repetition is a separate run.
    expected = {**json.loads(record.read_text())["config"], "name": None}
    assert loaded.config.model_dump(mode="json") == expected
    assert (loaded.config.model.width, loaded.config.data.samples) == (32, 40)
    assert {name: origin for name, origin in loaded.origins.items() if origin != str(record)} == {
        "name": "default"
    }


@pytest.mark.parametrize("model", ["custom-medium", "gpt2-small"])
def test_the_record_of_another_models_run_gives_its_settings_but_not_its_model(
    trained: Trained, model: str
) -> None:
    record = Path(trained.result.run_dir) / "run.json"
    config = load_run_config(model, config_file=record)
    assert config.model == load_run_config(model).model
    assert config.data.samples == 40


def test_a_model_files_name_is_the_models_unless_it_names_itself() -> None:
    assert load_run_config(write("my model!.json", {"model": SHAPE})).model.name == "my-model"
    assert load_run_config(write("b.json", {"model": {"name": "chosen", **SHAPE}})).model.name == "chosen"


@pytest.mark.parametrize(
    ("made", "model", "name"),
    [
        ("zoo/parrot/config.json", "zoo/parrot", "parrot"),
        ("runs/first/model/config.json", "runs/first/model", "first"),
        ("zoo/parrot-q4.gguf", "zoo/parrot-q4.gguf", "parrot-q4"),
        ("zoo/folder/parrot-q4.gguf", "zoo/folder", "folder"),
        (None, "someone/Parrot-7B", "Parrot-7B"),
    ],
)
def test_a_folder_a_gguf_file_and_a_hub_id_are_sources(made: str | None, model: str, name: str) -> None:
    if made is not None:
        Path(made).parent.mkdir(parents=True)
        Path(made).touch()
    config = load_run_config(model).model
    assert (config.source, config.name, config.from_scratch) == (model, name, False)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("custom-tinny", "did you mean 'custom-tiny'"),
        ("", "the folder '' holds no model"),
        ("nowhere.json", "the model file 'nowhere.json' does not exist"),
        ("nowhere.gguf", "there is no file or folder 'nowhere.gguf'"),
        ("empty", "the folder 'empty' holds no model"),
        ("~nobody-of-this-name/x", "there is no file or folder '~nobody-of-this-name/x'"),
        ("./nowhere", "there is no file or folder './nowhere'"),
        ("/etc/passwd", "'/etc/passwd' is a file, and neither a model file"),
        ("m" * 5000, "unknown model"),
    ],
)
def test_an_unknown_model_is_named(model: str, said: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(ModelError, match=said):
        load_run_config(model)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'tset' \(did you mean 'test'\?\)"):
        load_run_config(preset="tset")
    with pytest.raises(ConfigError, match="unknown preset ''"):
        load_run_config(preset="")


@pytest.mark.parametrize(
    ("text", "name"),
    [("Größe 7B", "Gr-e-7B"), ("../../etc", "etc"), ("模型", "model"), ("", "model"), ("a" * 99, "a" * 64)],
)
def test_any_text_makes_a_safe_folder_name(text: str, name: str) -> None:
    assert folder_name(text) == name


# Strictness


def test_a_configuration_cannot_be_changed() -> None:
    config = load_run_config("custom-nano")
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.epochs", "1"),
        ("train.epochs", True),
        ("train.batch_size", 2.0),
        ("train.batch_size", True),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", 0),
        ("train.seed", 2**32),
        ("train.warmup_fraction", 1),
        ("runtime.compile", 1),
        ("runtime.device", "gpu"),
        ("data.dataset", 5),
        ("data.dataset", ""),
        ("data.samples", 0),
        ("data.samples", -1),
        ("generate.test_prompts", [""]),
        ("tracking.tags", "abc"),
        ("name", "../elsewhere"),
        ("name", ""),
        ("model.name", "a/b"),
        ("train", None),
    ],
)
def test_a_value_of_another_type_or_out_of_bounds_is_refused_and_shown(name: str, value: Any) -> None:
    (problem,) = problems_of(**{name.replace(".", "__"): value})
    assert problem.startswith(name)
    assert "must " in problem
    assert "(got " in problem


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("train.learning_rat", "train.learning_rate"),
        ("train.lerning_rate", "train.learning_rate"),
        ("trian", "train"),
        ("learning_rate", "train.learning_rate"),
        ("train.compile", "runtime.compile"),
        ("model.layer", "model.layers"),
        ("nam", "name"),
        ("train.lr", "train.learning_rate"),
        ("train.checkpoint_every_steps", "train.eval_every_steps"),
        ("train.gradient_accumulation_steps", "train.accumulation_steps"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known(name: str, nearest: str) -> None:
    (problem,) = problems_of(**{name.replace(".", "__"): 1})
    assert problem == f"unknown setting {name!r} (did you mean {nearest!r}?)"


def test_what_other_tools_call_a_setting_names_one_that_is_there() -> None:
    assert set(FOREIGN_NAMES.values()) <= set(known_settings())
    assert not {name.rpartition(".")[2] for name in known_settings()} & set(FOREIGN_NAMES)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("runtime.sharding=fspd", "--set runtime.sharding=fsdp"),
        ("runtime.precision=BF16", "--set runtime.precision=bf16"),
        ("data.format=xml", "--set data.format=auto"),
        ("train.lora_targets=q_proj", """--set 'train.lora_targets=["q_proj", "v_proj"]'"""),
        ("train.batch_size=many", "--batch-size 8"),
        ("runtime.sharding=fsdp", "--set train.optimizer=adamw"),
        ('tracking.trackers=["tensorbord"]', "--tracker tensorboard"),
        ("data.streaming=yes", "--set data.streaming=true"),
        ("train.batch_size:4", "--batch-size 4"),
    ],
)
def test_the_hint_is_a_value_that_is_taken(word: str, hint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_run_config(overrides=parse_sets([word]))
    assert typed(refused.value) == hint
    if hint.startswith("--set"):
        words = [word] if "optimizer" in hint else []
        load_run_config(overrides=parse_sets([*words, "train.optimizer=adamw", *shlex.split(hint)[1:]]))


def test_a_setting_like_no_other_gets_no_suggestion() -> None:
    assert problems_of(train__zzz=1) == ["unknown setting 'train.zzz'"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_is_finite(value: float) -> None:
    (problem,) = problems_of(train__epochs=value)
    assert problem.startswith("train.epochs: must be a finite number")


def test_all_problems_are_reported_at_once() -> None:
    first, *others = problems_of(train__learning_rate=-1, train__batch_size="8", data__sampels=3, model__heads=5)
    assert first == "model: width 128 is not a multiple of heads 5 (and 3 more problems)"
    assert sorted(others) == [
        'train.batch_size: must be a valid integer (got "8")',
        "train.learning_rate: must be greater than 0 (got -1)",
        "unknown setting 'data.sampels' (did you mean 'data.samples'?)",
    ]


# Files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"train": {"epochs": 1, "epochs": 2}}', "the key 'epochs' appears twice"),
        (b'{"train": {"learning_rate": NaN}}', "NaN is not a number"),
        (b'{"train": {"learning_rate": -Infinity}}', "-Infinity is not a number"),
        (b'{"train":\n {"epochs": }}', "settings.json:2: not valid JSON"),
        (b'{"train": {}} {}', "not valid JSON: extra data"),
        (b"", "not valid JSON"),
        (b"[1]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b'{"name": "\xe9"}', r"is not UTF-8 text \(byte 10\)"),
        (b'\xff\xfe{\x00}\x00', "is UTF-16 and not UTF-8 text"),
        (b'{"train": ' * 100_000, "is nested too deeply"),
        (b'{"train": {"seed": ' + b"9" * 5000 + b"}}", "settings.json: "),
        (b'{"name": "' + b"a" * 1_000_000 + b'"}', "is larger than 1 MB"),
    ],
    ids=[
        "key-twice", "nan", "infinity", "syntax", "two-objects", "empty", "list", "null",
        "latin-1", "utf-16", "deep", "long-number", "too-big",
    ],
)  # fmt: skip
def test_a_file_that_is_no_settings_file_is_named_with_the_reason(content: bytes, said: str) -> None:
    Path("settings.json").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_run_config(config_file="settings.json")
    assert "settings.json" in caught.value.message


@pytest.mark.parametrize(("name", "said"), [("nowhere.json", "does not exist"), (".", "is a directory")])
def test_a_missing_file_and_a_folder_are_no_settings(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_run_config(config_file=name)


def test_a_byte_order_mark_and_words_for_people_are_no_settings() -> None:
    layer = {"$schema": "../schema.json", "description": "For me.", "train": {"epochs": 4}}
    Path("bom.json").write_text(json.dumps(layer), encoding="utf-8-sig")
    assert read_layer(Path("bom.json")) == {"train": {"epochs": 4}}
    assert load_run_config(config_file="bom.json").train.epochs == 4


def test_an_endless_file_is_not_read_to_its_end() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_run_config(config_file="/dev/zero")


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"train": {"epochs": 2}},
        {"model": {"context": 64}},
        {"model": {"name": "mine", **SHAPE}},
        {"model": {"source": "someone/model"}},
        {"model": {"layers": 2}},
        {"model": {**SHAPE, "heads": 3}},
        {"model": None},
        {"model": 3},
        {"train": []},
        {"train": {"epochs": 0}, "date": {}},
        {"train": {"a": {"b": {"c": 1}}}},
    ],
    ids=json.dumps,
)
def test_validate_finds_a_problem_exactly_where_train_does(layer: dict[str, Any]) -> None:
    file = write("settings.json", layer)
    if problems := validate_file(Path(file)):
        with pytest.raises(ConfigError) as caught:
            load_with_origins(None, preset=None, config_file=file)
        assert problems == [caught.value.message.partition(" (and ")[0], *caught.value.details]
    else:
        assert load_with_origins(None, preset=None, config_file=file).config


# Words


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("a.b=1", "a.b", 1),
        ("a=0.5", "a", 0.5),
        ("a=1e-3", "a", 1e-3),
        ("a=true", "a", True),
        ("a=null", "a", None),
        ("a=[1,2]", "a", [1, 2]),
        ('a="1"', "a", "1"),
        ("a=text", "a", "text"),
        ("a=b=c", "a", "b=c"),
        ("a=", "a", ""),
        ("a=NaN", "a", "NaN"),
        ("a=" + "[" * 50_000, "a", "[" * 50_000),
    ],
    ids=lambda word: str(word)[:12],
)
def test_a_set_value_is_json_where_it_can_be(word: str, name: str, value: Any) -> None:
    assert parse_sets([word]) == {name: value}


def test_the_last_of_two_words_counts() -> None:
    assert parse_sets(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}


@pytest.mark.parametrize("word", ["train.epochs", "=3", ""])
def test_a_set_word_without_name_or_value_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is not of the form name=value"):
        parse_sets([word])


def test_words_without_a_value_do_not_keep_other_problems_from_being_reported() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_sets(["train.learning_rate=abc", "foo", "train.max_step=4", "data.samples=5", "bar"])
    assert [refused.value.message, *refused.value.details] == [
        "'foo' is not of the form name=value (and 3 more problems)",
        "'bar' is not of the form name=value",
        'train.learning_rate: must be a valid number (got "abc")',
        "unknown setting 'train.max_step' (did you mean 'train.max_steps'?)",
    ]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_word_that_is_no_finite_number_is_reported_as_such(value: str) -> None:
    reported = problems_of(**{"train.learning_rate": parse_sets([f"x={value}"])["x"]})
    assert reported == [f"train.learning_rate: must be a finite number (got {value})"]


def test_no_run_can_be_called_what_resume_calls_the_newest() -> None:
    assert problems_of(name="last") == ["name: must not be 'last', which means the newest unfinished run"]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"[", "dialogkit config validate 'a b.json'"),
        (b"[]", "dialogkit config validate 'a b.json'"),
        ('{"é": 1}'.encode("utf-16"), "iconv -f UTF-16 -t UTF-8 'a b.json' > 'a b-utf8.json'"),
    ],
)
def test_a_file_that_cannot_be_read_comes_with_the_command_that_checks_it(content: bytes, hint: str) -> None:
    Path("a b.json").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_run_config(config_file="a b.json")
    assert typed(refused.value) == hint
    with pytest.raises(ConfigError) as refused:
        validate_file(Path("a b.json"))
    assert typed(refused.value, "config", "validate") == (
        "dialogkit config schema" if "validate" in hint else hint
    )


def test_a_file_that_is_not_there_comes_with_the_one_that_may_be_meant() -> None:
    write("settings.json", {"train": {"epochs": 1}})
    with pytest.raises(ConfigError, match=r"did you mean 'settings\.json'") as refused:
        load_run_config(config_file="setting.json")
    assert typed(refused.value) == "dialogkit config validate settings.json"
    with pytest.raises(ModelError, match=r"did you mean 'settings\.json'") as unknown:
        load_run_config("setings.json")
    assert typed(unknown.value) == "dialogkit train settings.json"


def test_a_value_cannot_be_a_section_too() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs\.x"):
        load_run_config("custom-nano", overrides={"train.epochs": 1, "train.epochs.x": 2})


@pytest.mark.parametrize("project", ["my project/ü", "100%", "a:b"])
def test_a_project_that_wandb_refuses_is_refused_at_once(project: str) -> None:
    with pytest.raises(ConfigError, match="W&B allows no"):
        load_run_config("custom-nano", overrides={"tracking.project": project})
