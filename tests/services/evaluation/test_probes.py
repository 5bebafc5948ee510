"""What `evaluate` reports about a model is what the model does, in metrics and in words."""

import itertools
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from dialogkit.api.inference import evaluate
from dialogkit.config.load import load_run_config
from dialogkit.dialog import plain_format
from dialogkit.services.evaluate import EvaluateResult, EvaluateRow
from dialogkit.services.evaluation.alternatives import Alternative
from dialogkit.services.evaluation.diagnosis import Evidence, diagnose
from dialogkit.services.evaluation.probes import candidates_of
from dialogkit.services.evaluation.results import RightRow
from dialogkit.services.evaluation.scoring import Exchange
from dialogkit.services.evaluation.slices import kinds_of
from dialogkit.services.train import train
from dialogkit.tracking.evaluation_files import best_evaluations
from dialogkit.tracking.metric_specs import GROUPS
from dialogkit.tracking.record import WandbInfo
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import TINY, Finished, Trained
from tests.services.conftest import REPLIES

ANSWERS = {
    "cats": "Cats purr, climb trees and sleep all day.",
    "rain": "Rain falls from clouds and wets the grass.",
    "bread": "Bread is baked of flour, water, salt and yeast.",
    "trains": "Trains run on rails between the cities.",
    "chess": "Chess is won when the king cannot escape.",
    "snow": "Snow is white, cold and soft under boots.",
    "ships": "Ships carry goods across the wide sea.",
    "bees": "Bees make honey and dance for each other.",
    "maps": "Maps show roads, rivers, hills and borders.",
    "clocks": "Clocks tell hours, minutes and seconds.",
    "soup": "Soup is hot and full of vegetables.",
    "drums": "Drums give the beat of every march.",
}
MANNERS = ("Tell me about", "What do you know of", "Explain", "Say something on", "Please describe", "Write about")


def write_dialogs(path: str, *, shuffled: bool = False, dialogs: int = 240) -> None:
    """Write prompts about twelve things whose answers follow from the thing alone, or by chance if shuffled."""
    chance, topics = random.Random(1), list(ANSWERS)
    with Path(path).open("w", encoding="utf-8") as file:
        for number in range(dialogs):
            topic = topics[number % len(topics)]
            prompt = f"{MANNERS[number % 5]} {topic}, number {number}."
            answer = ANSWERS[chance.choice(topics) if shuffled else topic]
            file.write(json.dumps({"prompt": prompt, "response": answer}) + "\n")


def trained_on(path: str, **settings: Any) -> str:
    """Train a small model and return its run."""
    overrides = {
        **TINY,
        "model.tokenizer": None,  # of whole words it learns enough in these steps
        "data.dataset": path,
        "data.samples": None,
        "data.eval_fraction": 0.2,
        "train.max_steps": 120,
        "train.batch_size": 16,
        "train.learning_rate": 1e-2,
        "train.eval_every_steps": 120,
        "train.keep": "last",
        "runtime.device": "cpu",
        "tracking.wandb": "disabled",
        "tracking.report": False,
        "generate.test_prompts": ["Hello!"],
        "generate.max_new_tokens": 8,
    }
    return train(load_run_config("custom-nano", overrides={**overrides, **settings})).run


FINE = {
    "bits_per_byte": 1.5,
    "nats_per_token": 3.0,
    "end_of_turn_nats": 0.1,
    "prompt_gain": 0.2,
    "hits_at_1": 0.7,
    "stop_rate": 1.0,
    "length_ratio": 0.9,
    "chrf": 30.0,
}
BOUNDS = {"prompt_gain": (0.1, 0.3), "hits_at_1": (0.5, 0.9), "length_ratio": (0.7, 1.1), "chrf": (25.0, 35.0)}
TOPICS = [
    RightRow(name=name, questions=questions, right=right, interval=None)
    for name, questions, right in (("days", 4, 2), ("names", 2, 0), ("sums", 8, 1))
]
ANSWERED = [{"prompt": str(n), "reply": f"It is {n}.", "reference": f"{n}."} for n in range(10)]
"""Right answers of one word each."""


def short_answers(*, right: int) -> list[dict[str, str]]:
    """Return replies to sums, so many of which are right."""
    return [
        {
            "prompt": f"{n} plus 1?",
            "reply": f"That is {n + 1 if n < right else 90 + n}, I think.",
            "reference": f"{n + 1}.",
        }
        for n in range(10)
    ]


