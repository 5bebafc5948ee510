"""Records a run in its folder and in W&B, and reports its progress."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING

from dialogkit.engine.flops import peak_flops
from dialogkit.hints import Call, Change
from dialogkit.inference.results import ReplyResult
from dialogkit.services.planning.remarks import GOOD_BATCH, larger_batch, outlook
from dialogkit.services.training.gpu_use import GpuUse
from dialogkit.services.training.loss_bands import LossMonitor
from dialogkit.services.training.progress import step_line
from dialogkit.services.training.samples import answer_checked, replies_at_evaluation
from dialogkit.services.training.summary import data_info, flops_per_token, header, ledger_line, warnings
from dialogkit.system.memory import process_memory_bytes
from dialogkit.text import counted
from dialogkit.tracking.record import DataInfo, ModelInfo, ScheduleInfo

if TYPE_CHECKING:
    from dialogkit.engine.arguments import StepCounts
    from dialogkit.engine.histograms import Histogram
    from dialogkit.services.training.lifecycle import TrainingRun
    from dialogkit.services.training.setup import TrainingSetup

REPLY_COLUMNS = ("prompt", "reply", "reference", "tokens", "seconds", "tokens_per_s", "stop_reason", "repetition")
TALK_CURVES = ("stop_rate", "empty_rate", "mean_repetition")
"""Statistics of the replies that are recorded at each evaluation."""


class Recorder:
    """Records a run in its folder and in W&B, and reports its progress.

    Everything that a terminal shows is also in the run's `console.log`.
    """

    def __init__(self, run: "TrainingRun", setup: "TrainingSetup") -> None:
        self._run, self._setup = run, setup
        self._folder, self._wandb, self._reporter = run.folder, run.wandb_run, run.reporter
        self._limited = run.config.train.budget_s is not None
        # With a time budget, unknown until the speed is measured.
        self._total_steps = None if self._limited else setup.schedule.total_steps
        self._noted_steps: int | None = None
        self._flops_per_token = flops_per_token(setup)
        self._peak_flops = peak_flops(setup.runtime.device_name, setup.runtime.precision)
        self._loss_monitor = LossMonitor(setup.config)
        self._gpu = GpuUse()

    def begin(self, split: str | None) -> None:
        """Record and print the header, the data ledger and the warnings of the run.

        Args:
            split: a note on how the batch was split to fit into memory; None if it was not.
        """
        self._info()
        for name, value in (lines := header(self._setup, self._folder, self._wandb)).items():
            self._folder.append_console(f"{name:9}  {value}")
        self._reporter.header(lines)
        self._run.note(ledger_line(self._setup))
        for warning in (*warnings(self._setup, self._reporter.advice), *([split] if split else [])):
            self._run.note(warning)
        asked, size = self._setup.config.data.samples or 0, self._setup.data.size
        if size is not None and asked > size and self._run.record.origins.get("data.samples") == "command line":
            requested = f"{counted(asked, 'dialog')} were requested"
            self._run.note(f"{requested}, but only {size:,} are available to train on")
        if self._run.checkpoint is not None:
            folder, progress = self._run.checkpoint
            self._run.note(f"resuming from step {progress.step}, {folder.name}")

    def _info(self) -> None:
        """Record the model, the data and the schedule."""
        run, record, setup = self._run, self._run.record, self._setup
        record.config = setup.config.model_dump(mode="json")
        record.model, record.data = ModelInfo(**setup.model_info), DataInfo(**data_info(setup))
        if run.checkpoint is None or not self._limited:
            record.schedule = ScheduleInfo(**asdict(setup.schedule))
        self._folder.write(record)
        sections = {f"{name}_facts": getattr(record, name).model_dump() for name in ("model", "data", "runtime")}
        others = record.model_dump(include={"schedule", "environment", "versions", "origins"})
        self._wandb.update_config({**sections, **others, "command": " ".join(record.command)})

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at an optimizer step; at an evaluation, short replies as well.

        Raises: EvaluationAborted if a signal aborts the replies: the evaluation is repeated when the run resumes.
        """
        from dialogkit.engine.callbacks import EvaluationAborted

        replies = replies_at_evaluation(self._setup, metrics)
        if "eval/nats_per_token" in metrics:
            right = answer_checked(self._setup).metrics
            metrics = {**metrics, **{f"eval/{name}": value for name, value in right.items()}}
            if self._setup.should_abort():
                raise EvaluationAborted
        self.point(step, metrics)
        if (warning := self._loss_monitor.point(step, metrics)) is not None:
            self._run.note(warning)
        if replies:
            self.replies(step, replies, table="replies/evaluation")
            statistics = reply_statistics(replies)
            shown = {f"talk/{name}": statistics[name] for name in TALK_CURVES if name in statistics}
            self._folder.append_metrics(step, shown)
            self._wandb.log(step, shown)

    def point(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at an optimizer step."""
        metrics = dict(metrics)
        self._gpu.point(metrics)
        if (speed := metrics.get("perf/tokens_per_s")) is not None:
            if self._peak_flops:
                metrics["perf/mfu"] = speed * self._flops_per_token / self._peak_flops
            if (held := process_memory_bytes()) is not None:
                metrics["system/memory_bytes"] = held
        self._folder.append_metrics(step, metrics)
        self._wandb.log(step, metrics)
        if (line := step_line(step, self._total_steps, metrics)) is not None:
            self._folder.append_console(line)
        self._reporter.step(step, self._total_steps, metrics)

    def gpu_use(self) -> None:
        """Report how busy the GPU was, and a batch that would use more of it."""
        gpu, busy = self._run.record.environment.gpu, self._gpu.busy
        if gpu is None or gpu.memory_bytes is None or busy is None:
            return
        line = f"the GPU computed {busy:.0%} of the time"
        if larger := self._gpu.larger_batch(self._setup.config.train.batch_size, gpu.memory_bytes):
            line += f"; a step of {larger} dialogs might take as long: "
            line += self._reporter.advice(Change({"train.batch_size": larger}))
        self._run.note(line)

    def histograms(self, step: int, histograms: Mapping[str, "Histogram"]) -> None:
        """Record histograms."""
        self._folder.append_histograms(step, histograms)
        self._wandb.log_histograms(step, histograms)

    def replies(
        self, step: int, replies: Sequence[ReplyResult], *, table: str, of_step: int | None = None
    ) -> None:
        """Record replies under the name of a W&B table; `of_step` is that of the weights, if they are older."""
        for reply in replies:
            said_at = step if of_step is None else of_step
            self._folder.append_sample({"step": said_at, "table": table, **reply.model_dump()})
        rows = [[getattr(reply, column) for column in REPLY_COLUMNS] for reply in replies]
        self._wandb.log_table(table, REPLY_COLUMNS, rows, step=step)

    def plan(self, schedule: "StepCounts") -> None:
        """Record the schedule that a time budget allows, if it is new or much shorter."""
        self._total_steps = schedule.total_steps
        if self._noted_steps is not None and schedule.total_steps > 0.9 * self._noted_steps:
            return
        is_first, self._noted_steps = self._noted_steps is None, schedule.total_steps
        self._run.record.schedule = ScheduleInfo(**asdict(schedule))
        self._folder.write(self._run.record)
        self._run.note(
            f"the time budget allows about {counted(schedule.total_steps, 'step')}, "
            f"{round(self._setup.config.train.warmup_fraction * schedule.total_steps):,} of them warm-up, "
            f"with an evaluation every {schedule.eval_every_steps:,}"
        )
        config = self._setup.config
        if is_first and (poor := outlook(config, schedule.total_steps * config.train.batch_size)):
            asked = {"train.budget_s": config.train.budget_s, "data.dataset": config.data.dataset}
            better = self._reporter.advice(Call("plan", settings=asked))
            self._run.note(f"{poor}; whether another model does better in this time: {better}")
        on_cpu = self._run.runtime.device == "cpu"
        if is_first and on_cpu and (note := larger_batch(config, schedule.total_steps)):
            self._run.note(f"{note}: {self._reporter.advice(Change({'train.batch_size': GOOD_BATCH}))}")


def reply_statistics(replies: Sequence[ReplyResult]) -> dict[str, float]:
    """Return reply rate, stop rate and means over replies; empty without any."""
    if not replies:
        return {}
    return {
        "reply_rate": fmean(reply.succeeded for reply in replies),
        "stop_rate": fmean(reply.stop_reason == "end of turn" for reply in replies),
        "mean_tokens": fmean(reply.tokens for reply in replies),
        "mean_seconds": fmean(reply.seconds for reply in replies),
        "mean_repetition": fmean(reply.repetition for reply in replies),
        "empty_rate": fmean(not reply.reply.strip() for reply in replies),
    }
