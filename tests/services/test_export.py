"""Exports: what the files hold, how faithful they are, and what is refused."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dialogkit.config.generate import TEST_PROMPTS
from dialogkit.dialog import Message
from dialogkit.errors import ModelError
from dialogkit.inference.onnx_model import OnnxModel
from dialogkit.services.export import ExportResult, export
from dialogkit.services.exporting import certificate as certificates
from dialogkit.services.exporting import web_page, web_runtime
from dialogkit.services.exporting.onnx_means import BY_ONNX
from dialogkit.services.push import push
from dialogkit.services.runs.loading import load_for_inference
from dialogkit.services.runs.resolve import resolve_model
from tests.conftest import Finished, Trained, typed

Run = Callable[..., Finished]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few prompts and dialogs."""
    for name, number in (("PROMPTS", 3), ("LONGEST", 8), ("DIALOGS", 3)):
        monkeypatch.setattr(certificates, name, number)


@pytest.fixture
def make(trained: Trained) -> Callable[..., ExportResult]:
    def call(**options: Any) -> ExportResult:
        return export("shared-run", output=trained.output, **options)

    return call


def loaded(name: str, trained: Trained) -> Any:
    return load_for_inference(resolve_model(name, output=trained.output), device="cpu")


def test_a_gguf_file_is_the_model_itself_for_whoever_reads_it(
    make: Callable[..., ExportResult], trained: Trained
) -> None:
    result = make(type="f32", folder="out")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("Modelfile", "README.md", "shared-run-f32.certificate.json", "shared-run-f32.gguf")
    ]
    # Transformers has a reader of its own.
    original, copy = loaded("shared-run", trained), loaded(result.file, trained)
    ids = torch.tensor([original.tokenizer.hf("Hello, how are you? <|user|> 1 2 3")["input_ids"]])
    assert torch.equal(original.model(ids).logits, copy.model(ids).logits)
    assert copy.tokenizer.hf.get_vocab() == original.tokenizer.hf.get_vocab()
    assert copy.tokenizer.hf.chat_template == original.tokenizer.hf.chat_template
    assert copy.context == original.context
    certificate = result.certificate
    assert (certificate.equal_tokens, certificate.bits_per_byte_lost) == (1.0, 0.0)
    assert (certificate.dataset, certificate.own_data, certificate.dialogs) == ("starter", True, 3)
    assert json.loads(Path("out/shared-run-f32.certificate.json").read_text()) == certificate.model_dump(
        mode="json"
    )


def test_fewer_bits_cost_little_and_are_certified(make: Callable[..., ExportResult], trained: Trained) -> None:
    small, large = make(type="q4_0"), make()
    assert (Path(small.folder), Path(large.folder)) == (
        Path("exports/shared-run-q4_0"),
        Path("exports/shared-run-q8_0"),
    )
    lost = [abs(one.certificate.bits_per_byte_lost) for one in (large, small)]
    assert 0 < lost[0] < lost[1] < 0.15
    assert large.certificate.kept_f16 == [f"blk.{layer}.ffn_down.weight" for layer in (0, 1)]  # 88 wide
    card = Path(large.folder, "README.md").read_text()
    assert f"| bits/byte | {large.certificate.rows()['bits/byte']} |" in card
    assert "licence of the data: CC0-1.0" in card
    assert "## Files" not in card
    head, pushed = (
        yaml.safe_load(text.removeprefix("---\n").partition("\n---")[0])
        for text in (card, push("shared-run", "tiny", dry_run=True, output=trained.output).card)
    )
    assert head.pop("library_name") == head["tags"].pop(1) == "gguf"
    assert head == {name: value for name, value in pushed.items() if name != "library_name"}
    assert head["model-index"][0]["results"][0]["metrics"]


def test_the_same_model_makes_the_same_file(make: Callable[..., ExportResult]) -> None:
    first, second = make(folder="one"), make(folder="two")
    assert first.certificate.sha256 == second.certificate.sha256


def test_a_bundle_is_loaded_by_transformers_and_runs_no_code(
    make: Callable[..., ExportResult], trained: Trained
) -> None:
    result = make(to="bundle")
    assert (result.file, result.certificate.equal_tokens) == ("exports/shared-run/shared-run.zip", 1.0)
    with zipfile.ZipFile(result.file) as bundle:
        assert bundle.testzip() is None
        bundle.extractall("there")
    folder = Path("there/shared-run")
    assert {path.name for path in folder.iterdir()} == {"LICENSE.txt", "README.md", "model"}
    assert not list(folder.rglob("*.bin"))
    assert "Licence of the data: CC0-1.0" in (folder / "LICENSE.txt").read_text()
    assert "from transformers import pipeline" in (folder / "README.md").read_text()
    card = (folder / "model/README.md").read_text()
    assert "`chat_template.jinja`: the tokenizer and the chat format\n\n" in card
    assert "training_args" not in card
    assert "pickle" not in card
    from transformers import pipeline

    chat = pipeline("text-generation", model=str(folder / "model"), device="cpu")
    said = chat([{"role": "user", "content": "Hello!"}], max_new_tokens=2, do_sample=False)
    assert said[0]["generated_text"][-1]["role"] == "assistant"
    original, copy = loaded("shared-run", trained), loaded(str(folder / "model"), trained)
    assert all(map(torch.equal, original.model.parameters(), copy.model.parameters()))


