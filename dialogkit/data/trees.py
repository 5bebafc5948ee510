"""Makes dialogs of OpenAssistant's message trees: of each tree the best-ranked path, and what that leaves out."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dialogkit.data.formats import by_column
from dialogkit.data.turns import Row
from dialogkit.text import counted

LOST = "no path leads to this message: its parent, or one further up, is missing"


@dataclass
class Trees:
    """The dialogs of message trees, and the messages that are in none of them."""

    rows: list[tuple[str, Row]] = field(default_factory=list)
    """Place and row of each dialog. Rows in which two columns have the same name come as they are."""
    lost: list[str] = field(default_factory=list)
    """Places of messages that follow from none without a parent."""
    beside: int = 0
    """Messages of trees that are not on the best-ranked path."""
    branched: int = 0
    """Trees that have such messages."""

    @property
    def notes(self) -> dict[str, int]:
        """What was left out, with the number of dialogs."""
        left_out = f"{counted(self.beside, 'message')} beside the best-ranked path left out"
        return {left_out: self.branched} if self.branched else {}


def read_trees(rows: Iterable[tuple[str, Row]]) -> Trees:
    """Return the trees of messages with message_id, parent_id, role, text, and rank (0 is the best).

    Args:
        rows: place and content of each message.
    """
    trees = Trees()
    roots: list[tuple[str, Row]] = []
    replies: dict[str, list[tuple[str, str | None]]] = {}
    best: dict[str, Row] = {}
    for place, content in rows:
        row = by_column(content)
        if len(row) < len(content):
            trees.rows.append((place, content))
        elif (parent := _identifier(row, "parent_id")) is None:
            roots.append((place, row))
        else:
            replies.setdefault(parent, []).append((place, _identifier(row, "message_id")))
            if parent not in best or _rank(row) < _rank(best[parent]):
                best[parent] = row
    used: set[str | None] = set()  # ends circles, and keeps the work linear where trees share identifiers
    for place, message in roots:
        path, reply = [message], best.get(_identifier(message, "message_id") or "")
        used.add(_identifier(message, "message_id"))
        while reply is not None and (name := _identifier(reply, "message_id")) not in used:
            path.append(reply)
            used.add(name)
            reply = best.get(name or "")
        trees.rows.append((place, {"messages": path}))
        beside = _taken(_identifier(message, "message_id"), replies) - (len(path) - 1)
        trees.beside += beside
        trees.branched += beside > 0
    trees.lost = [place for others in replies.values() for place, _ in others]
    return trees


def _taken(root: str | None, replies: dict[str, list[tuple[str, str | None]]]) -> int:
    """Take all that follows a message out of the replies by parent, and return its number."""
    number, parents = 0, [root]
    while parents:
        taken = replies.pop(parents.pop() or "", [])
        number += len(taken)
        parents += [name for _, name in taken]
    return number


def _identifier(row: Row, column: str) -> str | None:
    """Return the identifier in a column, of whatever type it is; None for none."""
    return str(row[column]) if row.get(column) else None


def _rank(row: Row) -> float:
    rank = row.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")
