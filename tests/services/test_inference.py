"""What generating, chatting and evaluating have in common."""

from pathlib import Path

import pytest

from dialogkit.config.model import ModelConfig
from dialogkit.errors import ConfigError, ModelError
from dialogkit.hints import Call, Change, Hint
from dialogkit.services.evaluation.request import EvaluateRequest
from dialogkit.services.inference import hints_for, names_of
from dialogkit.services.runs.resolve import Loadable
from tests.conftest import typed


def test_a_model_argument_is_one_name_or_several() -> None:
    assert names_of(None) == (None,)
    assert names_of("a") == names_of(Path("a")) == names_of(["a"]) == ("a",)
    assert names_of(["a", "b"]) == ("a", "b")
    with pytest.raises(ConfigError, match="no model is given"):
        names_of([])


PLAIN = Change({"model.chat_format": "plain"})


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (PLAIN, Call("train", "someone/some-model", settings={"model.chat_format": "plain"})),
        (Change({"runtime.output_dir": "x"}), Change({"runtime.output_dir": "x"})),
        (Call("models list"), Call("models list")),
    ],
)
def test_settings_of_a_model_are_changed_by_train_alone(hint: Hint, expected: Hint) -> None:
    model = ModelConfig(name="some-model", source="someone/some-model")
    with pytest.raises(ModelError) as refused, hints_for(Loadable("some-model", model)):
        raise ModelError("its template is wrong", hint=hint)
    assert refused.value.hint == expected


def test_such_a_hint_is_a_command_that_works() -> None:
    model = ModelConfig(name="some-model", source="someone/some-model")
    with pytest.raises(ModelError) as refused, hints_for(Loadable("some-model", model)):
        raise ModelError("its template is wrong", hint=PLAIN)
    assert typed(refused.value, "generate") == "dialogkit train someone/some-model --set model.chat_format=plain"


def test_a_request_with_an_unknown_mode_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="wandb: must be 'auto', 'online', 'offline' or 'disabled'") as refused:
        EvaluateRequest(wandb="sometimes")
    assert typed(refused.value, "evaluate") == "--wandb auto"
    assert EvaluateRequest(wandb="auto").wandb == "auto"