@pytest.fixture
def runtime() -> str:
    """A stand-in for the files of onnxruntime-web."""
    for file in web_runtime.FILES.values():
        Path("runtime/dist").mkdir(parents=True, exist_ok=True)
        Path("runtime/dist", file).write_text(f"the content of {file}")
    return "runtime"


def test_onnxruntime_says_what_the_model_says(
    make: Callable[..., ExportResult], trained: Trained, runtime: str
) -> None:
    result = make(to="onnx", type="f32", runtime=runtime)
    assert result.file == "exports/shared-run-onnx-f32/model.onnx"
    folder = Path(result.folder)
    assert {path.name for path in folder.iterdir()} == {
        *(*web_page.FILES, *web_runtime.FILES, "model.onnx", "README.md", "certificate.json")
    }
    assert (folder / "onnxruntime.js").read_text() == "the content of ort.wasm.bundle.min.mjs"
    certificate = result.certificate
    assert certificate.equal_tokens == 1.0
    assert certificate.bits_per_byte_lost == pytest.approx(0, abs=1e-5)
    assert certificate.read_back_with.startswith("onnxruntime ")
    assert json.loads((folder / "certificate.json").read_text()) == certificate.model_dump(mode="json")
    assert f"| bits/byte | {certificate.rows()['bits/byte']} |" in (folder / "README.md").read_text()
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["context"], settings["ends"], settings["sampling"]["top_k"]) == (256, [5], 50)
    original = loaded("shared-run", trained)
    copy = original._replace(model=OnnxModel(Path(result.file), original.model.config))
    prompts = [original.tokenizer.encode_prompt([Message("user", text)]) for text in TEST_PROMPTS[:3]]
    prompts.append(prompts[0] * 100)  # longer than the context
    assert BY_ONNX.answers(copy, prompts) == certificates.BY_TRANSFORMERS.answers(original, prompts)


def test_a_copy_beyond_its_tolerance_is_not_kept(
    make: Callable[..., ExportResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "BITS_LOST", {"q4_0": -1.0})
    with pytest.raises(ModelError, match=r"as q4_0, 'shared-run' loses .* bits/byte on 3 held-out") as refused:
        make(type="q4_0")
    assert typed(refused.value, "export", "shared-run", "--type", "q4_0") == "--type q8_0, or: --force"
    assert not Path("exports").exists()
    kept = make(type="q4_0", force=True)
    assert Path(kept.file).is_file()
    assert not kept.certificate.within_tolerance
    assert kept.notes == [refused.value.message]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("shared-run --type q4", "--type: 'q4' is none of f32, f16, q8_0, q4_0", "--type q8_0"),
        ("shared-run --to onx", "--to: 'onx' is none of gguf, onnx, bundle", "--to gguf"),
        ("shared-run --to onnx --type q4_0", "--type: 'q4_0' is none of f32, f16, q8_0", "--type q8_0"),
        ("shared-run --runtime there", "--runtime: only ONNX files need onnxruntime-web", "--to onnx"),
        ("shared-run --to bundle --type f16", "type 'f16' is for GGUF and ONNX", "export shared-run --to bundle"),
        ("shared-rn", "no model or run 'shared-rn' (did you mean 'shared-run'?)", "models list"),
        ("shared-run --output there", "'there/Modelfile' exists", "--force"),
        ("shared-run --output there/Modelfile", "'there/Modelfile' is a file, not a folder", "--output my-export"),
        ("shared-run --output there/Modelfile/x", "x' cannot be written: not a directory", "--output my-export"),
    ],
)
def test_wrong_words_are_one_sentence(
    words: str, message: str, hint: str, trained: Trained, dialogkit: Run
) -> None:
    Path("there").mkdir()
    Path("there/Modelfile").write_text("mine")
    done = dialogkit("export", *words.split(), "--output-dir", str(trained.output))
    told, advice = [line for line in done.err.splitlines() if not line.endswith("...")]
    assert (done.code, done.out) == (2, "")
    assert message in told.removeprefix("error: ")
    assert hint in advice.removeprefix("try: ")
    assert [path.name for path in Path("there").iterdir()] == ["Modelfile"]


def test_the_command_prints_the_certificate_and_replaces_only_its_own_files(
    trained: Trained, dialogkit: Run
) -> None:
    Path("there").mkdir()
    Path("there/Modelfile").write_text("old")
    Path("there/notes.txt").write_text("mine")
    words = ["shared-run", "--output", "there", "--force", "--output-dir", str(trained.output)]
    done = dialogkit("export", *words)
    assert done.code == 0
    assert "there/shared-run-q8_0.gguf, 0.1 MiB" in done.out
    assert re.search(r"^equal tokens +\d+\.\d\d% of \d+ in greedy replies", done.out, re.MULTILINE)
    assert "next: ollama create shared-run -f there/Modelfile && ollama run shared-run" in done.err
    assert Path("there/Modelfile").read_text().startswith("FROM ./shared-run-q8_0.gguf\n")
    assert Path("there/notes.txt").read_text() == "mine"


def test_a_run_whose_data_are_gone_is_measured_on_the_starter_dialogs(
    make: Callable[..., ExportResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "own_data_config", lambda loadable: None)
    certificate = make(type="f16").certificate
    assert (certificate.dataset, certificate.own_data) == ("starter", False)
