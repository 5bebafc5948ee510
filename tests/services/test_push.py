"""Pushing a model to the hub: what goes there, how it resumes, and what is refused."""

import json
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dialogkit.errors import DialogKitError, InterruptedRunError, ModelError
from dialogkit.services.exporting import hub_repository
from dialogkit.services.push import PushResult, push
from dialogkit.system import hub_upload, network
from tests.conftest import Finished, Trained, typed, write_files
from tests.writable_hub import TOKEN, Repository, WritableHub, sha256, writable_hub

Run = Callable[..., Finished]
Push = Callable[..., PushResult]
FILES = [
    *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
]
WEIGHTS = "model.safetensors"
COMMIT, PUT = "POST /api/models/ann/tiny/commit", "PUT /storage"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """A hub that may be asked, with a token for it."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_repository, "ONE_BY_ONE", 100_000)
    monkeypatch.setattr(hub_upload, "PAUSE_S", 0.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the hub's library
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    network.forget()
    with writable_hub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made
    network.forget()


@pytest.fixture
def output(trained: Trained) -> Path:
    """A copy of the trained model and its run, to change them, without evaluations of other tests."""
    ignored = shutil.ignore_patterns("checkpoint-*", "wandb", "evaluation")
    shutil.copytree(trained.output, "models", ignore=ignored)
    return Path("models")


@pytest.fixture
def make(output: Path) -> Push:
    def call(repository: str = "tiny", **options: Any) -> PushResult:
        return push("shared-run", repository, output=output, **options)

    return call


def card_of(hub: WritableHub) -> tuple[dict[str, Any], str]:
    from huggingface_hub import ModelCard

    card = ModelCard(hub.repositories["ann/tiny"].files["README.md"].decode())
    return card.data.to_dict(), card.text


def test_a_new_repository_is_private_and_holds_the_model_alone(hub: WritableHub, make: Push) -> None:
    result = make()
    held = hub.repositories["ann/tiny"]
    assert (result.repository, result.url, result.private) == ("ann/tiny", f"{hub.url}/ann/tiny", True)
    assert held.private
    assert sorted(held.files) == [".gitattributes", *FILES]
    assert (result.committed, result.left_out) == (FILES, ["training_args.bin"])
    assert [file.bytes for file in result.files] == [len(held.files[name]) for name in FILES]
    head, text = card_of(hub)
    assert {name: head[name] for name in ("license", "library_name", "pipeline_tag", "language")} == {
        **{"license": "cc0-1.0", "library_name": "transformers"},
        **{"pipeline_tag": "text-generation", "language": "en"},
    }
    assert 'model="ann/tiny"' in text
    assert "training_args.bin" not in text


def test_the_results_of_the_card_are_those_of_the_run(hub: WritableHub, make: Push, trained: Trained) -> None:
    assert make().notes == ["note: not sent: training_args.bin"]
    head, _ = card_of(hub)
    (results,) = head["model-index"][0]["results"]
    measured = {metric["type"]: metric["value"] for metric in results["metrics"]}
    assert (results["dataset"]["name"], set(measured)) == (
        "starter",
        {"bits_per_byte", "nats_per_token", "perplexity", "accuracy"},
    )
    for name, value in measured.items():
        assert value == pytest.approx(trained.result.metrics[f"final/{name}"], rel=1e-5)


def test_what_was_sent_whole_is_not_sent_again(hub: WritableHub, make: Push, trained: Trained) -> None:
    hub.faults[COMMIT] = ["503"] * 4
    with pytest.raises(DialogKitError, match=r"answered 503 \(service unavailable\)") as failed:
        make()
    assert typed(failed.value, "push") == "dialogkit push shared-run tiny"
    weights = sha256((Path(trained.result.model_dir) / WEIGHTS).read_bytes())
    stages: list[str] = []
    resumed = make(on_progress=lambda stage, fraction: stages.append(stage))
    assert hub.uploads.count(weights) == 1
    assert f"{WEIGHTS} is on the hub already" in stages
    assert resumed.committed == FILES
    again = make()
    assert (again.commit, again.committed, again.sent_bytes) == (None, [], 0)


@pytest.mark.parametrize(
    ("begin", "fault"),
    [(PUT, "cut"), (PUT, "500"), ("GET /api/models", "429 0"), ("POST /api/repos", "503")],
)
def test_a_failure_in_passing_is_repeated(begin: str, fault: str, hub: WritableHub, make: Push) -> None:
    hub.faults[begin] = [fault]
    assert make().committed == FILES
    assert not hub.faults[begin]


def test_a_connection_that_breaks_in_a_file_costs_that_file_alone(hub: WritableHub, make: Push) -> None:
    hub.faults[PUT] = ["", *["cut"] * 4]
    with pytest.raises(DialogKitError, match="closed the connection without an answer"):
        make()
    (whole,) = hub.taken
    make()
    assert hub.uploads.count(whole) == 1


@pytest.mark.parametrize("url", ["http://localhost:9/", "http://127.0.0.1:9/api/telemetry/x"])
def test_what_else_the_library_asks_meanwhile_may_fail(url: str, hub: WritableHub, make: Push) -> None:
    from huggingface_hub import get_session

    asked: list[str] = []

    def ask(stage: str, fraction: float) -> None:
        with pytest.raises(Exception, match="refused"):
            get_session().get(url)
        asked.append(stage)

    assert make(on_progress=ask).committed == FILES
    assert asked


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle SIGINT as a terminal's process does; one that a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_says_that_the_same_call_continues(hub: WritableHub, make: Push) -> None:
    hub.faults[PUT] = ["interrupt"]
    with pytest.raises(InterruptedRunError, match="stopped by Ctrl-C") as stopped:
        make(public=True)
    assert stopped.value.exit_code == 130
    assert str(typed(stopped.value, "push")).startswith("dialogkit push shared-run tiny --public")
    assert make(public=True).committed == FILES


def test_a_dry_run_asks_nobody(make: Push, dialogkit: Run, trained: Trained) -> None:
    # The environment forbids the hub, and there is no token.
    result = make("bob/tiny", dry_run=True)
    assert (result.url, [file.name for file in result.files]) == ("https://huggingface.co/bob/tiny", FILES)
    words = ("push", "shared-run", "tiny", "--public", "--message", "a b", "--output-dir", str(trained.output))
    done = dialogkit(*words, "--dry-run")
    assert done.code == 0
    assert "license: cc0-1.0" in done.out
    assert "nothing was sent" in done.err
    assert done.err.splitlines()[-1] == f"next: dialogkit {shlex.join(words)}"


def test_the_command_says_what_goes_and_where_it_is(hub: WritableHub, trained: Trained, dialogkit: Run) -> None:
    done = dialogkit("push", "shared-run", "tiny", "--output-dir", str(trained.output))
    assert done.code == 0, done.err
    assert "files: README.md (" in done.err
    assert f"{hub.url}/ann/tiny, only its owner sees it" in done.out
    assert done.err.splitlines()[-1].startswith("next: dialogkit chat ann/tiny")
    assert TOKEN not in done.out + done.err


REFUSED = {
    "tiny": ({"HF_TOKEN": ""}, {}, "the hub needs a token", "hf auth login"),
    "mine": ({"HF_TOKEN": "hf_" + "z" * 30}, {}, "does not know the token", "set HF_TOKEN"),
    "ann/here": ({"HF_HUB_OFFLINE": "1"}, {}, "HF_HUB_OFFLINE forbids", "unset HF_HUB_OFFLINE"),
    "nowhere": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {}, "cannot be reached", "doctor --network"),
    "bob/tiny": ({}, {}, "the token of 'ann' may not write to 'bob/tiny'", "push shared-run ann/tiny"),
    "a b": ({}, {}, "the repository is 'a b'", "push shared-run a-b"),
    "page": ({}, {"GET /api/whoami": ["page"]}, "answered with a web page", "push shared-run page"),
    "later": ({}, {"POST /api/models": ["429 3600"]}, "asks to wait 3600 s", "push shared-run later"),
    "changed": ({}, {"POST /api/models/ann/changed/commit": ["412"]}, "was changed meanwhile", "push shared-run"),
}


@pytest.mark.parametrize("repository", REFUSED)
def test_what_the_hub_or_the_machine_refuses_is_one_sentence(
    repository: str, hub: WritableHub, trained: Trained, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, faults, message, hint = REFUSED[repository]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hub.faults |= {begin: list(answers) for begin, answers in faults.items()}
    done = dialogkit("push", "shared-run", repository, "--output-dir", str(trained.output))
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, done.out) == (2, "")
    assert message in error
    assert hint in done.err.splitlines()[-1]
    assert not {TOKEN, environment.get("HF_TOKEN") or TOKEN} & set(done.err.split())


def test_other_files_are_replaced_and_an_earlier_model_removed_only_with_force(
    hub: WritableHub, make: Push
) -> None:
    before = {"README.md": b"mine", "model-00001-of-00002.safetensors": b"old", "notes.txt": b"kept"}
    hub.repositories["ann/tiny"] = Repository(True, dict(before), ["0" * 40])
    with pytest.raises(DialogKitError, match=r"README.md and model-00001-of-00002.safetensors") as refused:
        make()
    assert typed(refused.value, "push", "shared-run", "tiny") == "--force"
    assert hub.repositories["ann/tiny"].files == before
    result = make(force=True)
    assert result.removed == ["model-00001-of-00002.safetensors"]
    assert sorted(hub.repositories["ann/tiny"].files) == sorted([*FILES, "notes.txt"])


def test_who_sees_a_repository_is_never_changed(hub: WritableHub, make: Push) -> None:
    hub.repositories["ann/tiny"] = Repository(False, {}, ["0" * 40])
    with pytest.raises(DialogKitError, match="'ann/tiny' is public") as refused:
        make()
    assert typed(refused.value, "push", "shared-run", "tiny") == "--public"
    assert not make(public=True).private
    hub.repositories["ann/mine"] = Repository(True, {}, ["0" * 40])
    kept = make("mine", public=True)
    assert kept.private
    assert kept.notes[-1].startswith("note: ann/mine is private and stays so")


def test_the_report_goes_with_it_without_the_folders_of_this_machine(
    hub: WritableHub, make: Push, trained: Trained
) -> None:
    assert "report.html" in make(bundle=True).committed
    page = hub.repositories["ann/tiny"].files["report.html"].decode()
    assert "shared-run" in page
    assert str(trained.output) not in page
    assert str(Path.cwd()) not in page


def test_no_settings_name_the_folder_that_a_model_was_loaded_from(hub: WritableHub, output: Path) -> None:
    shutil.copytree(output / "custom_nano", "copy")
    settings = json.loads(Path("copy/config.json").read_text())
    Path("copy/config.json").write_text(json.dumps({**settings, "_name_or_path": str(Path.cwd() / "copy")}))
    push("copy", "tiny")
    assert json.loads(hub.repositories["ann/tiny"].files["config.json"]) == settings


def record_of(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = output / "runs/shared-run/run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_data_that_may_not_be_used_commercially_are_warned_of(output: Path) -> None:
    license = "CC BY-NC 4.0 (research only)"
    record_of(output, lambda record: record["data"].update(dataset="alpaca-gpt4", license=license))
    result = push("shared-run", "tiny", dry_run=True)
    assert result.notes[0] == f"warning: alpaca-gpt4 is {license}: nobody may use the model commercially"
    assert "license: cc-by-nc-4.0\n" in result.card
    assert "datasets:\n- vicgalle/alpaca-gpt4\n" in result.card


def test_a_base_that_asks_for_more_than_the_data_gives_its_licence(output: Path) -> None:
    base = {"source": "someone/thing", "license": "Apache-2.0"}
    record_of(output, lambda record: record["config"]["model"].update(base))
    card = push("shared-run", "tiny", dry_run=True).card
    assert "license: apache-2.0\n" in card
    assert "base_model: someone/thing\n" in card


def test_without_an_evaluation_there_is_no_index_and_a_note(output: Path) -> None:
    record_of(output, lambda record: record.update(metrics={}))
    result = push("shared-run", "tiny", dry_run=True)
    assert "model-index" not in result.card
    assert "note: no evaluation of it is kept: the card has no model-index" in result.notes


def test_a_stored_evaluation_goes_before_that_of_the_training(output: Path) -> None:
    folder = output / "runs/shared-run/evaluation"
    folder.mkdir()
    (folder / "x.json").write_text('{"dataset": "starter", "dialogs": 99, "bits_per_byte": 1.25}')
    card = push("shared-run", "tiny", dry_run=True).card
    assert "value: 1.25\n      name: bits per byte, 99 held-out dialogs" in card
    assert "perplexity" not in card


def test_a_card_of_ones_own_keeps_its_words(output: Path) -> None:
    folder = output / "custom_nano"
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: de\n---\n# Mine\n\n## Use\n\nSo.\n")
    shutil.copytree(folder, "copy")
    result = push("copy", "tiny", dry_run=True)
    assert "license: mit\n" in result.card
    assert "language: de\n" in result.card
    assert "pipeline_tag: text-generation\n" in result.card
    assert result.notes[0] == "note: it has no run here: the card has no model-index"
    (Path("copy") / "README.md").write_text("---\nlicense: [\n---\n# Mine\n")
    with pytest.raises(ModelError, match=r"the YAML at the beginning of 'copy/README.md' is not valid"):
        push("copy", "tiny", dry_run=True)


def test_neither_secrets_nor_pickles_nor_models_of_the_hub_go(output: Path) -> None:
    folder = output / "custom_nano"
    shutil.copytree(folder, "copy")
    (Path("copy") / "README.md").write_text(f"My token is {TOKEN}.\n")
    with pytest.raises(ModelError, match=r"README.md holds what seems to be a secret") as secret:
        push("copy", "tiny", dry_run=True)
    assert TOKEN not in str(secret.value)
    (Path("copy") / WEIGHTS).rename("copy/pytorch_model.bin")
    (Path("copy") / "README.md").unlink()
    with pytest.raises(ModelError, match=r"are a pickle \(pytorch_model.bin\)") as pickled:
        push("copy", "tiny", dry_run=True)
    assert typed(pickled.value, "push", "copy", "tiny") == "--include-pickle"
    sent = push("copy", "tiny", dry_run=True, include_pickle=True)
    assert "pytorch_model.bin" in [file.name for file in sent.files]
    assert sent.left_out == ["training_args.bin"]
    with pytest.raises(ModelError, match="'someone/thing' is on the hub already"):
        push("someone/thing", "tiny", dry_run=True)


def test_a_page_or_a_bundle_is_not_pushed_but_its_model(output: Path, dialogkit: Run) -> None:
    certificate = json.dumps({"model": "shared-run"})
    page: dict[str, str | bytes] = {"model.onnx": b"", "certificate.json": certificate}
    write_files(Path("exports/shared-run-onnx-q8_0"), page)
    write_files(Path("exports/shared-run"), {"shared-run.zip": b"", "shared-run.certificate.json": certificate})
    write_files(Path("elsewhere"), {**page, "certificate.json": "[]"})
    own, gguf = "dialogkit push shared-run x --dry-run", "dialogkit push exports/shared-run-q8_0 x --dry-run"
    for path, what in {
        "exports/shared-run-onnx-q8_0": "a page for the browser",
        "exports/shared-run": "the folder of a bundle",
        "exports/shared-run/shared-run.zip": "a bundle",
    }.items():
        told, advice = dialogkit("push", path, "x", "--dry-run").err.splitlines()
        assert told.startswith(f"error: {path!r} is {what}, which is not pushed")
        assert advice == f"try: {own}, or: dialogkit export shared-run"
    assert "try: dialogkit models list" in dialogkit("push", "elsewhere", "x").err
    assert dialogkit(*own.split()[1:]).code == 0
    write_files(Path("exports/shared-run-q8_0"), {"a.gguf": b"GGUF"})
    assert dialogkit("push", "exports/shared-run", "x", "--dry-run").err.endswith(f"try: {own}, or: {gguf}\n")
    assert dialogkit(*gguf.split()[1:]).code == 0


def test_a_gguf_file_goes_with_what_stands_beside_it() -> None:
    beside = {
        "Modelfile": "FROM ./a.gguf",
        "a.certificate.json": "{}",
        "README.md": "---\nlicense: mit\n---\n# A\n",
    }
    write_files(
        Path("out"), {**beside, "a.gguf": b"GGUF", "b.gguf": b"GGUF", "b.log": "", "b.certificate.json": "{}"}
    )
    result = push("out/a.gguf", "tiny", dry_run=True)
    assert [file.name for file in result.files] == ["Modelfile", "README.md", "a.certificate.json", "a.gguf"]
    assert result.left_out == ["b.certificate.json", "b.gguf", "b.log"]
    assert "library_name: gguf" in result.card


@pytest.mark.faults
def test_an_adapter_goes_with_its_base_if_nobody_else_has_that(
    hub: WritableHub, trained: Trained, small_config: Callable[..., Any]
) -> None:
    from dialogkit.services.train import train

    base = Path(trained.result.model_dir)
    settings = {"train.method": "lora", "train.merge": False, "name": "adapted", "runtime.output_dir": "lora"}
    train(small_config(settings, model=str(base)))
    result = push("adapted", "tiny", output="lora")
    assert WEIGHTS in result.committed
    assert "note: the adapter's base is only on this machine: both are sent as one model" in result.notes
    head, text = card_of(hub)
    assert head["library_name"] == "transformers"
    assert "only an adapter" not in text
    assert str(base) not in text
