"""Which temperature and repetition penalty suit a model? Replies to held-out prompts with each pair of them.

python benchmarks/generation_defaults.py models/custom_pico --dataset smalltalk-core

Right answers need a dataset whose rows have a `check`. `chrF` compares a reply with the true answer. `repeated`
is the share of a reply's sequences of four words that occurred before in it.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from dialogkit.config.data import DataConfig
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import cache_dir
from dialogkit.data.prepare import prepare_data
from dialogkit.inference.reply_metrics import Answered, ReplyMetrics
from dialogkit.services.evaluation.questions import choose_questions, mark
from dialogkit.services.evaluation.scoring import first_exchanges, replies_to
from dialogkit.services.runs.loading import load_for_inference
from dialogkit.services.runs.resolve import resolve_model


def main() -> None:
    """Print a row for each temperature and penalty, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run, published model or folder")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts, and checked questions")
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 0.3, 0.5, 0.7, 1.0])
    parser.add_argument("--penalties", nargs="+", type=float, default=[1.0, 1.1, 1.2])
    parser.add_argument("--json", type=Path, help="write the rows here")
    words = parser.parse_args()
    model = load_for_inference(resolve_model(words.model), device="cpu")
    data = prepare_data(
        DataConfig(dataset=words.dataset), model.tokenizer, context=model.context, cache=cache_dir()
    )
    exchanges = first_exchanges(data.evaluation, model.tokenizer)[: words.prompts]
    questions = choose_questions(data.evaluation, data.checked, model.tokenizer, words.prompts)
    print("| temperature | penalty | right answers | chrF | repeated | ends by itself | distinct-2 |")
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    rows: list[dict[str, Any]] = []
    for temperature, penalty in product(words.temperatures, words.penalties):
        config = GenerateConfig(temperature=temperature, repetition_penalty=penalty)
        replies = replies_to(model, [one.prompt_ids for one in exchanges], config)
        pairs = zip(exchanges, replies, strict=True)
        figures = ReplyMetrics(
            [Answered(one.prompt, made.text, one.answer, made.stop_reason == "end of turn") for one, made in pairs]
        ).figures()
        answers = replies_to(model, [one.prompt_ids for one in questions], config) if questions else []
        marked = mark(questions, [made.text for made in answers])
        right = sum(one.is_right for one in marked) / len(marked) if marked else None
        rows.append({"temperature": temperature, "penalty": penalty, "right_answers": right, **figures})
        print(
            f"| {temperature} | {penalty} | {'-' if right is None else f'{right:.1%}'} | {figures['chrf']:.1f} "
            f"| {figures['repetition']:.1%} | {figures['stop_rate']:.1%} | {figures['distinct_2']:.3f} |",
            flush=True,
        )
    if words.json:
        words.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
