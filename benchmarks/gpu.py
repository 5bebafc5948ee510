"""What holds on a GPU? One line for each claim: proven, failed, or not run and why; in at most 15 minutes.

python benchmarks/gpu.py --json build/gpu.json

The first claims are the tests in tests/gpu. The others are measured, each in a process of its own: how much of the
GPU's arithmetic `custom-medium` uses with several batch sizes, how busy the GPU is, whether compilation pays, and
whether a dry run forecasts well. The exit code is 1 if a claim failed; one that could not be run is no failure.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL, MINUTES = "custom-medium", 15.0
GOAL = 0.4
"""Share of the GPU's peak that a training should use."""
STEPS, WARM_UP = 30, 10
FORECAST = 0.25
"""Relative error that a dry run may have."""
USES = f"{MODEL} uses {GOAL:.0%} of the GPU's peak with {{}}"
GROWS = "torch's allocator grows its blocks as asked"
COMPILED = "runtime.compile makes steps faster and float32 no shorter"
FORECASTS = f"a dry run forecasts the time of 200 steps within {FORECAST:.0%}"
TESTS_S, MEASURE_S = 420.0, 150.0
"""Seconds that all tests together, and each measurement, may take."""
NO_GPU, LATE = "no CUDA device", "the time is over"


@dataclass
class Claim:
    """A claim, and what became of it."""

    claim: str
    status: str
    detail: str = ""
    seconds: float = 0.0
    figures: dict[str, float | None] = field(default_factory=dict)

    def line(self) -> str:
        """Return the claim as a line to print."""
        return f"{self.status:8} {self.claim}{f': {self.detail}' if self.detail else ''}"


def settings(batch_size: int, *, compiled: bool = False, steps: int = STEPS) -> Any:
    """Return the settings of a measured run of the model on dialogs that ship with dialogkit."""
    from dialogkit.config.load import load_run_config

    return load_run_config(
        MODEL,
        preset="production",
        overrides={
            "data.dataset": "smalltalk",
            "data.samples": batch_size * steps,
            "data.eval_max_dialogs": 50,
            "train.batch_size": batch_size,
            "train.accumulation_steps": 1,
            "train.max_steps": steps,
            "train.log_every_steps": WARM_UP,
            "train.eval_every_steps": 100_000_000,
            "train.keep": "last",
            "tracking.wandb": "disabled",
            "tracking.histogram_every_steps": 0,
            "runtime.device": "cuda",
            "runtime.compile": compiled,
        },
    )


@contextmanager
def busy_share(shares: list[float]) -> Iterator[None]:
    """Ask the driver several times a second how much of the time the GPU computes."""
    import torch

    ended = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # without nvidia-ml-py
            while not ended.wait(0.2):
                shares.append(torch.cuda.utilization() / 100)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure_speed(batch_size: int, *, compiled: bool = False) -> dict[str, float | None]:
    """Train some steps and return the speed, the share of the GPU's peak, and how busy it was."""
    import torch

    from dialogkit.engine.device import resolve_runtime
    from dialogkit.engine.fit import fit
    from dialogkit.engine.flops import peak_flops
    from dialogkit.services.training.gpu_use import GpuUse
    from dialogkit.services.training.setup import TrainingSetup
    from dialogkit.services.training.summary import flops_per_token

    config = settings(batch_size, compiled=compiled)
    setup = TrainingSetup(config, runtime := resolve_runtime(config.runtime))
    speeds, shares, use = list[float](), list[float](), GpuUse()

    def sink(step: int, metrics: dict[str, float]) -> None:
        use.point({name: value for name, value in metrics.items() if name != "gpu/utilization"})
        if "perf/tokens_per_s" in metrics:
            speeds.append(metrics["perf/tokens_per_s"])
            if step <= WARM_UP:
                shares.clear()

    with tempfile.TemporaryDirectory() as folder, busy_share(shares):
        fit(setup.fit_task(Path(folder)), sink)
    speed = len(speeds[2:]) / sum(1 / one for one in speeds[2:])  # without the first step and the warm-up
    peak = peak_flops(runtime.device_name, runtime.precision)
    for share in shares:
        use.point({"gpu/utilization": share})
    return {
        "tokens_per_s": speed,
        "mfu": speed * flops_per_token(setup) / peak if peak else None,
        "busy": use.busy,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "larger_batch": use.larger_batch(batch_size, torch.cuda.get_device_properties(0).total_memory),
        "tf32": float(torch.backends.cuda.matmul.allow_tf32),
    }


