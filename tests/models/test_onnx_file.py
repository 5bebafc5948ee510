"""ONNX files: onnxruntime computes the logits and the greedy replies of each architecture, with kept keys."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dialogkit.errors import ModelError
from dialogkit.inference.onnx_model import OnnxModel
from dialogkit.models import onnx_graph
from dialogkit.models.onnx_file import write_onnx
from tests.models.test_gguf_file import IDS, SHAPES, model_of

FILE = Path("m.onnx")
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def export(model: Any, weight_type: Any = "f32") -> OnnxModel:
    write_onnx(FILE, model, weight_type)
    return OnnxModel(FILE, model.config)


@pytest.mark.parametrize("kind", [*SHAPES, "llama with scaled positions"])
def test_onnxruntime_computes_what_transformers_computes(kind: str) -> None:
    name = kind.partition(" with ")[0]
    model = model_of(name, **({"rope_parameters": LLAMA_3} if name != kind else {}))
    copy = export(model)
    torch.testing.assert_close(copy(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
    several = copy(IDS, dialog_lengths=(13, 7)).logits
    torch.testing.assert_close(several[:, 13:], model(IDS[:, 13:]).logits, atol=1e-4, rtol=1e-4)
    asked = IDS[:, :5]
    mask = torch.ones_like(asked)
    wanted = model.generate(
        input_ids=asked, attention_mask=mask, do_sample=False, max_new_tokens=20, pad_token_id=0
    )
    assert copy.reply(asked[0].tolist(), longest=20, ends=frozenset({5})) == wanted[0, 5:].tolist()


def test_fewer_bits_take_less_room_and_cost_little() -> None:
    model = model_of("llama")
    errors, sizes = [], []
    for weight_type in onnx_graph.WEIGHT_TYPES:
        copy = export(model, weight_type)
        errors.append(float((copy(IDS).logits - model(IDS).logits).abs().max()))
        sizes.append(FILE.stat().st_size)
    assert errors[0] < 1e-4 < errors[1] < errors[2] < 0.5
    values = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert sizes[0] - sizes[1] == pytest.approx(2 * values, rel=0.01)
    assert sizes[1] - sizes[2] == pytest.approx((16 - 8.5) / 8 * values, rel=0.05)


def test_rows_that_do_not_divide_into_blocks_keep_16_bits() -> None:
    model = model_of("gpt2 narrow")
    kept = write_onnx(FILE, model, "q8_0")
    assert "wte.weight" in kept
    assert "h.0.mlp.c_proj.weight" not in kept  # 64 in
    torch.testing.assert_close(OnnxModel(FILE, model.config)(IDS).logits, model(IDS).logits, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "the model has hidden_act 'gelu', and its ONNX graph computes 'silu'"),
        ("gpt2", {"scale_attn_weights": False}, "the model has scale_attn_weights False"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "scales its rotary positions ('dynamic')",
        ),
    ],
)
def test_what_the_graph_would_compute_otherwise_is_refused(
    kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as refused:
        write_onnx(FILE, model_of(kind, **settings), "f32")
    assert message in refused.value.message
    assert not FILE.exists()


def test_a_model_that_no_file_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 100_000)
    with pytest.raises(ModelError, match="as f32, and an ONNX file holds less than 2 GiB"):
        write_onnx(FILE, model_of("llama"), "f32")
