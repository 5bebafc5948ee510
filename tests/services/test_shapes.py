"""Models of the architectures that people bring train, resume, are published, reply and are measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from dialogkit.api.inference import evaluate
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.load import load_run_config
from dialogkit.services.generate import generate
from dialogkit.services.models import show_model
from dialogkit.services.train import resume, train
from dialogkit.services.training.result import TrainResult
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import SMALL
from tests.invariants.test_resume import KillAt, Killed
from tests.models.shapes import SHAPES, write_shape

SETTINGS = {
    **{name: value for name, value in SMALL.items() if not name.startswith(("model.", "data."))},
    **{"data.dataset": "talk.jsonl", "train.learning_rate": 1e-3},
}
GREEDY = GenerateConfig(temperature=0, repetition_penalty=1, max_new_tokens=6)
QUICK = ("Gemma 2", "SmolLM")
"""One in rows and one packed; `make faults` tries the others."""


@pytest.fixture(params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.faults) for n in SHAPES])
def shape(request: pytest.FixtureRequest) -> str:
    """The name of a shape, whose model is in the folder `base`."""
    turns = [("user", "Hello {}"), ("assistant", "Hi {}"), ("user", "And?"), ("assistant", "So {}")]
    rows = [{"messages": [{"role": r, "content": t.format(n)} for r, t in turns]} for n in range(20)]
    Path("talk.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_shape(request.param, Path("base"))
    return str(request.param)


def load(folder: str | Path) -> Any:
    """Load a model as anybody does, and require that nothing was missing."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    return model


def counts(model: Any) -> tuple[int, int]:
    """Return the parameters of a model, and those without embeddings."""
    from torch.nn import Embedding

    inside = {p for m in model.modules() if isinstance(m, Embedding) for p in m.parameters()}
    total = sum(p.numel() for p in model.parameters())
    return total, total - sum(p.numel() for p in inside)


def require_figures(name: str, base: Any) -> None:
    shown = show_model(name)
    assert (shown.parameters, shown.parameters_without_embeddings) == counts(base)
    assert (shown.layers, shown.width, shown.heads, shown.context) == (2, 32, 4, 256)


def fit(name: str, more: dict[str, Any], *, kill: bool = False) -> TrainResult:
    config = load_run_config("./base", overrides={**SETTINGS, "name": name, "model.name": name, **more})
    if not kill:
        return train(config)
    with pytest.raises(Killed):
        train(config, reporter=KillAt(3))
    result = resume(RunDir(Path("models/runs", name)))
    assert result is not None
    return result


def reply_of_transformers(folder: str) -> str:
    """Return the reply that plain transformers gives by the template in the folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello!"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = load(folder).generate(**prompt, do_sample=False, max_new_tokens=6)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def test_a_model_of_this_shape_goes_all_the_way(shape: str) -> None:
    base = load("base")
    require_figures("base", base)
    full = fit("full", {"train.eval_every_steps": 2}, kill=True)
    assert full.metrics["final/nats_per_token"] < full.metrics["before/nats_per_token"]
    require_figures("full", base)
    for folder in (Path(full.run_dir, "checkpoint-2"), Path(full.published_dir)):
        kept = json.loads((folder / "generation_config.json").read_text())
        assert kept.keys() <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
    assert load(full.published_dir).config.tie_word_embeddings == base.config.tie_word_embeddings
    assert generate("full", "Hello!", config=GREEDY).replies[0].reply == reply_of_transformers(full.published_dir)
    before, after = evaluate(["base", "full"], quick=True, dataset="talk.jsonl", device="cpu").rows
    assert after.nats_per_token == pytest.approx(full.metrics["final/nats_per_token"])
    assert before.nats_per_token == pytest.approx(full.metrics["before/nats_per_token"])


def test_an_adapter_of_this_shape_is_merged_or_kept(shape: str) -> None:
    base = load("base")
    merged = fit("merged", {"train.method": "lora"})
    assert counts(load(merged.published_dir)) == counts(base)
    fit("kept", {"train.method": "lora", "train.merge": False})
    require_figures("kept", base)
    replies = [generate(name, "Hello!", config=GREEDY).replies[0].reply for name in ("kept", "merged")]
    assert replies[0] == replies[1]
