"""Replies are those of the model that was asked for, alone or in company, and repeat with their seed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.api.inference import generate
from dialogkit.config.generate import GenerateConfig
from dialogkit.errors import ConfigError, ModelError, UnavailableError
from dialogkit.inference.results import ReplyResult
from dialogkit.services.generate import GenerateResult
from dialogkit.services.runs import loading
from dialogkit.services.train import train
from tests.conftest import Finished, Trained, typed

GREEDY = GenerateConfig(temperature=0, repetition_penalty=1.0, max_new_tokens=12)
PROMPTS = [
    "Hello!",
    "What is the capital of France, and how many people live there?",
    "Why?",
    "Tell me a story " * 9,
]


@pytest.fixture(scope="module")
def two(trained: Trained, tmp_path_factory: pytest.TempPathFactory, small_config: Callable[..., Any]) -> Path:
    """An output folder with the shared run, and a newer one, whose greedy replies are long and wild."""
    output = tmp_path_factory.mktemp("two") / "models"
    shutil.copytree(trained.output, output)
    wild = {"model.initializer_range": 0.3, "train.learning_rate": 1e-6, "name": "newer"}
    train(small_config({"runtime.output_dir": str(output), **wild}))
    return output


def texts(result: GenerateResult) -> list[str]:
    return [reply.reply for reply in result.replies]


def test_without_a_name_the_newest_finished_run_replies(two: Path) -> None:
    newest = generate(prompts="Hello!", config=GREEDY, output=two)
    assert [reply.model for reply in newest.replies] == ["newer"]
    assert newest.text == generate("newer", "Hello!", config=GREEDY, output=two).text
    assert newest.text != generate("shared-run", "Hello!", config=GREEDY, output=two).text


def test_every_way_to_name_a_model_gives_the_same_replies(trained: Trained) -> None:
    ways = ["shared-run", trained.result.run_dir, Path(trained.result.model_dir), "custom-nano"]
    replies = [texts(generate(way, PROMPTS, config=GREEDY, output=trained.output)) for way in ways]
    assert replies == [replies[0]] * len(ways)


def test_models_side_by_side_reply_as_they_do_alone(two: Path) -> None:
    models = ["newer", "shared-run"]
    together = generate(models, PROMPTS, config=GREEDY, output=two)
    assert [(r.model, r.prompt) for r in together.replies] == [(m, p.strip()) for m in models for p in PROMPTS]
    alone = [text for model in models for text in texts(generate(model, PROMPTS, config=GREEDY, output=two))]
    assert texts(together) == alone


def test_many_prompts_at_once_get_the_replies_that_each_gets_alone(two: Path) -> None:
    together = generate("newer", PROMPTS, config=GREEDY, output=two)
    alone = [generate("newer", prompt, config=GREEDY, output=two).text for prompt in PROMPTS]
    assert texts(together) == alone
    assert len(set(alone)) == len(PROMPTS)


@pytest.mark.parametrize("system", [None, "You are a pirate. Answer in one word."])
def test_greedy_replies_are_those_of_the_pipeline_of_transformers(two: Path, system: str | None) -> None:
    from transformers import pipeline

    chat = pipeline("text-generation", model=str(two / "custom_nano"), device="cpu")
    start = [{"role": "system", "content": system}] if system else []
    theirs = [
        chat([*start, {"role": "user", "content": prompt.strip()}], do_sample=False, max_new_tokens=12)
        for prompt in PROMPTS
    ]
    ours = generate("custom-nano", PROMPTS, system=system, config=GREEDY, output=two)
    assert texts(ours) == [answer[0]["generated_text"][-1]["content"].strip() for answer in theirs]


def test_a_system_text_is_part_of_what_the_model_reads(two: Path) -> None:
    reported = generate("newer", PROMPTS, system="Answer in one word.", config=GREEDY, output=two)
    assert texts(reported) != texts(generate("newer", PROMPTS, config=GREEDY, output=two))


def test_a_seed_gives_the_same_replies_again_and_another_seed_others(two: Path) -> None:
    def sampled(seed: int) -> list[str]:
        config = GenerateConfig(temperature=1.5, seed=seed, max_new_tokens=12)
        return texts(generate("newer", PROMPTS, config=config, output=two))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_single_settings_are_those_of_a_config(two: Path) -> None:
    whole = generate(None, "Hello!", config=GenerateConfig(temperature=0, max_new_tokens=5), output=two)
    assert generate(None, "Hello!", temperature=0, max_new_tokens=5, output=two).text == whole.text
    short = generate(None, "Hello!", config=GenerateConfig(temperature=0), max_new_tokens=5, output=two)
    assert short.text == whole.text


def test_the_text_as_it_grows_is_the_reply(two: Path) -> None:
    pieces: list[str] = []
    result = generate("newer", "Hello!", config=GREEDY, output=two, on_text=pieces.append)
    assert "".join(pieces) == result.text
    assert len(pieces) > 1


def test_without_prompts_the_test_prompts_are_answered(trained: Trained) -> None:
    result = generate("shared-run", config=GenerateConfig(max_new_tokens=1), output=trained.output)
    assert tuple(reply.prompt for reply in result.replies) == GenerateConfig().test_prompts


def test_a_prompt_longer_than_the_context_still_gets_a_reply(two: Path) -> None:
    (reply,) = generate("newer", "word " * 2000, config=GREEDY, output=two).replies
    assert reply.tokens == GREEDY.max_new_tokens


def test_a_reply_says_how_long_it_is_and_why_it_ended(two: Path) -> None:
    (wild,) = generate("newer", "Hello!", config=GREEDY, output=two).replies
    assert (wild.tokens, wild.stop_reason, wild.succeeded) == (12, "length", True)

    def ending(seed: int) -> list[ReplyResult]:
        long = GenerateConfig(max_new_tokens=64, temperature=1.0, top_k=0, top_p=1.0, seed=seed)
        replies = generate("shared-run", config=long, output=two).replies
        return [reply for reply in replies if reply.stop_reason == "end of turn"]

    ended = next(filter(None, map(ending, range(20))))  # not with every seed does one end so early
    assert len({reply.tokens for reply in ended}) == len({reply.seconds for reply in ended})
    assert [r.tokens for r in sorted(ended, key=lambda r: r.seconds)] == sorted(r.tokens for r in ended)
    assert all(reply.tokens <= 64 and reply.succeeded == bool(reply.reply) for reply in ended)


@pytest.mark.parametrize("prompts", ["", "  \n", [], ["Hello!", " "]])
def test_an_empty_prompt_is_refused(trained: Trained, prompts: str | list[str]) -> None:
    with pytest.raises(ConfigError, match=r"a prompt is empty|no prompt is given"):
        generate("shared-run", prompts, output=trained.output)


def test_all_names_are_looked_up_before_the_first_model_is_loaded(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dialogkit.services.runs.loading.load_for_inference", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(ModelError, match=r"'shared-ran' \(did you mean 'shared-run'\?\)"):
        generate(["shared-run", "shared-ran"], "Hello!", output=trained.output)


def test_the_command_line_compares_models(
    dialogkit: Callable[..., Finished], two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--prompt", "Hello!", "--prompt", "Why?", "--temperature", "0", "--repetition-penalty", "1"]
    words += ["--max-new-tokens", "12", "--output-dir", str(two)]
    done = dialogkit("generate", "newer", "--compare", "shared-run", *words, "--json")
    replies = [ReplyResult.model_validate(reply) for reply in done.json["data"]["replies"]]
    expected = generate(["newer", "shared-run"], ["Hello!", "Why?"], config=GREEDY, output=two).replies
    assert [r.model_dump(exclude={"seconds", "tokens_per_s"}) for r in replies] == [
        r.model_dump(exclude={"seconds", "tokens_per_s"}) for r in expected
    ]
    table = dialogkit("generate", "newer", "--compare", "shared-run", *words)
    assert table.code == 0
    assert table.out.splitlines()[0].split() == ["prompt", "newer", "shared-run"]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = dialogkit("generate", "newer", "--compare", "shared-run", *words)
    below = narrow.out.splitlines()
    marks = [line for line in below if line.startswith(("> ", "["))]
    named = [line.partition(": ")[0] for line in narrow.err.splitlines() if "stopped by" in line]
    assert named == ["newer", "shared-run"] * 2
    assert marks == ["> Hello!", "[newer]", "[shared-run]", "> Why?", "[newer]", "[shared-run]"]


def test_weights_of_eight_bits_are_told_and_only_for_the_cpu(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generate("shared-run", "Hello!", config=GREEDY, output=trained.output, device="cpu", int8=True)
    assert made.notes == ["shared-run: replies on the CPU, with weights of 8 bits"]
    assert made.replies[0].tokens > 0
    load = loading.load_for_inference
    monkeypatch.setattr(loading, "load_for_inference", lambda *_, **__: load(*_, **__)._replace(device="cuda"))
    with pytest.raises(UnavailableError, match="on the CPU only, and shared-run is on cuda") as refused:
        generate("shared-run", "Hello!", config=GREEDY, output=trained.output, int8=True)
    assert typed(refused.value, "generate", "shared-run") == "--no-cuda"
