"""Pretrained models train by their names from the hub's cache, without a network, and keep their chat format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.api.inference import evaluate
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import load_run_config
from dialogkit.dialog import SHOWN_OTHERWISE, SYSTEM_FOLDED, plain_format, turns_format
from dialogkit.errors import ModelError, UnavailableError
from dialogkit.services.chat import Chat
from dialogkit.services.generate import generate
from dialogkit.services.train import resume, train
from dialogkit.services.training.result import TrainResult
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL, Finished, Trained, typed
from tests.hub import write_gpt2
from tests.invariants.test_resume import KillAt, Killed
from tests.models.foreign import INST, chatml, sentencepiece_like

END = "<|endoftext|>"
REST = {
    name: value for name, value in SMALL.items() if not name.startswith(("model.", "data.samples", "train.max"))
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub as downloads leave it: GPT-2 with safetensors, DialoGPT with a pickle."""
    from transformers import AutoTokenizer

    home = tmp_path_factory.mktemp("hub-home")
    gpt2 = write_gpt2(home, "openai-community/gpt2")
    dialogpt = write_gpt2(home, "microsoft/DialoGPT-small", weights="bin")
    AutoTokenizer.from_pretrained(gpt2).backend_tokenizer.save(str(gpt2 / "tokenizer.json"))
    assert {path.name for path in gpt2.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert {path.name for path in dialogpt.iterdir()} >= {"pytorch_model.bin", "vocab.json", "merges.txt"}
    assert not any((dialogpt / name).exists() for name in ("model.safetensors", "tokenizer.json"))
    return home


@pytest.fixture
def in_home(dialogkit: Callable[..., Finished]) -> Callable[..., Finished]:
    """Run the command line with another home of the hub."""

    def run(home: Path, *words: str) -> Finished:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
            patch.setenv("COLUMNS", "200")
            return dialogkit(*words)

    return run


@pytest.mark.parametrize(
    ("name", "hub_id", "format_"),
    [
        pytest.param("gpt2-small", "openai-community/gpt2", plain_format(END), marks=pytest.mark.faults),
        ("dialogpt-small", "microsoft/DialoGPT-small", turns_format(END)),
    ],
)
def test_a_name_of_the_catalogue_trains_from_the_cache(
    hub: Path, tmp_path: Path, name: str, hub_id: str, format_: Any, in_home: Callable[..., Finished]
) -> None:
    settings = [word for key, value in REST.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["--preset", "test", "--samples", "20", "--set", "train.max_steps=4", *settings]
    done = in_home(hub, "train", name, *words, "--json")
    assert done.code == 0, done.err
    reported = {line.split()[0] for line in done.err.splitlines() if not line.endswith(" ...")}
    assert reported == {"model", "device", "precision", "data", "steps", "run", "W&B", "starter:", "step"}
    result = TrainResult.model_validate(done.json["data"])
    assert result.published_dir == f"models/{name.replace('-', '_')}"
    record = RunDir(tmp_path / result.run_dir).read()
    assert (record.model.source, record.model.architecture) == (hub_id, "gpt2")
    assert record.data.train_dialogs == 20
    assert result.metrics["final/nats_per_token"] < result.metrics["before/nats_per_token"]

    model = Path(result.published_dir)
    assert (model / "model.safetensors").is_file()
    assert not (model / "pytorch_model.bin").exists()
    assert (model / "chat_template.jinja").read_text() == format_.template()
    assert f"base_model: {hub_id}" in (model / "README.md").read_text()
    # The trained model stands on its own: no cache is needed any more, nor is its name.
    assert [reply.tokens > 0 for reply in generate(model, ["Hello!", "Why?"]).replies] == [True, True]
    assert [reply.model for reply in generate(name, "Hello!").replies] == [name]


def test_a_name_of_the_catalogue_replies_without_a_training(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub / "hub"))
    replies = generate(["gpt2-small", "dialogpt-small"], "Hello!", config=GenerateConfig(max_new_tokens=3)).replies
    assert [reply.model for reply in replies] == ["gpt2-small", "dialogpt-small"]


def test_what_is_not_in_the_cache_is_one_sentence_at_once(
    tmp_path: Path, in_home: Callable[..., Finished]
) -> None:
    done = in_home(tmp_path / "empty", "train", "gpt2-medium", "--wandb", "disabled")
    assert (done.code, done.out) == (UnavailableError.exit_code, "")
    assert done.err.splitlines() == [
        "error: HF_HUB_OFFLINE forbids asking the hub, and 'openai-community/gpt2-medium' is not in its cache",
        "try: dialogkit doctor --network",
    ]


@pytest.mark.parametrize("tokenizer", [chatml(), sentencepiece_like(INST)], ids=["ChatML", "Llama 2"])
def test_a_model_folder_keeps_the_chat_template_that_it_brings(tokenizer: Any) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, pipeline

    torch.manual_seed(0)
    tokenizer.save_pretrained("chat-model")
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_layer=1, n_embd=32, n_head=2, n_positions=256, initializer_range=0.3
    )
    GPT2LMHeadModel(shape).save_pretrained("chat-model")
    settings = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    result = train(load_run_config("./chat-model", overrides={**settings, "train.learning_rate": 1e-3}))
    assert result.metrics["final/nats_per_token"] < result.metrics["before/nats_per_token"]

    template = (Path(result.model_dir) / "chat_template.jinja").read_text()
    assert template == tokenizer.chat_template
    greedy = GenerateConfig(temperature=0, repetition_penalty=1, max_new_tokens=12)
    prompts = ["Hello!", "How many?"]
    chat = pipeline("text-generation", model=result.model_dir, device="cpu")
    theirs = [
        chat([{"role": "user", "content": prompt}], do_sample=False, max_new_tokens=12)[0]["generated_text"][-1]
        for prompt in prompts
    ]
    ours = [reply.reply for reply in generate(None, prompts, config=greedy).replies]
    assert ours == [turn["content"].strip() for turn in theirs]
    assert all(ours)