def repeated(reply: str, *, alike: int = 0) -> list[dict[str, str]]:
    """Return replies that are the same, as so many of their references are."""
    return [
        {**row, "reply": reply, "reference": "Yes." if n < alike else f"It is as we said {n} times."}
        for n, row in enumerate(ANSWERED)
    ]


@pytest.mark.parametrize(
    ("changed", "reported"),
    [
        ({}, []),
        ({"unigram_bits": 1.5}, ["knows no more than how frequent each token is: 1.50 bits/byte"]),
        ({"before": {"bits_per_byte": 1.4}}, ["has learned nothing that helps with held-out answers"]),
        (
            {"trained_bits": 0.5, "trained_bits_per_byte": (0.5, (0.3, 0.9)), "bits_per_byte": (1.5, (1.2, 1.8))},
            ["has memorised its training dialogs"],
        ),
        (
            {"trained_bits": 0.5, "trained_bits_per_byte": (0.5, (0.3, 1.3)), "bits_per_byte": (1.5, (1.2, 1.8))},
            [],
        ),
        (
            {"alternative": Alternative("plain", 0.4, 1.5)},
            ["was trained with another chat template: answers cost 1.5"],
        ),
        (
            {"alternative": Alternative("swapped", 0.4, 1.5)},
            ["answers as if the roles were swapped: a prompt after"],
        ),
        # What hurts is not said to save, and a model that has memorised its dialogs is not to be trained longer.
        (
            {
                "prompt_gain": (-0.25, (-0.4, -0.1)),
                "hits_at_1": (0.1, (0.0, 0.3)),
                "trained_bits": 0.5,
                "trained_bits_per_byte": (0.5, (0.3, 0.9)),
                "bits_per_byte": (1.5, (1.2, 1.8)),
            },
            [
                "has memorised its training dialogs",
                "does not listen to the prompt: knowing it costs 0.250 bits/byte on top of 1.25, and the true "
                "answer is found among ten in 10% (10% by chance); train it on more dialogs, and check",
            ],
        ),
        (
            {"replies": short_answers(right=0)},
            ["answers wrongly: of 10 true answers of at most 4 words, 0 are in its"],
        ),
        ({"replies": short_answers(right=2)}, []),
        # Where answers are checked, the checks decide.
        ({"replies": short_answers(right=0), "right_answers": (0.9, None), "questions": 10}, []),
        (
            {"right_answers": (0.62, None), "questions": 200, "topics": TOPICS},
            ["answers 62% of 200 checked questions right, fewest of sums (1 of 8), days (2 of 4); train"],
        ),
        ({"right_answers": (0.0, None), "questions": 9}, []),  # too few to say anything
        # A small gain is none where the answer is not found, and enough where it is.
        (
            {"prompt_gain": (0.01, (0.004, 0.02)), "hits_at_1": (0.133, (0.0, 0.3))},
            ["hardly listens to the prompt: knowing it saves 0.010 bits/byte of 1.50, and the true answer"],
        ),
        ({"prompt_gain": (0.01, (-0.004, 0.02)), "hits_at_1": (0.7, (0.5, 0.9))}, []),
        ({"prompt_gain": (0.2, (-0.1, 0.5)), "hits_at_1": None}, ["does not listen to the prompt"]),
        ({"prompt_gain": (0.2, (0.1, 0.5)), "hits_at_1": (0.1, (0.0, 0.2))}, []),
        ({"prompt_gain": (0.0, None), "hits_at_1": (0.0, None)}, []),  # of one dialog nothing is sure
        ({"length_ratio": (0.08, (0.04, 0.17))}, ["answers far too short: its replies have 8% of the length"]),
        ({"length_ratio": (0.4, (0.2, 0.6))}, []),
        ({"length_ratio": (3.6, (2.1, 6.3))}, ["answers far too long: its replies have 3.6 times the length"]),
        ({"length_ratio": (3.6, (1.5, 6.3))}, []),
        ({"length_ratio": (3.6, (2.1, 6.3)), "stop_rate": (0.1, None)}, ["does not come to an end"]),
        ({"empty_rate": (0.2, None)}, ["says nothing: 20% of the replies are empty"]),
        ({"replies": repeated("I I")}, ['says the same whatever it is asked: 100% of its replies are "I I"']),
        ({"replies": repeated("I I")[:4]}, []),
        ({"replies": [*repeated("I I")[:4], *ANSWERED[4:]]}, []),
        ({"replies": repeated("Yes.", alike=8)}, []),  # most of the true answers are the same as well
        ({"replies": repeated(" ")}, []),
        ({"chrf": (3.4, (2.0, 5.1)), "before": {"chrf": 9.9}}, ["answers less like the true answers than before"]),
        ({"chrf": (9.0, (7.0, 11.0)), "before": {"chrf": 9.9}}, []),
        ({"repetition": (0.5, None)}, ["goes round in circles"]),
        ({"echo": (0.6, None)}, ["repeats the prompt"]),
    ],
)
def test_each_fault_is_reported_in_words_and_nothing_else_is(changed: dict[str, Any], reported: list[str]) -> None:
    known: dict[str, Any] = {"unigram_bits": 3.0, "trained_bits": 1.4, "before": {"bits_per_byte": 9.0}}
    known |= {"replies": ANSWERED}
    known |= {name: changed.pop(name) for name in list(changed) if name in Evidence._fields}
    figures = FINE | {name: value and value[0] for name, value in changed.items()}
    bounds = BOUNDS | {name: value and value[1] for name, value in changed.items()}
    said = diagnose(
        Evidence(
            {name: value for name, value in figures.items() if value is not None},
            {name: value for name, value in bounds.items() if value is not None},
            **known,
        )
    )
    assert [remark[: len(start)] for remark, start in zip(said, reported, strict=True)] == reported
    assert all(";" in remark or "end" in remark for remark in said)  # each says what to try


