"""Hands everything that a run tells to its folder, to W&B and to who is watching."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from dialogkit.inference.results import ReplyResult
from dialogkit.services.training.progress import TrainReporter, step_line
from dialogkit.system.memory import process_memory_bytes
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from dialogkit.engine.histograms import Histogram

REPLY_COLUMNS = ("prompt", "reply", "reference", "tokens", "seconds", "tokens_per_s", "stop_reason", "repetition")


TALK_CURVES = ("stop_rate", "empty_rate", "mean_repetition")
"""What is recorded of the replies at each evaluation."""


class Recorder:
    """The three places in which a run is recorded; what a terminal shows is kept in the folder as well."""

    def __init__(
        self,
        run: RunDir,
        wandb_run: WandbRun,
        reporter: TrainReporter,
        *,
        total_steps: int | None,
        flops_per_token: float,
        peak_flops: float | None,
    ) -> None:
        self._run, self._wandb, self._reporter = run, wandb_run, reporter
        self.total_steps = total_steps
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops

    def header(self, facts: Mapping[str, str]) -> None:
        """Record the facts that stand over a run."""
        for name, value in facts.items():
            self._run.append_console(f"{name:9}  {value}")
        self._reporter.header(facts)

    def note(self, text: str) -> None:
        """Record a line."""
        self._run.append_console(text)
        self._reporter.note(text)

    def point(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at an optimizer step."""
        metrics = dict(metrics)
        if (speed := metrics.get("perf/tokens_per_s")) is not None:
            if self._peak_flops:
                metrics["perf/mfu"] = speed * self._flops_per_token / self._peak_flops
            if (held := process_memory_bytes()) is not None:
                metrics["system/memory_bytes"] = held
        self._run.append_metrics(step, metrics)
        self._wandb.log(step, metrics)
        if (line := step_line(step, self.total_steps, metrics)) is not None:
            self._run.append_console(line)
        self._reporter.step(step, self.total_steps, metrics)

    def histograms(self, step: int, histograms: Mapping[str, "Histogram"]) -> None:
        """Record histograms."""
        self._run.append_histograms(step, histograms)
        self._wandb.log_histograms(step, histograms)

    def replies(self, step: int, replies: Sequence[ReplyResult], *, table: str) -> None:
        """Record replies to the test prompts."""
        for reply in replies:
            self._run.append_sample({"step": step, "table": table, **reply.model_dump()})
        rows = [[getattr(reply, column) for column in REPLY_COLUMNS] for reply in replies]
        self._wandb.log_table(table, REPLY_COLUMNS, rows, step=step)

    def talk(self, step: int, replies: Sequence[ReplyResult]) -> None:
        """Record how the replies at an evaluation are: curves beside the loss."""
        statistics = reply_statistics(replies)
        shown = {f"talk/{name}": statistics[name] for name in TALK_CURVES if name in statistics}
        self._run.append_metrics(step, shown)
        self._wandb.log(step, shown)


def reply_statistics(replies: Sequence[ReplyResult]) -> dict[str, float]:
    """Return success rate, stop rate and means over replies; empty without any."""
    if not replies:
        return {}
    return {
        "success_rate": fmean(reply.succeeded for reply in replies),
        "stop_rate": fmean(reply.stop_reason == "end of turn" for reply in replies),
        "mean_tokens": fmean(reply.tokens for reply in replies),
        "mean_seconds": fmean(reply.seconds for reply in replies),
        "mean_repetition": fmean(reply.repetition for reply in replies),
        "empty_rate": fmean(not reply.reply.strip() for reply in replies),
    }
