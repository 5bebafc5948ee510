"""Says which of several models predicts best, by how much, and whether that is more than chance."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dialogkit.config.base import Result
from dialogkit.services.evaluation.results import EvaluateRow, Interval, Scores
from dialogkit.text import listed
from dialogkit.tracking.metric_specs import FEW, best_of

_SETTINGS_SHOWN = 4


class Differing(Result):
    """A setting, a version or a metric with its value in each run; None if a run has none."""

    name: str
    values: list[Any]


class Behind(Result):
    """A model that predicts worse than the best one."""

    model: str
    bits_per_byte: float
    difference: float
    """Bits per byte that it needs more than the best one."""
    interval: Interval | None
    """95% interval of the difference over the same dialogs; None if not measured by dialog."""
    clear: bool | None
    """Whether the difference is more than chance; None if that is unknown."""


class Verdict(Result):
    """Which of several models predicts best on the same dialogs."""

    best: str | None
    """The model with the fewest bits per byte; None if they cannot be compared."""
    bits_per_byte: float | None
    dialogs: int
    """Dialogs that all of them were evaluated on."""
    behind: list[Behind]
    """The other models."""
    text: str
    """The verdict as a sentence."""

    def __repr__(self) -> str:
        """Return the sentence."""
        return self.text

    __str__ = __repr__

    @property
    def clearly_best(self) -> str | None:
        """The best model if each of the others is worse by more than chance, else None."""
        return self.best if all(one.clear for one in self.behind) else None

    def with_best_as(self, titles: Mapping[str, str]) -> "Verdict":
        """Return the verdict with the title of the best model in place of its name, for a table with titles."""
        return self.model_copy(update={"best": titles.get(self.best or "")})


class Contender(NamedTuple):
    """A model with its metrics on some dialogs.

    Attributes:
        name: how readers know it.
        bits_per_byte: on its dialogs; None if unknown.
        interval: 95% interval of the bits per byte.
        scores: nats and bytes of its answers by dialog, as far as known.
        trained_on: whether its dialogs include some that it was trained on.
        right: fraction of the checked questions that it answers right; None if none were asked.
        right_interval: 95% interval of that.
    """

    name: str
    bits_per_byte: float | None
    interval: Interval | None = None
    scores: Scores = MappingProxyType({})
    trained_on: bool = False
    right: float | None = None
    right_interval: Interval | None = None

    @classmethod
    def of_row(cls, name: str, row: EvaluateRow, scores: Scores) -> "Contender":
        """Return the contender of an evaluation, with the scores by dialog that are stored beside it."""
        return cls(
            name,
            row.bits_per_byte,
            row.intervals.get("bits_per_byte"),
            scores,
            row.trained_on,
            row.right_answers,
            row.intervals.get("right_answers"),
        )


def judge(
    contenders: Sequence[Contender],
    *,
    dialogs: int | None,
    differing: Sequence[Differing] = (),
    from_training: bool = False,
) -> Verdict:
    """Return which model predicts best.

    Models with scores by dialog are compared on the dialogs that all of them have; a paired comparison is sharper
    than that of two intervals, as dialogs differ more than models do.

    Args:
        contenders: two models or more.
        dialogs: how many dialogs they were evaluated on; None if on different ones, or on none.
        differing: settings in which they differ.
        from_training: whether the metrics come from the training runs, which keep no per-dialog scores.
    """
    if common := _common(contenders):
        best, bits, behind = _paired(contenders, common)
        dialogs = len(common)
    elif dialogs is None or (unknown := [one.name for one in contenders if not _is_known(one.bits_per_byte)]):
        reason = "they were not evaluated on the same dialogs"
        if dialogs is not None:
            reason = f"the bits per byte of {listed(unknown)} are not known"
        text = f"{listed([one.name for one in contenders])} cannot be compared: {reason}."
        return Verdict(best=None, bits_per_byte=None, dialogs=0, behind=[], text=text)
    else:
        best, bits, behind = _by_intervals(contenders, dialogs)
    sentence = _in_words(best, bits, behind, dialogs)
    if seen := [one.name for one in contenders if one.trained_on]:
        sentence += f"; {listed(seen)} {'was' if len(seen) == 1 else 'were'} trained on some of them"
    sharper = from_training and dialogs >= FEW and not all(one.clear for one in behind)
    more = " An evaluation compares them dialog by dialog, which is sharper." if sharper else ""
    text = f"{sentence}.{more}{_right_in_words(contenders)}{_settings_in_words(differing)}"
    return Verdict(best=best, bits_per_byte=bits, dialogs=dialogs, behind=behind, text=text)


def differing(settings: Sequence[Mapping[str, Any]], *, leave: Collection[str] = ()) -> list[Differing]:
    """Return the settings that do not have the same value in all runs, without those to leave out."""
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [
        Differing(name=name, values=[one.get(name) for one in settings]) for name in names if name not in leave
    ]
    return [row for row in rows if any(value != row.values[0] for value in row.values)]


_Ranked = tuple[str, float, list[Behind]]
"""The best model, its bits per byte, and the others."""


def _is_known(bits: float | None) -> bool:
    return bits is not None and math.isfinite(bits)


def _common(contenders: Sequence[Contender]) -> list[str]:
    """Return the dialogs that all contenders have scores of; an answer that was cut is another one."""
    sized = [
        {(dialog, size) for dialog, (nats, size) in one.scores.items() if math.isfinite(nats)}
        for one in contenders
    ]
    return sorted(dialog for dialog, _ in set.intersection(*sized))


def _paired(contenders: Sequence[Contender], dialogs: Sequence[str]) -> _Ranked:
    import numpy as np

    from dialogkit.inference.intervals import Quotient, intervals

    nats = [np.array([one.scores[dialog][0] for dialog in dialogs]) for one in contenders]
    size_in_bits = math.log(2) * np.array([max(1.0, contenders[0].scores[dialog][1]) for dialog in dialogs])
    bits = [float(values.sum() / size_in_bits.sum()) for values in nats]
    best = bits.index(min(bits))

    bounds = intervals({str(n): Quotient(values - nats[best], size_in_bits) for n, values in enumerate(nats)})
    behind = []
    for number, one in enumerate(contenders):
        if number != best:
            interval = bounds.get(str(number))
            clear = len(dialogs) >= FEW and interval is not None and interval[0] > 0
            behind.append(_behind(one.name, bits[number], bits[best], interval, clear=clear))
    return contenders[best].name, bits[best], behind


def _by_intervals(contenders: Sequence[Contender], dialogs: int) -> _Ranked:
    """Rank models without per-dialog scores by their intervals, where they have any."""
    bits = [one.bits_per_byte or 0.0 for one in contenders]
    first = bits.index(min(bits))
    best, behind = contenders[first], []
    for number, one in enumerate(contenders):
        if number != first:
            clear = None
            if one.interval is not None and best.interval is not None:
                clear = dialogs >= FEW and one.interval[0] > best.interval[1]
            behind.append(_behind(one.name, bits[number], bits[first], None, clear=clear))
    return best.name, bits[first], behind


def _behind(name: str, bits: float, best: float, interval: Interval | None, *, clear: bool | None) -> Behind:
    return Behind(model=name, bits_per_byte=bits, difference=bits - best, interval=interval, clear=clear)


# Words


def _in_words(best: str, bits: float, behind: Sequence[Behind], dialogs: int) -> str:
    """Return the verdict as one sentence without its full stop."""
    where = "on the same dialog" if dialogs == 1 else f"on the same {dialogs:,} dialogs"
    if len(behind) > 1:
        others = [f"{one.model} has {one.bits_per_byte:.3f}{_size_of(one, dialogs, 'more')}" for one in behind]
        return "; ".join([f"{best} predicts best, {bits:.3f} bits/byte {where}", *others])
    (other,) = behind
    if other.difference == 0:
        return f"{best} and {other.model} predict equally well, {bits:.3f} bits/byte {where}"
    figures = f"{bits:.3f} against {other.bits_per_byte:.3f} bits/byte {where}"
    return f"{best} predicts better than {other.model}, {figures}{_size_of(other, dialogs, 'fewer')}"


def _size_of(behind: Behind, dialogs: int, word: str) -> str:
    """Return the size of a difference, and whether it is more than chance."""
    if behind.difference == 0:
        return ", the same"
    size = f": {behind.difference:.3f} {word}"
    if behind.interval is not None:
        size += f" (95% interval {behind.interval[0]:.3f} to {behind.interval[1]:.3f})"
    if behind.clear:
        return f"{size}, more than chance"
    if dialogs < FEW:
        return f"{size}, but so few dialogs cannot tell whether that is chance"
    if behind.clear is None:
        return f"{size}, and whether that is more than chance was not measured"
    if behind.interval is None:
        return f"{size}, but their 95% intervals overlap, so that may be chance"
    return f"{size}, which may be chance"


def _right_in_words(contenders: Sequence[Contender]) -> str:
    """Return the right answers of all, the most first, and whether the first has more than by chance."""
    shares = [(one.right, one) for one in contenders if one.right is not None]
    if len(shares) < len(contenders):
        return ""
    shares.sort(key=lambda pair: -pair[0])
    text = f" Right answers: {', '.join(f'{one.name} {right:.1%}' for right, one in shares)}"
    bounds = {one.name: one.right_interval for _, one in shares if one.right_interval is not None}
    if len(bounds) < len(shares) or shares[0][0] == shares[1][0]:
        return f"{text}."
    return f"{text}, {'more than chance' if best_of(bounds, 1) else 'which may be chance'}."


def _settings_in_words(differing: Sequence[Differing]) -> str:
    """Return the settings that change what is learned, with their values, as a sentence of its own."""
    rows = [row for row in differing if row.name.startswith(("model.", "data.", "train."))]
    if any(row.name == "model.name" for row in rows):  # which says all about its shape
        rows = [row for row in rows if not row.name.startswith("model.") or row.name == "model.name"]
    if not rows:
        return ""
    shown = [f"{row.name} {' / '.join(map(_value, row.values))}" for row in rows[:_SETTINGS_SHOWN]]
    more = len(rows) - len(shown)
    return f" Settings that differ: {', '.join(shown)}{f', and {more} more' if more else ''}."


def _value(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