def used(batch_size: int) -> Claim:
    """Claim that the model uses the goal's share of the GPU with this batch."""
    figures = measure_speed(batch_size)
    mfu, busy = figures["mfu"], figures["busy"]
    detail = f"{figures['tokens_per_s']:,.0f} tokens/s"
    detail += ", busy time unknown (needs nvidia-ml-py)" if busy is None else f", busy {busy:.0%} of the time"
    claim = USES.format(f"{batch_size} dialogs a step")
    if mfu is None:
        return Claim(claim, "not run", f"the peak of this GPU is not known; {detail}", figures=figures)
    return Claim(claim, "proven" if mfu >= GOAL else "failed", f"{mfu:.1%}, {detail}", figures=figures)


def compilation() -> Claim:
    """Claim that a compiled model trains faster, and leaves float32 as it was."""
    plain, compiled = (measure_speed(64, compiled=compiled) for compiled in (False, True))
    ratio = (compiled["tokens_per_s"] or 0) / (plain["tokens_per_s"] or 1)
    detail = f"{ratio:.2f} times as many tokens/s" + ("; TF32 was left on" if compiled["tf32"] else "")
    status = "proven" if ratio > 1 and not compiled["tf32"] else "failed"
    return Claim(COMPILED, status, detail, figures={"ratio": ratio})


def forecast() -> Claim:
    """Claim that a dry run forecasts the time in training steps."""
    from dialogkit.services.train import train
    from dialogkit.services.training.dry_run import dry_run

    config = settings(8, steps=200)
    expected = dry_run(config).training_s
    took = train(config).metrics["train/seconds"]
    status = "proven" if abs(expected / took - 1) <= FORECAST else "failed"
    figures: dict[str, float | None] = {"expected_s": expected, "took_s": took}
    return Claim(FORECASTS, status, f"{expected:.1f} s expected, {took:.1f} s needed", figures=figures)


def allocator() -> Claim:
    """Claim that torch's allocator grows its blocks."""
    import torch

    from dialogkit.config.runtime import RuntimeConfig
    from dialogkit.engine.device import resolve_runtime

    runtime = resolve_runtime(RuntimeConfig())
    tensor = torch.ones(2**20, device=runtime.device)
    cuda: Any = torch.cuda
    grows = any(segment["is_expandable"] for segment in cuda.memory_snapshot())
    return Claim(GROWS, "proven" if grows and tensor.is_cuda else "failed", runtime.device_name)


MEASUREMENTS: dict[str, tuple[str, Callable[[], Claim]]] = {
    "allocator": (GROWS, allocator),
    "8": (USES.format("8 dialogs a step"), lambda: used(8)),
    "64": (USES.format("64 dialogs a step"), lambda: used(64)),
    "suggested": (USES.format("the batch that is suggested"), lambda: used(256)),
    "compile": (COMPILED, compilation),
    "forecast": (FORECASTS, forecast),
}
"""The measured claims by name: what is said if they cannot be run, and what measures them."""


def run_tests(file: Path) -> None:
    """Run the tests in tests/gpu and append each as a claim, as soon as it has ended, to a file of JSON lines."""
    import pytest

    class Report:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when != "call" and report.outcome == "passed":
                return
            name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
            status = {"passed": "proven", "skipped": "not run"}.get(report.outcome, "failed")
            reason = ""
            if report.outcome == "skipped":
                reason = report.longrepr[2].removeprefix("Skipped: ")
            elif report.outcome == "failed":
                reason = getattr(getattr(report.longrepr, "reprcrash", None), "message", "").partition("\n")[0]
            with file.open("a", encoding="utf-8") as lines:
                claim = Claim(name, status, reason, report.duration)
                lines.write(json.dumps(asdict(claim)) + "\n")

    options = ["-n0", "-p", "no:cacheprovider", "--timeout=120", "-m", "gpu", str(REPOSITORY / "tests/gpu")]
    raise SystemExit(pytest.main(["-q", *options], plugins=[Report()]))


