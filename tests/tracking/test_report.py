"""A page shows what the run's folder holds, whoever wrote that folder, and needs nothing but itself."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dialogkit.tracking.evaluation_files import write_evaluation, write_task
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.report import MARK, render_report
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import Trained

VOID = {"meta", "link", "wbr", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """A page as a browser takes it: its tags with attributes, and the texts of its elements."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            within = self.words and self.tags[-1][0] == "wbr"  # a place where a word may be broken
            self.words.append(self.words.pop() + data if within else data)

    @property
    def text(self) -> str:
        """All that is to be read, with single blanks."""
        return " ".join(" ".join(self.words).split())

    def attributes(self, *names: str) -> list[str]:
        """The values of attributes, of whatever element."""
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in names]


def page_of(*runs: RunDir) -> Page:
    return Page(render_report(runs))


@pytest.fixture(scope="session")
def trained_page(trained: Trained) -> Page:
    return page_of(RunDir(Path(trained.result.run_dir)))


def made(folder: Path, name: str = "made", **facts: Any) -> RunDir:
    """A run of which only this is recorded."""
    run = RunDir.create(folder, name)
    run.write(RunRecord(name=name, created="2026-11-24T20:00:00+00:00", **facts))
    return run


# A finished run


def test_the_page_reports_what_the_run_found(trained: Trained, trained_page: Page) -> None:
    figures = trained.result.metrics
    assert f"{figures['before/bits_per_byte']:.2f} → {figures['final/bits_per_byte']:.2f}" in trained_page.text
    low, high = RunDir(Path(trained.result.run_dir)).read().intervals["final/nats_per_token"]
    assert re.search(rf"{figures['final/nats_per_token']:.4f} ?{low:.4f} . {high:.4f}", trained_page.text)
    for reply in trained.result.replies:
        assert " ".join(reply.prompt.split()) in trained_page.text
        assert " ".join(reply.reply.split()) in trained_page.text
    for words in ("completed", "dialogs held out", "learning_rate 0.01", "preset test", "torch"):
        assert words in trained_page.text


def test_the_diary_has_each_prompt_at_each_evaluation(trained: Trained, trained_page: Page) -> None:
    samples = RunDir(Path(trained.result.run_dir)).samples()
    evaluated = [sample for sample in samples if sample["table"] == "replies/evaluation"]
    assert len({sample["step"] for sample in evaluated}) == 4
    diary = trained_page.html.partition('id="diary"')[2].partition('id="replies"')[0]
    reported = Page(f"<main><section {diary.rpartition('<section')[0]}</main>").text
    for sample in evaluated[:-5]:  # the last ones give way to the replies at the end
        assert f"step {sample['step']} {' '.join(sample['reply'].split()) or '(empty)'}" in reported
    assert "true answer" in reported


def test_the_diary_names_the_step_whose_weights_were_kept(tmp_path: Path) -> None:
    run = made(tmp_path, metrics={"train/steps": 60.0, "train/kept_step": 15.0})
    for step in (15, 30, 45, 60):
        run.append_sample({"step": step, "table": "replies/evaluation", "prompt": "Hi", "reply": f"as of {step}"})
    run.append_sample({"step": 15, "table": "replies/final", "prompt": "Hi", "reply": "the whole of it"})
    page = page_of(run)
    diary = page.text[page.text.index("The same prompts") : page.text.index("Replies at the end")]
    assert "step 15, kept the whole of it step 30 as of 30 step 45 as of 45 step 60 as of 60" in diary
    assert "steps 60 that of 15 kept" in page.text


def test_what_training_knows_of_the_held_out_dialogs_is_said(tmp_path: Path) -> None:
    figures = {"before/bits_per_byte": 4.0, "final/bits_per_byte": 1.0}
    data = {"eval_dialogs": 115, "known_prompts": 0, "known_answers": 109}
    text = page_of(made(tmp_path, metrics=figures, data=data)).text
    assert (
        "75% fewer bits for a byte of a held-out answer; of 115 held-out, training contains the answer of 109"
        in text
    )


def test_the_curves_are_drawn_with_the_pages_colours(trained_page: Page) -> None:
    drawn = re.findall(r'<svg.*?aria-label="([^"]*)".*?</svg>', trained_page.html, re.DOTALL)
    talk = ["Replies that end by themselves", "Repetition"]
    assert drawn == ["Loss, wide", "Loss", "Learning rate", "Gradient norm", "Throughput", "Memory", *talk]
    for svg in re.findall(r"<svg.*?</svg>", trained_page.html, re.DOTALL):
        assert "var(--s1)" in svg
        assert not re.search(r"#[0-9a-f]{6}\b|rgb|font-family", svg)
    ids = trained_page.attributes("id")
    assert Counter(ids).most_common(1)[0][1] == 1
    used = [value for value in trained_page.attributes("href") if value.startswith("#")]
    used += re.findall(r'"url\((#[^)]+)\)"', trained_page.html)
    assert used
    assert {value.removeprefix("#") for value in used} <= set(ids)


