"""A MODEL argument means one thing, and the catalogue tells the truth about sizes and runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.load import load_run_config, model_names
from dialogkit.errors import ModelError
from dialogkit.models.folder import describe_architecture
from dialogkit.services.models import list_models, show_model
from dialogkit.services.runs.resolve import name_to_type, resolve_model
from dialogkit.services.train import train
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Trained, typed, write_files


def copy_run(source: Path, output: Path, name: str, **facts: Any) -> Path:
    """Copy a finished run under another name, with changed facts in its record."""
    run = output / "runs" / name
    shutil.copytree(source / "model", run / "model")
    record = json.loads((source / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "name": name, **facts}))
    return run


@pytest.fixture
def finished(trained: Trained) -> Path:
    return Path(trained.result.run_dir)


# The catalogue


def test_only_what_was_trained_in_the_folder_is_called_trained(trained: Trained) -> None:
    rows = {row.name: row for row in list_models(output=trained.output)}
    assert list(rows) == model_names()
    assert [name for name, row in rows.items() if row.trained] == ["custom-nano"]
    assert rows["custom-nano"].folder == trained.result.published_dir
    assert {row.folder for name, row in rows.items() if name != "custom-nano"} == {None}


def test_a_trained_name_has_the_size_that_it_was_trained_with(trained: Trained) -> None:
    row = show_model("custom-nano", output=trained.output)
    parameters = sum(parameter.numel() for parameter in trained.trainer.model.parameters())
    assert (row.parameters, row.layers, row.width) == (parameters, 2, 32)


def test_a_model_of_ones_own_is_listed_after_the_catalogue(finished: Path, tmp_path: Path) -> None:
    facts = json.loads((finished / "run.json").read_text())["model"]
    run = copy_run(finished, tmp_path, "mine-1", model={**facts, "name": "mine"})
    copy_run(finished, tmp_path, "gone-1", model={**facts, "name": "gone"})
    shutil.copytree(run / "model", tmp_path / "mine")
    *shipped, own = list_models(output=tmp_path)
    assert [row.name for row in shipped] == model_names()
    assert (own.name, own.parameters, own.trained) == ("mine", facts["parameters"], True)


def test_what_is_trained_is_shown_as_it_is(trained: Trained, finished: Path, tmp_path: Path) -> None:
    names = ["shared-run", str(finished), str(finished / "model"), trained.result.published_dir]
    shown = [show_model(name, output=trained.output) for name in names]
    shutil.copytree(finished / "model", tmp_path / "copied")
    foreign = show_model(str(tmp_path / "copied"), output=trained.output)
    facts = json.loads((finished / "run.json").read_text())["model"]
    shape = ("parameters", "parameters_without_embeddings", "architecture", "layers", "width", "heads", "context")
    for row in (*shown, foreign):
        assert [getattr(row, name) for name in shape] == [facts[name] for name in shape]
    assert [row.kind for row in (*shown, foreign)] == ["from scratch"] * 4 + ["pretrained"]
    assert {row.trained for row in shown} == {True}
    assert foreign.trained is False


def test_of_a_hub_id_nothing_is_made_up() -> None:
    row = show_model("somebody/their-model")
    assert (row.architecture, row.parameters, row.layers, row.chat_format) == (None,) * 4


def test_nothing_is_trained_in_an_empty_folder(tmp_path: Path) -> None:
    assert not any(row.trained for row in list_models(output=tmp_path / "nowhere"))


def test_a_model_file_is_shown_like_the_catalogue(tmp_path: Path) -> None:
    shape = {"layers": 1, "width": 16, "heads": 2, "context": 64}
    (tmp_path / "mine.json").write_text(json.dumps({"model": shape}))
    row = show_model("./mine.json")
    assert (row.name, row.kind, row.layers, row.context) == ("mine", "from scratch", 1, 64)
    assert row.parameters == 32_768 * 16 + (4 * 16 * 16 + 3 * 16 * 48 + 2 * 16) + 16


def test_shapes_have_one_name_whatever_transformers_calls_them() -> None:
    from transformers import GPT2Config, LlamaConfig

    gpt2 = GPT2Config(n_layer=3, n_embd=32, n_head=2, n_positions=64, vocab_size=99)
    llama = LlamaConfig(
        num_hidden_layers=3, hidden_size=32, num_attention_heads=2, max_position_embeddings=64, vocab_size=99
    )
    shape = {"layers": 3, "width": 32, "heads": 2, "context": 64, "vocabulary": 99}
    assert describe_architecture(gpt2.to_dict()) == {"architecture": "gpt2", **shape}
    assert describe_architecture(llama.to_dict()) == {"architecture": "llama", **shape}


# What MODEL means


def test_without_a_name_it_is_the_newest_finished_run(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "models"
    copy_run(finished, output, "z-old", created="2026-01-01T00:00:00+00:00")
    copy_run(finished, output, "a-new", created="2026-01-02T00:00:00+00:00")
    for day, status in enumerate(("running", "failed", "interrupted", "diverged"), 3):
        copy_run(finished, output, status, created=f"2026-01-0{day}T00:00:00+00:00", status=status)
    without_model = copy_run(finished, output, "emptied", created="2026-01-08T00:00:00+00:00")
    (without_model / "model/config.json").unlink()
    (copy_run(finished, output, "torn") / "run.json").write_text('{"name": "to')
    assert resolve_model(None, output=output).name == "a-new"


def test_a_run_a_run_folder_a_model_folder_and_a_name_find_their_weights(trained: Trained, finished: Path) -> None:
    found = {
        "shared-run": resolve_model("shared-run", output=trained.output),
        "run folder": resolve_model(str(finished), output="elsewhere"),
        "model folder": resolve_model(str(finished / "model"), output="elsewhere"),
        "catalogue": resolve_model("custom-nano", output=trained.output),
        "published folder": resolve_model(trained.result.published_dir, output="elsewhere"),
    }
    sources = {name: Path(str(loadable.model.source)) for name, loadable in found.items()}
    assert sources.pop("catalogue") == sources.pop("published folder") == Path(trained.result.published_dir)
    assert set(sources.values()) == {finished / "model"}
    runs = {name: loadable.run.name if loadable.run else None for name, loadable in found.items()}
    assert (runs["shared-run"], runs["run folder"], runs["catalogue"]) == ("shared-run",) * 3
    assert found["catalogue"].name == "custom-nano"


def test_a_checkpoint_is_found_by_its_run_and_named_after_it(trained: Trained, finished: Path) -> None:
    output = trained.output
    newest = sorted(finished.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[-1]
    name = f"shared-run/{newest.name}"
    found = [resolve_model(name, output=output), resolve_model(str(newest), output=output)]
    assert [Path(str(loadable.model.source)) for loadable in found] == [newest] * 2
    assert [(loadable.name, loadable.display_name) for loadable in found] == [(name, name)] * 2
    for word in ("shared-run", "custom-nano", "shared-run/model", str(finished / "model"), str(finished)):
        assert resolve_model(word, output=output).display_name == "shared-run", word
    with pytest.raises(ModelError, match=rf"no checkpoint 'checkpoint-99': it has .*{newest.name}$") as refused:
        resolve_model("shared-run/checkpoint-99", output=output)
    assert typed(refused.value) == f"dialogkit evaluate {name}"
    with pytest.raises(ModelError, match=r"no checkpoint '\.\./other'"):
        resolve_model("shared-run/../other", output=output)


def test_a_catalogue_name_belongs_to_the_newest_finished_run_of_that_model(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "models"
    shutil.copytree(finished / "model", output / "custom_nano")
    facts = json.loads((finished / "run.json").read_text())["model"]
    copy_run(finished, output, "older", created="2026-01-01T00:00:00+00:00")
    copy_run(finished, output, "newer", created="2026-01-02T00:00:00+00:00")
    copy_run(finished, output, "failed", created="2026-01-03T00:00:00+00:00", status="failed")
    copy_run(
        finished, output, "other", created="2026-01-04T00:00:00+00:00", model={**facts, "name": "custom-tiny"}
    )
    run = resolve_model("custom-nano", output=output).run
    assert run is not None
    assert run.name == "newer"


def test_the_name_of_a_model_is_reported_where_it_means_that_model_and_else_its_run(
    trained: Trained, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name_to_type("custom-nano", RunDir(finished), trained.output) == "custom-nano"
    facts = json.loads((finished / "run.json").read_text())["model"]
    run = RunDir(copy_run(finished, tmp_path / "models", "mine-1", model={**facts, "name": "mine"}))
    shutil.copytree(run.model_dir, tmp_path / "models/mine")
    monkeypatch.chdir(tmp_path)
    assert name_to_type("mine", run, Path("models")) == "mine"
    assert name_to_type("custom-nano", run, Path("models")) == "mine-1"
    shutil.copytree(run.model_dir, "mine")  # what it was trained from, for example
    assert name_to_type("mine", run, Path("models")) == "mine-1"


@pytest.mark.parametrize("name", [n for n in model_names() if not n.startswith("custom")])
def test_a_pretrained_name_that_was_not_trained_here_means_its_original(name: str, tmp_path: Path) -> None:
    loadable = resolve_model(name, output=tmp_path)
    assert loadable.model == load_run_config(name).model
    assert loadable.run is None


def test_a_hub_id_means_the_hub(tmp_path: Path) -> None:
    loadable = resolve_model("somebody/their-model", output=tmp_path)
    assert (loadable.model.source, loadable.model.name) == ("somebody/their-model", "their-model")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (None, "no finished run in 'models' yet"),
        ("custom-tiny", "'custom-tiny' has not been trained in 'models' yet"),
        ("custom-tiney", r"no model or run 'custom-tiney' \(did you mean 'custom-tiny'\?\)"),
        ("my-rum", r"no model or run 'my-rum' \(did you mean 'my-run'\?\)"),
        ("my-run", r"the run 'my-run' has no finished model \(it is failed\)"),
        ("my-run/checkpoint-1", r"the run 'my-run' has no checkpoint 'checkpoint-1': it has none"),
        ("./empty", "the folder './empty' holds no model"),
        ("..", "the folder '..' holds no model"),
        ("./nowhere", "no file or folder './nowhere'"),
        ("../runs", r"no run '\.\./runs' in 'models'"),
    ],
)
def test_what_means_no_model_is_one_sentence(tmp_path: Path, name: str | None, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    run = RunDir.create(tmp_path / "models", "my-run")
    (run.path / "run.json").write_text('{"name": "my-run", "created": "now", "status": "failed"}')
    with pytest.raises(ModelError, match=sentence) as refused:
        resolve_model(name)
    assert str(typed(refused.value)).startswith("dialogkit ")


def test_a_slip_in_a_path_is_not_asked_of_the_hub() -> None:
    for folder in ("models/custom_pico", "google/bert-uncased"):
        write_files(Path(folder), {"config.json": "{}"})
    write_files(Path("out"), {"mine-q8_0.gguf": b"GGUF"})
    Path("models/notes").mkdir()
    for slip, meant in {
        "models/custom_pic": "models/custom_pico",
        "models/custom-pico": "models/custom_pico",
        "./models/custom_pcio": "models/custom_pico",
        "out/mine-q8.gguf": "out/mine-q8_0.gguf",
    }.items():
        with pytest.raises(ModelError) as refused:
            resolve_model(slip)
        assert refused.value.message == f"no file or folder {slip!r} (did you mean {meant!r}?)"
    for hub_id in ("google/bert-cased", "models/note", "custom/custom_pic"):
        assert resolve_model(hub_id).model.source == hub_id


def test_a_model_of_ones_own_is_found_by_name_folder_and_file(
    small_config: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "my-own.json").write_text(
        json.dumps({"model": {"layers": 1, "width": 32, "heads": 2, "context": 64}})
    )
    with pytest.raises(ModelError, match="not been trained"):
        resolve_model("./my-own.json", output="models")
    train(small_config({"model.name": "my-own"}))
    for name in ("my-own", "my_own", "./my-own.json"):
        found = resolve_model(name, output="models")
        assert (found.name, Path(str(found.model.source)).name) == ("my-own", "my_own")
        assert found.run is not None
