"""Several processes: lost ones come back, the error of one ends all, and nothing waits forever."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dialogkit.tracking.run_dir import RunDir
from tests.conftest import REPOSITORY, SMALL
from tests.services.cluster.test_launch import (
    SETTINGS,
    assert_same_learning,
    in_every_process,
    points,
    words_of,
    write_shards,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

LONG: dict[str, Any] = {
    **SMALL,
    **SETTINGS,
    "data.samples": 60,
    "train.max_steps": 60,
    "train.eval_every_steps": 10,
}
RUN = Path("models/runs/it")
MODULE = [sys.executable, "-m", "dialogkit"]
PAIR = ["--devices", "2"]

FAILING = """
import os

if os.environ.get("RANK") == {rank!r}:
    import dialogkit.engine.callbacks as callbacks
    from dialogkit.errors import DataError

    before = callbacks.MetricCallback.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        before(self, args, state, control, **kwargs)
        if state.global_step == 5:
            {action}

    callbacks.MetricCallback.on_step_end = on_step_end
"""


def start(
    *words: str, before: list[str] | None = None, settings: dict[str, Any] = LONG, **environment: str
) -> Any:
    """Start a run that writes what it prints to `out` and `err`."""
    command = [*(before or MODULE), "train", "custom-nano", *words, *words_of(settings)]
    with open("out", "ab") as out, open("err", "ab") as err:
        return subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        )


@contextmanager
def started(*words: str, **more: Any) -> Iterator[Any]:
    process = start(*words, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finish(*words: str, timeout: float = 400, **more: Any) -> int:
    with started(*words, **more) as process:
        return int(process.wait(timeout))


def err() -> str:
    return Path("err").read_text(encoding="utf-8")


def wait_for(condition: Any, process: Any, timeout: float = 200) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, err()
        assert time.monotonic() < until, err()
        time.sleep(0.1)


def wait_for_step(step: int, process: Any) -> None:
    file = RUN / "metrics.jsonl"
    wait_for(lambda: file.exists() and max(points(RUN), default=0) >= step, process)


def children(process: Any) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in found.split()]


def ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def assert_completed(steps: int = 60) -> None:
    record = RunDir(RUN).read()
    assert (record.status, record.metrics["train/steps"]) == ("completed", steps)
    reported = [point["step"] for point in RunDir(RUN).metrics() if "train/loss" in point]
    assert reported == [*range(1, steps + 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fifty_steps_of_two_processes_are_those_of_one(optimizer: str) -> None:
    settings = {**LONG, "train.max_steps": 50, "train.optimizer": optimizer, "data.samples": 100}
    assert finish("--name", "alone", settings=settings) == 0, err()
    for parts in (1, 2):
        name = f"together-{parts}"
        more = {"train.accumulation_steps": parts, "train.batch_size": 8}
        assert finish("--name", name, *PAIR, settings={**settings, **more}) == 0, err()
        assert_same_learning(Path("models/runs/alone"), Path("models/runs") / name)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_comes_back(rank: int) -> None:
    with started("--name", "it", *PAIR) as process:
        wait_for_step(15, process)
        os.kill(children(process)[rank], signal.SIGKILL)
        assert process.wait(400) == 0, err()
    assert_completed()
    assert "a rank was lost: all ranks are restarted (1)" in err()
    assert [gone_on.step for gone_on in RunDir(RUN).read().resumed] == [10]
    assert "Traceback" not in err()


def test_processes_that_are_lost_again_and_again_end_the_run(in_temporary_folder: Path) -> None:
    code = finish("--name", "it", *PAIR, "--max-restarts", "1", **failing(in_temporary_folder, "1", "os._exit(9)"))
    assert code == 1
    assert "error: a process ended with code 9 and 1 restart did not help" in err()
    assert "try: dialogkit train --resume models/runs/it" in err()
    assert "Traceback" not in err()
    assert len(RunDir(RUN).read().resumed) == 1


def failing(folder: Path, rank: str, action: str) -> dict[str, Any]:
    """Return the environment in which a process does something after step 5."""
    return in_every_process(folder, FAILING.format(rank=rank, action=action))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_of_one_process_is_the_end_of_all_in_one_sentence(in_temporary_folder: Path, rank: str) -> None:
    action = 'raise DataError("row 7 is not to be read", hint="dialogkit data inspect")'
    assert finish("--name", "it", *PAIR, **failing(in_temporary_folder, rank, action)) == 2
    assert err().count("row 7 is not to be read") == 1
    assert err().rstrip().endswith("error: row 7 is not to be read\ntry: dialogkit data inspect")
    record = RunDir(RUN).read()
    assert (record.status, record.exit_code, record.error) == ("failed", 2, "row 7 is not to be read")


def test_a_bug_in_one_process_leaves_one_traceback(in_temporary_folder: Path) -> None:
    assert finish("--name", "it", *PAIR, **failing(in_temporary_folder, "1", '{}["nothing"]')) == 1
    assert err().count("Traceback") == 1
    assert "KeyError: 'nothing'" in err()
    assert not RunDir(RUN).read().resumed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_after_the_same_step_and_any_number_continues(number: int) -> None:
    assert finish("--name", "whole") == 0
    with started("--name", "it", *PAIR) as process:
        wait_for_step(15, process)
        processes = children(process)
        process.send_signal(number)
        assert process.wait(100) == 128 + number, err()
    assert ended(processes)
    assert err().count("error: stopped by") == 1
    assert "try: dialogkit train --resume it" in err()
    record = RunDir(RUN).read()
    assert record.status == "interrupted"
    # With as many processes as before, if nothing else is said; then with one.
    with started("--resume", "it", settings={}) as process:
        wait_for_step(35, process)
        process.send_signal(number)
        assert process.wait(100) == 128 + number, err()
    assert RunDir(RUN).read().runtime.processes == 2
    assert finish("--resume", "it", "--devices", "1", settings={}) == 0, err()
    assert "the number of processes was 2 and is 1" in err()
    assert_completed()
    assert_same_learning(Path("models/runs/whole"), RUN)


def test_a_resumed_pair_is_bit_for_bit_the_pair_that_was_not_stopped() -> None:
    assert finish("--name", "whole", *PAIR) == 0
    with started("--name", "it", *PAIR) as process:
        wait_for_step(15, process)
        process.send_signal(signal.SIGTERM)
        process.wait(100)
    assert finish("--resume", "it", settings={}) == 0, err()
    assert points(RUN) == points(Path("models/runs/whole"))
    one, other = (Path("models/runs") / name / "model/model.safetensors" for name in ("whole", "it"))
    assert one.read_bytes() == other.read_bytes()


def test_no_process_outlives_its_launcher() -> None:
    with started("--name", "it", *PAIR) as process:
        wait_for_step(5, process)
        processes = children(process)
        process.kill()
        process.wait()
        until = time.monotonic() + 20
        while not ended(processes) and time.monotonic() < until:
            time.sleep(0.1)
        assert ended(processes)
    assert finish("--resume", "it", settings={}) == 0, err()
    assert_completed()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_processes_of_torchrun_join() -> None:
    assert finish("--name", "it", before=[*TORCHRUN, "-m", "dialogkit"]) == 0, err()
    assert_completed()
    assert RunDir(RUN).read().runtime.processes == 2
    assert len(re.findall(r"^step 60/60 ", err(), re.MULTILINE)) == 2, (
        "one line of the loss, one of the evaluation"
    )


def test_a_lost_process_of_torchrun_comes_back() -> None:
    before = [*TORCHRUN, "--max-restarts", "1", "-m", "dialogkit"]
    with started("--name", "it", before=before) as process:
        wait_for_step(15, process)
        os.kill(children(process)[1], signal.SIGKILL)
        assert process.wait(400) == 0, err()
    assert_completed()
    assert len(RunDir(RUN).read().resumed) == 1


ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]


def test_processes_of_accelerate_launch_join_and_compute_as_settings_say() -> None:
    settings = {**LONG, "train.max_steps": 20}
    assert finish("--name", "alone", settings=settings) == 0, err()
    more = ["--multi_gpu", "--main_process_port", "0", "--mixed_precision", "bf16", "--dynamo_backend", "inductor"]
    before = [*ACCELERATE, *more, "--module", "dialogkit"]
    assert finish("--name", "it", before=before, settings=settings) == 0, err()
    assert_completed(20)
    assert RunDir(RUN).read().runtime.processes == 2
    assert_same_learning(Path("models/runs/alone"), RUN)


def test_an_error_of_one_process_of_accelerate_launch_is_the_end_of_all(in_temporary_folder: Path) -> None:
    action = 'raise DataError("row 7 is not to be read", hint="dialogkit data inspect")'
    before = [*ACCELERATE, "--multi_gpu", "--main_process_port", "0", "--module", "dialogkit"]
    assert finish("--name", "it", before=before, **failing(in_temporary_folder, "1", action)) == 1
    assert err().count("error: row 7 is not to be read\ntry: dialogkit data inspect\n") == 1
    assert "DataError" not in err(), "torch reports exit codes, and nothing else has a traceback"
    assert RunDir(RUN).read().error == "row 7 is not to be read"


def test_accelerate_launch_that_starts_one_process_in_place_of_two_is_refused() -> None:
    assert finish("--name", "it", before=[*ACCELERATE, "--cpu", "--module", "dialogkit"]) == 1
    assert "error: accelerate launch has started one process instead of several" in err()
    assert not Path("models").exists()


def test_tasks_of_slurm_join() -> None:
    tasks = []
    for task in range(2):
        reported: dict[str, Any] = {
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task),
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_JOB_ID": str(os.getpid()),
        }
        tasks.append(start("--name", "it", **reported))
    try:
        assert [task.wait(400) for task in tasks] == [0, 0], err()
    finally:
        for task in tasks:
            task.kill()
    assert_completed()


# Two machines: network namespaces that are joined by a pair of virtual devices


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of two network namespaces, at 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    names = [f"dialogkit-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "veth1", "netns", names[0], "type", "veth", "peer", "name", "veth2", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", f"veth{number}")
            ip("-n", name, "link", "set", f"veth{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        delete(names)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        yield names
    finally:
        delete(names)


def kill_all_on(machine: str) -> None:
    inside = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True).stdout.split()
    for pid in inside:
        os.kill(int(pid), signal.SIGKILL)


def delete(names: list[str]) -> None:
    for name in names:
        kill_all_on(name)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def on(machine: str) -> list[str]:
    return ["ip", "netns", "exec", machine, *MODULE]


MEET = ["--rendezvous", "10.77.0.1:29400"]


@contextmanager
def started_on_both(machines: list[str], nodes: str) -> Iterator[tuple[Any, Any]]:
    words = ["--name", "it", "--nodes", nodes, *MEET, "--node-rank"]
    with (
        started(*words, "0", before=on(machines[0])) as first,
        started(*words, "1", before=on(machines[1])) as second,
    ):
        yield first, second


def assert_both_completed() -> None:
    assert_completed()
    assert RunDir(RUN).read().runtime.processes == 2
    assert len(RunDir(RUN).read().resumed) == 1


def test_a_machine_that_is_lost_is_done_without(machines: list[str]) -> None:
    with started_on_both(machines, "1:2") as (first, _):
        wait_for_step(15, first)
        assert RunDir(RUN).read().runtime.processes == 2
        kill_all_on(machines[1])
        assert first.wait(400) == 0, err()
    assert_completed()
    record = RunDir(RUN).read()
    assert record.runtime.processes == 1
    assert [gone_on.step for gone_on in record.resumed] == [10]
    assert "the number of processes was 2 and is 1" in err()
    assert "Traceback" not in err()


def test_a_process_that_is_lost_on_one_of_two_machines_comes_back(machines: list[str]) -> None:
    with started_on_both(machines, "2") as (first, second):
        wait_for_step(15, first)
        os.kill(children(second)[0], signal.SIGKILL)
        assert [first.wait(400), second.wait(400)] == [0, 0], err()
    assert_both_completed()


def test_a_machine_that_was_lost_comes_back(machines: list[str]) -> None:
    with started_on_both(machines, "2") as (first, second):
        wait_for_step(15, first)
        kill_all_on(machines[1])
        second.wait()
        words = ["--resume", "it", "--nodes", "2", *MEET, "--node-rank", "1"]
        with started(*words, before=on(machines[1]), settings={}) as again:
            assert [first.wait(400), again.wait(400)] == [0, 0], err()
    assert_both_completed()
    assert "Traceback" not in err()


def test_machines_with_other_words_are_refused_and_each_is_reported(in_temporary_folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = ["--nodes", "2", "--rendezvous", f"127.0.0.1:{probe.getsockname()[1]}", "--node-rank"]
    with (
        started(*meet, "1", settings={**LONG, "train.batch_size": 4}) as second,
        started(*meet, "0") as first,
    ):
        assert [first.wait(100), second.wait(100)] == [2, 2], err()
    reported = [line for line in err().splitlines() if line.startswith("error:")]
    assert (len(reported), len(set(reported))) == (2, 1), err()
    assert "train.batch_size is " in reported[0]
    assert "Traceback" not in err()
    assert not Path("models").exists()


def test_a_machine_that_waits_says_so_and_then_who_speaks(machines: list[str]) -> None:
    words = ["--name", "it", "--nodes", "2", *MEET, "--node-rank"]
    with started(*words, "0", before=on(machines[0])) as first:
        wait_for(lambda: "waiting for 2 machines to meet at 10.77.0.1:29400\n" in err(), first)
        with started(*words, "1", before=on(machines[1])) as second:
            assert [first.wait(400), second.wait(400)] == [0, 0], err()
    assert_completed()
    assert err().count("prints the progress of all machines") == err().count("waiting for") == 1


# Data that is read as a stream


STREAMED = {**LONG, "data.dataset": "shards", "data.streaming": True, "data.samples": None}


@pytest.mark.parametrize("allowed", [0, 3])
def test_more_malformed_rows_than_all_may_have_read_are_the_end_of_all(allowed: int) -> None:
    from dialogkit.data.stream import shuffled

    # Two of the six are read for the held-out dialogs; of the other four no process has more than three.
    write_shards(6, 600, bad=shuffled(6, 0)[2:].tolist())
    settings = {**STREAMED, "data.eval_fraction": 0.05, "data.eval_max_dialogs": 4, "data.max_bad_rows": allowed}
    assert finish("--name", "it", *PAIR, settings=settings, timeout=120) == 2, err()
    assert len(re.findall(r"^error: \d.jsonl:7: not valid JSON", err(), re.MULTILINE)) == 1, err()
    assert err().count("error:") == 1
    assert "Traceback" not in err()
    assert ("and at least 3 more such rows" in " ".join(err().split())) == (allowed == 3)
    record = RunDir(RUN).read()
    assert (record.status, record.exit_code) == ("failed", 2)
    if allowed:
        assert (record.data.rows, record.data.unusable) == (3600, 10)


def test_a_stream_that_was_stopped_counts_no_row_twice() -> None:
    write_shards(8, 60, bad=[1, 6])
    settings = {**STREAMED, "data.shuffle_dialogs": 10, "data.max_bad_rows": 2}
    assert finish("--name", "alone", settings=settings) == 0, err()
    with started("--name", "it", *PAIR, settings=settings) as process:
        wait_for_step(17, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 128 + signal.SIGTERM, err()
    # Each is in the second of its four blocks, or the third.
    assert RunDir(RUN).read().data.rows in (240, 300, 360)
    before = [(RUN / name).read_bytes() for name in ("run.json", "metrics.jsonl")]
    assert finish("--resume", "it", "--devices", "1", settings={}) == 2
    assert "the stream was read by 2 processes and not by 1" in err()
    assert [(RUN / name).read_bytes() for name in ("run.json", "metrics.jsonl")] == before
    assert finish("--resume", "it", settings={}) == 0, err()
    assert_completed()
    alone = RunDir(Path("models/runs/alone")).read().data
    assert alone.rows == 480
    assert RunDir(RUN).read().data == alone


# The second process is the slower one in each step, and its clock another one.
SLOW = """
import os, time