# Generation settings that a base brings


ODD_BASES: dict[str, tuple[str, Any, str]] = {
    "no sampling": (
        "generation_config.json",
        {"temperature": 0.9, "top_p": 0.6, "max_length": 20},
        "not used from generation_config.json: temperature, top_p, max_length",
    ),
    "beams": (
        "generation_config.json",
        {"num_beams": 3, "stop_strings": ["a"], "min_new_tokens": 5, "cache_implementation": "static"},
        "not used from generation_config.json: num_beams, stop_strings, min_new_tokens, cache_implementation",
    ),
    "legacy": (
        "config.json",
        {"temperature": 0.5, "num_beams": 4, "cache_implementation": "unknown", "output_hidden_states": True},
        "not used from config.json: temperature, num_beams, cache_implementation",
    ),
    "a list": ("generation_config.json", [], "generation_config.json holds no JSON object and is not used"),
}


@pytest.fixture(scope="module")
def plain_base(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without generation settings."""
    folder = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(trained.result.model_dir, folder)
    (folder / "generation_config.json").unlink()
    return folder


def copy_with(plain_base: Path, file: str = "config.json", settings: Any = None) -> Path:
    """Return a copy of the base in this folder that brings generation settings."""
    folder = Path("base")
    shutil.copytree(plain_base, folder)
    old = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**old, **settings} if isinstance(settings, dict) else settings))
    return folder


def config_of(base: Path, run: str, **more: Any) -> Any:
    settings = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    return load_run_config(str(base), overrides={**settings, "train.eval_every_steps": 2, "name": run, **more})


def spoken(result: TrainResult) -> list[tuple[str, int, str]]:
    return [(reply.reply, reply.tokens, reply.stop_reason) for reply in result.replies]


@pytest.fixture(scope="module")
def from_plain(plain_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A training from the base without generation settings."""
    output = tmp_path_factory.mktemp("from-plain")
    return train(config_of(plain_base, "plain", **{"runtime.output_dir": str(output)}))


@pytest.mark.parametrize(
    ("kind", "killed"),
    [
        ("no sampling", True),
        *(pytest.param(kind, False, marks=pytest.mark.faults) for kind in ("beams", "legacy", "a list")),
    ],
)
def test_a_base_with_odd_generation_settings_trains_and_is_published_as_one_without(
    kind: str, killed: bool, plain_base: Path, from_plain: TrainResult
) -> None:
    file, settings, note = ODD_BASES[kind]
    config = config_of(copy_with(plain_base, file, settings), "odd")
    if killed:
        with pytest.raises(Killed):
            train(config, reporter=KillAt(3))
    result = resume(RunDir(Path("models/runs/odd"))) if killed else train(config)
    assert result is not None
    run = Path(result.run_dir)
    reported = [line for line in (run / "console.log").read_text().splitlines() if line.endswith(note)]
    assert len(reported) == (2 if killed else 1)
    for folder in (run / "checkpoint-2", run / "checkpoint-4", Path(result.published_dir)):
        for name in ("config.json", "generation_config.json"):
            plain = Path(from_plain.run_dir) / folder.name if folder.parent == run else Path(from_plain.model_dir)
            assert (folder / name).read_bytes() == (plain / name).read_bytes()
    same = (Path(found.model_dir, "model.safetensors").read_bytes() for found in (result, from_plain))
    assert next(same) == next(same)
    assert spoken(result) == spoken(from_plain)
    assert generate("odd", "Hello!").text == generate(from_plain.model_dir, "Hello!").text


def test_an_adapter_of_such_a_base_trains_and_replies(plain_base: Path) -> None:
    base = copy_with(plain_base, *ODD_BASES["no sampling"][:2])
    result = train(config_of(base, "adapted", **{"train.method": "lora", "train.merge": False}))
    left = json.loads((Path(result.model_dir) / "generation_config.json").read_text())
    assert left.keys() == {"eos_token_id", "pad_token_id", "transformers_version"}
    held = "not used from generation_config.json: temperature, top_p, max_length"
    assert held in (Path(result.run_dir) / "console.log").read_text()
    assert generate("adapted", "Hello!").replies[0].tokens > 0


def test_figures_do_not_depend_on_generation_settings(plain_base: Path) -> None:
    steering = {"num_beams": 2, "min_new_tokens": 40, "suppress_tokens": list(range(300)), "max_time": 0.0}
    odd = copy_with(plain_base, "generation_config.json", steering)
    rows = evaluate([str(plain_base), str(odd)], dataset="starter", samples=3, device="cpu").rows
    timed = {"model", "first_token_s", "reply_tokens_per_s", "peak_memory_bytes"}
    first, second = (row.model_dump(exclude=timed) for row in rows)
    assert first["chrf"] is not None
    assert first == second


def test_generation_settings_that_are_asked_for_are_those_of_the_base_also_after_a_resume(
    plain_base: Path,
) -> None:
    own = {"do_sample": True, "temperature": 1.5, "top_k": 0, "num_beams": 2}
    base = copy_with(plain_base, "generation_config.json", own)
    asked = {"generate.use_model_settings": True, "generate.seed": 3}
    with pytest.raises(Killed):
        train(config_of(base, "stopped", **asked), reporter=KillAt(3))
    resumed = resume(RunDir(Path("models/runs/stopped")))
    assert resumed is not None
    by_hand = {"generate.temperature": 1.5, "generate.top_k": 0, "generate.seed": 3}
    assert spoken(resumed) == spoken(train(config_of(base, "by-hand", **by_hand)))
    note = "used from generation_config.json: do_sample true, temperature 1.5, top_k 0; not used: num_beams"
    assert note in (Path(resumed.run_dir) / "console.log").read_text()
    (base / "generation_config.json").write_text('{"temperature": 50}')
    with pytest.raises(ModelError, match="temperature: must be less than or equal to 2") as reported:
        train(config_of(base, "refused", **asked))
    assert typed(reported.value) == "--set generate.use_model_settings=false"
    assert not Path("models/runs/refused").exists()


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_settings_of_the_model_take_effect_by_an_option(
    command: str, plain_base: Path, dialogkit: Callable[..., Finished]
) -> None:
    own = {"do_sample": True, "temperature": 2.0, "top_p": 1.0, "num_beams": 2}
    copy_with(plain_base, "generation_config.json", own)
    few = (
        ["--prompt", "Why?", "--max-new-tokens", "8", "--seed", "3"]
        if command == "generate"
        else ["-d", "starter", "-s", "2"]
    )
    words = [command, "base", *few, "--no-cuda", "--json"]
    alone, asked = dialogkit(*words), dialogkit(*words, "--use-model-settings")
    note = (
        "base: used from generation_config.json: do_sample true, temperature 2.0, top_p 1.0; not used: num_beams"
    )
    assert (alone.code, asked.code) == (0, 0)
    assert (note in alone.err, note in asked.err) == (False, True)
    if command == "generate":
        by_hand = dialogkit(*words, "--temperature", "2", "--top-p", "1").json["data"]["replies"][0]["reply"]
        assert asked.json["data"]["replies"][0]["reply"] == by_hand != alone.json["data"]["replies"][0]["reply"]
        cooler = dialogkit(*words, "--use-model-settings", "--temperature", "0.7", "--top-p", "0.95")
        assert cooler.json["data"]["replies"][0]["reply"] == alone.json["data"]["replies"][0]["reply"]
        assert asked.json["data"]["notes"] == [note]
    else:
        rows = [done.json["data"]["rows"][0] for done in (alone, asked)]
        assert [row["model_settings"] for row in rows] == [None, note]
        assert rows[0]["nats_per_token"] == rows[1]["nats_per_token"]
        quick = dialogkit("evaluate", "base", "--quick", "--use-model-settings")
        assert (quick.code, quick.err.splitlines()[1]) == (2, "try: dialogkit evaluate base --use-model-settings")


def test_a_chat_takes_the_settings_of_the_model_where_it_is_asked_to(plain_base: Path) -> None:
    copy_with(plain_base, "generation_config.json", {"do_sample": False, "top_k": 3})
    chat = Chat("base", config=GenerateConfig(use_model_settings=True, top_k=9))
    assert (chat.get("temperature"), chat.get("top_k"), chat.get("top_p")) == (0.0, 9, 0.95)
    assert chat.notes == ["base: used from generation_config.json: do_sample false; not used: top_k"]
    chat.set("temperature", "0.5")
    assert (chat.get("temperature"), chat.get("top_k")) == (0.5, 9)
    assert Chat("base").notes == []


FORGETFUL = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system texts') }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content if loop.last or m.role == 'user' else 'Hm.') }}"
    "<|end_of_turn|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template without a system role, that renders only the last answer as it is."""


def test_what_a_template_does_to_the_dialogs_is_said_wherever_they_are_used(
    plain_base: Path, dialogkit: Callable[..., Finished]
) -> None:
    base = copy_with(plain_base, "generation_config.json", {})
    (base / "chat_template.jinja").write_text(FORGETFUL)
    turns = [("system", "Be brief."), ("user", "Why?"), ("assistant", "So."), ("user", "And?"), ("assistant", "")]
    Path("rows.jsonl").write_text(
        "".join(
            json.dumps({"messages": [{"role": role, "content": text or f"Number {n}."} for role, text in turns]})
            + "\n"
            for n in range(4)
        )
    )
    folded = f"4 dialogs: {SYSTEM_FOLDED}"
    lost = f"4 of 8 answers are not learned: {SHOWN_OTHERWISE}"
    few = ["--set", "train.max_steps=2", "--set", "train.batch_size=2", "--no-cuda"]
    for words in (
        ["data", "inspect", "rows.jsonl", "--model", "base"],
        ["train", "base", "-d", "rows.jsonl", "--dry-run", *few],
        ["train", "base", "-d", "rows.jsonl", "--name", "new", *few],
        ["evaluate", "base", "-d", "rows.jsonl", "--quick", "--no-cuda"],
    ):
        done = dialogkit(*words)
        assert done.code == 0, done.err
        reported = " ".join((done.out + done.err).split())
        assert (folded in reported, lost in reported) == (True, True), words
    said = generate("base", "Hello!", system="Be brief.", config=GenerateConfig(max_new_tokens=4))
    assert said.notes == [f"base: {SYSTEM_FOLDED}"]
    assert generate("base", "Hello!", config=GenerateConfig(max_new_tokens=4)).notes == []
    chat = Chat("base", system="Be brief.", config=GenerateConfig(max_new_tokens=4))
    assert (chat.notes, chat.changes()) == ([f"base: {SYSTEM_FOLDED}"], [f"base: {SYSTEM_FOLDED}"])
    assert chat.say("Hello!").reply == said.replies[0].reply
