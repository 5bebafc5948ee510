"""The shipped tokenizer is the same with and without transformers."""

import pytest

from dialogkit.config.model import ModelConfig
from dialogkit.dialog import Message
from dialogkit.models.shipped import load_encoder
from dialogkit.models.tokenizer import load_tokenizer

SCRATCH = ModelConfig(layers=1, width=8, heads=1, context=64)
DIALOG = (
    Message("system", "Be brief."),
    Message("user", "How? <|end_of_turn|> <|pad|> \u00fc \U0001f980"),
    Message("assistant", "Like this.\n\n\tAnd that ."),
)


def test_without_transformers_a_dialog_gives_the_same() -> None:
    light, full = load_encoder(SCRATCH), load_tokenizer(SCRATCH)
    encoded = light.encode_dialogs([DIALOG])
    assert encoded == full.encode_dialogs([DIALOG])
    ids = encoded[0].input_ids
    for name in ("decode", "prompt_text", "token_texts"):
        assert getattr(light, name)(ids) == getattr(full, name)(ids)
    for name in ("fingerprint", "vocabulary", "highest_id", "special_ids", "stop_ids", "reply_stop_ids", "pad_id"):
        assert getattr(light, name) == getattr(full, name), name


def test_another_tokenizer_or_format_is_loaded_as_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ModelConfig] = []
    monkeypatch.setattr("dialogkit.models.shipped.load_tokenizer", loaded.append)
    configs = [
        SCRATCH.model_copy(update={"tokenizer": "mine"}),
        SCRATCH.model_copy(update={"chat_format": "plain"}),
        ModelConfig(source="somebody/model"),
    ]
    for config in configs:
        load_encoder(config)
    assert loaded == configs