if os.environ.get("RANK") == "1":
    import dialogkit.engine.callbacks as callbacks

    clock = time.perf_counter
    time.perf_counter = lambda: 3 * clock()
    before = callbacks.MetricCallback.on_step_end

    def on_step_end(self, *args, **kwargs):
        time.sleep(0.03)
        before(self, *args, **kwargs)

    callbacks.MetricCallback.on_step_end = on_step_end
"""


def test_a_budget_of_two_processes_is_kept_by_both_and_what_is_left_of_it_when_it_continues(
    in_temporary_folder: Path,
) -> None:
    settings = {name: value for name, value in LONG.items() if name != "train.max_steps"}
    settings |= {"train.eval_every_steps": 20, "train.budget_s": 24}
    slow = in_every_process(in_temporary_folder, SLOW)
    assert finish("--name", "whole", *PAIR, settings=settings, **slow) == 0, err()
    with started("--name", "it", *PAIR, settings=settings, **slow) as process:
        wait_for_step(15, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 143, err()
    assert finish("--resume", "it", settings={}, **slow) == 0, err()
    whole, went_on = (RunDir(Path("models/runs") / name).read() for name in ("whole", "it"))
    assert (whole.status, went_on.status) == ("completed", "completed")
    for record in (whole, went_on):
        assert record.metrics["train/steps"] == record.schedule.total_steps
        reported = max(point["step"] for point in RunDir(Path("models/runs") / record.name).metrics())
        assert reported == record.metrics["train/steps"] > 15


# Of two processes on a machine, one finds less memory than the other: what fits it is taken by both.
CRAMPED = """
import os

