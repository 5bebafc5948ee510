"""What a world consists of, and how a topic is read: a table of facts, and exchanges about them."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dialogkit.data.checks import PATTERN, Check, check_problem, is_right
from dialogkit.data.worlds.tables import TABLES, WEIGHT
from dialogkit.data.worlds.templates import OTHER, Facts, Template, value_of
from dialogkit.data.worlds.yaml_nodes import Node
from dialogkit.errors import did_you_mean, shortened
from dialogkit.text import counted

PLAIN = "plain"
"""The manner of system prompts that change nothing."""
_TOPIC = ("topic", "weight", "facts", "exchanges")
_EXCHANGE = ("ask", "answer", "right", "then", "manners", "place", "vary", "later")
_MOST_CHECKED = 60
"""Rows of a computed table whose answers are checked as it is read."""
_MOST_FACTS = 1_000_000
_MOST_WEIGHT = 20.0


@dataclass(frozen=True)
class Table:
    """The facts of a topic.

    Attributes:
        name: that of the built-in table, else that of the topic.
        columns: the names of the slots.
        rows: the values.
        known_by: as in `BuiltIn`; empty for facts of which each stands alone.
        weights: how often dialogs ask about each row.
    """

    name: str
    columns: tuple[str, ...] = ()
    rows: tuple[Facts, ...] = ({},)
    known_by: tuple[str, ...] = ()
    weights: tuple[float, ...] = (1.0,)

    @classmethod
    def of(
        cls, name: str, columns: Sequence[str], rows: Sequence[Facts], *, known_by: tuple[str, ...] = ()
    ) -> "Table":
        """Return a table; a column `weight` is no slot, but says how often dialogs ask about a row."""
        weights = tuple(float(row.get(WEIGHT, 1.0)) for row in rows)
        facts = tuple({slot: value for slot, value in row.items() if slot != WEIGHT} for row in rows)
        return cls(name, tuple(slot for slot in columns if slot != WEIGHT), facts, known_by, weights)

    @cached_property
    def cumulative(self) -> list[float]:
        """The cumulative weights of the rows."""
        return list(itertools.accumulate(self.weights))

    def commonest(self, number: int) -> "Table":
        """Return a table of the rows with the largest weights, in their order; of equal ones the first."""
        by_weight = sorted(range(len(self.rows)), key=lambda at: -self.weights[at])
        kept = sorted(by_weight[:number])
        return replace(
            self, rows=tuple(self.rows[at] for at in kept), weights=tuple(self.weights[at] for at in kept)
        )


@dataclass(frozen=True)
class Exchange:
    """A question in many phrasings, its answers, and what may follow.

    Attributes:
        ask: phrasings; the first is the plainest.
        answer: answers, all of them right.
        right: what a right answer contains, with slots in its texts; None for anything.
        then: exchanges that may follow, about the same fact.
        manners: answers in another manner, by its name.
        place: `start` or `end` of a dialog, or empty for anywhere.
        vary: whether politeness, case, marks and typos may change a phrasing.
        later: whether it may follow after other subjects too.
    """

    ask: tuple[Template, ...]
    answer: tuple[Template, ...]
    right: Any = None
    then: "tuple[Exchange, ...]" = ()
    manners: dict[str, tuple[Template, ...]] = field(default_factory=dict)
    place: str = ""
    vary: bool = True
    later: bool = False

    @cached_property
    def moves(self) -> bool:
        """Whether it is about another row than the exchange before it."""
        return any(template.moves for template in self.ask)


@dataclass(frozen=True)
class Topic:
    """A table of facts, and exchanges about them."""

    name: str
    table: Table
    exchanges: tuple[Exchange, ...]
    weight: float = 1.0

    @property
    def frequency(self) -> float:
        """How often it comes up, relative to other topics: its weight times the root of its questions."""
        return self.weight * min(_MOST_WEIGHT, math.sqrt(len(self.exchanges) * len(self.table.rows)))


@dataclass(frozen=True)
class World:
    """The topics of a folder.

    Attributes:
        name: that of the folder.
        topics: in the order of their files' names.
        systems: system prompts by the manner that they ask for.
    """

    name: str
    topics: tuple[Topic, ...]
    systems: dict[str, tuple[str, ...]]


def read_topic(root: Node, systems: dict[str, tuple[str, ...]], *, check_answers: bool = True) -> Topic:
    """Return the topic of a file, whose answers are held against their checks if `check_answers`.

    Raises: DataError with the file, the line and the value that is wrong.
    """
    fields = root.fields(_TOPIC, ("topic", "exchanges"))
    name = fields["topic"].text()
    table = _table(fields["facts"], name) if "facts" in fields else Table(name)
    weight = _weight(fields["weight"]) if "weight" in fields else 1.0
    reader = _ExchangeReader(table, systems, check_answers=check_answers)
    exchanges = tuple(
        reader.read(replace(node, where=f"exchange {number}"))
        for number, node in enumerate(fields["exchanges"].items(), 1)
    )
    return Topic(name, table, exchanges, weight)


def _weight(node: Node) -> float:
    """Return a weight. Raises: DataError."""
    if isinstance(node.value, bool) or not isinstance(node.value, int | float) or not 0 < node.value <= 1000:
        raise node.wrong(f"{node.shown} is not a number above 0 and up to 1000")
    return float(node.value)


def _table(node: Node, topic: str) -> Table:
    if isinstance(node.value, dict) and "table" in node.value:
        return _built_in(node)
    fields = node.fields(("columns", "rows"), ("columns", "rows"))
    columns = [each.value for each in fields["columns"].texts()]
    for column, each in zip(columns, fields["columns"].texts(), strict=True):
        if columns.count(column) > 1:
            raise each.wrong(f"the column {column!r} stands here twice")
        if not column.replace("_", "a").replace(" ", "a").isalnum():
            raise each.wrong(f"the column {column!r} has other characters than letters, digits, blanks and _")
    rows: list[Facts] = []
    known: dict[str, int] = {}
    for number, row in enumerate(fields["rows"].items(), 1):
        row = replace(row, where=f"row {number} of the facts")
        values = [each.value for each in row.items()]
        if len(values) != len(columns):
            raise row.wrong(f"{counted(len(values), 'value')} for the {len(columns)} columns {', '.join(columns)}")
        for column, each in zip(columns, row.items(), strict=True):
            if isinstance(each.value, bool) or not isinstance(each.value, str | int | float) or each.value == "":
                raise row.wrong(f"{column} is {each.shown}, neither a text nor a number")
            if column == WEIGHT:
                _weight(each)
        if (first := str(values[0])) in known:
            raise row.wrong(f"{columns[0]} {first!r} is in row {known[first]} already")
        known[first] = number
        rows.append(dict(zip(columns, values, strict=True)))
    return Table.of(topic, columns, rows)


def _built_in(node: Node) -> Table:
    named = replace(node.value["table"], where=f"{node.where}, table")
    name = named.text()
    if (table := TABLES.get(name)) is None:
        raise named.wrong(f"no such table: {name!r}{did_you_mean(name, TABLES)}; known are {', '.join(TABLES)}")
    code = table.make.__code__
    parameters = code.co_varnames[: code.co_argcount]
    given = {key: each for key, each in node.fields(("table", *parameters)).items() if key != "table"}
    for key, each in given.items():
        if key == "to" and not (type(each.value) is int and 1 <= each.value <= 1000):
            raise each.wrong(f"{each.shown} is not a whole number from 1 to 1000")
        if key == "words":
            each.texts()
    columns, rows = table.make(**{key: each.plain() for key, each in given.items()})
    if len(rows) > _MOST_FACTS:
        raise node.wrong(f"{len(rows):,} facts; {_MOST_FACTS:,} are the most")
    facts = [dict(zip(columns, row, strict=True)) for row in rows]
    return Table.of(name, columns, facts, known_by=table.known_by)


class _ExchangeReader:
    """Reads the exchanges of a topic."""

    def __init__(self, table: Table, systems: dict[str, tuple[str, ...]], *, check_answers: bool) -> None:
        self._table = table
        self._systems = systems
        self._checks = check_answers

    def read(self, node: Node, *, follows: bool = False) -> Exchange:
        """Return an exchange, and those that may follow it. Raises: DataError."""
        fields = node.fields(_EXCHANGE, ("ask", "answer"))
        ask = self._templates(fields["ask"], other=follows)
        moves = any(template.moves for template in ask)
        place = fields["place"].text() if "place" in fields else ""
        if place not in ("", "start", "end"):
            raise fields["place"].wrong(f"{place!r} is neither start nor end")
        if follows and place == "start":
            raise fields["place"].wrong("what follows cannot stand at the start")
        if not follows and "later" in fields:
            raise fields["later"].wrong("only what follows another exchange can come later")
        exchange = Exchange(
            ask=ask,
            answer=self._templates(fields["answer"], other=moves),
            right=self._right(fields["right"], other=moves) if "right" in fields else None,
            then=tuple(
                self.read(replace(each, where=f"{node.where}, then {number}"), follows=True)
                for number, each in enumerate(fields["then"].items(), 1)
            )
            if "then" in fields
            else (),
            manners=self._manners(fields["manners"], other=moves) if "manners" in fields else {},
            place=place,
            vary=fields["vary"].flag() if "vary" in fields else True,
            later=fields["later"].flag() if "later" in fields else False,
        )
        if "right" in fields and self._checks:
            self._check_answers(exchange, fields["right"])
        return exchange

    def _templates(self, node: Node, *, other: bool) -> tuple[Template, ...]:
        templates = []
        for number, each in enumerate(texts := node.texts(), 1):
            template = Template.parse(each.value.strip())
            if template in templates:
                raise replace(each, where=node.where).wrong(
                    f"{shortened(template.source, 60)!r} stands here twice"
                )
            place = f"{node.where}, text {number}" if len(texts) > 1 else node.where
            self._check_slots(replace(each, where=place), template, other=other)
            templates.append(template)
        return tuple(templates)

    def _check_slots(self, node: Node, template: Template, *, other: bool) -> None:
        columns = self._table.columns
        for slot in template.slots:
            name = slot.removeprefix(OTHER)
            if name not in columns:
                known = f"the slots are {', '.join(columns)}" if columns else "the topic has no facts"
                raise node.wrong(f"unknown slot {slot!r}{did_you_mean(name, columns)}; {known}")
            if slot.startswith(OTHER) and not other:
                raise node.wrong(f"the slot {slot!r} is for a question that follows another one, and its answers")
            if slot.startswith(OTHER) and len(self._table.rows) < 2:
                raise node.wrong(f"the slot {slot!r} needs a second row of facts")

    def _right(self, node: Node, *, other: bool) -> Any:
        match node.value:
            case str():
                template = Template.parse(node.text())
                self._check_slots(node, template, other=other)
                return template
            case list():
                return [self._right(replace(each, where=node.where), other=other) for each in node.items()]
            case dict():
                pattern = node.fields((PATTERN,), (PATTERN,))[PATTERN]
                return {PATTERN: self._right(replace(pattern, value=pattern.text()), other=other)}
            case int() | float() if not isinstance(node.value, bool):
                return node.value
            case _:
                raise node.wrong(f"{node.shown} is no check; it must be a text, a number, a list or pattern: ...")

    def _manners(self, node: Node, *, other: bool) -> dict[str, tuple[Template, ...]]:
        if not isinstance(node.value, dict):
            raise node.wrong(f"{node.shown} where manners with their answers are expected")
        for name, each in node.value.items():
            known = [manner for manner in self._systems if manner != PLAIN]
            if name not in known:
                listed = f"known are {', '.join(known)}" if known else "world.yaml gives none under systems"
                raise replace(each, where=node.where).wrong(
                    f"unknown manner {name!r}{did_you_mean(name, known)}; {listed}"
                )
        named = {name: replace(each, where=f"{node.where}, {name}") for name, each in node.value.items()}
        return {name: self._templates(each, other=other) for name, each in named.items()}

    def _check_answers(self, exchange: Exchange, right: Node) -> None:
        """Raise DataError if a check is none, or an answer is wrong by it."""
        rows = self._table.rows
        for number, row in enumerate(rows if not self._table.known_by else spread(rows, _MOST_CHECKED)):
            other = rows[number - 1] if rows[number - 1] is not row else rows[-1]
            check = fill_check(exchange.right, row, other)
            if problem := check_problem(check):
                raise right.wrong(problem)
            for manner, answers in {"": exchange.answer, **exchange.manners}.items():
                for text in (answer.fill(row, other) for answer in answers):
                    if not is_right(text, check):
                        kind = f"the {manner} answer" if manner else "the answer"
                        expected = shortened(json.dumps(check, ensure_ascii=False), 80)
                        raise right.wrong(f"{kind} {shortened(text, 80)!r} is wrong by its own check {expected}")


def spread(rows: Sequence[Facts], most: int) -> Iterator[Facts]:
    """Yield at most about `most` rows, from the whole table."""
    yield from rows[:: max(1, len(rows) // most)]


def fill_check(right: Any, row: Facts, other: Facts | None) -> Check:
    """Return a check with the values of a row. A text that is one slot of a number is a check of that number."""
    match right:
        case Template(parts=("", slot, "")):
            return value_of(slot, row, other)
        case Template():
            return _filled(right, row, other)
        case list():
            return [fill_check(each, row, other) for each in right]
        case dict():
            return {PATTERN: _filled(right[PATTERN], row, other, escaped=True)}
        case _:
            number: float = right
            return number


def _filled(text: Template, row: Facts, other: Facts | None, *, escaped: bool = False) -> str:
    """Return a text of a check with the values of a row; in a pattern they stand for themselves."""
    values = (str(value_of(slot, row, other)) for slot in text.slots)
    filled = [re.escape(value) if escaped else value for value in values]
    return "".join(part for pair in zip(text.parts[::2], [*filled, ""], strict=True) for part in pair)
