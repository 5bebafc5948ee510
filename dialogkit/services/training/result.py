"""The result of a run."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from dialogkit.config.base import Result
from dialogkit.inference.results import ReplyResult
from dialogkit.text import counted
from dialogkit.tracking.run_dir import RunDir


class TrainResult(Result):
    """The model, metrics and replies of a run."""

    run: str
    run_dir: str
    model_dir: str
    """The run's own model folder."""
    published_dir: str
    """The folder of the newest finished model of this name."""
    report: str | None
    """Path of the HTML report; None if it was not requested or could not be written."""
    steps: int
    kept_step: int
    """The step whose weights the model has."""
    duration_s: float
    metrics: dict[str, float]
    """`final/...` metrics on the held-out dialogs in float32, `before/...` the same before the first step."""
    replies: list[ReplyResult]
    held_out_replies: list[ReplyResult] = Field(default_factory=list)
    """Replies to held-out prompts, with the answers of the dataset."""
    shows_held_out: bool = False
    """Whether these say more than `replies`: the usual test prompts are not meant for your own data."""
    reply_rate: float
    """Fraction of the test prompts with a non-empty reply, right or wrong."""
    stop_rate: float
    """Fraction of the replies that ended by themselves."""
    wandb_mode: str
    wandb_dir: str | None
    wandb_url: str | None
    wandb_dirs: list[str] = Field(default_factory=list)
    """All folders of the W&B run that are not uploaded, oldest first; each start of a resumed run made one."""

    @property
    def shown_replies(self) -> list[ReplyResult]:
        """The replies that say most: to held-out prompts of data of one's own, else to the test prompts."""
        return self.held_out_replies if self.shows_held_out else self.replies

    @property
    def steps_in_words(self) -> str:
        """The number of steps, and the one whose weights are kept if it is not the last."""
        kept = "" if self.kept_step == self.steps else f" (the weights of step {self.kept_step:,} are kept)"
        return f"{counted(self.steps, 'step')}{kept}"

    @property
    def curve(self) -> list[dict[str, float]]:
        """The logged points by step, each with its metrics by name (`train/loss`, `eval/nats_per_token` ...).

        Read from the run's folder: empty once that is gone. `pandas.DataFrame(result.curve)` makes a table of it.
        """
        points: dict[int, dict[str, float]] = {}
        for line in RunDir(Path(self.run_dir)).metrics():
            found = {name: float(value) for name, value in line.items() if name not in ("step", "time")}
            points.setdefault(line["step"], {"step": line["step"]}).update(found)
        return [points[step] for step in sorted(points)]

    def repr_fields(self) -> Iterable[tuple[str, Any]]:
        """Return the run, what it learned, and how long it took."""
        yield "run", self.run
        for when in ("before", "final"):
            yield f"{when}_bits_per_byte", self.metrics.get(f"{when}/bits_per_byte")
        yield from (("steps", self.steps), ("duration_s", self.duration_s), ("published_dir", self.published_dir))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from dialogkit.services import display

        return display.training(self)

    @property
    def wandb_place(self) -> str | None:
        """The page of the W&B run, or the shell command that uploads all of it; None without W&B."""
        if self.wandb_url or self.wandb_dir is None:
            return self.wandb_url
        return shlex.join(["wandb", "sync", *(self.wandb_dirs or [self.wandb_dir])])


def closing_lines(result: TrainResult) -> list[str]:
    """Return the end of a run's `console.log`: metrics, replies and places."""
    metrics = [
        f"{name}: {result.metrics[f'before/{name}']:.4f} before, {result.metrics[f'final/{name}']:.4f} after"
        for name in ("nats_per_token", "perplexity", "bits_per_byte", "accuracy", "right_answers")
        if {f"before/{name}", f"final/{name}"} <= result.metrics.keys()
    ]
    replies = [
        f"> {reply.prompt!r} {reply.reply!r} ({reply.stop_reason})"
        + (f", true answer {reply.reference!r}" if reply.reference is not None else "")
        for reply in result.shown_replies
    ]
    kept = "" if result.kept_step == result.steps else f"kept: the weights of step {result.kept_step:,}"
    places = [*([kept] if kept else []), f"model: {result.published_dir}", f"run: {result.run_dir}"]
    places += [f"report: {result.report}"] if result.report else []
    wandb = result.wandb_place
    return [*metrics, *replies, *places, *([f"W&B: {wandb}"] if wandb else [])]