def tested(limit_s: float, folder: Path) -> list[Claim]:
    """Return the claims of the tests; those after the limit are missing, and one line says so."""
    file, log = folder / "tests.jsonl", folder / "tests.log"
    code = run_part(["--tests", str(file)], limit_s, log)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    claims = [Claim(**json.loads(line)) for line in lines]
    if code not in (0, 1):
        detail = LATE if code is None else last_line(log)
        claims.append(Claim("all tests in tests/gpu end", "failed", detail))
    return claims


def measured(name: str, limit_s: float, folder: Path, batch_size: float | None) -> Claim:
    """Return a measured claim; one that fails in any way is failed, with the last line of its output."""
    claim = MEASUREMENTS[name][0]
    if limit_s < 10:
        return Claim(claim, "not run", LATE)
    file, log = folder / f"{name}.json", folder / f"{name}.log"
    started = time.perf_counter()
    words = ["--batch-size", f"{batch_size:.0f}"] if batch_size else []
    code = run_part(["--measure", name, "--json", str(file), *words], min(limit_s, MEASURE_S), log)
    seconds = time.perf_counter() - started
    if code is None:
        return Claim(claim, "not run", LATE, seconds)
    if code:
        return Claim(claim, "failed", last_line(log), seconds)
    found = Claim(**json.loads(file.read_text(encoding="utf-8")))
    found.seconds = seconds
    return found


def run_part(words: list[str], limit_s: float, log: Path) -> int | None:
    """Run a part of this program in a process of its own; return its exit code, None if it took too long."""
    command, environment = [sys.executable, __file__, *words], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=log.parent, env=environment, start_new_session=True
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also what it has started
            process.wait()
            return None


def last_line(log: Path) -> str:
    """Return the last line that a process printed."""
    lines = reversed(log.read_text(encoding="utf-8").splitlines())
    return next((line for line in lines if line.strip()), "no output")


def main() -> None:
    """Run everything, print a line a claim, and write JSON beside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--tests", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.tests:
        run_tests(words.tests)
    if words.measure:
        claim = used(words.batch_size) if words.batch_size else MEASUREMENTS[words.measure][1]()
        words.json.write_text(json.dumps(asdict(claim)), encoding="utf-8")
        return
    raise SystemExit(report(words.minutes, words.json))


def report(minutes: float, file: Path | None) -> int:
    """Check all claims in so many minutes; return the exit code."""
    import torch

    until, claims = time.monotonic() + 60 * minutes, list[Claim]()
    there = torch.cuda.is_available()

    def add(*found: Claim) -> None:
        claims.extend(found)
        for claim in found:
            print(claim.line(), flush=True)

    with tempfile.TemporaryDirectory(prefix="dialogkit-gpu-") as name:
        folder = Path(name)
        add(*tested(min(TESTS_S, until - time.monotonic()), folder))
        suggested: float | None = None
        for name, (text, _) in MEASUREMENTS.items():
            if not there:
                add(Claim(text, "not run", NO_GPU))
            elif name == "suggested" and not suggested:
                add(Claim(text, "not run", "none is suggested for 64 dialogs a step"))
            else:
                batch = suggested if name == "suggested" else None
                add(claim := measured(name, until - time.monotonic(), folder, batch))
                suggested = claim.figures.get("larger_batch") if name == "64" else suggested
    statuses = [claim.status for claim in claims]
    code = 1 if "failed" in statuses else 0
    device = torch.cuda.get_device_name() if there else NO_GPU
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("proven", "failed", "not run"))
    print(f"{counts} ({device}); exit code {code}")
    if file:
        content = {"device": device, "torch": torch.__version__, "claims": [asdict(claim) for claim in claims]}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    main()