def test_the_page_needs_nothing_else(trained_page: Page) -> None:
    assert MARK in trained_page.html[:1024]
    assert not [
        tag for tag, _ in trained_page.tags if tag in ("script", "img", "iframe", "object", "form", "base")
    ]
    fetched = trained_page.attributes("src", "srcset", "href", "xlink:href", "action", "poster", "data")
    assert fetched
    assert not [value for value in fetched if not value.startswith(("#", "data:,"))]
    assert not re.search(r"@import|url\((?!#)", trained_page.html)
    (policy,) = [a["content"] for _, a in trained_page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_the_command_that_repeats_the_run_is_reported(trained: Trained, trained_page: Page) -> None:
    assert (
        f"dialogkit train --config {trained.result.run_dir}/run.json --name shared-run-again" in trained_page.text
    )


# What strangers write

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></svg></title><iframe src='//example.org'>",
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;",
    "javascript:alert(1)",
    "right \u202e to left \u2066 and \u200f marks",
    "bell \x07 escape \x1b[2J nul \x00 c1 \x9b",
    "half \ud800 of a character",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that holds such text wherever there is text."""
    text = " ".join(HOSTILE[:-1])
    run = made(
        tmp_path_factory.mktemp("hostile"),
        status="failed",
        error=text,
        command=["dialogkit", text],
        config={"name": text, "preset": text, "model": {"name": text, text: text}, "data": {"dataset": text}},
        origins={f"model.{text}": text},
        runtime={"device_name": text, "device_reason": text},
        model={"name": text, text: text},
        data={"dataset": text, "first_bad_row": text, text: text, "kept": 3},
        environment={"host": text, "git": {"commit": text, "branch": text}, text: {text: text}},
        versions={text: text},
        metrics={"before/bits_per_byte": 3.0, text: 1.0},
    )
    run.write(run.read().model_copy(update={"name": text, "created": text}))
    run.append_metrics(1, {"train/loss": 3.0, text: 2.0})
    run.append_metrics(2, {"train/loss": 2.0})
    text = " ".join(HOSTILE)
    lines = [
        {"step": step, "table": table, "prompt": text, "reply": text, "reference": text, "stop_reason": text}
        for step, table in ((1, "replies/evaluation"), (2, "replies/final"))
    ]
    (run.path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "dataset": text,
        "dialogs": 2,
        "bits_per_byte": 1.25,
        "anchors": [{"anchor": text, "bits_per_byte": 2.5}],
        "remarks": [text],
        "slices": [{"name": text, "dialogs": 2, "bits_per_byte": 1.0, "interval": [0.5, 1.5]}],
    }
    (run.path / "evaluation/tasks").mkdir(parents=True)
    (run.path / "evaluation" / "x.json").write_text(json.dumps(result))
    task = {"name": text, "questions": 3, "figures": [{"name": text, "filter": text, "value": 1.0}]}
    (run.path / "evaluation/tasks/x.json").write_text(json.dumps(task))
    return run


def test_text_of_strangers_stays_text(hostile: RunDir) -> None:
    page = page_of(hostile)
    usual = page_of(made(hostile.path.parent, metrics={"before/bits_per_byte": 3.0}))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "b"}
    assert {name for _, attrs in page.tags for name in attrs} - {name for _, a in usual.tags for name in a} <= {
        # of the drawings and of what a bare run has not
        *("viewbox", "role", "aria-label", "font-size", "stroke-linejoin", "stroke-linecap", "d", "style"),
        *("clip-path", "x", "y", "width", "height", "colspan", "scope", "tabindex", "transform"),
    }
    assert not [value for value in page.attributes("href", "src") if not value.startswith(("#", "data:,"))]
    for text in HOSTILE[:6]:
        assert page.text.count(text) >= 10


def test_marks_that_steer_what_is_seen_are_visible_and_nowhere_else(hostile: RunDir) -> None:
    page = page_of(hostile)
    page.html.encode()  # half of a character could not be written
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]", page.html
    )
    for shown in (r"\u202e", r"\u2066", r"\x07", r"\x1b[2J", r"\x00", r"\x9b", r"\ud800"):
        assert shown in page.text


def test_long_text_is_shortened_with_the_number_of_what_is_left_out(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.append_sample({"step": 1, "table": "replies/final", "prompt": "p", "reply": "x" * 10_000})
    page = page_of(run)
    assert "x" * 1_500 + " … and 8,500 characters more" in page.text
    assert "x" * 1_501 not in page.text


# What is missing


def test_a_run_that_came_to_nothing_has_a_page(tmp_path: Path) -> None:
    run = made(
        tmp_path, status="interrupted", error="stopped by Ctrl-C", config={"model": {"name": "custom-nano"}}
    )
    page = page_of(run)
    for words in ("interrupted", "stopped by Ctrl-C", "dialogkit train --resume made", "No point was logged"):
        assert words in page.text
    assert (
        "dialogkit evaluate made --output-dir elsewhere"
        in Page(render_report([run], output=Path("elsewhere"))).text
    )
    assert "svg" not in [tag for tag, _ in page.tags]


def test_a_run_that_went_wrong_shows_how_far_it_came(tmp_path: Path) -> None:
    run = made(
        tmp_path,
        status="diverged",
        error="training diverged: loss is nan at step 3",
        metrics={"before/bits_per_byte": 3.5, "before/perplexity": float("inf")},
        schedule={"total_steps": 9},
    )
    run.append_metrics(0, {"eval/bits_per_byte": 3.5, "eval/nats_per_token": 10.0})
    for step, loss in ((1, 10.0), (2, 1e300), (3, float("nan")), (4, float("inf"))):
        run.append_metrics(step, {"train/loss": loss, "train/learning_rate": 0.001 * step})
    page = page_of(run)
    assert "diverged : training diverged: loss is nan at step 3" in page.text
    assert "3.50 → –" in page.text  # noqa: RUF001
    assert "steps 4 of 9" in page.text
    assert "perplexity inf" in page.text
    # Ticks are shown to the last digit that they have.
    assert "0.001" in page.html.partition('aria-label="Learning rate"')[2].partition("</svg>")[0]


def test_the_last_evaluation_of_an_unfinished_run_stands_in_the_headline(tmp_path: Path) -> None:
    run = made(tmp_path, status="running", metrics={"before/bits_per_byte": 3.0})
    run.append_metrics(0, {"eval/bits_per_byte": 3.0})
    run.append_metrics(5, {"eval/bits_per_byte": 1.5})
    page = page_of(run)
    assert "3.00 → 1.50" in page.text
    assert "50% fewer bits" in page.text


NO_MAPPINGS: list[Any] = [
    None,
    5,
    "text",
    [1, [2]],
    {"step": {}},
    {"step": "1"},
    {"step": True},
    {"step": 10**400},
    float("nan"),
]


def test_values_of_another_kind_are_left_out(tmp_path: Path) -> None:
    run = made(
        tmp_path,
        config={"name": 5, "other": [1]},
        model={"dtype": {}},
        data={"rows": -1, "kept": {}, "train_dialogs": "x"},
        environment={"git": [], "memory_bytes": "x", "gpu": None},
        metrics={"final/bits_per_byte": float("nan"), "train/steps": float("inf")},
        schedule={"total_steps": 3},
        duration_s=float("nan"),
    )
    lines = [*NO_MAPPINGS, *({"step": 1, "train/loss": value} for value in NO_MAPPINGS)]
    lines += [
        {"step": value, "table": value, "prompt": "p", "reply": value, "tokens": value} for value in NO_MAPPINGS
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "[" * 100_000 + "\n{\n"
    (run.path / "metrics.jsonl").write_text(text)
    (run.path / "samples.jsonl").write_text(text)
    (run.path / "evaluation/tasks").mkdir(parents=True)
    for n, value in enumerate(NO_MAPPINGS):
        figure = dict.fromkeys(("name", "filter", "value", "interval", "better"), value)
        for figures in (value, [value], [figure]):
            task = {**dict.fromkeys(("name", "questions", "of_questions", "examples"), value), "figures": figures}
            (run.path / "evaluation/tasks" / f"{n}-{len(str(figures))}.json").write_text(json.dumps(task))
        result = dict.fromkeys(
            ("dialogs", "dataset", "anchors", "remarks", "slices", "intervals", "accuracy"), value
        )
        (run.path / "evaluation" / f"{n}.json").write_text(json.dumps(result))
        (run.path / "evaluation" / f"{n}-list.json").write_text(json.dumps([value]))
    assert "2026-11-24 20:00 UTC" in page_of(run).text


# Evaluations, and runs side by side


def evaluated(run: RunDir, bits: float, low: float, high: float) -> None:
    anchors = [
        {"anchor": "untrained", "bits_per_byte": 3.9, "intervals": {"bits_per_byte": [3.8, 4.0]}},
        {"anchor": "answers", "stop_rate": 1.0},
    ]
    figures = {"bits_per_byte": bits, "stop_rate": 0.25, "intervals": {"bits_per_byte": [low, high]}}
    result = {"dataset": "starter", "dialogs": 64, **figures, "anchors": anchors, "remarks": ["says nothing"]}
    write_evaluation(run, "starter", result, worst=[], replies=[])


def test_the_evaluation_has_intervals_and_baselines(tmp_path: Path) -> None:
    run = made(tmp_path, model={"name": "custom-nano"})
    evaluated(run, 1.9, 1.8, 2.0)
    text = page_of(run).text
    assert "Evaluation starter, 64 dialogs custom-nano says nothing. custom-nano untrained true answers" in text
    assert "bits/byte 1.9000 1.8000 – 2.0000 3.9000 3.8000 – 4.0000 –" in text  # noqa: RUF001
    assert "ends by itself 25.0% – 100.0%" in text  # noqa: RUF001
    assert "dialogkit evaluate" not in text


@pytest.mark.parametrize(("low", "best"), [(1.4, ["1.6000"]), (1.9, [])])
def test_a_model_is_marked_where_its_interval_is_apart(low: float, best: list[str], tmp_path: Path) -> None:
    first, second = made(tmp_path, "first"), made(tmp_path, "second")
    evaluated(first, 2.2, 2.0, 2.4)
    evaluated(second, 1.6, low, low + 0.4)
    page = page_of(first, second)
    assert re.findall(r'<td class="best">([\d.]+)', page.html) == best
    assert page.text.count("untrained") == 1  # the same baselines stand there once


def test_tasks_of_runs_stand_side_by_side_where_the_questions_are_the_same(tmp_path: Path) -> None:
    first, second = made(tmp_path, "first"), made(tmp_path, "second")
    for run, value, questions in ((first, 0.25, 8), (second, 0.75, 8), (second, 0.5, 9)):
        interval = [value - 0.125, value + 0.125]
        figure = {"name": "acc", "filter": "", "value": value, "interval": interval, "better": 1}
        write_task(run, f"t{questions}", {"name": "t", "questions": questions, "figures": [figure]})
    page = page_of(first, second)
    (text,) = re.findall(r"of the lm-evaluation-harness (.*?) Below each metric", page.text)
    dash = "–"  # noqa: RUF001
    assert text == (
        f"A first B second t 8 questions acc 0.2500 0.1250 {dash} 0.3750 0.7500 0.6250 {dash} 0.8750 "
        f"t 9 questions acc {dash} 0.5000 0.3750 {dash} 0.6250"
    )
    assert re.findall(r'<td class="best">([\d.]+)', page.html) == ["0.7500"]


def test_runs_stand_side_by_side_and_their_curves_overlaid(trained: Trained, tmp_path: Path) -> None:
    one = RunDir(Path(trained.result.run_dir))
    shutil.copytree(one.path, tmp_path / "runs" / "other", ignore=shutil.ignore_patterns("checkpoint-*", "model"))
    other = RunDir(tmp_path / "runs" / "other")
    record = other.read()
    settings = {**record.config, "train": {**record.config["train"], "learning_rate": 0.25}}
    other.write(record.model_copy(update={"name": "other", "config": settings}))
    page = page_of(one, other)
    differing = page.text.partition("Different between the runs")[2].partition("All settings")[0]
    assert differing.split() == ["A", "shared-run", "B", "other", "train.learning_rate", "0.01", "0.25"]
    (loss,) = re.findall(r'<svg[^>]*aria-label="Loss".*?</svg>', page.html, re.DOTALL)
    assert loss.count("stroke: var(--s1)") == loss.count("stroke: var(--s2)") == 2  # training and held out
    for reply in trained.result.replies:
        assert page.text.count(f"{' '.join(reply.prompt.split())} A shared-run") >= 1
    assert "cannot be compared" not in page.text
    other.write(other.read().model_copy(update={"data": record.data.model_copy(update={"revision": "another"})}))
    assert "cannot be compared" in page_of(one, other).text


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(html: str, folder: Path) -> tuple[str, list[str]]:
    """Return what a browser makes of a page, and what it says in its console; what a policy forbids is there."""
    assert CHROMIUM is not None
    folder.mkdir()
    (folder / "page.html").write_text(html, encoding="utf-8")
    quiet = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    done = subprocess.run(
        [
            *(CHROMIUM, *quiet, f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *("--enable-logging=stderr", "--dump-dom", (folder / "page.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.faults
def test_a_browser_has_nothing_to_say_and_fetches_nothing(hostile: RunDir, tmp_path: Path) -> None:
    html = render_report([hostile])
    seen, said = browse(html, tmp_path / "page")
    assert said == []
    assert "&lt;script&gt;alert(1)" in seen
    assert not re.search(r"<(script|img|iframe)", seen)
    fetching = html.replace("</body>", '<img src="http://example.invalid/x.png"></body>')
    _, said = browse(fetching, tmp_path / "fetching")
    assert "violates the following Content Security Policy" in said[0]
