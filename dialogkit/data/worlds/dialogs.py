"""Makes the dialogs of a world from a seed, and holds some out of training by phrasing and by fact.

What is held out depends on the texts of the world alone, not on the seed: the held-out dialogs of one seed are new
to a model that was trained on those of another.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dialogkit.data.split import HELD_OUT, TRAIN
from dialogkit.data.worlds.folder import world_digest
from dialogkit.data.worlds.templates import Facts, Template
from dialogkit.data.worlds.topics import PLAIN, Exchange, Topic, World, fill_check
from dialogkit.data.worlds.variation import Dice, normal_form, vary

VERSION = 4
"""Increased whenever the same world and seed give other dialogs."""

DIALOGS, SEED = 50_000, 1
"""How many dialogs a world is as a dataset, and their seed."""

PHRASING, PAIR, FACT = "phrasing", "pair", "fact"
"""What is new in a held-out dialog: a phrasing, a phrasing of a fact that others ask for, or the fact."""

HELD_OUT_DIALOGS = 0.05
"""Share of the dialogs that are held out."""
_HELD_OUT_PAIRS, _HELD_OUT_FACTS = 0.1, 0.1
_KINDS = {PHRASING: 0.45, PAIR: 0.45, FACT: 0.1}
"""How much of what is held out is new in which way."""
_FEWEST_PHRASINGS = 4
"""Phrasings of a question of which one is held out; of every further eight another one."""
_LENGTHS = (0.4, 0.66, 0.83, 0.94, 1.0)
"""Cumulative shares of dialogs with 1 to 5 exchanges."""
_FOLLOWS, _LATER, _AT_LAST = 0.7, 0.3, 0.6
"""How often a question follows the one before it, where one can; and what may come later comes next, or last."""
_OPENS, _CLOSES = 0.12, 0.12
"""How often a longer dialog begins with an exchange for the start, and ends with one for the end."""
_MANNER, _SYSTEM = 0.12, 0.06
"""How often a system prompt asks for a manner, or changes nothing."""
_WORD = re.compile(r"[\w.]+")
"""A word of a phrasing, or the name of a slot."""
_TRIES = 60


@dataclass(frozen=True)
class _Phrasing:
    """A phrasing of a question, and the text by which it is known."""

    template: Template
    key: str
    plainest: bool


class _Phrasings:
    """The phrasings of a question: those that are trained, and those that never are."""

    def __init__(self, exchange: Exchange, held_out: set[str]) -> None:
        keys = [(template, normal_form(template.source)) for template in exchange.ask]
        every = [_Phrasing(template, key, key == keys[0][1]) for template, key in keys]
        self.trained = [phrasing for phrasing in every if phrasing.key not in held_out]
        self.held_out = [phrasing for phrasing in every if phrasing.key in held_out]


@dataclass
class _Asked:
    """A subject that can be asked about next."""

    exchange: Exchange
    topic: Topic
    row: Facts


def make_dialogs(world: World, number: int | None = None, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """Yield rows of dialogs, the same everywhere for the same world and seed; fewer are the first of more.

    A row has `messages`; `topic`, that of its first exchange; `split`; `new`, what is new in a held-out one; and
    `check`, what each right answer contains.
    """
    maker = _Maker(world, Dice(seed))
    return (maker.dialog() for _ in range(DIALOGS if number is None else number))


def dataset_digest(folder: Path) -> str:
    """Return the SHA-256 of what a world is as a dataset. Raises: DataError if a file cannot be read."""
    made_from = f"{world_digest(folder)} {VERSION} {DIALOGS} {SEED}"
    return hashlib.sha256(made_from.encode()).hexdigest()


def held_out_phrasings(world: World) -> set[str]:
    """Return the normal forms of the phrasings that are never trained.

    Of each question with at least four phrasings, those with the lowest hashes, but never the first of any, nor
    one with a word that no other phrasing of the question has: training could not teach that word.
    """
    plainest, chosen = set(), set()
    for exchange in every_exchange(world):
        forms = list(dict.fromkeys(normal_form(template.source) for template in exchange.ask))
        plainest.add(forms[0])
        if len(forms) < _FEWEST_PHRASINGS:
            continue
        count = 1 + (len(forms) - _FEWEST_PHRASINGS) // 8
        uses = Counter(word for form in forms for word in set(_WORD.findall(form)))
        for form in sorted(forms[1:], key=lambda form: _share(PHRASING, form)):
            words = set(_WORD.findall(form))
            if count and all(uses[word] > 1 for word in words):
                uses.subtract(words)  # so that what is held out next has its words in what is trained
                count -= 1
                chosen.add(form)
    return chosen - plainest


def every_exchange(world: World) -> Iterator[Exchange]:
    """Yield every exchange of a world, also those that follow others."""

    def walk(exchanges: Sequence[Exchange]) -> Iterator[Exchange]:
        for exchange in exchanges:
            yield exchange
            yield from walk(exchange.then)

    for topic in world.topics:
        yield from walk(topic.exchanges)


def _share(*words: str) -> float:
    """Return a number from 0 to 1 that depends on the words alone."""
    digest = hashlib.blake2b("\0".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class _Impossible(Exception):
    """What was drawn gives no dialog of the wanted kind."""


class _Maker:
    def __init__(self, world: World, dice: Dice) -> None:
        self._dice = dice
        self._systems = world.systems
        held_out = held_out_phrasings(world)
        self._phrasings = {id(exchange): _Phrasings(exchange, held_out) for exchange in every_exchange(world)}
        self._openers = {
            (manner, first, last): _Openers(world.topics, manner, first=first, last=last)
            for manner in ("", *world.systems)
            for first in (True, False)
            for last in (True, False)
        }
        self._manners = [
            manner for manner in world.systems if manner != PLAIN and self._openers[manner, True, True].topics
        ]
        kinds = {PHRASING} if held_out else set()
        if any(len(topic.table.rows) > 1 for topic in world.topics):
            kinds.add(PAIR)
        if any(topic.table.known_by for topic in world.topics):
            kinds.add(FACT)
        self._kinds = [kind for kind in _KINDS if kind in kinds]
        self._kind_weights = list(itertools.accumulate(_KINDS[kind] for kind in self._kinds))
        self._keys: dict[int, str] = {}

    def dialog(self) -> dict[str, Any]:
        """Return the next dialog."""
        kind = ""
        if self._kinds and self._dice.chance(HELD_OUT_DIALOGS):
            kind = self._kinds[self._dice.pick_weighted(self._kind_weights)]
        for _ in range(_TRIES):
            try:
                return self._draw(kind)
            except _Impossible:
                pass
        return self._any_training_dialog()

    def _any_training_dialog(self) -> dict[str, Any]:
        while True:
            try:
                return self._draw("")
            except _Impossible:
                pass

    def _draw(self, kind: str) -> dict[str, Any]:
        """Return a dialog; of a kind that is held out, one that begins with something new. Raises: _Impossible."""
        length = 1 + self._dice.pick_weighted(_LENGTHS)
        manner, messages = self._system()
        checks: list[Any] = []
        may_follow: list[_Asked] = []
        seen: set[tuple[int, int]] = set()
        topic = ""
        for at in range(length):
            asked, follows = self._next(may_follow, manner, first=not at, last=at == length - 1)
            other = self._other(asked) if asked.exchange.moves else None
            fact = other or asked.row
            question, is_new = self._question(asked, other, kind, follows=follows)
            if (not at and is_new != bool(kind)) or (id(asked.exchange), id(fact)) in seen:
                raise _Impossible
            seen.add((id(asked.exchange), id(fact)))
            topic = topic or asked.topic.name
            answers = asked.exchange.manners[manner] if manner not in ("", PLAIN) else asked.exchange.answer
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": self._dice.pick(answers).fill(asked.row, other)})
            right = asked.exchange.right
            checks.append(None if right is None else fill_check(right, asked.row, other))
            may_follow = _following(may_follow, asked, fact, follows=follows)
        split = {"split": HELD_OUT, "new": kind} if kind else {"split": TRAIN}
        return {"messages": messages, "topic": topic, **split, "check": checks}

    def _other(self, asked: _Asked) -> Facts:
        """Return another row of the table."""
        other = asked.row
        while other is asked.row:
            other = self._row(asked.topic)
        return other

    def _row(self, topic: Topic) -> Facts:
        table = topic.table
        return table.rows[self._dice.pick_weighted(table.cumulative)]

    def _system(self) -> tuple[str, list[dict[str, str]]]:
        """Return a manner, empty for none, and the system message that asks for it."""
        dice, manner = self._dice, ""
        if self._manners and dice.chance(_MANNER):
            manner = dice.pick(self._manners)
        elif PLAIN in self._systems and dice.chance(_SYSTEM):
            manner = PLAIN
        return manner, [{"role": "system", "content": dice.pick(self._systems[manner])}] if manner else []

    def _next(self, may_follow: Sequence[_Asked], manner: str, *, first: bool, last: bool) -> tuple[_Asked, bool]:
        """Return what is asked next, and whether it follows what was asked before."""
        dice = self._dice
        follows = [
            each
            for each in may_follow
            if (manner in ("", PLAIN) or manner in each.exchange.manners)
            and (last or each.exchange.place != "end")
        ]
        later = [each for each in follows if each.exchange.later]
        now = [each for each in follows if not each.exchange.later]
        if later and dice.chance(_AT_LAST if last else _LATER):
            return dice.pick(later), True
        if now and dice.chance(_FOLLOWS):
            return dice.pick(now), True
        openers = self._openers[manner, first, last]
        if first and not last and openers.starts and dice.chance(_OPENS):
            topic, exchange = dice.pick(openers.starts)
        elif last and not first and openers.ends and dice.chance(_CLOSES):
            topic, exchange = dice.pick(openers.ends)
        elif openers.topics:
            topic, exchanges = openers.topics[dice.pick_weighted(openers.weights)]
            exchange = dice.pick(exchanges)
        else:
            raise _Impossible
        return _Asked(exchange, topic, self._row(topic)), False

    def _question(self, asked: _Asked, other: Facts | None, kind: str, *, follows: bool) -> tuple[str, bool]:
        """Return a question about a fact, and whether it is new in the wanted way. Raises: _Impossible."""
        row, fact, table = asked.row, other or asked.row, asked.topic.table
        known_by = [fact[column] for column in table.known_by]
        is_new_fact = bool(known_by) and _share(FACT, table.name, json.dumps(known_by)) < _HELD_OUT_FACTS
        if is_new_fact and kind != FACT:
            raise _Impossible
        phrasings = self._phrasings[id(asked.exchange)]
        new: list[_Phrasing] = []
        if kind == PHRASING:
            new = phrasings.held_out
        elif kind == PAIR:
            new = [each for each in phrasings.trained if self._is_held_out(each, fact, follows=follows)]
        phrasing = self._dice.pick(new or phrasings.trained)
        # The plainest phrasing is never held out, so this ends.
        while not new and self._is_held_out(phrasing, fact, follows=follows):
            phrasing = self._dice.pick(phrasings.trained)
        template = phrasing.template
        text = vary(template, row, other, self._dice) if asked.exchange.vary else template.fill(row, other)
        return text, bool(new) or is_new_fact

    def _is_held_out(self, phrasing: _Phrasing, fact: Facts, *, follows: bool) -> bool:
        """Return whether a phrasing is never trained with a fact that it names, or means as one that follows."""
        if phrasing.plainest or not (phrasing.template.slots or (fact and follows)):
            return False
        return _share(PAIR, phrasing.key, self._key(fact)) < _HELD_OUT_PAIRS

    def _key(self, row: Facts) -> str:
        """Return the text by which a fact is known."""
        if (key := self._keys.get(id(row))) is None:
            key = self._keys[id(row)] = json.dumps(list(row.values()), ensure_ascii=False)
        return key


def _following(may_follow: Sequence[_Asked], asked: _Asked, fact: Facts, *, follows: bool) -> list[_Asked]:
    """Return what may follow an exchange: its own `then`, and of what could follow before, what still can."""
    kept = [
        each
        for each in may_follow
        if (follows or (each.exchange.later and each.topic is not asked.topic))
        and (each.exchange is not asked.exchange or each.exchange.moves)
        # Behind "Where is it?", "And Japan?" would ask for the place, not for what was asked at first.
        and (asked.exchange.moves or not each.exchange.moves)
    ]
    still = [_Asked(e.exchange, e.topic, fact) if follows and e.topic is asked.topic else e for e in kept]
    return [*(_Asked(each, asked.topic, fact) for each in asked.exchange.then), *still]


class _Openers:
    """What can be asked at a place of a dialog without following anything.

    Attributes:
        topics: topics with their exchanges for this place.
        weights: their cumulative weights.
        starts, ends: topic and exchange of those that are only for the start, or only for the end.
    """

    def __init__(self, topics: Sequence[Topic], manner: str, *, first: bool, last: bool) -> None:
        places = {"", *(["start"] if first else []), *(["end"] if last else [])}
        self.topics: list[tuple[Topic, list[Exchange]]] = []
        weights = []
        for topic in topics:
            fitting = [
                exchange
                for exchange in topic.exchanges
                if exchange.place in places and (manner in ("", PLAIN) or manner in exchange.manners)
            ]
            if fitting:
                self.topics.append((topic, fitting))
                weights.append(replace(topic, exchanges=tuple(fitting)).frequency)
        self.weights = list(itertools.accumulate(weights))
        pairs = [(topic, exchange) for topic, exchanges in self.topics for exchange in exchanges]
        self.starts = [(topic, exchange) for topic, exchange in pairs if exchange.place == "start"]
        self.ends = [(topic, exchange) for topic, exchange in pairs if exchange.place == "end"]