def judged(run: str) -> EvaluateRow:
    (row,) = evaluate(run, device="cpu").rows
    return row


@pytest.mark.faults
def test_a_model_that_has_learned_its_dialogs_has_nothing_wrong() -> None:
    write_dialogs("rows.jsonl")
    result = evaluate(trained_on("rows.jsonl"), device="cpu")
    (row,) = result.rows
    assert row.remarks == []
    assert {"memorised", "another chat template", "swapped roles"} < set(row.checks)
    assert (row.known_prompts, row.known_answers) == (0, row.dialogs)
    assert (row.hits_at_1, row.stop_rate) == (1.0, 1.0)
    assert row.prompt_gain is not None
    assert row.prompt_gain > 0.2
    assert row.chrf is not None
    assert row.chrf > 80
    untrained, unigram, answers = result.anchors
    assert [anchor.anchor for anchor in result.anchors] == ["untrained", "unigram", "answers"]
    assert untrained.bits_per_byte > unigram.bits_per_byte > row.bits_per_byte  # type: ignore[operator]
    assert (untrained.stop_rate, answers.stop_rate) == (0.0, 1.0)
    assert answers.chrf == pytest.approx(100)


@pytest.mark.faults
def test_a_model_with_another_template_than_that_of_its_run_is_named() -> None:
    write_dialogs("rows.jsonl")
    model = Path(RunDir(Path("models/runs") / trained_on("rows.jsonl")).model_dir)
    shutil.copytree(model, "spoiled")
    hf = AutoTokenizer.from_pretrained("spoiled")
    hf.chat_template = plain_format(hf.eos_token).template()
    hf.save_pretrained("spoiled")
    (row,) = evaluate("./spoiled", dataset="rows.jsonl", device="cpu").rows
    (remark,) = [remark for remark in row.remarks if "another chat template" in remark]
    assert "under that of dialogkit; restore the template of its training" in remark
    (row,) = evaluate("./" + str(model), dataset="rows.jsonl", device="cpu").rows
    assert row.remarks == []


