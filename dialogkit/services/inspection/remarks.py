"""What could be improved about a dataset, judging by its statistics."""

import math
from collections.abc import Iterator
from pathlib import Path

from dialogkit.config.run import RunConfig
from dialogkit.data.split import held_out_remark
from dialogkit.services.inspection.results import InspectResult
from dialogkit.text import counted, listed, percentage_of
from dialogkit.tracking.metric_specs import FEW

FEW_DIALOGS = 100
"""A model that is trained on fewer dialogs can do little but memorise them."""
FEW_STEPS, ENOUGH_STEPS = 100, 300
"""Steps below which a model hardly learns the format, and steps after which it does."""
MOST_EPOCHS = 30
"""Most passes that are suggested: more only memorise the dialogs."""
LONGEST_CONTEXT = 32_768
"""Longest context that is suggested."""


def enough_epochs(steps: int) -> int:
    """Return the passes that are suggested where one takes these steps: more than one if a pass is too short."""
    return 1 if steps >= FEW_STEPS else min(MOST_EPOCHS, math.ceil(ENOUGH_STEPS / steps))


def remarks(result: InspectResult, config: RunConfig) -> Iterator[str]:
    """Yield what could be improved about a dataset."""
    yield from result.notes
    yield from _lost(result, config)
    yield from _duplicates(result)
    yield from _few_dialogs(result, from_scratch=config.model.from_scratch)
    yield from _held_out(result)
    yield from _checks(result)
    yield from _texts(result, config)


def _lost(result: InspectResult, config: RunConfig) -> Iterator[str]:
    """Yield what training leaves out."""
    if result.unusable:
        share = percentage_of(result.unusable, result.rows)
        yield (
            f"{counted(result.unusable, 'row')} ({share}) without a usable dialog, left out; the first: "
            f"{result.unusable_rows[0]}"
        )
    if result.dropped:
        yield (
            f"{counted(result.dropped, 'dialog')} without supervision, left out: the prompt alone fills "
            f"{result.limit:,} tokens. Shorten it, or give the model a longer context"
        )
    if result.cut_share >= 0.01:
        advice = _longer(result, config)
        yield f"{result.cut_share:.1%} of the dialogs are cut at {result.limit:,} tokens: {advice}"


def _longer(result: InspectResult, config: RunConfig) -> str:
    """Return how to keep more of the long dialogs."""
    needed = 2 ** (round(result.lengths.percentile_99) - 1).bit_length()
    if result.limit < result.context:
        return f"set data.max_tokens={min(needed, result.context)}"
    if config.model.from_scratch and result.limit < needed <= LONGEST_CONTEXT:
        return f"set model.context={needed} to keep 99% of them whole, at the cost of time and memory"
    return "split them, or choose a model with a longer context"


def _duplicates(result: InspectResult) -> Iterator[str]:
    copies, dialogs = result.copies, result.train.dialogs + result.held_out.dialogs
    if copies.exact:
        yield (
            f"{counted(copies.exact, 'exact duplicate')} ({percentage_of(copies.exact, dialogs)}): remove them, "
            "unless these dialogs are meant to weigh more than others"
        )
    if (extra := copies.near - copies.near_groups) >= 0.01 * dialogs:
        yield (
            f"{copies.near:,} dialogs are near duplicates, in {counted(copies.near_groups, 'group')}: keeping one "
            f"of each group removes {extra:,} ({percentage_of(extra, dialogs)})"
        )


def _few_dialogs(result: InspectResult, *, from_scratch: bool) -> Iterator[str]:
    kept, held_out = result.kept, result.held_out.dialogs
    if kept < FEW_DIALOGS:
        outcome = "memorises them at best" if from_scratch else "picks up little more than their style"
        yield (
            f"only {counted(kept, 'dialog')}: enough to try everything out, but a model {outcome}; collect "
            "hundreds, or better thousands"
        )
    if result.epochs is not None:
        yield (
            f"one pass is only {counted(result.steps, 'step')}, too few to learn from: "
            f"{result.epochs:,} passes make {result.steps * result.epochs:,}"
        )
    too_many = held_out_remark(held_out, kept)
    if held_out < FEW:
        few = "metrics on so few say little about a model, and not which of two models is better"
        yield f"{too_many}. But {few}" if too_many else f"only {counted(held_out, 'dialog')} held out: {few}"
    elif too_many:
        yield too_many


def _held_out(result: InspectResult) -> Iterator[str]:
    overlap, held_out = result.overlap, result.held_out.dialogs
    many_templates = overlap.template >= 0.1 * held_out
    known = [f"{overlap.prompt:,} by the prompt"] if overlap.prompt else []
    known += [f"{overlap.near:,} as near duplicates"] if overlap.near else []
    if known and max(overlap.prompt, overlap.near) >= 0.01 * held_out:
        known += [f"{overlap.template:,} but for names or numbers"] if many_templates else []
        yield (
            f"of {counted(held_out, 'held-out dialog')}, training knows {listed(known)}: their metrics look "
            "better than they are. Remove duplicates, and keep each prompt in one dialog"
        )
    elif many_templates:
        yield (
            f"{overlap.template:,} of {counted(held_out, 'held-out dialog')} differ from a training prompt only "
            "in names or numbers: their metrics show how well the pattern is known, not how well the model answers"
        )


def _checks(result: InspectResult) -> Iterator[str]:
    """Yield what makes the checks of answers say little."""
    checked = result.checked
    if checked.failed:
        yield (
            f"{checked.failed:,} of {counted(checked.tried, 'checked answer')} without what their own check asks "
            f"for, the first at {checked.failed_places[0]}: a reply like that counts as wrong"
        )
    if checked.echoed and checked.echoed >= 0.01 * checked.tried:
        yield (
            f"{checked.echoed:,} of {counted(checked.tried, 'check')} hold for the question too: a reply that "
            "only repeats it counts as right. Where that is wrong, check a pattern"
        )


def _texts(result: InspectResult, config: RunConfig) -> Iterator[str]:
    if result.supervised_share < 0.1:
        yield (
            f"only {result.supervised_share:.1%} of the tokens are learned, and the others take as much time: "
            "shorten what precedes the answers, such as a system prompt that is always the same"
        )
    if result.bytes_per_token < 2:
        yield f"a token covers only {result.bytes_per_token:.1f} bytes of this text: {_better_tokenizer(config)}"
    if result.broken:
        yield (
            f"{counted(result.broken, 'dialog')} with control characters, marks that reorder text, or U+FFFD in "
            f"place of a lost character, the first at {result.broken_places[0]}: check how the file was made"
        )


def _better_tokenizer(config: RunConfig) -> str:
    if not config.model.from_scratch:
        return "a model that knows these letters learns faster"
    if not Path(config.data.dataset).expanduser().is_file():
        return "a tokenizer trained on it fits more into the context, and learning is faster"
    return "train a tokenizer on this file and set model.tokenizer to its folder, to fit more into the context"
