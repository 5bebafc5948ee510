"""Reads the world of a folder: its topics, what they share, and what it includes of another world."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dialogkit.data.hints import WORLD_FILES
from dialogkit.data.worlds.location import WORLDS, holds_world
from dialogkit.data.worlds.topics import Topic, World, read_topic
from dialogkit.data.worlds.yaml_nodes import Node, read_bytes, read_yaml
from dialogkit.errors import DataError, did_you_mean, os_reason

SETTINGS = "world"
"""Name of the file, without its ending, that holds what all topics share."""


def world_digest(folder: Path) -> str:
    """Return the SHA-256 of the files of a world. Raises: DataError if one cannot be read."""
    digest = hashlib.sha256()
    paths = _files(folder)
    if (include := _settings(paths, folder).include) is not None:
        digest.update(world_digest(include.folder).encode())
    for path in paths:
        content = read_bytes(path)
        digest.update(f"{path.name}\0{len(content)}\0".encode("utf-8", "surrogatepass") + content)
    return digest.hexdigest()


def license_of(folder: Path) -> str | None:
    """Return the licence that a world states. Raises: DataError."""
    return _settings(_files(folder), folder).license


def read_world(folder: Path, *, check_answers: bool | None = None) -> World:
    """Return the world of a folder.

    Args:
        folder: that of the world.
        check_answers: whether to hold each answer against its check, which takes longest. None: unless the
            world ships with the package.

    Raises: DataError with the file, the line and the value that is wrong.
    """
    if check_answers is None:
        check_answers = folder.resolve().parent != WORLDS.resolve()
    paths = _files(folder)
    settings = _settings(paths, folder)
    topics: dict[str, Topic] = {}
    files: dict[str, str] = {}
    systems = settings.systems
    included: dict[str, Topic] = {}
    if settings.include is not None:
        included, its_systems = settings.include.read()
        if not systems and all(path.stem == SETTINGS for path in paths):
            systems = its_systems  # beside own topics, which have no answers in its manners, they are left out
        topics, files = dict(included), dict.fromkeys(included, settings.include.folder.name)
    for path in paths:
        if path.stem == SETTINGS:
            continue
        root = read_yaml(path)
        topic = read_topic(root, systems, check_answers=check_answers)
        if topic.name in topics:
            raise root.value["topic"].wrong(f"the topic {topic.name!r} is in {files[topic.name]} already")
        topics[topic.name], files[topic.name] = topic, path.name
    if not topics:
        raise no_topics(folder)
    if settings.include is not None and len(topics) > len(included):
        own = sum(topic.frequency for name, topic in topics.items() if name not in included)
        scale = own / sum(topic.frequency for topic in included.values()) * settings.include.odds
        topics |= {name: replace(topic, weight=topic.weight * scale) for name, topic in included.items()}
    return World(folder.resolve().name, tuple(topics.values()), systems)


def no_topics(folder: Path) -> DataError:
    """Return the error of a folder that is no world."""
    return DataError(
        f"the folder {str(folder)!r} holds no topics, which are files ending in {', '.join(WORLD_FILES)}",
        hint=f"write a topic into it, such as {folder / 'prices.yaml'}",
    )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in WORLD_FILES and path.name[0] != ".")
    except OSError as error:
        problem = f"the folder {str(folder)!r} cannot be read: {os_reason(error)}"
        raise DataError(problem, hint=f"let this user read {folder}") from None


@dataclass(frozen=True)
class _Include:
    """What a world takes from another one.

    Attributes:
        folder: that of the other world.
        topics: how many of the rows to take, the commonest, by the topic; None: everything.
        share: of the dialogs, those that begin with an included topic, where the world has topics of its own.
    """

    folder: Path
    topics: "dict[str, Node] | None"
    share: float = 0.25

    @property
    def odds(self) -> float:
        """Dialogs that begin with an included topic, for each that begins with an own one."""
        return self.share / (1 - self.share)

    def read(self) -> tuple[dict[str, Topic], dict[str, tuple[str, ...]]]:
        """Return the topics by their names, and the system prompts. Raises: DataError."""
        world = read_world(self.folder)
        every = {topic.name: topic for topic in world.topics}
        if self.topics is None:
            return every, world.systems
        chosen = {}
        for name, node in self.topics.items():
            if name not in every:
                raise node.wrong(f"{world.name} has no topic {name!r}{did_you_mean(name, every)}")
            if type(node.value) is not int or node.value < 1:
                raise node.wrong(f"{node.shown} is no number of rows; it must be a whole number from 1")
            topic = every[name]
            chosen[name] = replace(topic, table=topic.table.commonest(node.value))
        return chosen, world.systems


@dataclass(frozen=True)
class _Settings:
    systems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    license: str | None = None
    include: _Include | None = None


def _settings(paths: Sequence[Path], folder: Path) -> _Settings:
    """Return what the topics of a folder share. Raises: DataError."""
    fields = _fields(paths)
    systems: dict[str, tuple[str, ...]] = {}
    if "systems" in fields:
        node = fields["systems"]
        if not isinstance(node.value, dict):
            raise node.wrong(f"{node.shown} where manners with their system prompts are expected")
        systems = {name: tuple(each.value for each in texts.texts()) for name, texts in node.value.items()}
    include = _include(fields["include"], folder) if "include" in fields else None
    return _Settings(systems, fields["license"].text() if "license" in fields else None, include)


def _fields(paths: Sequence[Path]) -> dict[str, Node]:
    found = [path for path in paths if path.stem == SETTINGS]
    if len(found) > 1:
        problem = f"{found[0].name} and {found[1].name} are in the same world"
        raise DataError(problem, hint=f"move what both say into {found[0]}, and delete {found[1]}")
    return read_yaml(found[0]).fields(("license", "systems", "include")) if found else {}


def _include(node: Node, folder: Path) -> _Include:
    fields = node.fields(("world", "topics", "share"), ("world",))
    name = fields["world"].text()
    shipped = sorted(path.name for path in WORLDS.iterdir() if holds_world(path))
    other = WORLDS / name if name in shipped else folder / name
    if not holds_world(other):
        raise fields["world"].wrong(f"{name!r} is no world{did_you_mean(name, shipped)}")
    if "include" in _fields(_files(other)):
        raise fields["world"].wrong(f"{name!r} includes a world itself")
    topics = fields.get("topics")
    if topics is not None and not isinstance(topics.value, dict):
        raise topics.wrong(f"{topics.shown} where topics with their numbers of rows are expected")
    share = fields["share"].value if "share" in fields else _Include.share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise fields["share"].wrong(f"{fields['share'].shown} is not a number above 0 and below 1")
    return _Include(other, None if topics is None else topics.fields(tuple(topics.value)), float(share))
