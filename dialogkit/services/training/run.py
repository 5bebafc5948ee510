"""The work of a training between its record and its end: measure, train, measure again, publish.

`Training` is that of the first process, which speaks and writes; `follow` is the part of each other one. What
takes all processes (a model that is measured, `share`) stands in both in the same order.
"""

import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogkit.config.run import RunConfig
from dialogkit.distributed.stop_signals import signals_stop
from dialogkit.errors import CheckpointError, ConfigError, OutOfMemoryError, StorageError
from dialogkit.inference.results import ReplyResult
from dialogkit.services.result import Result
from dialogkit.services.runs.report import write_run_report
from dialogkit.services.runs.resolve import known_as
from dialogkit.services.training.learner import Parts
from dialogkit.services.training.loss_bands import Watch
from dialogkit.services.training.model_card import model_card
from dialogkit.services.training.progress import TrainReporter
from dialogkit.services.training.recorder import Recorder, reply_statistics
from dialogkit.system.files import ordinary_permissions, write_text
from dialogkit.system.ownership import free_name
from dialogkit.text import counted
from dialogkit.tracking.publishing import (
    is_publishable,
    keep_foreign_model,
    publish,
    published_dir,
    replace_folder,
)
from dialogkit.tracking.record import RunRecord, now
from dialogkit.tracking.run_dir import RunDir
from dialogkit.tracking.trackers import tracker_places
from dialogkit.tracking.wandb_run import WandbRun

if TYPE_CHECKING:
    from dialogkit.engine.arguments import Schedule
    from dialogkit.engine.budget import Budget
    from dialogkit.engine.checkpoints import Progress
    from dialogkit.engine.fit import FitResult


class TrainResult(Result):
    """What a training left, and its figures."""

    run: str
    run_dir: str
    model_dir: str
    """The run's own model folder."""
    published_dir: str
    """The folder of the newest finished model of this name."""
    report: str | None
    """The run as one HTML page; None if it was not asked for or could not be written."""
    steps: int
    duration_s: float
    metrics: dict[str, float]
    """`final/...` figures on the held-out dialogs in float32, `before/...` the same before the first step."""
    replies: list[ReplyResult]
    success_rate: float
    """Share of the test prompts with a reply that is not empty."""
    stop_rate: float
    """Share of the replies that ended by themselves."""
    wandb_mode: str
    wandb_dir: str | None
    wandb_url: str | None