if "RANK" in os.environ:
    import dialogkit.services.training.memory_plan as memory_plan
    import dialogkit.system.memory as memory

    memory_plan.free_bytes = memory.free_bytes = lambda: {"0": 26, "1": 14}[os.environ["RANK"]] * 2**20
"""


def test_two_processes_train_an_adapter_in_parts_that_fit_both(in_temporary_folder: Path) -> None:
    assert finish("--name", "base", settings={**LONG, "train.max_steps": 10}) == 0, err()
    # Of a model that has learned already, the shape is known.
    settings = {name: value for name, value in LONG.items() if not name.startswith("model.")}
    settings |= {"train.method": "lora", "train.fit_batch": True, "train.max_steps": 30}
    cramped = in_every_process(in_temporary_folder, CRAMPED)
    lora = ["--from", "base", "--name"]
    assert finish(*lora, "alone", settings=settings, **cramped) == 0, err()
    assert finish(*lora, "whole", *PAIR, settings=settings, **cramped) == 0, err()
    with started(*lora, "it", *PAIR, settings=settings, **cramped) as process:
        wait_for_step(15, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 143, err()
    assert finish("--resume", "it", settings={}, **cramped) == 0, err()
    alone, whole = (Path("models/runs") / name for name in ("alone", "whole"))
    limits = [RunDir(run).read().config["train"]["micro_batch_tokens"] for run in (alone, whole, RUN)]
    assert limits[0] is None
    assert limits[1] == limits[2] > 0
    assert_same_learning(alone, whole)
    assert points(RUN) == points(whole)
    assert_same_model(alone / "model", whole / "model")
    one, other, published = (
        (folder / "model.safetensors").read_bytes()
        for folder in (whole / "model", RUN / "model", Path("models/custom_nano"))
    )
    assert one == other == published


# Models of which each process holds a part


# In parts, of which the ranks have different numbers.
SHARDED = {"runtime.sharding": "fsdp", "train.optimizer": "adamw", "train.micro_batch_tokens": 60}


def test_a_sharded_model_learns_the_same_and_continues_in_any_number_of_processes() -> None:
    # At the rate of the other tests a gradient is fifty times the usual once, and so is what rounding makes of it.
    settings = {**LONG, "train.optimizer": "adamw", "train.learning_rate": 2e-3}
    assert finish("--name", "alone", settings=settings) == 0, err()
    assert finish("--name", "sharded", *PAIR, settings={**settings, **SHARDED}) == 0, err()
    alone, sharded = (Path("models/runs") / name for name in ("alone", "sharded"))
    assert_same_learning(alone, sharded, figures=1e-5)
    assert (sharded / "checkpoint-60/pytorch_model_fsdp_0/__1_0.distcp").is_file(), "it is sharded"
    assert not (sharded / "checkpoint-60/model.safetensors").exists()
    assert_same_model(alone / "model", sharded / "model")
    for number in ("2", "1"):
        run = f"stopped-{number}"
        with started("--name", run, *PAIR, settings={**settings, **SHARDED}) as process:
            file = Path("models/runs") / run / "metrics.jsonl"
            wait_for(lambda: file.exists() and max(points(file.parent), default=0) >= 15, process)  # noqa: B023
            process.send_signal(signal.SIGTERM)
            assert process.wait(100) == 128 + signal.SIGTERM, err()
        assert finish("--resume", run, "--devices", number, settings={}) == 0, err()
        assert_same_learning(alone, Path("models/runs") / run, figures=1e-5)
        assert_same_model(alone / "model", Path("models/runs") / run / "model")


COUNTING = """
import os

