"""The last screen of a run shows what the model says about its own data, and what to type next."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dialogkit.api.training import summary
from dialogkit.cli.output import Output
from dialogkit.cli.train_view import chat_command, render_training
from dialogkit.config.generate import TEST_PROMPTS
from dialogkit.inference.results import ReplyResult
from dialogkit.services.train import train
from tests.conftest import Trained


def test_after_training_on_own_data_held_out_prompts_are_shown_with_their_answers(
    small_config: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = {f"Do you sell item {n}?": f"Yes, item {n} costs {n} euros." for n in range(20)}
    rows = [{"prompt": prompt, "response": answer} for prompt, answer in asked.items()]
    Path("shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = train(
        small_config(
            {
                "data.dataset": "shop.jsonl",
                "generate.test_prompts": list(TEST_PROMPTS),
                "tracking.held_out_replies": 2,
            }
        )
    )
    assert result.shows_held_out
    first = result.held_out_replies[0]
    assert first.reference == asked[first.prompt]
    capfd.readouterr()
    render_training(Output(), result)
    out, err = capfd.readouterr()
    assert f"> {first.prompt}\ntrue answer  {first.reference}\nreply        " in out
    assert TEST_PROMPTS[0] not in out
    assert out.count(first.prompt) == 1
    assert (out + err).count("bits per byte: ") == 1
    *_, shown = ElementTree.fromstring(result._repr_html_()).iter("table")
    assert [cell.text for cell in shown.iter("th")] == ["prompt", "true answer", "reply"]
    assert [cell.text for cell in shown.iter("td")][:2] == [first.prompt, first.reference]
    assert TEST_PROMPTS[0] not in result._repr_html_()
    assert f'generate("{result.run}", "{first.prompt}")' in summary(result)
    command = chat_command("custom-nano", result.run_dir, result.held_out_replies)
    assert command == f"dialogkit generate custom-nano --prompt '{first.prompt}'"


def test_after_training_on_the_starter_set_the_test_prompts_are_shown(
    trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    render_training(Output(), trained.result)
    out = capfd.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("> ")] == [
        f"> {prompt}" for prompt in TEST_PROMPTS
    ]
    assert "true answer" not in out


@pytest.mark.parametrize(
    ("prompts", "typed"),
    [
        ([], '"Hello!"'),
        (["two\nlines", "\x1b[31m", "x" * 81, "(system: Be brief.) Hi", "What's this?"], "'What'\"'\"'s this?'"),
        (["two\nlines"], '"Hello!"'),
    ],
)
def test_the_next_command_has_a_prompt_that_can_be_typed(prompts: list[str], typed: str, trained: Trained) -> None:
    replies = [
        ReplyResult(model="m", prompt=prompt, reply="", tokens=0, seconds=1, stop_reason="length")
        for prompt in prompts
    ]
    assert chat_command("custom-nano", trained.result.run_dir, replies).endswith(f" --prompt {typed}")
