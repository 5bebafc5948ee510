"""The replies of the models on a page, at evaluations and at the end."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dialogkit.tracking.report.run import Seen, Text, number, text_of

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


class Answered(NamedTuple):
    """A prompt and the replies of each run, with the true answer if the prompt is from a held-out dialog."""

    prompt: Text
    reference: Text | None
    said: list[list[Entry]]


def diary_of(runs: Sequence[Seen]) -> list[Answered]:
    """Return the prompts that were answered at evaluations, with the replies over the training."""
    asked = [sample.get("prompt") for run in runs for sample in run.samples if not _at_end(sample)]
    return _answered(runs, asked, lambda sample: True)


def final_replies_of(runs: Sequence[Seen]) -> list[Answered]:
    """Return the prompts that were answered at the end."""
    asked = [sample.get("prompt") for run in runs for sample in run.samples if _at_end(sample)]
    return _answered(runs, asked, _at_end)


def _at_end(sample: Mapping[str, Any]) -> bool:
    return sample.get("table") == "replies/final"


def _answered(
    runs: Sequence[Seen], prompts: Iterable[object], which: Callable[[Mapping[str, Any]], bool]
) -> list[Answered]:
    texts = list(dict.fromkeys(prompt for prompt in prompts if isinstance(prompt, str)))
    made = []
    for prompt in texts[:MOST_PROMPTS]:
        said, reference = [], None
        for run in runs:
            # The longer reply at the end replaces the one at the last evaluation.
            by_step: dict[float, Mapping[str, Any]] = {}
            for sample in run.samples:
                step = number(sample.get("step"))
                if sample.get("prompt") == prompt and step is not None and which(sample):
                    by_step[step] = sample
                    reference = sample.get("reference") if reference is None else reference
            said.append([_entry(step, by_step[step]) for step in _spread(sorted(by_step))])
        true = None if reference is None else text_of(reference, LONGEST_REFERENCE)
        made.append(Answered(text_of(prompt), true, said))
    return made


def _spread(steps: list[float]) -> list[float]:
    """Return a few of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= MOST_STEPS:
        return steps
    return [steps[round(n * (len(steps) - 1) / (MOST_STEPS - 1))] for n in range(MOST_STEPS)]


def _entry(step: float, sample: Mapping[str, Any]) -> Entry:
    tokens, stopped_by = number(sample.get("tokens")), sample.get("stop_reason")
    how = [str(stopped_by)] if stopped_by else []
    if tokens is not None:
        how.append(f"{tokens:,.0f} token{'' if tokens == 1 else 's'}")
    return Entry(f"step {step:,.0f}", text_of(sample.get("reply")), ", ".join(how))