if "RANK" in os.environ:
    from torch import distributed

    calls = open(f"calls-{os.environ['RANK']}", "a", buffering=1)

    def count(name):
        real = getattr(distributed, name)

        def counted(*args, **kwargs):
            calls.write(f"{name}\\n")
            return real(*args, **kwargs)

        setattr(distributed, name, counted)

    for name in ("all_reduce", "all_gather_object", "broadcast_object_list", "barrier"):
        count(name)
"""


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_all_ranks_make_the_same_collective_calls(in_temporary_folder: Path, sharding: str) -> None:
    # Evaluations with replies, a stream, a stop in the midst, and what a resumed run does to its end.
    write_shards(8, 60, bad=[])
    settings = {**STREAMED, "data.shuffle_dialogs": 10, "train.optimizer": "adamw", "runtime.sharding": sharding}
    counting = in_every_process(in_temporary_folder, COUNTING)
    with started("--name", "it", *PAIR, settings=settings, **counting) as process:
        wait_for_step(17, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 128 + signal.SIGTERM, err()
    stopped = [Path(f"calls-{rank}").read_text().split() for rank in (0, 1)]
    assert stopped[0] == stopped[1]
    assert finish("--resume", "it", settings={}, **counting) == 0, err()
    assert_completed()
    first, second = (Path(f"calls-{rank}").read_text().split() for rank in (0, 1))
    assert first == second
    assert len(first) > len(stopped[0]) > 40
    assert {"all_reduce", "all_gather_object", "broadcast_object_list"} <= set(first)


def test_a_sharded_model_learns_of_a_stream_on_two_machines_what_a_whole_one_does(machines: list[str]) -> None:
    write_shards(8, 60, bad=[])
    streamed = {**STREAMED, "data.shuffle_dialogs": 10, "train.optimizer": "adamw", "train.max_steps": 30}
    assert finish("--name", "whole", *PAIR, settings=streamed) == 0, err()
    words = ["--nodes", "2", *MEET, "--node-rank"]
    with (
        started("--name", "it", *words, "0", before=on(machines[0]), settings={**streamed, **SHARDED}) as first,
        started("--name", "it", *words, "1", before=on(machines[1]), settings={**streamed, **SHARDED}) as second,
    ):
        wait_for_step(13, first)
        first.send_signal(signal.SIGTERM)
        assert [first.wait(100), second.wait(100)] == [143, 143], err()
    with (
        started("--resume", "it", *words, "0", before=on(machines[0]), settings={}) as first,
        started("--resume", "it", *words, "1", before=on(machines[1]), settings={}) as second,
    ):
        assert [first.wait(400), second.wait(400)] == [0, 0], err()
    assert_completed(30)
    whole = Path("models/runs/whole")
    assert_same_learning(whole, RUN, figures=1e-5)
    assert_same_model(whole / "model", RUN / "model")
    assert RunDir(RUN).read().data == RunDir(whole).read().data


# What the layers compute in, in training.
TELLING = """
import os
import torch
import transformers.models.llama.modeling_llama as llama

