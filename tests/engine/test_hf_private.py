"""The private names of HF's Trainer and models that the engine needs are what they were."""

import ast
import inspect
from importlib.metadata import version
from types import ModuleType

import pytest
from transformers import LlamaConfig, PreTrainedModel, Trainer

from dialogkit.engine import hf_model, hf_private
from tests.conftest import REPOSITORY

METHODS = {
    "_clip_grad_norm": ["self", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_best_model": ["self"],
    "_load_scaler": ["self", "checkpoint"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_get_num_items_in_batch": ["self", "batch_samples", "device"],
    "_prepare_input": ["self", "data"],
    "_save": ["self", "output_dir", "state_dict"],
    "_evaluate": ["self", "trial", "ignore_keys_for_eval"],
    "_determine_best_metric": ["self", "metrics", "trial"],
}
ATTRIBUTES = ["_tr_loss", "_globalstep_last_logged", "_train_batch_size"]
OF_MODELS = {"_can_set_attn_implementation", "_supports_sdpa", "_attn_implementation"}
RELEASE = f"transformers {version('transformers')} has changed"


@pytest.mark.parametrize("name", METHODS)
def test_a_private_method_of_the_trainer_takes_what_it_took(name: str) -> None:
    method = getattr(Trainer, name, None)
    assert method is not None, f"{RELEASE} Trainer.{name}: it is gone"
    taken = list(inspect.signature(method).parameters)
    assert taken[: len(METHODS[name])] == METHODS[name], f"{RELEASE} Trainer.{name}: it takes {taken}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_private_attribute_of_the_trainer_is_still_used(name: str) -> None:
    assert f"self.{name}" in inspect.getsource(inspect.getmodule(Trainer)), f"{RELEASE} Trainer.{name}"  # type: ignore[arg-type]


def test_the_private_names_of_models_are_what_they_were() -> None:
    assert PreTrainedModel._supports_sdpa is False, f"{RELEASE} PreTrainedModel._supports_sdpa"
    assert isinstance(PreTrainedModel._can_set_attn_implementation(), bool), RELEASE
    assert LlamaConfig(attn_implementation="eager")._attn_implementation == "eager", RELEASE


@pytest.mark.parametrize(
    ("private", "owner"), [({*METHODS, *ATTRIBUTES}, hf_private), (OF_MODELS, hf_model)], ids=["trainer", "models"]
)
def test_only_one_module_uses_private_names(private: set[str], owner: ModuleType) -> None:
    users = set()
    for path in (REPOSITORY / "dialogkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in private and ast.unparse(node.value) != "self":
                users.add(path.name)
            if isinstance(node, ast.FunctionDef) and node.name in (METHODS.keys() & private) - {"_save"}:
                users.add(path.name)
    assert users == {f"{owner.__name__.rpartition('.')[2]}.py"}