class Training:
    """The training of the first process, or of the only one."""

    def __init__(
        self,
        parts: Parts,
        run: RunDir,
        record: RunRecord,
        wandb_run: WandbRun,
        reporter: TrainReporter,
        *,
        started: float,
        checkpoint: "tuple[Path, Progress] | None",
    ) -> None:
        """Take what a training consists of, and split its batch where it does not fit into the memory.

        Every process comes here at the same time: all tell what memory they have.

        Args:
            parts: model, data and how they are trained.
            run: its folder.
            record: what is kept of it; completed as it goes.
            wandb_run: its W&B run.
            reporter: takes what happens.
            started: when it began, by `time.perf_counter`.
            checkpoint: where it goes on; None at its beginning.

        Raises: OutOfMemoryError where it cannot fit.
        """
        self.parts, self.run, self.record, self.wandb_run, self.reporter = parts, run, record, wandb_run, reporter
        self._started, self._checkpoint = started, checkpoint
        # Of a budget the steps are known once the speed is.
        self._limited = parts.config.train.budget_s is not None
        self._told_steps: int | None = None
        self._split = parts.require_memory()
        self.recorder = Recorder(
            run,
            wandb_run,
            reporter,
            total_steps=None if self._limited else parts.schedule.total_steps,
            flops_per_token=parts.flops_per_token(),
            peak_flops=parts.peak_flops(),
        )
        self._watch = Watch(self.config)
        self._held_out = counted(len(parts.data.evaluation), "held-out dialog")

    @property
    def config(self) -> RunConfig:
        """The settings, in which the batch may be split into more parts than was asked for."""
        return self.parts.config

    def complete(self) -> tuple[TrainResult, Any]:
        """Train to the end; return the result and HF's trainer. Raises: DialogKitError."""
        from dialogkit.distributed import process_group

        self._record_facts()
        self._tell_facts()
        aside_s = 0.0  # of a run that goes on it is known from what the checkpoint has of the plan
        if self._checkpoint is None:
            aside_s = self._measure_untrained()
        else:
            folder, progress = self._checkpoint
            self.recorder.note(f"goes on from step {progress.step}, {folder.name}")
        budget = process_group.share(self._budget(aside_s))
        with tracker_places(self.run.path, Path(self.config.runtime.output_dir), self.config.tracking.project):
            try:
                fitted = self._fit(budget)
            finally:
                self.record.data = self.parts.data_facts()  # of a stream they are known only now
        if self.parts.streamed:
            self.recorder.note(self.parts.ledger_line())
        self.parts.merge()
        metrics, replies = self._measure_trained(fitted)
        target = self._publish(fitted, metrics, replies)
        self._close()
        result = self._result(fitted, replies, target, self._write_report())
        for line in _closing_lines(result):
            self.run.append_console(line)
        return result, fitted.trainer

    def _record_facts(self) -> None:
        record, parts = self.record, self.parts
        record.config = self.config.model_dump(mode="json")
        record.model, record.data = parts.model_facts, parts.data_facts()
        if self._checkpoint is None or not self._limited:
            record.schedule = asdict(parts.schedule)
        self.run.write(record)
        self.wandb_run.update_config(
            {
                "model_facts": record.model,
                "data_facts": record.data,
                "runtime_facts": record.runtime,
                "schedule": record.schedule,
                "environment": record.environment,
                "versions": record.versions,
                "origins": record.origins,
                "command": " ".join(record.command),
            }
        )

    def _tell_facts(self) -> None:
        parts = self.parts
        self.recorder.header(parts.header(self.run, self.wandb_run))
        for line in (parts.ledger_line(), *parts.warnings(), *([self._split] if self._split else [])):
            self.recorder.note(line)
        asked, there = self.config.data.samples or 0, parts.data.size
        if there is not None and asked > there and self.record.origins.get("data.samples") == "command line":
            self.recorder.note(f"{counted(asked, 'dialog')} were asked for, and {there:,} are there to train on")

    def _measure_untrained(self) -> float:
        """Record the figures before the first step; return the seconds that this takes, as it will at the end."""
        allowed_s, spent_s = self.config.train.budget_s, time.perf_counter() - self._started
        if allowed_s is not None and spent_s >= allowed_s:
            raise ConfigError(
                f"a budget of {allowed_s:,.0f} s leaves no time to train: the start alone took {spent_s:,.0f} s",
                hint=f"--budget {max(60, round(10 * spent_s))}s",
            )
        self.reporter.doing(f"measuring the untrained model on {self._held_out}")
        self.recorder.histograms(0, {"data/dialog_tokens": self.parts.length_histogram()})
        measured = time.perf_counter()
        before = self.parts.score(autocast=False)
        if self._limited:
            self.reporter.doing("answering the test prompts, to know how long that takes")
            self.parts.reply_to_tests()
        aside_s = time.perf_counter() - measured
        untrained = {"train/tokens": 0.0, "train/supervised_tokens": 0.0}
        self.recorder.point(0, {f"eval/{name}": value for name, value in before.items()} | untrained)
        self.record.metrics = {f"before/{name}": value for name, value in before.items()}
        self.run.write(self.record)
        return aside_s

    def _budget(self, aside_s: float) -> "Budget | None":
        allowed_s = self.config.train.budget_s
        if allowed_s is None:
            return None
        from dialogkit.engine.budget import Budget

        if (told := costly_evaluations(allowed_s, aside_s, len(self.parts.data.evaluation))) is not None:
            self.recorder.note(told)
        return Budget(allowed_s, self._started, evaluation_s=aside_s, end_s=aside_s)

    def _fit(self, budget: "Budget | None") -> "FitResult":
        """Train; where the memory does not suffice and the settings allow it, go on with a batch in more parts."""
        from dialogkit.engine.checkpoints import newest_valid

        parts, checkpoint = self.parts, self._checkpoint
        while True:
            try:
                fitted: FitResult = parts.fit(
                    folder=self.run.path,
                    sink=self._take_point,
                    histograms=self.recorder.histograms,
                    resume_from=checkpoint,
                    budget=budget,
                    planned=self._take_plan,
                )
                return fitted
            except OutOfMemoryError as error:
                alone = parts.runtime.processes == 1  # what one process runs out of, the others may have
                if not (alone and self.config.train.fit_batch and parts.split_finer()):
                    raise
                told = error.message
            # Outside the handler, whose traceback holds on to what filled the memory.
            checkpoint = newest_valid(self.run.path)
            step = checkpoint[1].step if checkpoint else 0
            self.run.cut_after(step)
            parts.begin_again()
            self.record.config = self.config.model_dump(mode="json")
            self.run.write(self.record)
            at_once = counted(self.config.train.batch_size // self.config.train.accumulation_steps, "dialog")
            self.recorder.note(f"{told}; goes on from step {step} with {at_once} at once")

    def _take_point(self, step: int, metrics: dict[str, float]) -> None:
        from dialogkit.engine.callbacks import EvaluationLeft

        replies = _replies_at(self.parts, metrics)
        if replies is not None and self.parts.leaves():
            raise EvaluationLeft  # they were cut short: the whole evaluation is made when the run goes on
        self.recorder.point(step, metrics)
        if (told := self._watch.point(step, metrics)) is not None:
            self.recorder.note(told)
        if replies is not None:
            self.recorder.replies(step, replies, table="replies/evaluation")
            self.recorder.talk(step, replies)

    def _take_plan(self, schedule: "Schedule") -> None:
        self.recorder.total_steps = schedule.total_steps
        if self._told_steps is not None and schedule.total_steps > 0.9 * self._told_steps:
            return
        self._told_steps = schedule.total_steps
        self.record.schedule = asdict(schedule)
        self.run.write(self.record)
        self.recorder.note(
            f"to end in time: about {counted(schedule.total_steps, 'step')}, "
            f"{round(self.config.train.warmup_fraction * schedule.total_steps):,} of them warm-up, "
            f"with an evaluation each {schedule.eval_every_steps:,}"
        )

    def _measure_trained(self, fitted: "FitResult") -> tuple[dict[str, float], list[ReplyResult]]:
        """Return the figures of the finished model and what it answers to the test prompts."""
        parts, record = self.parts, self.record
        self.reporter.doing(f"measuring the trained model on {self._held_out}")
        record.schedule["total_steps"] = fitted.steps if self._limited else parts.schedule.total_steps
        final = parts.score(autocast=False)
        metrics = {
            **{name: value for name, value in record.metrics.items() if name.startswith("before/")},
            **{f"final/{name}": value for name, value in final.items()},
            "train/steps": fitted.steps,
            "train/tokens": fitted.tokens,
            "train/supervised_tokens": fitted.supervised_tokens,
            "train/seconds": fitted.train_s,
            "perf/tokens_per_s": fitted.tokens / max(fitted.train_s, 1e-9),
        }
        self.reporter.doing("answering the test prompts")
        replies = parts.reply_to_tests()
        held_out = parts.reply_to_held_out(self.config.tracking.held_out_replies)
        self.recorder.replies(fitted.steps, replies + held_out, table="replies/final")
        self.run.require_there()  # saving the model would make its folder anew
        return metrics, replies

    def _publish(self, fitted: "FitResult", metrics: dict[str, float], replies: list[ReplyResult]) -> Path:
        """Write the model into the run and publish it; return the folder of the newest model of its name.

        Raises: StorageError, which says where the model lies whole if it could not be published.
        """
        from dialogkit.distributed.sharding import save_model

        self.record.metrics, self.record.replies = metrics, reply_statistics(replies)

        def save(folder: Path) -> None:
            save_model(fitted.trainer, folder)
            self.parts.tokenizer.save(folder)
            write_text(folder / "README.md", model_card(self.record))
            ordinary_permissions(folder)

        run, resumed = self.run, f"dialogkit train --resume {known_as(self.run)}"
        target = published_dir(Path(self.config.runtime.output_dir), self.config.model.name)
        told, hint = "the run is trained to its end and can be resumed", resumed
        try:
            problems = keep_foreign_model(run.model_dir)
            problems += replace_folder(run.model_dir, save)
            told = f"the finished model lies whole in {str(run.model_dir)!r}, and --resume publishes it"
            if not is_publishable(target):
                hint = f"mv {shlex.quote(str(target))} {shlex.quote(str(free_name(target)))} && {resumed}"
            problems += publish(run.model_dir, target)
        except StorageError as error:
            refused = StorageError(f"{error.message}; {told}", hint=hint)
            refused.exit_code = 1  # all the work is done
            raise refused from None
        for problem in problems:
            self.recorder.note(problem)
        return target

    def _close(self) -> None:
        """Record that all is done, in the run's folder and in W&B."""
        record = self.record
        record.status, record.exit_code = "completed", 0
        record.finished, record.duration_s = now(), time.perf_counter() - self._started
        self.wandb_run.summarize(
            {
                **record.metrics,
                **{f"replies/{name}": value for name, value in record.replies.items()},
                "status": record.status,
                "created": record.created,
                "finished": record.finished,
                "duration_s": record.duration_s,
            }
        )
        if self.config.tracking.log_model:
            self.wandb_run.log_model(self.config.model.name, self.run.model_dir)
        self.run.write(record)  # before W&B, which may be waited for
        self.wandb_run.finish(exit_code=0)

    def _write_report(self) -> str | None:
        """Write the run as a page; return where it is, None where it was not asked for or could not be written."""
        if not self.config.tracking.report:
            return None
        unwritten = write_run_report(self.run)
        if unwritten is None:
            return str(self.run.report_path)
        line = f"warning: the report could not be written ({unwritten}); dialogkit runs report {self.run.name}"
        self.reporter.note(line)
        with suppress(CheckpointError):  # as where the disk is full
            self.run.append_console(line)
        return None

    def _result(
        self, fitted: "FitResult", replies: list[ReplyResult], target: Path, report: str | None
    ) -> TrainResult:
        wandb_dir = self.wandb_run.folder
        return TrainResult(
            run=self.run.name,
            run_dir=str(self.run.path),
            model_dir=str(self.run.model_dir),
            published_dir=str(target),
            report=report,
            steps=fitted.steps,
            duration_s=self.record.duration_s or 0.0,
            metrics=self.record.metrics,
            replies=replies,
            success_rate=self.record.replies.get("success_rate", 0.0),
            stop_rate=self.record.replies.get("stop_rate", 0.0),
            wandb_mode=self.wandb_run.mode,
            wandb_dir=str(wandb_dir) if wandb_dir else None,
            wandb_url=self.wandb_run.url,
        )


def costly_evaluations(budget_s: float, evaluation_s: float, dialogs: int) -> str | None:
    """Return what to tell where evaluations take much of a budget: at the start, after training, at the end."""
    share = 3 * evaluation_s / budget_s
    if share < 0.25:
        return None
    fewer = max(50, 50 * round(dialogs * 0.1 / share / 50))  # take a tenth, in fifties
    if fewer >= dialogs:
        return None
    return (
        f"three evaluations of {dialogs:,} dialogs take {min(share, 1):.0%} of the budget: "
        f"--set data.eval_max_dialogs={fewer} leaves more of it to train"
    )


def _replies_at(parts: Parts, metrics: Mapping[str, float]) -> list[ReplyResult] | None:
    """Return short replies of the model as it stands at an evaluation; None at another point, or without any."""
    tracking = parts.config.tracking
    asked, held_out = tracking.replies_at_evaluations, tracking.held_out_replies
    if not asked + held_out or "eval/nats_per_token" not in metrics:
        return None
    return parts.reply_to_tests(asked, longest=32) + parts.reply_to_held_out(held_out, longest=32)


def follow() -> tuple[Any, Any]:
    """Do the part of a training that falls to another process than the first: without a word, or a file."""
    from dialogkit.distributed import process_group
    from dialogkit.distributed.sharding import save_model
    from dialogkit.engine.device import resolve_runtime

    with process_group.end_together(), signals_stop() as raise_lost_stop:
        told = process_group.share(None)
        if told is None:  # the run is finished
            return None, None
        config, folder = told
        process_group.begin_run(folder)
        parts = Parts(config, resolve_runtime(config.runtime), raise_lost_stop=raise_lost_stop)
        checkpoint = process_group.share(None)
        parts.require_memory()
        if checkpoint is None:
            parts.score(autocast=False)
        budget = process_group.share(None)
        # Each call of a model that is sharded takes all processes.
        sharded = parts.runtime.sharding != "none"

        def sink(step: int, metrics: dict[str, float]) -> None:
            if sharded:
                _replies_at(parts, metrics)

        fitted = parts.fit(folder=folder, sink=sink, resume_from=checkpoint, budget=budget)
        parts.merge()
        parts.score(autocast=False)
        if sharded:
            parts.reply_to_tests()
            parts.reply_to_held_out(config.tracking.held_out_replies)
            save_model(fitted.trainer, folder / "model")
        return process_group.share(None), fitted.trainer


def _closing_lines(result: TrainResult) -> list[str]:
    """Return the end of a run's `console.log`: figures, replies and places."""
    figures = [
        f"{name}: {result.metrics[f'before/{name}']:.4f} before, {result.metrics[f'final/{name}']:.4f} after"
        for name in ("nats_per_token", "perplexity", "bits_per_byte", "accuracy")
    ]
    spoken = [f"> {reply.prompt!r} {reply.reply!r} ({reply.stop_reason})" for reply in result.replies]
    places = [f"model: {result.published_dir}", f"run: {result.run_dir}"]
    places += [f"report: {result.report}"] if result.report else []
    wandb = result.wandb_url or (f"wandb sync {result.wandb_dir}" if result.wandb_dir else None)
    return [*figures, *spoken, *places, *([f"W&B: {wandb}"] if wandb else [])]
