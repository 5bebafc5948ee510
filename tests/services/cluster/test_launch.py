"""Two processes learn what one learns; one of them speaks and writes for both."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dialogkit.errors import ConfigError
from dialogkit.services.cluster.launch import nodes_of
from dialogkit.services.training.agreement import require_same_request
from dialogkit.services.training.lifecycle import TrainRequest
from dialogkit.tracking.run_dir import RunDir
from tests.conftest import REPOSITORY, Finished, run_process
from tests.forks import command_line_into, start_forked

SETTINGS: dict[str, Any] = {
    "runtime.precision": "fp32",
    "train.batch_size": 8,
    "train.log_every_steps": 1,
    "train.max_steps": 7,
    "train.eval_every_steps": 3,
    "data.samples": 21,
    "data.eval_min_dialogs": 7,
    "tracking.replies_at_evaluations": 1,
}
LOSS, FIGURES = 1e-5, 1e-6
"""Relative differences that are allowed: of losses in training, and of figures on held-out dialogs."""


def words_of(settings: dict[str, Any]) -> list[str]:
    """Return settings as the words of a command."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    return [word for name, text in texts.items() for word in ("--set", f"{name}={text}")]


def points(run: Path) -> dict[int, dict[str, float]]:
    """Return all that was logged of learning, by step."""
    reported: dict[int, dict[str, float]] = {}
    for point in RunDir(run).metrics():
        learned = {name: value for name, value in point.items() if name.startswith(("train/", "eval/"))}
        reported.setdefault(int(point["step"]), {}).update(learned)
    return reported


def assert_same_learning(one: Path, other: Path, *, loss: float = LOSS, figures: float = FIGURES) -> None:
    """Compare everything that two runs logged."""
    expected, found = points(one), points(other)
    assert expected.keys() == found.keys()
    for step, named in expected.items():
        assert named.keys() == found[step].keys()
        for name, value in named.items():
            # A norm adds up the differences of all gradients, perplexity is the exponential of a figure, and a
            # handful of dialogs has but a few ends of turn.
            scale = {"train/grad_norm": 100, "eval/perplexity": 10, "eval/end_of_turn_nats": 10}.get(name, 1)
            allowed = scale * (figures if name.startswith("eval/") else loss)
            # Accuracy goes by whole tokens of a few dozen.
            least = 20 * figures if name == "eval/accuracy" else 1e-9
            assert found[step][name] == pytest.approx(value, rel=allowed, abs=least), (step, name)


class Pair(NamedTuple):
    """A run of one process, and the same of two."""

    alone: Path
    together: Path
    finished: Finished


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, small_config: Callable[..., Any]) -> Pair:
    from dialogkit.services.train import train
    from tests.conftest import SMALL

    folder = tmp_path_factory.mktemp("pair")
    output = str(folder / "models")
    train(small_config({**SETTINGS, "runtime.output_dir": output, "name": "alone"}))
    # One process computes its dialogs in more parts than the other, which exchange no gradients.
    settings = {**SMALL, **SETTINGS, "train.accumulation_steps": 2, "train.micro_batch_tokens": 60}
    words = ["train", "custom-nano", "--devices", "2", "--name", "together", "--output-dir", output, "--json"]
    finished = run_process(*words, *words_of(settings), cwd=folder)
    assert finished.code == 0, finished.err
    return Pair(folder / "models/runs/alone", folder / "models/runs/together", finished)


def test_two_processes_learn_what_one_learns(pair: Pair) -> None:
    # Dialogs of uneven lengths, batches in two parts, a last batch of five, evaluations.
    assert_same_learning(pair.alone, pair.together)
    one, other = (RunDir(run).read().metrics for run in (pair.alone, pair.together))
    assert one["train/tokens"] == other["train/tokens"] > 0
    for name in ("before/nats_per_token", "final/nats_per_token", "final/bits_per_byte"):
        assert other[name] == pytest.approx(one[name], rel=FIGURES)


def test_one_of_several_processes_speaks_and_writes(pair: Pair) -> None:
    reported = pair.finished.json["data"]
    assert (reported["run"], reported["steps"]) == ("together", 7)
    lines = [line for line in pair.finished.err.splitlines() if line.startswith(("step", "device", "warning"))]
    assert len(lines) == len(set(lines)) > 5
    assert "Traceback" not in pair.finished.err
    record = RunDir(pair.together).read()
    assert (record.status, record.runtime.processes) == ("completed", 2)
    assert [point["step"] for point in RunDir(pair.together).metrics() if "train/loss" in point] == [*range(1, 8)]


