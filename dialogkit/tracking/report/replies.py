"""The replies of the models on a page, at evaluations and at the end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dialogkit.tracking.report.run import PageRun, Text, number, text_of

MOST_STEPS, MOST_PROMPTS = 8, 24
"""Maximum number of evaluations per prompt in the diary, and of prompts."""

LONGEST_REFERENCE = 300
"""Maximum number of characters shown of a true answer."""


class Entry(NamedTuple):
    """A reply at a step."""

    when: str
    reply: Text
    how: str
    """How it ended."""
    is_kept: bool = False
    """Whether the weights of this step were kept, and not the last ones."""


class Answered(NamedTuple):
    """A prompt and the replies of each run, with the true answer if the prompt is from a held-out dialog."""

    prompt: Text
    reference: Text | None
    replies: list[list[Entry]]


def diary_of(runs: Sequence[PageRun]) -> list[Answered]:
    """Return the prompts that were answered at evaluations, with the replies throughout training."""
    return _answered(runs, lambda sample: not _at_end(sample), lambda sample: True)


def final_replies_of(runs: Sequence[PageRun]) -> list[Answered]:
    """Return the prompts that were answered at the end."""
    return _answered(runs, _at_end, _at_end)


_Test = Callable[[Mapping[str, Any]], bool]


def _at_end(sample: Mapping[str, Any]) -> bool:
    return sample.get("table") == "replies/final"


def _answered(runs: Sequence[PageRun], asked: _Test, shown: _Test) -> list[Answered]:
    """Return the prompts of the samples that pass one test, with the replies of those that pass another."""
    prompts = list(dict.fromkeys(sample["prompt"] for run in runs for sample in run.samples if asked(sample)))
    made = []
    for prompt in prompts[:MOST_PROMPTS]:
        replies, reference = [], None
        for run in runs:
            # The longer reply at the end replaces the one at the evaluation whose weights were kept.
            by_step: dict[float, Mapping[str, Any]] = {}
            for sample in run.samples:
                step = number(sample.get("step"))
                if sample.get("prompt") == prompt and step is not None and shown(sample):
                    by_step[step] = sample
                    reference = sample.get("reference") if reference is None else reference
            kept = run.record.metrics.get("train/kept_step")
            always = [] if kept is None else [kept]
            chosen = _spread(sorted(by_step), always)
            replies.append([_entry(step, by_step[step], is_kept=step == kept != run.steps) for step in chosen])
        true = None if reference is None else text_of(reference, LONGEST_REFERENCE)
        made.append(Answered(text_of(prompt), true, replies))
    return made


def _spread(steps: list[float], always: Sequence[float]) -> list[float]:
    """Return a few of the steps, evenly spaced, with the first and the last, and those that are always shown."""
    if len(steps) <= MOST_STEPS:
        return steps
    spread = {steps[round(n * (len(steps) - 1) / (MOST_STEPS - 1))] for n in range(MOST_STEPS)}
    return sorted(spread | {step for step in always if step in steps})


def _entry(step: float, sample: Mapping[str, Any], *, is_kept: bool) -> Entry:
    tokens, stopped_by = number(sample.get("tokens")), sample.get("stop_reason")
    how = [str(stopped_by)] if stopped_by else []
    if tokens is not None:
        how.append(f"{tokens:,.0f} token{'' if tokens == 1 else 's'}")
    return Entry(
        f"step {step:,.0f}{', kept' if is_kept else ''}", text_of(sample.get("reply")), ", ".join(how), is_kept
    )