forward = llama.LlamaMLP.forward

def telling(self, hidden):
    made = forward(self, hidden)
    if torch.is_grad_enabled():
        with open("dtypes", "a") as file:
            print(made.dtype, file=file)
    return made

llama.LlamaMLP.forward = telling
"""


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "torch.bfloat16"), ("fp16", "torch.float16")])
def test_a_sharded_model_in_16_bits_whose_activations_are_recomputed_is_whole_in_the_end(
    in_temporary_folder: Path, precision: str, dtype: str
) -> None:
    settings = {
        **LONG,
        "runtime.precision": precision,
        "train.activation_checkpointing": True,
        "train.keep": "best",
    }
    settings |= {"train.optimizer": "adamw", "train.max_steps": 30}
    assert finish("--name", "alone", settings=settings) == 0, err()
    telling = in_every_process(in_temporary_folder, TELLING)
    settings |= SHARDED
    assert finish("--name", "whole", *PAIR, settings=settings, **telling) == 0, err()
    assert set(Path("dtypes").read_text().split()) == {dtype}
    with started("--name", "it", *PAIR, settings=settings) as process:
        wait_for_step(13, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 143, err()
    assert finish("--resume", "it", settings={}) == 0, err()
    alone, whole = (Path("models/runs") / name for name in ("alone", "whole"))
    assert_same_learning(alone, whole, loss=1e-3, figures=1e-3)
    assert points(RUN) == points(whole)
    weights = [
        folder / "model.safetensors" for folder in (whole / "model", RUN / "model", Path("models/custom_nano"))
    ]
    assert len({file.read_bytes() for file in weights}) == 1
    from dialogkit.api.inference import evaluate

    # The sharded model is measured in float32 at the end, and what is published is that model.
    (row,) = evaluate("whole", quick=True, device="cpu").rows
    assert RunDir(whole).read().metrics["final/nats_per_token"] == pytest.approx(row.nats_per_token, rel=1e-6)


# As on a file system over a network, where one process sees a folder later than another.
LATE = """
import os, time