def test_a_checkpoint_has_the_random_state_of_each_process(pair: Pair) -> None:
    from dialogkit.engine.checkpoints import newest_valid

    found = newest_valid(pair.together)
    assert found is not None
    folder, progress = found
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in folder.iterdir()}
    assert progress.tokens == RunDir(pair.together).read().metrics["train/tokens"]


def test_the_ledger_of_a_stream_has_the_rows_of_all_processes(
    in_temporary_folder: Path, small_config: Callable[..., Any]
) -> None:
    from dialogkit.services.train import train
    from tests.conftest import SMALL

    write_shards(4, 20, bad=(0, 3))  # the first one that is read is the second process's
    # A group of dialogs is as long as a pass: its rows are counted at the first step.
    settings: dict[str, Any] = {
        **SMALL,
        "data.dataset": "shards",
        "data.streaming": True,
        "data.samples": None,
        "data.max_bad_rows": 2,
        "train.batch_size": 4,
    }
    train(small_config({**settings, "name": "alone"}))
    errors = in_two_processes("train", "custom-nano", "--name", "together", *words_of(settings))
    one, other = (RunDir(Path("models/runs") / name).read() for name in ("alone", "together"))
    assert other.data == one.data
    assert (one.data.rows, one.data.unusable, one.data.kept) == (80, 6, 74)
    assert str(one.data.first_bad_row).startswith("3.jsonl:7: not valid JSON")
    reported = "80 rows so far, 74 kept"
    assert reported in " ".join(errors.split())
    assert reported in Path("models/runs/together/console.log").read_text()


def in_two_processes(*words: str) -> str:
    """Run `dialogkit WORDS` in two processes, as another launcher starts them; return what they say."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [
        start_forked(
            command_line_into, words, f"{rank}.txt", folder=Path.cwd(), **group, RANK=rank, LOCAL_RANK=rank
        )
        for rank in ("0", "1")
    ]
    for process in ranks:
        process.join(120)
    said = "".join(Path(f"{rank}.txt").read_text() for rank in "01")
    assert [process.exitcode for process in ranks] == [0, 0], said
    return said


def in_every_process(folder: Path, code: str) -> dict[str, Any]:
    """Return the environment in which every process runs this code first."""
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder / "site")])}


def write_shards(shards: int, rows: int, *, bad: Sequence[int]) -> None:
    """Write small files of dialogs, a block each: in each an unusable row, in the `bad` ones a malformed one."""
    Path("shards").mkdir()
    for shard in range(shards):
        lines = [
            json.dumps({"prompt": f"Count to {n}.", "response": f"{n} " * (1 + n % 9)})
            for n in range(shard * rows, (shard + 1) * rows)
        ]
        lines[3] = json.dumps({"prompt": "And?", "response": ""})
        if shard in bad:
            lines[6] = "{"
        Path(f"shards/{shard}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("environment", "reported"),
    [
        ({"RANK": "5"}, "RANK is 5 in the environment, but ranks go from 0 to 1"),
        ({"RANK": "x"}, "RANK is 'x' in the environment, which is not a number"),
        ({"RANK": "0", "MASTER_PORT": "abc"}, "MASTER_PORT is 'abc' in the environment, which is not a number"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_anything_is_waited_for(
    environment: dict[str, str], reported: str, dialogkit: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", **environment}.items():
        monkeypatch.setenv(name, value)
    done = dialogkit("train", "custom-nano", "--no-cuda")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {reported}\ntry: unset RANK WORLD_SIZE")


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        pytest.param("--nodes 2 --node-rank 1 --rendezvous nowhere.invalid:29400", {}, marks=pytest.mark.faults),
        ("", {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29399"}),
    ],
)
def test_ctrl_c_ends_what_waits_for_others(
    words: str, environment: dict[str, str], in_temporary_folder: Path
) -> None:
    waiting = in_every_process(in_temporary_folder, WAITING)
    process = subprocess.Popen(
        [sys.executable, "-m", "dialogkit", "train", "custom-nano", "--no-cuda", *words.split()],
        env={**os.environ, **environment, **waiting},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever starts the tests in the background may have Ctrl-C ignored by all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not Path("waits").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.3)  # it is in torch now, in C
    process.send_signal(signal.SIGINT)
    reported = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert reported == ("" if environment else "error: stopped by Ctrl-C\n")  # one of several speaks


WAITING = """
import dialogkit.system.signals as interrupts

