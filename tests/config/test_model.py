"""The shape of a model: its exact parameter counts, and what no shape may be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dialogkit.config.load import load_run_config, model_names
from dialogkit.config.model import SHIPPED_VOCABULARIES, ModelConfig, ParameterCounts
from dialogkit.models.build import build_model
from dialogkit.models.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer

SHAPE: dict[str, Any] = {"layers": 2, "width": 32, "heads": 2, "context": 64}
SCRATCH = [name for name in model_names() if name.startswith("custom-")]


def count(model: Any) -> ParameterCounts:
    """Count the parameters of a real model, each tensor once."""
    embeddings = [model.get_input_embeddings()]
    if hasattr(model.base_model, "wpe"):
        embeddings.append(model.base_model.wpe)
    inside = sum(parameter.numel() for module in embeddings for parameter in module.parameters())
    return ParameterCounts(sum(parameter.numel() for parameter in model.parameters()), inside)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A tokenizer of the bytes and the special tokens alone."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([""], vocabulary=262, output=folder)
    return load_tokenizer(ModelConfig(**SHAPE, tokenizer=str(folder)))


@pytest.fixture(scope="module")
def shipped() -> ChatTokenizer:
    return load_tokenizer(ModelConfig(**SHAPE))


@pytest.fixture
def weightless() -> Iterator[None]:
    """Models made here have shapes but no memory."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"layers": 1}, {"layers": 5}, {"width": 40}, {"heads": 8}, {"context": 200}, {"feed_forward": 56}],
    ids=str,
)
def test_the_formula_counts_what_a_real_model_has(
    architecture: str, shape: dict[str, int], tokenizer: ChatTokenizer
) -> None:
    config = ModelConfig.model_validate({**SHAPE, "architecture": architecture, **shape})
    model = build_model(config, tokenizer)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert config.parameter_counts(tokenizer.vocabulary) == count(model)


@pytest.mark.parametrize("name", SCRATCH)
def test_the_catalogues_counts_are_those_of_the_real_models(name: str, weightless: None) -> None:
    config = load_run_config(name).model
    assert config.parameter_counts() == count(build_model(config, load_tokenizer(config)))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("custom-pico", 1),
        ("custom-nano", 5),
        ("custom-tiny", 10),
        ("custom-small", 50),
        ("custom-medium", 100),
        ("custom-large", 200),
    ],
)
def test_a_scratch_model_has_the_size_that_its_class_says(name: str, millions: int) -> None:
    model = load_run_config(name).model
    counts = model.parameter_counts()
    assert model.size_class == f"{millions}M"
    assert counts is not None
    assert counts.total == pytest.approx(millions * 1e6, rel=0.2)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2-small", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("dialogpt-small", 124_439_808),
        ("dialogpt-medium", 354_823_168),
    ],
)
def test_a_pretrained_model_has_its_published_number_of_parameters(name: str, parameters: int) -> None:
    counts = load_run_config(name).model.parameter_counts()
    assert counts is not None
    assert counts.total == parameters


@pytest.mark.parametrize("name", ["gpt2-small", "gpt2-medium"])
def test_the_formula_counts_what_transformers_makes_of_gpt2(name: str, weightless: None) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = load_run_config(name).model
    real = GPT2LMHeadModel(GPT2Config(n_layer=model.layers, n_embd=model.width, n_head=model.heads))
    assert model.parameter_counts() == count(real)


def test_without_a_vocabulary_the_shipped_tokenizers_is_counted(shipped: ChatTokenizer) -> None:
    assert shipped.vocabulary == SHIPPED_VOCABULARIES[None]
    config = ModelConfig(**SHAPE)
    assert config.parameter_counts() == config.parameter_counts(SHIPPED_VOCABULARIES[None])
    assert config.parameter_counts() != config.parameter_counts(SHIPPED_VOCABULARIES[None] - 1)


@pytest.mark.parametrize(
    "config",
    [ModelConfig(source="someone/model"), ModelConfig(source="someone/model", **SHAPE)],
    ids=["no-shape", "no-vocabulary"],
)
def test_a_source_of_unknown_shape_has_an_unknown_size(config: ModelConfig) -> None:
    assert config.parameter_counts() is None


@pytest.mark.parametrize(
    ("architecture", "width", "feed_forward"),
    [("gpt2", 32, 128), ("llama", 24, 64), ("llama", 32, 88), ("llama", 256, 688), ("llama", 768, 2048)],
)
def test_the_feed_forward_width_follows_from_the_width(architecture: str, width: int, feed_forward: int) -> None:
    shape = {**SHAPE, "architecture": architecture, "width": width}
    assert ModelConfig.model_validate(shape).feed_forward_width == feed_forward
    assert ModelConfig.model_validate({**shape, "feed_forward": 72}).feed_forward_width == 72


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": None}, "a model without a source needs layers"),
        ({"layers": None, "width": None, "heads": None, "context": None}, "needs layers, width, heads, context"),
        ({"heads": 3}, "width 32 is not a multiple of heads 3"),
        ({"heads": 32}, "width 32 over 32 heads is odd"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"layers": 257}, "less than or equal to 256"),
        ({"width": 7}, "greater than or equal to 8"),
        ({"context": 8}, "greater than or equal to 16"),
        ({"vocabulary": 255}, "greater than or equal to 256"),
        ({"architecture": "mamba"}, "'gpt2' or 'llama'"),
        ({"chat_format": "chatml"}, "'auto', 'dialogkit', 'plain' or 'turns'"),
        ({"initializer_range": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_an_impossible_shape_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelConfig.model_validate({**SHAPE, **settings})


def test_odd_heads_are_no_problem_without_rotary_positions(tokenizer: ChatTokenizer) -> None:
    config = ModelConfig.model_validate({**SHAPE, "architecture": "gpt2", "heads": 32})
    assert build_model(config, tokenizer).config.n_head == 32
