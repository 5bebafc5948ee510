"""Data that is read as a stream: every row once, in one order, from any place on, for any number of readers."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.config.data import DataConfig
from dialogkit.data import shards, stream
from dialogkit.data.prepare import prepare_data
from dialogkit.data.shards import Shard, find_stream
from dialogkit.data.split import hash_dialog
from dialogkit.data.stream_setup import StreamedData, prepare_stream
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError, DataError
from dialogkit.models.tokenizer import ChatTokenizer
from tests.conftest import typed

few = settings(max_examples=40, derandomize=True, deadline=None, database=None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few rows have several blocks."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", 600)


def row(number: int) -> dict[str, str]:
    return {"prompt": f"question {number}", "response": "answer " * (1 + number % 5) + str(number)}


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=17)
        return
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


@pytest.fixture
def folder() -> str:
    """300 rows in four shards of three kinds."""
    rows = [row(number) for number in range(300)]
    for name, part in {
        "a.jsonl": rows[:120],
        "b.jsonl.gz": rows[120:180],
        "c.parquet": rows[180:270],
        "d.jsonl": rows[270:],
    }.items():
        write(Path("shards") / name, part)
    Path("shards/README.md").write_text("not data")
    write(Path("all.jsonl"), rows)
    return "shards"


def prepare(dataset: str, tokenizer: ChatTokenizer, *, seed: int = 1, **options: Any) -> StreamedData:
    options = {"shuffle_dialogs": 40, **options}
    return prepare_stream(DataConfig(dataset=dataset, streaming=True, **options), tokenizer, context=64, seed=seed)


def text_of(dialog: dict[str, Any], tokenizer: ChatTokenizer) -> str:
    return str(tokenizer.hf.decode(dialog["input_ids"]))


def first(data: StreamedData, tokenizer: ChatTokenizer, number: int, *, workers: int = 0) -> list[str]:
    """Return the next dialogs of a stream, and leave it at that place."""
    found = [text_of(dialog, tokenizer) for dialog in islice(data.stream.dialogs(workers), number)]
    data.stream.close()
    return found


def said(tokens: Any, tokenizer: ChatTokenizer) -> list[str]:
    return [text_of(tokens[index], tokenizer) for index in range(len(tokens))]


# Blocks


@few
@given(
    lengths=st.lists(st.integers(0, 90), max_size=30),
    block=st.integers(1, 80),
    order=st.randoms(use_true_random=False),
    packed=st.booleans(),
    ended=st.booleans(),
)
def test_each_line_is_in_the_block_in_which_it_starts(
    lengths: list[int], block: int, order: Any, packed: bool, ended: bool
) -> None:
    lines = [json.dumps({"n": number, "x": "x" * length}) for number, length in enumerate(lengths)]
    text = "".join(line + "\n" for line in lines)
    text = text if ended else text.removesuffix("\n")
    path = Path("lines.jsonl.gz" if packed else "lines.jsonl")
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_BYTES", block)
        blocks = -(-len(text) // block)
        starts = [text.index(line) // block for line in lines]
        for wanted in (list(range(blocks)), order.sample(range(blocks), blocks), list(range(0, blocks, 3))):
            reader = Shard("lines", path).open()
            for nth in wanted:
                assert reader.has(nth)
                found = [(r.content["n"], reader.place(nth, r.number)) for r in reader.rows(nth)]
                assert found == [(n, f"lines:{n + 1}") for n, start in enumerate(starts) if start == nth]
            assert not reader.has(blocks)
            reader.close()


@pytest.mark.parametrize("order", [range(12), range(11, -1, -1), [3, 7, 4, 0, 11]])
def test_blocks_of_parquet_are_its_rows(order: Any) -> None:
    write(Path("rows.parquet"), [{"n": number, "x": "x" * 38} for number in range(120)])
    reader = Shard("rows", Path("rows.parquet")).open()
    assert reader.blocks is not None
    per_block = int(reader.place(1, 0)[5:-1])
    assert 4 < per_block < 30
    assert reader.blocks == -(-120 // per_block)
    for nth in order:
        if nth >= reader.blocks:
            continue
        numbers = list(range(nth * per_block, min(120, (nth + 1) * per_block)))
        rows = list(reader.rows(nth))
        assert [r.content["n"] for r in rows] == numbers
        assert [reader.place(nth, r.number) for r in rows] == [f"rows[{number + 1}]" for number in numbers]


def test_a_line_that_never_ends_takes_no_time_in_each_block() -> None:
    Path("long.jsonl").write_bytes(b'{"a": "' + b"x" * 5_000_000 + b'"}\n{"b": 1}\n')
    for name in ("long.jsonl", "long.jsonl.gz"):
        if name.endswith(".gz"):
            Path(name).write_bytes(gzip.compress(Path("long.jsonl").read_bytes(), mtime=0))
        reader = Shard(name, Path(name)).open()
        number = -(-Path("long.jsonl").stat().st_size // 600)
        found = [(nth, r) for nth in range(number) if reader.has(nth) for r in reader.rows(nth)]
        assert [nth for nth, _ in found] == [0, number - 1]
        assert found[0][1].problem == "longer than 4 MiB"
        assert found[1][1].content == {"b": 1}


# The same dialogs as in memory


def test_a_pass_over_a_folder_has_the_dialogs_that_memory_would_hold(
    folder: str, tokenizer: ChatTokenizer
) -> None:
    options: dict[str, Any] = {"eval_fraction": 0.1, "max_tokens": 48}
    data = prepare(folder, tokenizer, **options)
    whole = prepare_data(DataConfig(dataset="all.jsonl", **options), tokenizer, context=64, cache=Path("cache"))
    assert said(data.evaluation, tokenizer) == said(whole.evaluation, tokenizer)
    assert data.size == len(whole.train)
    one_pass = first(data, tokenizer, data.size)
    assert Counter(one_pass) == Counter(said(whole.train, tokenizer))
    assert one_pass != sorted(one_pass)
    assert replace(data.ledger, revision="", dataset="") == replace(whole.ledger, revision="", dataset="")
    assert data.ledger.cut > 0
    counts = data.stream.counts
    assert (counts.train, counts.held_out) == (len(whole.train), len(whole.evaluation))
    assert (counts.train_tokens, counts.train_supervised_tokens) == (
        int(whole.train.lengths.sum()),
        whole.train.supervised_tokens,
    )


def test_the_next_pass_has_the_same_dialogs_in_another_order(folder: str, tokenizer: ChatTokenizer) -> None:
    data = prepare(folder, tokenizer)
    assert data.size is not None
    passes = [first(data, tokenizer, data.size) for _ in range(3)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1] != passes[2]
    assert data.ledger.rows == 300
    assert 1.9 < data.stream.passes <= 3


def test_held_out_by_share_without_having_read_everything(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.data.stream_setup.SAMPLE_DIALOGS", 16)
    for shard in range(4):
        write(Path(f"shards/{shard}.jsonl"), [row(number) for number in range(shard * 200, shard * 200 + 200)])
    data = prepare("shards", tokenizer, eval_fraction=0.25, eval_max_dialogs=12)
    assert data.size is None
    assert 12 <= len(data.evaluation) <= 20
    dialogs = [(Message("user", r["prompt"]), Message("assistant", r["response"])) for r in map(row, range(800))]
    held_out = [dialog for dialog in dialogs if hash_dialog(dialog) < 0.25 * 2**64]
    encoded = {str(tokenizer.hf.decode(e.input_ids)) for e in tokenizer.encode_dialogs(held_out)}
    assert set(said(data.evaluation, tokenizer)) < encoded
    one_pass = first(data, tokenizer, 800 - len(held_out))
    assert len(set(one_pass)) == len(one_pass) == 800 - len(held_out)
    assert not set(one_pass) & encoded
    again = prepare("shards", tokenizer, seed=7, eval_fraction=0.25, eval_max_dialogs=12)
    assert said(again.evaluation, tokenizer) == said(data.evaluation, tokenizer)


# From any place on


@pytest.mark.faults
@pytest.mark.parametrize("samples", [None, 70])
def test_the_order_does_not_depend_on_workers_and_continues_from_any_dialog(
    samples: int | None, folder: str, tokenizer: ChatTokenizer
) -> None:
    whole = prepare(folder, tokenizer, samples=samples)
    expected = first(whole, tokenizer, 700)
    if samples is not None:
        parts = [Counter(expected[start : start + samples]) for start in range(0, 700, samples)]
        assert all(part == parts[0] and len(part) == samples for part in parts)
    assert first(prepare(folder, tokenizer, samples=samples), tokenizer, 700, workers=2) == expected
    found: list[str] = []
    for number, workers in ((1, 0), (38, 1), (1, 0), (110, 0), (135, 2), (289, 0), (126, 1)):
        part = prepare(folder, tokenizer, samples=samples)
        part.stream.restore(Path() if found else None)
        found += first(part, tokenizer, number, workers=workers)
        part.stream.save(Path())
    assert found == expected
    assert (part.stream.passes, part.ledger) == (whole.stream.passes, whole.ledger)


def test_another_seed_gives_another_order(folder: str, tokenizer: ChatTokenizer) -> None:
    one, two = (first(prepare(folder, tokenizer, seed=seed), tokenizer, 200) for seed in (1, 2))
    assert one != two


def pass_of(data: StreamedData, rank: int) -> int:
    """Return the number of the pass that a stream is in, as a checkpoint has it."""
    data.stream.save(Path())
    return int(json.loads(Path(f"stream-{rank}.json").read_text())["place"][0])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("samples", [None, 71])
def test_processes_have_disjoint_shares_that_are_all(
    world: int, samples: int | None, folder: str, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[list[str]] = []
    for rank in range(world):
        monkeypatch.setattr(stream, "rank_and_world_size", lambda rank=rank: (rank, world))
        data = prepare(folder, tokenizer, samples=samples)
        shares.append([])
        for dialog in data.stream.dialogs():
            if pass_of(data, rank):
                break
            shares[-1].append(text_of(dialog, tokenizer))
        data.stream.close()
    everything = [text for share in shares for text in share]
    assert len(everything) == len(set(everything)) == (data.size if samples is None else samples)
    assert max(map(len, shares)) < 1.6 * min(map(len, shares))
    monkeypatch.setattr(stream, "rank_and_world_size", lambda: (0, world + 1))
    data.stream.save(Path())
    (Path("stream-0.json")).write_text(
        Path("stream-0.json").read_text().replace(f'"world": {world}', '"world": 9')
    )
    with pytest.raises(ConfigError, match="was read by 9 processes and not by") as refused:
        data.stream.restore(Path())
    assert typed(refused.value) == "--devices 9, or: as many processes over all machines"


def test_processes_that_hear_each_other_count_what_one_counts(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [row(number) for number in range(400)]
    for number in (30, 130, 131, 330):
        rows[number] = "{"
    rows[200] = rows[201] = {"prompt": "no answer", "response": ""}
    write(Path("a.jsonl"), rows)
    alone = prepare("a.jsonl", tokenizer, max_bad_rows=4)
    first(alone, tokenizer, 500)

    def streams(world: int) -> Iterator[StreamedData]:
        for rank in range(world):
            monkeypatch.setattr(stream, "rank_and_world_size", lambda: (rank, world))  # noqa: B023
            yield prepare("a.jsonl", tokenizer, max_bad_rows=4)

    for world in (2, 3):
        together = []
        for data in streams(world):
            first(data, tokenizer, 60)  # in the second group, so that the first one is behind
            data.stream.save(Path())
            data.stream.restore(Path())
            before = data.ledger
            first(data, tokenizer, 1)
            assert 400 / world > data.ledger.rows == before.rows > 40
            while data.stream.passes < 1:
                first(data, tokenizer, 20)
            together.append(data)
        reported = [data.stream.row_counts() for data in together]
        for rank, data in enumerate(together):
            monkeypatch.setattr(stream, "rank_and_world_size", lambda: (rank, world))  # noqa: B023
            for _ in range(2):  # what is heard again is not counted again
                data.stream.merge_row_counts(reported)
                assert (data.ledger, data.stream.counts) == (alone.ledger, alone.stream.counts)
            stricter = data.stream.plan.config.model_copy(update={"max_bad_rows": 3})
            data.stream.plan = replace(data.stream.plan, config=stricter)
            with pytest.raises(DataError, match=r"^a.jsonl:\d+: not valid JSON.*and at least 3 more") as refused:
                data.stream.merge_row_counts(reported)
            assert refused.value.message.split(" (")[0] == alone.ledger.first_bad_row


def test_more_processes_than_blocks_are_refused(tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("few.jsonl"), [row(number) for number in range(20)])
    monkeypatch.setattr(stream, "rank_and_world_size", lambda: (8, 9))
    with pytest.raises(DataError, match=r"the \d blocks of few.jsonl are too few for 9 processes: rank 8"):
        first(prepare("few.jsonl", tokenizer), tokenizer, 1)


# What is not taken


@pytest.mark.parametrize("workers", [0, 2])
def test_malformed_rows_are_reported_by_file_and_line(
    workers: int, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialogkit.data.stream_setup.SAMPLE_DIALOGS", 16)
    rows: list[Any] = [row(number) for number in range(400)]
    rows[250] = '{"prompt": '
    rows[330] = {"prompt": "no answer", "response": ""}
    rows[370] = "[1]"
    write(Path("shards/a.jsonl"), rows)
    options: dict[str, Any] = {"eval_fraction": 0.3, "eval_max_dialogs": 8}
    data = prepare("shards", tokenizer, **options)
    with pytest.raises(DataError, match=r"a.jsonl:(251: not valid JSON|371: a row must be an object)") as refused:
        first(data, tokenizer, 400, workers=workers)
    assert typed(refused.value) == "fix that line, or: --max-bad-rows 100"
    with pytest.raises(DataError, match="and at least 1 more such rows"):
        first(prepare("shards", tokenizer, **options, max_bad_rows=1), tokenizer, 400, workers=workers)
    data = prepare("shards", tokenizer, **options, max_bad_rows=2)
    first(data, tokenizer, 400, workers=workers)
    assert (data.ledger.rows, data.ledger.unusable, data.ledger.kept) == (400, 3, 397)
    assert data.ledger.first_bad_row in (
        "a.jsonl:251: not valid JSON: expecting value",
        "a.jsonl:371: a row must be an object, not list",
    )
    assert [text for _, text in data.stream.counts.refused_first] == [
        "a.jsonl:331: message 2 (assistant) is empty"
    ]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Path("rows.csv").write_text("prompt,response\n"), "'rows.csv' cannot be streamed"),
        (lambda: Path("rows.json").write_text("[]"), "'rows.json' cannot be streamed"),
        (lambda: write(Path("x/rows.json"), [row(1)]), "the folder 'x' has no file that can be streamed"),
        (lambda: Path("rows.parquet.gz").write_bytes(b""), "rows.parquet.gz cannot be streamed"),
        (lambda: Path("rows.jsonl").write_text(""), "rows.jsonl holds no rows"),
        (lambda: Path("rows.jsonl").write_text("{}\n"), "has the columns none, which match none of"),
        (lambda: Path("rows.jsonl").write_text("{\n"), "rows.jsonl:1: not valid JSON"),
        (lambda: write(Path("rows.jsonl"), [row(1), row(1)]), "leaves 2 usable dialogs; at least 2 distinct"),
        (lambda: Path("rows.parquet").write_bytes(b"PAR1"), "rows.parquet is not a valid Parquet file"),
        (lambda: None, "there is no dataset 'rows.jsonl'"),
    ],
)
def test_what_cannot_be_a_stream_is_one_sentence(
    make: Callable[[], Any], sentence: str, tokenizer: ChatTokenizer
) -> None:
    make()
    made = [path.name for path in Path().iterdir()]
    with pytest.raises(DataError, match=sentence):
        prepare(made[0] if made else "rows.jsonl", tokenizer)


def test_only_dialogs_that_are_held_out_leave_nothing_to_train_on(tokenizer: ChatTokenizer) -> None:
    write(Path("rows.jsonl"), [row(1), row(2), row(1), row(1)])
    data = prepare("rows.jsonl", tokenizer)
    assert (len(data.evaluation), data.size in (1, 3)) == (1, True)
    assert len(set(first(data, tokenizer, 9))) == 1


def test_what_a_stream_is_read_from_is_known_by_its_files(folder: str) -> None:
    config = DataConfig(dataset=folder, streaming=True)
    before = find_stream(config).revision
    assert find_stream(config).revision == before
    with Path("shards/a.jsonl").open("a") as file:
        file.write(json.dumps(row(999)) + "\n")
    assert find_stream(config).revision != before


def test_an_order_is_that_of_the_first_version() -> None:
    assert stream.shuffled(8, 42, 1).tolist() == [1, 2, 5, 3, 6, 0, 4, 7]