before = interrupts.ended_by_signals

def and_tells(*words):
    open("waits", "w").close()
    return before(*words)

interrupts.ended_by_signals = and_tells
"""


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        ("--devices 3 --set train.batch_size=8", "8 does not split evenly over 3 processes: 6 or 9 would"),
        ("--devices two", "--devices: 'two' is neither a number of devices nor auto"),
        ("--devices 0", "--devices: '0' is neither a number of devices nor auto"),
        ("--nodes 2", "--nodes: several machines need a rendezvous, the HOST:PORT at which they meet"),
        ("--nodes many --rendezvous a:1", "--nodes: 'many' is not a number of machines"),
        ("--nodes 2 --rendezvous a", "--rendezvous: 'a' is not HOST:PORT"),
        ("--nodes 2 --rendezvous a:99999", "--rendezvous: 'a:99999' is not HOST:PORT"),
        ("--nodes 2 --rendezvous a:0", "try: --rendezvous a:29400"),
        ("--nodes 2 --rendezvous :29400", "try: --rendezvous HOST:29400"),
        ("--nodes 2 --rendezvous http://a:29400", "try: --rendezvous a:29400"),
        ("--nodes 2 --rendezvous host-a:abc", "try: --rendezvous host-a:29400"),
        ("--nodes 2 --node-rank 1", "try: --nodes 2 --node-rank 1 --rendezvous HOST:29400"),
        ("--nodes 2 --node-rank 2 --rendezvous a:1", "--node-rank: 2 is out of range for 2 machines"),
        ("--rendezvous a:1", "--rendezvous: 'a:1' is for several machines, but their number is not given"),
        ("--devices 2 --node-rank 1", "try: --nodes 2 --node-rank 1 --rendezvous HOST:29400"),
    ],
)
def test_words_that_cannot_be_are_refused_before_anything_starts(
    words: str, reported: str, dialogkit: Callable[..., Finished]
) -> None:
    done = dialogkit("train", "custom-nano", "--no-cuda", *words.split())
    assert (done.code, done.out) == (2, "")
    assert reported in done.err
    assert not Path("models").exists()


def test_one_of_several_that_does_not_know_where_the_others_are_is_refused(
    dialogkit: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    done = dialogkit("train", "custom-nano", "--no-cuda")
    assert (done.code, done.out) == (2, "")
    assert "RANK and WORLD_SIZE make this one of 2 processes, without a MASTER_ADDR to meet at" in done.err
    assert not Path("models").exists()


def test_a_port_that_is_taken_is_reported_at_once(dialogkit: Callable[..., Finished]) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        place = f"localhost:{other.getsockname()[1]}"
        words = f"train custom-nano --no-cuda --nodes 2 --node-rank 0 --rendezvous {place}"
        done = dialogkit(*words.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: the machines cannot meet at {place}: port ")
    assert "try: --rendezvous localhost:" in done.err
    assert not Path("models").exists()


IMPATIENT = """
import sys

import dialogkit.services.cluster.launch as launch

before = launch.nodes_of

def and_waits_a_second(nodes):
    if "torch" in sys.modules:
        import torch.distributed.elastic.rendezvous.c10d_rendezvous_backend as backend

        create = backend.create_backend
        backend.create_backend = lambda params: (params.config.update(read_timeout="1"), create(params))[1]
    return before(nodes)