@pytest.mark.faults
def test_a_model_that_learned_the_prompts_as_answers_is_named() -> None:
    write_dialogs("rows.jsonl")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    swapped = [{"prompt": row["response"], "response": row["prompt"]} for row in rows]
    Path("swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swapped))
    (row,) = evaluate(trained_on("swapped.jsonl"), dataset="rows.jsonl", device="cpu").rows
    assert any("answers as if the roles were swapped" in remark for remark in row.remarks)


@pytest.mark.faults
def test_a_model_that_learned_one_answer_to_everything_is_named() -> None:
    write_dialogs("rows.jsonl")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    Path("same.jsonl").write_text(
        "".join(json.dumps({**row, "response": "I do not know."}) + "\n" for row in rows)
    )
    (row,) = evaluate(trained_on("same.jsonl"), dataset="rows.jsonl", device="cpu").rows
    assert any('says the same whatever it is asked: 100% of its replies are "I do' in r for r in row.remarks)


@pytest.mark.faults
def test_a_model_that_answers_fluently_but_wrongly_is_named() -> None:
    for path, wrong in (("sums.jsonl", 0), ("wrong.jsonl", 1)):
        with Path(path).open("w") as file:
            for one, two in itertools.product(range(16), repeat=2):
                asked, said = f"What is {one} plus {two}?", f"It is {one + two + 40 * wrong}."
                file.write(json.dumps({"prompt": asked, "response": said}) + "\n")
    (row,) = evaluate(trained_on("wrong.jsonl"), dataset="sums.jsonl", device="cpu").rows
    assert row.stop_rate is not None
    assert row.stop_rate > 0.9
    assert any("answers wrongly: of" in remark for remark in row.remarks)


@pytest.mark.faults
def test_a_run_that_has_not_drawn_all_of_its_dialogs_is_not_said_to_know_them_by_heart() -> None:
    write_dialogs("rows.jsonl")
    row = judged(trained_on("rows.jsonl", **{"train.max_steps": 4}))
    assert row.trained_bits_per_byte is None
    assert "memorised" not in row.checks


@pytest.mark.faults
def test_the_unigram_baseline_is_that_of_training_whatever_is_scored(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.services.evaluation.evaluator.REPLIES", 2)
    write_dialogs("rows.jsonl", dialogs=24)
    run = shutil.copytree(trained.result.run_dir, "models/runs/shared-run")
    model = shutil.copytree(f"{run}/model", "stranger")
    known, stranger = (
        evaluate(name, dataset="rows.jsonl", whole=True, wandb="disabled", device="cpu")
        for name in ("shared-run", f"./{model}")
    )
    (unigram,) = [anchor for anchor in known.anchors if anchor.anchor == "unigram"]
    assert unigram.bits_per_byte is not None
    assert unigram.bits_per_byte > 3
    assert "less than token frequencies" in known.rows[0].checks
    # What another model was trained on is unknown, and the scored dialogs themselves are no baseline.
    assert [anchor.anchor for anchor in stranger.anchors] == ["answers"]
    assert (stranger.rows[0].known_answers, known.rows[0].known_answers) == (None, 0)


@pytest.mark.faults
def test_a_model_whose_prompts_and_answers_were_shuffled_does_not_listen() -> None:
    write_dialogs("shuffled.jsonl", shuffled=True)
    row = judged(trained_on("shuffled.jsonl"))
    assert any("does not listen to the prompt" in remark for remark in row.remarks)
    assert row.hits_at_1 is not None
    assert row.hits_at_1 < 0.4


@pytest.mark.faults
def test_a_model_whose_ends_of_turn_were_not_supervised_does_not_come_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dialogkit.data import prepare

    prepare_data = prepare.prepare_data

    def without_ends(config: Any, tokenizer: Any, **options: Any) -> Any:
        data = prepare_data(config, tokenizer, **options)
        data.train.supervised = data.train.supervised & ~np.isin(data.train.ids, list(tokenizer.stop_ids))
        return data

    write_dialogs("rows.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "prepare_data", without_ends)
        run = trained_on("rows.jsonl")
    (remark,) = [remark for remark in judged(run).remarks if "does not come to an end" in remark]
    assert "as if they had not been supervised" in remark


@pytest.mark.faults
def test_a_model_that_saw_eight_dialogs_again_and_again_knows_them_by_heart() -> None:
    chance = random.Random(2)
    words = " ".join(ANSWERS.values()).lower().replace(",", "").replace(".", "").split()
    rows = [
        {"prompt": f"Say line {number}.", "response": " ".join(chance.choice(words) for _ in range(12))}
        for number in range(40)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = judged(trained_on("rows.jsonl", **{"data.samples": 8, "train.batch_size": 8}))
    (remark,) = [remark for remark in row.remarks if "memorised" in remark]
    assert f"{row.trained_bits_per_byte:.2f} bits/byte on them" in remark
    assert row.trained_bits_per_byte < 0.5 * row.bits_per_byte  # type: ignore[operator]


@pytest.fixture(scope="module")
def own(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shared run, without W&B and page: others would see what is kept of its evaluation."""
    output = Path(shutil.copytree(trained.output, tmp_path_factory.mktemp("own") / "models"))
    run = RunDir(output / "runs/shared-run")
    record = run.read()
    config = {**record.config, "tracking": {**record.config["tracking"], "report": False}}
    run.write(record.model_copy(update={"wandb": WandbInfo(), "config": config}))
    return output


@pytest.fixture(scope="module")
def judged_run(own: Path) -> EvaluateResult:
    return evaluate("shared-run", output=own, device="cpu")


def test_figures_do_not_depend_on_the_batch_size(own: Path, judged_run: EvaluateResult) -> None:
    again = evaluate("shared-run", output=own, device="cpu", batch_size=3)
    speed = {"first_token_s", "reply_tokens_per_s", "peak_memory_bytes"}
    for row, expected in zip([*again.rows, *again.anchors], [*judged_run.rows, *judged_run.anchors], strict=True):
        for name in EvaluateRow.model_fields:
            value, before = getattr(row, name), getattr(expected, name)
            if isinstance(before, float) and name not in speed:
                assert value == pytest.approx(before, rel=1e-6, abs=1e-6), name


def test_every_figure_lies_in_its_interval(judged_run: EvaluateResult) -> None:
    for row in [*judged_run.rows, *judged_run.anchors]:
        assert "bits_per_byte" in row.intervals or row.anchor == "answers"
        for name, (low, high) in row.intervals.items():
            assert low - 1e-9 <= getattr(row, name) <= high + 1e-9, name


def test_an_evaluation_is_kept_in_the_run(own: Path, judged_run: EvaluateResult) -> None:
    run = RunDir(own / "runs/shared-run")
    (kept,) = best_evaluations(run)
    assert kept["bits_per_byte"] == judged_run.rows[0].bits_per_byte
    assert [anchor["anchor"] for anchor in kept["anchors"]] == ["untrained", "unigram", "answers"]
    (where,) = judged_run.kept
    assert (where.run, where.shown_dialogs) == ("shared-run", judged_run.rows[0].dialogs)
    worst = [json.loads(line) for line in Path(where.worst).read_text().splitlines()]
    assert [row["bits_per_byte"] for row in worst] == sorted((row["bits_per_byte"] for row in worst), reverse=True)
    replies = Path(where.replies).read_text().splitlines()
    assert len(replies) == min(REPLIES, judged_run.rows[0].dialogs)


def test_hits_and_gain_are_those_of_a_plain_loop_over_transformers(
    trained: Trained, judged_run: EvaluateResult
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from dialogkit.config.data import DataConfig
    from dialogkit.config.model import ModelConfig
    from dialogkit.config.paths import cache_dir
    from dialogkit.data.prepare import prepare_data
    from dialogkit.models.tokenizer import load_tokenizer
    from dialogkit.services.evaluation.probes import RANKED_TOKENS
    from dialogkit.services.evaluation.scoring import first_exchanges

    model = AutoModelForCausalLM.from_pretrained(trained.result.model_dir).eval()
    tokenizer = load_tokenizer(ModelConfig(name="it", source=trained.result.model_dir))
    data = prepare_data(DataConfig(), tokenizer, context=1024, cache=cache_dir())

    def nats(prompt: list[int], answer: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return [-logits[len(prompt) + n - 1, token].item() for n, token in enumerate(answer)]

    pairs = first_exchanges(data.evaluation, tokenizer)
    saved = size = 0.0
    for pair, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True):  # no two share a prompt or an answer
        answer = [token for token in pair.answer_ids if token not in tokenizer.stop_ids]
        saved += sum(nats(other.prompt_ids, answer)) - sum(nats(pair.prompt_ids, answer))
        size += len(pair.answer.encode())
    row = judged_run.rows[0]
    assert row.prompt_gain == pytest.approx(saved / size / math.log(2), abs=1e-5)
    others = candidates_of([pair.answer for pair in pairs])
    assert others is not None
    hits = []
    for number, pair in enumerate(pairs[:100]):
        means = [
            np.mean(nats(pair.prompt_ids, pairs[index].answer_ids[:RANKED_TOKENS]))
            for index in (number, *others[number])
        ]
        hits.append(means[0] < min(means[1:]))
    assert row.hits_at_1 == pytest.approx(np.mean(hits))


def test_the_table_shows_figures_intervals_and_baselines(
    own: Path,
    dialogkit: Callable[..., Finished],
    judged_run: EvaluateResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = dialogkit("evaluate", "shared-run", "--output-dir", str(own), "--no-cuda", "--slices")
    assert done.code == 0
    row = judged_run.rows[0]
    low, high = row.intervals["bits_per_byte"]
    for shown in (f"{row.bits_per_byte:.3f} [{low:.3f}, {high:.3f}]", "untrained", "unigram", "answers"):
        assert shown in done.out
    assert done.out.startswith(f"shared-run on starter, {row.dialogs} held-out dialogs\n")
    places = [done.out.index(title) for title, _ in GROUPS.values()]
    assert places == sorted(places)
    assert all(part.name in done.out for part in row.slices)
    assert row.scarce
    assert {*row.scarce}.isdisjoint(part.name for part in row.slices)
    assert all(f"{kind} {number}" in " ".join(done.out.split()) for kind, number in row.scarce.items())
    assert "\nnext: dialogkit runs report shared-run --output-dir" in done.err
    assert max(map(len, done.out.splitlines())) <= 80


def test_a_smaller_evaluation_does_not_replace_a_larger_one(
    own: Path, judged_run: EvaluateResult, dialogkit: Callable[..., Finished]
) -> None:
    words = ("evaluate", "shared-run", "--output-dir", str(own), "--no-cuda", "--samples", "2", "--worst", "1")
    done = dialogkit(*words)
    everything = judged_run.rows[0].dialogs
    assert done.code == 0
    assert done.out.startswith(f"shared-run on starter, 2 of {everything} held-out dialogs\n")
    assert "results on only 2 dialogs say little about a model" in done.out
    assert f"next: dialogkit evaluate shared-run --output-dir {own}" in done.err
    assert f"still show that on {everything} dialogs" in done.err
    kept = own / "runs/shared-run/evaluation/starter-2-dialogs.json"
    worst = json.loads((kept.parent / "starter-2-dialogs-worst.jsonl").read_text().splitlines()[0])
    shown = " ".join(done.out.split())
    assert f"worst 1: {worst['bits_per_byte']:.2f} bits/byte" in shown
    assert " ".join(worst["answer"].split())[:60] in shown
    assert [row["dialogs"] for row in best_evaluations(RunDir(own / "runs/shared-run"))] == [everything]
    kept.unlink()
    # Each measurement is announced once, when it begins.
    stages = [line for line in done.err.splitlines() if line.endswith(" ...")]
    assert stages[:3] == [
        f"shared-run: {what} ..." for what in ("loading", "reading the dialogs", "predicting answers")
    ]
    assert len(stages) == len(set(stages))


def test_others_are_nine_different_answers_of_similar_length() -> None:
    answers = ["x" * n for n in range(1, 31)] + ["x" * 15]
    chosen = candidates_of(answers)
    assert chosen is not None
    for answer, others in zip(answers, chosen, strict=True):
        texts = {answers[i] for i in others}
        assert len(texts) == 9
        assert answer not in texts
        assert all(abs(len(text) - len(answer)) <= 9 for text in texts)
    assert candidates_of(["a", "b", "c"] * 10) is None


@pytest.mark.parametrize(
    ("prompt", "answer", "kinds"),
    [
        ("List three.\nOf these.", "1. A\n2. B\n3. C", {"prompt: with input", "answer: list", "verb: list"}),
        ("Write it.", "```\nx\n```", {"prompt: without input", "answer: code", "verb: write"}),
        ("7?", "Seven it is.", {"answer: prose", "answer: short (to 100 bytes)"}),
    ],
)
def test_dialogs_are_of_kinds(prompt: str, answer: str, kinds: set[str]) -> None:
    assert kinds <= set(kinds_of(Exchange([], [], prompt, answer)))
