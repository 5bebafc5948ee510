"""How far does each custom model get with more steps? Writes the runs from which `plan` forecasts.

    python benchmarks/reference_runs.py custom-pico custom-nano custom-tiny custom-small
    python benchmarks/reference_runs.py custom-tiny --preset production --steps 250 500 1000 2000
    python benchmarks/reference_runs.py --leave-one-out
    python benchmarks/reference_runs.py --check 180

Each length is a run of its own, with the whole schedule. A run that the file has already is left as it is, so a
measurement that was stopped goes on where it was; --again replaces it. The last two measure how good the forecasts
are: from the other lengths of the file, and of a real training of that many seconds.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import dialogkit
from dialogkit.config.load import load_run_config
from dialogkit.config.run import RunConfig
from dialogkit.services.plan import plan
from dialogkit.services.planning.reference import (
    RUNS,
    Reference,
    ReferenceReply,
    ReferenceRun,
    read_references,
    settings_of,
)
from dialogkit.services.train import train
from dialogkit.services.training.result import TrainResult
from dialogkit.tracking.run_dir import RunDir

LONGEST_PROMPT = 80

QUIET = {
    "tracking.wandb": "disabled",
    "tracking.report": False,
    "tracking.histogram_every_steps": 0,
    "tracking.held_out_replies": 20,
    "generate.test_prompts": [],
}


def measured(config: RunConfig) -> ReferenceRun:
    """Train once and return the end of the run."""
    result = train(config)
    record, metrics = RunDir(Path(result.run_dir)).read(), result.metrics
    right = metrics.get("final/right_answers")
    return ReferenceRun(
        steps=result.steps,
        dialogs=result.steps * config.train.batch_size,
        tokens=int(metrics["train/tokens"]),
        supervised_tokens=int(metrics["train/supervised_tokens"]),
        bits_per_byte=round(metrics["final/bits_per_byte"], 4),
        right_answers=None if right is None else round(right, 4),
        reply=first_reply(result),
        revision=record.data.revision or "",
        seed=config.train.seed,
        version=dialogkit.__version__,
        date=date.today().isoformat(),
    )


def first_reply(result: TrainResult) -> ReferenceReply | None:
    """Return the reply to the first held-out prompt of one short line, whatever it is like."""
    for reply in result.held_out_replies:
        if "\n" not in reply.prompt and len(reply.prompt) <= LONGEST_PROMPT:
            return ReferenceReply(prompt=reply.prompt, reply=reply.reply, answer=reply.reference or "")
    return None


def settings(steps: int, seed: int, folder: str) -> dict[str, object]:
    """Return what a reference run overrides: it is evaluated at its end alone, and keeps its last weights."""
    return {
        **QUIET,
        "train.max_steps": steps,
        "train.seed": seed,
        "train.eval_every_steps": 100_000_000,
        "train.keep": "last",
        "runtime.output_dir": folder,
    }


def write(found: dict[str, Reference]) -> None:
    """Write the file, one model with a preset after the other."""
    text = json.dumps({name: found[name].model_dump() for name in sorted(found)}, indent=1, ensure_ascii=False)
    RUNS.write_text(f"{text}\n", encoding="utf-8")


def add(model: str, preset: str, lengths: list[int], seed: int, *, again: bool, keep: str | None) -> None:
    """Measure the lengths that the file does not have, and write it after each."""
    usual = settings_of(load_run_config(model, preset=preset))
    for steps in lengths:
        found, name = read_references(RUNS), f"{model}/{preset}"
        kept = found[name].runs if name in found and found[name].settings == usual else []
        if any(run.steps == steps for run in kept) and not again:
            print(f"{name}: {steps} steps are measured", flush=True)
            continue
        with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as folder:
            run = measured(load_run_config(model, preset=preset, overrides=settings(steps, seed, folder)))
        others = [other for other in kept if other.steps != run.steps]
        found[name] = Reference(settings=usual, runs=sorted([*others, run], key=lambda one: one.dialogs))
        write(found)
        print(f"{name}: {run}", flush=True)


def leave_one_out() -> None:
    """Print the error of the forecast of each run from the shorter and the longer ones."""
    for name, reference in read_references(RUNS).items():
        for number, run in enumerate(reference.runs[1:-1], start=1):
            others = [*reference.runs[:number], *reference.runs[number + 1 :]]
            forecast = reference.model_copy(update={"runs": others}).forecast(run.dialogs)
            error = forecast.bits_per_byte - run.bits_per_byte
            print(f"{name}, {run.steps} steps: {forecast.bits_per_byte:.3f}, {error:+.3f} from the measured one")


def check(seconds: float) -> None:
    """Plan, train what the plan proposes, and print both."""
    planned = plan(budget_s=seconds)
    row = planned.row
    with tempfile.TemporaryDirectory() as folder:
        overrides = {**QUIET, "train.budget_s": seconds, "runtime.output_dir": folder}
        result = train(load_run_config(row.model, preset=planned.preset, overrides=overrides))
    print(f"{row.model}: forecast {row.steps} steps, {row.forecast}")
    print(f"really {result.steps} steps, {result.metrics['final/bits_per_byte']:.3f} bits per byte")


def main() -> None:
    """Measure what is named, or how good the forecasts are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--preset", default="talk")
    parser.add_argument("--steps", nargs="+", type=int, default=[75, 150, 300, 600, 1200, 2400])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="measure also what the file has")
    parser.add_argument("--keep", metavar="FOLDER", help="keep the runs there, to evaluate them")
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("--check", type=float, metavar="SECONDS")
    words = parser.parse_args()
    for model in words.models:
        add(model, words.preset, words.steps, words.seed, again=words.again, keep=words.keep)
    if words.leave_one_out:
        leave_one_out()
    if words.check is not None:
        check(words.check)


if __name__ == "__main__":
    main()
