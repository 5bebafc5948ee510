"""A cache is checked: what is damaged, of other data or of another user is prepared again, to the same data."""

import io
import json
import os
import random
import signal
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialogkit.data.cache import read_entry, write_entry
from dialogkit.data.prepare import CACHE_VERSION, PreparedData
from dialogkit.models.tokenizer import ChatTokenizer
from tests.data.test_prepare import numbered, prepare, row, same

ROWS = [*numbered(30), row("x", ""), row("long", "a" * 400)]
OTHER_USER = 12345
as_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")
posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")


@contextmanager
def no_hang(seconds: float = 30.0) -> Iterator[None]:
    """Raise TimeoutError in what hangs, where the system has alarms."""

    def stop(*_: object) -> None:
        raise TimeoutError("hangs")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def equal(one: PreparedData, two: PreparedData) -> bool:
    return (
        same(one.train, two.train)
        and same(one.evaluation, two.evaluation)
        and asdict(one.ledger) == asdict(two.ledger)
    )


def entry() -> Path:
    (found,) = Path("cache/prepared").glob("*.npz")
    return found


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path) as archive:
        return dict(archive)


def forge(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as an entry whose digest is right, as another version of this package might."""
    arrays = dict(arrays)
    write_entry(path, str(arrays.pop("key")), arrays)


def edited(edit: Callable[[dict[str, Any]], object], write: Callable[[Path, dict[str, Any]], object]) -> Any:
    def damage(path: Path) -> None:
        arrays = arrays_of(path)
        edit(arrays)
        write(path, arrays)

    return damage


def resave(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays as a sound archive without a digest."""
    with path.open("wb") as file:
        np.savez(file, **arrays)


def put(name: str, *, at: int = 0, value: int) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays[name].__setitem__(at, value)


def become(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.__setitem__(name, change(arrays[name]))


def ledger_with(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return become("ledger", lambda text: np.array(json.dumps(json.loads(str(text)) | changes)))


IMPOSSIBLE: dict[str, Callable[[dict[str, Any]], object]] = {
    "an id of a billion": put("ids", value=10**9),
    "a negative id": put("ids", at=-1, value=-7),
    "ids of another type": become("ids", lambda a: a.astype(np.int64)),
    "ids as fractions": become("ids", lambda a: a.astype(np.float32)),
    "ids as objects": become("ids", lambda a: a.astype(object)),
    "ids of two dimensions": become("ids", lambda a: a[None]),
    "ids of none": become("ids", lambda a: a[0]),
    "too few ids": become("ids", lambda a: a[:-1]),
    "offsets that fall": put("offsets", at=1, value=10**6),
    "offsets that overflow": put("offsets", at=1, value=-(2**63)),
    "offsets that begin later": put("offsets", value=1),
    "offsets past the end": put("offsets", at=-1, value=2**40),
    "no offsets": become("offsets", lambda a: a[:0]),
    "nothing supervised": become("supervised", lambda a: a & False),
    "too few flags": become("supervised", lambda a: a[1:]),
    "negative bytes": put("answer_bytes", value=-1),
    "too few bytes": become("answer_bytes", lambda a: a[1:]),
    "too many hashes": become("hashes", lambda a: np.concatenate([a, a])),
    "signed hashes": become("hashes", lambda a: a.astype(np.int64)),
    "other lengths": become("whole_tokens", lambda a: a + 1),
    "no dialog": lambda arrays: arrays.update({name: arrays[name][:0] for name in ("answer_bytes", "hashes")}),
    "an array less": lambda arrays: arrays.pop("hashes"),
    "an array more": lambda arrays: arrays.update(more=arrays["ids"]),
    "more rows": ledger_with(rows=1000),
    "checks that are no JSON": become("checked", lambda a: np.frombuffer(b"[[1", dtype=np.uint8)),
    "checks of other shape": become("checked", lambda a: np.frombuffer(b"[[1, [], 2, 3, 4]]", dtype=np.uint8)),
    "negative rows": ledger_with(rows=-1, unusable=-33),
    "rows as text": ledger_with(rows="33"),
    "rows as null": ledger_with(rows=None),
    "another license": ledger_with(license="MIT"),
    "a list as ledger": become("ledger", lambda _: np.array("[]")),
    "no JSON": become("ledger", lambda _: np.array("{")),
    "a number as ledger": become("ledger", lambda _: np.array(1.5)),
    "another dataset": ledger_with(dataset="other.jsonl"),
    "another file": ledger_with(revision="0" * 64),
    "another key": become("key", lambda _: np.array("{}")),
    "an older version": become("key", lambda key: np.array(str(key).replace('"version": ', '"version": -'))),
}
"""Changes of the arrays after which they can be no preparation of the file."""

POSSIBLE: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing changed": lambda arrays: None,
    "another id": put("ids", at=3, value=7),
    "another flag": lambda arrays: arrays["supervised"].__setitem__(-1, not arrays["supervised"][-1]),
    "another hash": put("hashes", value=1),
    "more bytes": put("answer_bytes", value=10**6),
    "all ids the same": become("ids", lambda a: a * 0 + 5),
    "another order": become("hashes", lambda a: a[::-1]),
}
"""Changes that only the digest can show."""


def flip(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 16
        path.write_bytes(data)

    return damage


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def bomb(path: Path) -> None:
    """Write an archive of some kB whose arrays take 4 GB."""
    part = io.BytesIO()
    np.lib.format.write_array_header_1_0(part, {"descr": "<i4", "fortran_order": False, "shape": (10**9,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("ids", "key", "offsets"):
            with archive.open(f"{name}.npy", "w") as member:
                member.write(part.getvalue() + bytes(10**6))


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def link_to_a_copy(path: Path) -> None:
    os.replace(path, "elsewhere.npz")
    path.symlink_to(Path("elsewhere.npz").absolute())


def swap(path: Path) -> None:
    """Put the sound entry of another dataset in its place."""
    os.replace(next(Path("cache-of-another/prepared").glob("*.npz")), path)


FILES: dict[str, Callable[[Path], object]] = {
    "empty": rewrite(lambda data: b""),
    "one byte": rewrite(lambda data: b"P"),
    "half": rewrite(lambda data: data[: len(data) // 2]),
    "one byte short": rewrite(lambda data: data[:-1]),
    "one byte more": rewrite(lambda data: data + b"\0"),
    "no trailer": rewrite(lambda data: data[:-48]),
    "only a trailer": rewrite(lambda data: data[-48:]),
    "two of it": rewrite(lambda data: data + data),
    "zeros": rewrite(lambda data: bytes(len(data))),
    "text": rewrite(lambda data: b"no archive"),
    **{f"a bit at {place:.0%}": flip(place) for place in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1)},
    "a bomb": bomb,
    "a terabyte of holes": lambda path: os.truncate(path, 2**40),
    "of another dataset": swap,
    "unreadable": lambda path: path.chmod(0),
    "a link": link_to_a_copy,
    "a link to itself": instead(lambda path: path.symlink_to(path.name)),
    "a link to a device": instead(lambda path: path.symlink_to("/dev/zero")),
    "writable by the group": lambda path: path.chmod(0o660),
    "writable by all": lambda path: path.chmod(0o606),
}
READABLE_BY_ROOT = ("unreadable",)


def check_remade(damage: Callable[[Path], object], tokenizer: ChatTokenizer, *, kept: bool = True) -> None:
    first = prepare(ROWS, tokenizer)
    path = entry()
    damage(path)
    with no_hang():
        again = prepare(ROWS, tokenizer)
        third = prepare(ROWS, tokenizer)
    assert not again.from_cache
    assert equal(again, first)
    assert third.from_cache == kept
    assert equal(third, first)


@pytest.fixture
def another(tokenizer: ChatTokenizer) -> None:
    """Leave the sound entry of another dataset in `cache-of-another`."""
    prepare(numbered(20), tokenizer)
    os.replace("cache", "cache-of-another")


@posix
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_not_whole_and_private_is_made_again(
    kind: str, tokenizer: ChatTokenizer, another: None
) -> None:
    if kind in READABLE_BY_ROOT and os.getuid() == 0:
        pytest.skip("root reads it all the same")
    check_remade(FILES[kind], tokenizer)


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_arrays_that_no_preparation_makes_are_made_again_even_if_the_digest_is_right(
    kind: str, tokenizer: ChatTokenizer
) -> None:
    check_remade(edited(IMPOSSIBLE[kind], forge), tokenizer)


@pytest.mark.parametrize("kind", [*POSSIBLE, "an id of a billion"])
def test_arrays_that_were_saved_again_are_made_again(kind: str, tokenizer: ChatTokenizer) -> None:
    check_remade(edited((POSSIBLE | IMPOSSIBLE)[kind], resave), tokenizer)


@posix
def test_a_pipe_in_place_of_an_entry_is_not_waited_for(tokenizer: ChatTokenizer) -> None:
    check_remade(instead(os.mkfifo), tokenizer)


def test_a_folder_in_place_of_an_entry_is_left_alone(tokenizer: ChatTokenizer) -> None:
    def replace(path: Path) -> None:
        path.unlink()
        path.mkdir()
        Path(path, "notes.txt").write_text("mine")

    check_remade(replace, tokenizer, kept=False)
    assert Path(entry(), "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in entry().parent.iterdir()) == [entry().name]


@as_root
def test_the_entry_of_another_user_is_made_again(tokenizer: ChatTokenizer) -> None:
    check_remade(lambda path: os.chown(path, OTHER_USER, OTHER_USER), tokenizer)
    assert entry().stat().st_uid == os.getuid()


@as_root
def test_the_folder_of_another_user_is_neither_believed_nor_written(tokenizer: ChatTokenizer) -> None:
    check_remade(lambda path: os.chown(path.parent, OTHER_USER, OTHER_USER), tokenizer, kept=False)
    assert oct(entry().parent.stat().st_mode) == oct(0o40700)


@posix
def test_a_folder_that_others_can_write_to_is_closed_to_them_and_begun_anew(tokenizer: ChatTokenizer) -> None:
    check_remade(lambda path: path.parent.chmod(0o777), tokenizer)
    assert oct(entry().parent.stat().st_mode) == oct(0o40700)


@posix
def test_a_folder_that_is_a_link_is_neither_believed_nor_written(tokenizer: ChatTokenizer) -> None:
    def relink(path: Path) -> None:
        os.replace("cache/prepared", "elsewhere")
        Path("cache/prepared").symlink_to(Path("elsewhere").absolute())

    check_remade(relink, tokenizer, kept=False)


@posix
def test_the_folder_and_its_entries_are_for_their_owner_alone(tokenizer: ChatTokenizer) -> None:
    before = os.umask(0)
    try:
        prepare(ROWS, tokenizer)
    finally:
        os.umask(before)
    assert (entry().parent.stat().st_mode & 0o777, entry().stat().st_mode & 0o777) == (0o700, 0o600)


def test_an_entry_replaces_that_of_an_older_version_in_its_place(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(ROWS, tokenizer)
    before = entry()
    monkeypatch.setattr("dialogkit.data.prepare.CACHE_VERSION", CACHE_VERSION + 1)
    assert not prepare(ROWS, tokenizer).from_cache
    assert entry() == before
    assert prepare(ROWS, tokenizer).from_cache


def test_a_file_that_changes_while_it_is_read_leaves_no_entry(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenizer.encode_dialogs

    def encode_and_change(dialogs: Any) -> Any:
        Path("rows.jsonl").write_text("changed")
        return whole(dialogs)

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "encode_dialogs", encode_and_change)
        assert not prepare(ROWS, tokenizer).from_cache
    assert not prepare(ROWS, tokenizer).from_cache


def test_the_special_tokens_of_a_template_are_part_of_the_key(tokenizer: ChatTokenizer) -> None:
    from dialogkit.dialog import plain_format
    from tests.models.foreign import gpt2_like

    hf = gpt2_like()
    one = ChatTokenizer(hf, plain_format("<|endoftext|>")).fingerprint
    hf.pad_token = hf.eos_token
    hf.bos_token = "a"
    assert ChatTokenizer(hf, plain_format("<|endoftext|>")).fingerprint != one


def test_what_killed_writers_left_is_removed_and_nothing_else() -> None:
    folder = Path("cache/prepared")
    write_entry(folder / "a.npz", "key", {"ids": np.arange(3)})
    names = (".writing-abcd_123.npz", ".writing-abcdefgh.npz", "notes.npz", ".writing-linklink.npz")
    old, new, notes, link = (folder / name for name in names)
    for path in (old, new, notes):
        path.write_text("part")
    if hasattr(os, "mkfifo"):
        link.symlink_to("notes.npz")
    for path in (old, notes):
        os.utime(path, (time.time() - 10**6,) * 2)
    write_entry(folder / "b.npz", "key", {"ids": np.arange(3)})
    assert not old.exists()
    assert all(path.exists() for path in (new, notes, folder / "a.npz", folder / "b.npz"))


def test_an_entry_is_its_arrays_under_the_whole_key() -> None:
    path = Path("cache/prepared/a.npz")
    arrays = {"ids": np.arange(5, dtype=np.int32), "name": np.array("\u00fc")}
    assert read_entry(path, "key") is None
    write_entry(path, "key", arrays)
    found = read_entry(path, "key")
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {"ids": [0, 1, 2, 3, 4], "name": "\u00fc"}
    assert read_entry(path, "another key") is None


def mutate(rng: random.Random, path: Path) -> str:
    """Damage an entry at random. Returns how."""
    data = bytearray(path.read_bytes())
    kinds = ["flips", "cut", "insert", "overwrite", "impossible", "possible", "noise", "mixed", "file", "mode"]
    if os.getuid() == 0:
        kinds += ["owner"]
    kind = rng.choice(kinds)
    if kind == "flips":
        for _ in range(rng.choice([1, 1, 1, 2, 50])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        start = rng.randrange(len(data))
        del data[start : rng.choice([len(data), start + rng.randint(1, 100)])]
    elif kind == "insert":
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.randbytes(rng.randint(1, 300))
    elif kind == "overwrite":
        at = rng.randrange(len(data))
        data[at : at + 8] = rng.choice([bytes(8), b"\xff" * 8, rng.randbytes(8), b"PK\x05\x06\0\0\0\0"])
    elif kind == "noise":
        arrays = arrays_of(path)
        name = rng.choice([name for name in arrays if arrays[name].ndim])
        values = arrays[name]
        at = rng.randrange(len(values))
        values[at] = not values[at] if values.dtype == bool else int(values[at]) ^ (1 << rng.randrange(31))
        resave(path, arrays)
        return f"noise in {name}"
    elif kind in ("impossible", "possible"):
        table = IMPOSSIBLE if kind == "impossible" else POSSIBLE
        name = rng.choice(list(table))
        write = rng.choice([forge, resave]) if kind == "impossible" else resave
        edited(table[name], write)(path)
        return f"{name}, {write.__name__}"
    elif kind == "mixed":
        arrays = arrays_of(path)
        names = [name for name in arrays if arrays[name].ndim]
        one, two = rng.sample(names, 2)
        arrays[one], arrays[two] = arrays[two], arrays[one]
        rng.choice([forge, resave])(path, arrays)
        return f"{one} for {two}"
    elif kind == "file":
        name = rng.choice([name for name in FILES if name not in (*READABLE_BY_ROOT, "of another dataset")])
        FILES[name](path)
        return name
    elif kind == "mode":
        path.chmod(0o600 | rng.choice([0o020, 0o002, 0o022, 0o066]))
        return kind
    elif kind == "owner":
        os.chown(path, rng.randint(1, 2**31), -1)
        return kind
    path.write_bytes(data)
    return kind


@posix
@pytest.mark.faults
def test_of_a_thousand_damaged_entries_none_is_believed(tokenizer: ChatTokenizer) -> None:
    truth = prepare(ROWS, tokenizer)
    whole = entry().read_bytes()
    rng, made_again = random.Random(0), 0
    for number in range(1000):
        path = entry()
        how = mutate(rng, path)
        changed = how == "owner" or _differs(path, whole)
        with no_hang():
            data = prepare(ROWS, tokenizer)
        assert equal(data, truth), (number, how)
        assert data.from_cache != changed, (number, how)
        made_again += changed
        again = prepare(ROWS, tokenizer)
        assert again.from_cache, (number, how)
        assert equal(again, truth), (number, how)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        whole = entry().read_bytes()
    assert made_again > 900


def _differs(path: Path, whole: bytes) -> bool:
    status = path.lstat()
    private_file = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o022
    return not private_file or status.st_size != len(whole) or path.read_bytes() != whole