exists = os.path.exists

def late(path):
    if "checkpoint-" not in str(path):
        return exists(path)
    until = time.monotonic() + 3
    while os.environ.get("RANK") == "0" and not exists(path) and time.monotonic() < until:
        time.sleep(0.01)
    return os.environ.get("RANK") == "0" and exists(path)

os.path.exists = late
"""


def test_all_load_the_best_weights_whoever_sees_them(in_temporary_folder: Path) -> None:
    settings = {**LONG, **SHARDED, "train.max_steps": 10, "train.keep": "best"}
    late = in_every_process(in_temporary_folder, LATE)
    assert finish("--name", "it", *PAIR, settings=settings, timeout=120, **late) == 0, err()
    assert_completed(10)


def assert_same_model(one: Path, other: Path) -> None:
    """Compare two published models: their files, and names, types and values of their weights."""
    from safetensors.torch import load_file

    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert (found[name] - tensor).abs().max() < 1e-2 * tensor.abs().max(), name


def test_a_plan_that_would_run_code_makes_a_checkpoint_invalid(in_temporary_folder: Path) -> None:
    import pickle

    from dialogkit.engine.checkpoints import Progress, commit, read_progress

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(in_temporary_folder / "ran"),)

    folder = in_temporary_folder / "checkpoint-1"
    (folder / "optimizer_0").mkdir(parents=True)
    plan = folder / "optimizer_0/.metadata"
    for content, valid in ((pickle.dumps({"a": set()}), True), (pickle.dumps(Evil()), False), (b"", False)):
        plan.write_bytes(content)
        commit(folder, Progress(step=1))
        assert (read_progress(folder) is not None) is valid
    assert not (in_temporary_folder / "ran").exists()