launch.nodes_of = and_waits_a_second
"""


@pytest.mark.faults
def test_machines_that_do_not_meet_are_reported_in_one_sentence(in_temporary_folder: Path) -> None:
    impatient = in_every_process(in_temporary_folder, IMPATIENT)
    words = "train custom-nano --no-cuda --nodes 2 --node-rank 1 --rendezvous nowhere.invalid:29400"
    assert run_process(*words.split(), **impatient) == Finished(
        2,
        "",
        "error: the 2 machines did not find each other at nowhere.invalid:29400 (RendezvousConnectionError): the "
        "name 'nowhere.invalid' is not known here\n"
        "try: start rank 0 of the machines on nowhere.invalid, with port 29400 open to the others\n",
    )
    assert not Path("models").exists()


def test_a_program_of_one_process_does_not_start_others(small_config: Callable[..., Any]) -> None:
    from dialogkit.services.train import train

    with pytest.raises(ConfigError, match=r"runtime.devices is 2, but this program is a single process"):
        train(small_config({"runtime.devices": 2}))


def test_a_program_of_one_process_does_not_resume_a_run_of_several(pair: Pair, tmp_path: Path) -> None:
    from dialogkit.services.train import resume

    run = RunDir(Path(shutil.copytree(pair.together.parent.parent, tmp_path / "models")) / "runs/together")
    record = run.read()
    run.write(record.model_copy(update={"status": "interrupted"}))
    before = run.record_path.read_bytes()
    with pytest.raises(ConfigError, match=r"runtime.devices is 2, but this program is a single process"):
        resume(run)
    assert run.record_path.read_bytes() == before


def as_two(monkeypatch: pytest.MonkeyPatch, first: Callable[[], object], other: Callable[[], object]) -> None:
    """Run something as the first of two processes, the second of which does something else."""
    from dialogkit.distributed import process_group

    said: list[Any] = []
    monkeypatch.setattr(process_group, "world_size", lambda: 2)

    def remember(value: Any) -> list[Any]:
        said.append(("b", value[1]))
        return [value]

    monkeypatch.setattr(process_group, "all_gather", remember)
    other()
    monkeypatch.setattr(process_group, "all_gather", lambda value: [("a", value[1]), *said])
    first()


@pytest.mark.parametrize(
    ("other", "reported"),
    [
        ({"train.batch_size": 4}, "train.batch_size is 8 on rank 0 (a) and 4 on rank 1 (b)"),
        ({"train.max_steps": 5}, "train.max_steps is 7 on rank 0 (a) and 5 on rank 1 (b)"),
        ({"train.max_steps": None}, "train.max_steps is 7 on rank 0 (a) and left out on rank 1 (b)"),
        (
            {"name": "it", "train.seed": 1, "generate.seed": 1},
            "train.seed is 42 on rank 0 (a) and 1 on rank 1 (b) (and 1 more)",
        ),
        ({"runtime.devices": 2, "name": "it", "runtime.output_dir": "there"}, None),
        ({}, None),
    ],
)
def test_processes_that_were_given_other_settings_are_refused(
    other: dict[str, Any], reported: str | None, small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=re.escape(reported)) if reported else nullcontext():
        as_two(
            monkeypatch,
            lambda: require_same_request(TrainRequest(config=small_config(SETTINGS))),
            lambda: require_same_request(TrainRequest(config=small_config({**SETTINGS, **other}))),
        )


@pytest.mark.parametrize(
    ("run", "changes", "force", "reported"),
    [
        ("it", {}, False, None),
        ("it", {"runtime.devices": 3, "runtime.output_dir": "models"}, False, None),
        ("other", {}, False, 'resume is "it" on rank 0 (a) and "other" on rank 1 (b)'),
        ("it", {}, True, "force is left out on rank 0 (a) and true on rank 1 (b)"),
        (
            "it",
            {"tracking.notes": "x"},
            False,
            'tracking.notes is left out on rank 0 (a) and "x" on rank 1',
        ),
    ],
)
def test_processes_that_go_on_with_something_else_are_refused(
    run: str, changes: dict[str, Any], force: bool, reported: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=re.escape(reported)) if reported else nullcontext():
        as_two(
            monkeypatch,
            lambda: require_same_request(TrainRequest(resumed=RunDir(Path("it")))),
            lambda: require_same_request(TrainRequest(resumed=RunDir(Path(run)), changes=changes, force=force)),
        )


def test_one_that_begins_and_one_that_continues_are_refused(
    small_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r'resume is "it" on rank 0 \(a\) and left out on rank 1 \(b\)$'):
        as_two(
            monkeypatch,
            lambda: require_same_request(TrainRequest(resumed=RunDir(Path("it")))),
            lambda: require_same_request(TrainRequest(config=small_config(SETTINGS))),
        )


def test_numbers_of_machines() -> None:
    assert [nodes_of(text) for text in (None, "2", "1:2")] == [(1, 1), (2, 2), (1, 2)]
