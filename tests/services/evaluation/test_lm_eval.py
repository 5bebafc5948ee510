"""Tasks of the lm-evaluation-harness: figures, errors, and where they are kept. Most of it needs the harness."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.services import evaluate as service
from dialogkit.services.evaluation.lm_eval import task_rows
from dialogkit.services.evaluation.results import TaskFigure, TaskRow
from dialogkit.tracking.evaluation_files import best_evaluations, task_results
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Finished, Trained

Run = Callable[..., Finished]

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo"}
TASK = """\
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 2.0}
"""
SAY = """\
task: say
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
generation_kwargs: {until: ['.'], max_gen_toks: 4}
"""


@pytest.fixture
def words(trained: Trained) -> list[str]:
    """Command that evaluates the finished run without more ado."""
    output = str(trained.output)
    return ["evaluate", "shared-run", "--output-dir", output, "--no-cuda", "--quick", "--wandb", "disabled"]


@pytest.fixture
def harness(in_temporary_folder: Path) -> None:
    """Questions of a task whose data lies here, for the harness."""
    pytest.importorskip("lm_eval")
    choices = list(CAPITALS.values())
    rows = [
        {"question": f"What is the capital of {country}?", "choices": choices, "answer": choices.index(capital)}
        for country, capital in CAPITALS.items()
    ]
    Path("capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("capitals.yaml").write_text(TASK)
    Path("say.yaml").write_text(SAY)


def test_without_the_harness_the_extra_is_named(
    words: list[str], dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.services.evaluation.lm_eval.find_spec", lambda name: None)
    done = dialogkit(*words, "--tasks", "arc_easy")
    assert (done.code, done.out) == (2, "")
    assert "lm-evaluation-harness, which is not installed" in done.err
    assert done.err.splitlines()[-1] == "try: pip install 'dialogkit[lm-eval]'"


ROW = TaskRow(
    name="capitals",
    version="2.0",
    questions=3,
    of_questions=4,
    examples=0,
    cut=0,
    figures=[TaskFigure(name="acc", filter="", value=0.5, interval=(0.25, 0.75), better=1)],
)


def test_tasks_stand_below_the_figures_and_are_kept_with_the_run(
    words: list[str], trained: Trained, dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Suite:
        def __init__(self, names: tuple[str, ...]) -> None:
            assert names == ("capitals", "rivers")

        def run(self, loaded: Any, *, limit: int | None, **_: Any) -> list[TaskRow]:
            assert (loaded.name, limit) == ("shared-run", 3)
            return [ROW]

    monkeypatch.setattr(service, "TaskSuite", Suite)
    asked = [*words, "--tasks", "capitals, rivers", "--samples", "3"]
    out = dialogkit(*asked).out.splitlines()
    assert out[-1].split() == ["capitals", "(3", "questions)", "acc", "0.5000", "[0.2500,", "0.7500]"]
    (row,) = dialogkit(*asked, "--json").json["data"]["rows"]
    assert [TaskRow.model_validate(task) for task in row["tasks"]] == [ROW]
    run = RunDir(Path(trained.result.run_dir))
    assert [TaskRow.model_validate(task) for task in task_results(run)] == [ROW]
    assert best_evaluations(run) == []
    (run.path / "evaluation/tasks/capitals.json").unlink()


def test_figures_are_read_from_what_the_harness_returns() -> None:
    results = {
        "results": {
            "maths": {"alias": "maths"},  # a group without figures
            "sums": {
                "alias": "sums",
                "sample_len": 4,
                "exact_match,strict": 0.9,
                "exact_match_stderr,strict": 0.1,
                "perplexity,none": 8.0,
                "perplexity_stderr,none": "N/A",
            },
        },
        "higher_is_better": {"sums": {"exact_match": True, "perplexity": False}},
        "versions": {"sums": "Yaml"},
        "n-shot": {"sums": 2},
        "n-samples": {"sums": {"original": 9, "effective": 4}},
    }
    (row,) = task_rows(results, {"sums": {1, 5}})
    assert row.model_dump(exclude={"figures"}) == {
        "name": "sums", "version": "", "questions": 4, "of_questions": 9, "examples": 2, "cut": 2,
    }  # fmt: skip
    exact, perplexity = row.figures
    assert (exact.name, exact.filter, exact.better) == ("exact_match", "strict", 1)
    assert exact.interval == pytest.approx((0.704, 1.0))  # no share is above 1
    assert (perplexity.interval, perplexity.better) == (None, -1)


# With the harness


@pytest.mark.usefixtures("harness")
def test_a_task_from_a_file_is_asked(words: list[str], trained: Trained, dialogkit: Run) -> None:
    done = dialogkit(*words, "--tasks", "capitals.yaml,say.yaml", "--samples", "3", "--json")
    assert (done.code, done.err) == (0, "")
    (row,) = done.json["data"]["rows"]
    capitals, say = (TaskRow.model_validate(task) for task in row["tasks"])
    assert (capitals.name, capitals.version, capitals.questions, capitals.of_questions) == (
        "capitals",
        "2.0",
        3,
        4,
    )
    assert [figure.name for figure in (*capitals.figures, *say.figures)] == ["acc", "exact_match"]
    run = RunDir(Path(trained.result.run_dir))
    assert {task["name"] for task in task_results(run)} == {"capitals", "say"}
    for path in (run.path / "evaluation/tasks").iterdir():
        path.unlink()


@pytest.mark.usefixtures("harness")
def test_answers_are_as_probable_as_the_harnesss_own_model_finds_them(trained: Trained) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from dialogkit.services.evaluation.lm_eval_model import LmEvalModel
    from dialogkit.services.runs.loading import load_for_inference
    from dialogkit.services.runs.resolve import resolve_model

    loaded = load_for_inference(resolve_model("shared-run", output=trained.output), device="cpu")
    make: Any = type("Ours", (LmEvalModel, LM), {})
    ours = make(loaded, [], batch_size=4, report=lambda stage, fraction: None)
    theirs = HFLM(pretrained=trained.result.model_dir, device="cpu", dtype="float32", batch_size=4)
    found = []
    for model in (ours, theirs):
        (task,) = TaskManager(include_defaults=False).load(["capitals.yaml"])["tasks"].values()
        task.set_config("num_fewshot", 2)
        task.set_fewshot_seed(1)
        task.build_all_requests(
            apply_chat_template=True, fewshot_as_multiturn=True, chat_template=model.apply_chat_template
        )
        found.append(model.loglikelihood(task.instances))
    texts = [
        Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("Hello!", "One and one is two. " * 150)
    ]
    theirs._max_length = loaded.context - 1  # it leaves the last token out of what the model reads
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), rel=1e-5)
    assert [nats for nats, _ in found[0]] == pytest.approx([nats for nats, _ in found[1]], rel=1e-5)
    assert [greedy for _, greedy in found[0]] == [greedy for _, greedy in found[1]]


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("arc_esy", "unknown task 'arc_esy' (did you mean 'arc_easy'?)"),
        ("nowhere.yaml", "'nowhere.yaml' cannot be read: no such file"),
        ("hellaswag", "the hub cannot be reached and the data of the task 'hellaswag' is not in its cache"),
        ("capitals.yaml@answer: [", "cannot be loaded: line 11: "),
        ("capitals.yaml@{{question}}: {{qestion}}", "'qestion' is undefined"),
        ("capitals.yaml@capitals.jsonl: gone.jsonl", "Unable to find"),
    ],
)
def test_a_task_that_cannot_be_asked_is_one_sentence(
    task: str, said: str, words: list[str], dialogkit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, change = task.partition("@")
    if change:
        old, _, new = change.partition(": ")
        Path(name).write_text(TASK.replace(old, new))
    done = dialogkit(*words, "--tasks", name)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 2
