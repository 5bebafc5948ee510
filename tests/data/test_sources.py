"""Reading dataset rows from files, the package and the hub's cache."""

import csv
import gzip
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dialogkit.config.data import DataConfig
from dialogkit.data.hints import AS_ROWS
from dialogkit.data.sources import STARTER, RawData, file_digest, find_source, read_dialogs
from dialogkit.dialog import Message
from dialogkit.errors import DataError, UnavailableError
from tests.conftest import typed
from tests.hub import write_alpaca

ROWS = [
    {"instruction": 'Say "hi", twice', "input": "", "output": "hi, 'hi'"},
    {
        "instruction": "Multi\nline\r\nand \ttab",
        "input": "a,b;c",
        "output": "Z\u00fcrich \u4f60\u597d \U0001f600 \u2028 end",
    },
    {"instruction": "Long", "input": "", "output": "x" * 200_000},
    {"instruction": "[1, 2]", "input": "{}", "output": "\\n is \ue000 not a break"},
]
DIALOGS = [
    (Message("user", "\n\n".join(filter(None, (r["instruction"], r["input"])))), Message("assistant", r["output"]))
    for r in ROWS
]
GOOD = b'{"prompt": "a", "response": "b"}\n'


def read(name: str | Path, data: bytes | None = None, **settings: Any) -> RawData:
    if data is not None:
        Path(name).write_bytes(data)
    config = DataConfig(dataset=str(name), **settings)
    return read_dialogs(find_source(config), config)


def refused(name: str, data: bytes) -> DataError:
    with pytest.raises(DataError) as error:
        read(name, data)
    assert "\n" not in error.value.message
    return error.value


def packed(rows: list[Any], suffix: str) -> bytes:
    """Return rows in the file format of a suffix, written by other tools than those that read them."""
    if suffix.endswith(".gz"):
        return gzip.compress(packed(rows, suffix.removesuffix(".gz")), mtime=0)
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    if suffix == ".parquet":
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), stream)
        return stream.getvalue()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


SUFFIXES = [".json", ".jsonl", ".ndjson", ".csv", ".parquet"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES)])
def test_every_file_format_gives_the_same_dialogs(suffix: str) -> None:
    data = packed(ROWS, suffix)
    raw = read(f"rows{suffix}", data)
    assert raw.dialogs == DIALOGS
    assert (raw.rows, raw.bad_rows, raw.format) == (4, [], "alpaca")
    assert raw.revision == file_digest(Path(f"rows{suffix}"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".jsonl.gz", ".parquet.gz"])
def test_nested_turns_are_read_from_every_format_that_can_hold_them(suffix: str) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    raw = read(f"rows{suffix}", packed([{"messages": turns}, {"messages": turns * 2}], suffix))
    expected = (Message("user", "Hi"), Message("assistant", "Hello."))
    assert raw.dialogs == [expected, expected * 2]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".csv.gz"])
def test_marks_line_ends_and_blank_lines_do_not_matter(suffix: str) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
    text = gzip.decompress(packed(rows, suffix)) if suffix.endswith(".gz") else packed(rows, suffix)
    changed = b"\xef\xbb\xbf" + text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n\r\n")
    changed = gzip.compress(changed, mtime=0) if suffix.endswith(".gz") else changed
    assert read(f"changed{suffix}", changed).dialogs == read(f"rows{suffix}", packed(rows, suffix)).dialogs


def test_rows_that_hold_no_dialog_are_counted_with_their_place() -> None:
    bad = b'{"prompt": "a", "response": ""}\n\n{"prompt": "a"}\n'
    raw = read("rows.jsonl", GOOD + bad + GOOD)
    assert (raw.rows, len(raw.dialogs)) == (4, 2)
    assert raw.bad_rows == [
        "rows.jsonl:2: message 2 (assistant) is empty",
        "rows.jsonl:4: response is missing, not text",
    ]


@pytest.mark.parametrize(
    ("suffix", "place"), [(".json", "rows.json[3]"), (".csv", "rows.csv:5"), (".parquet", "rows.parquet[3]")]
)
def test_places_are_rows_or_lines_of_the_file(suffix: str, place: str) -> None:
    rows = [
        {"prompt": "one\ntwo", "response": "b"},
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "response": " "},
    ]
    assert read(f"rows{suffix}", packed(rows, suffix)).bad_rows == [f"{place}: message 2 (assistant) is empty"]


def test_a_file_without_any_dialog_shows_why() -> None:
    error = refused("rows.jsonl", b'{"prompt": "a", "response": {}}\n' * 20)
    assert error.message.startswith(
        "none of the 20 rows of rows.jsonl is a dialog in the format prompt-response: "
    )
    assert error.message.endswith(": rows.jsonl:1: response is an object, not text (and 19 more such rows)")
    assert (error.details, typed(error)) == ((), "fix the rows, or: --dataset starter")


def test_reasons_that_are_equal_are_reported_once_with_their_number() -> None:
    rows = [{"prompt": "a", "response": answer} for answer in (None, "", None, True, None, "")]
    error = refused("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert error.message.endswith("rows.jsonl:1: response is null, not text (and 2 more such rows)")
    assert error.details == (
        "rows.jsonl:2: message 2 (assistant) is empty (and 1 more such rows)",
        "rows.jsonl:4: response is true or false, not text",
    )


def test_a_format_that_is_named_is_not_guessed() -> None:
    both = b'{"messages": null, "prompt": "a", "response": "b"}\n'
    assert len(read("rows.jsonl", both, format="prompt-response").dialogs) == 1
    with pytest.raises(DataError, match="messages is null"):
        read("rows.jsonl")


DAMAGED = [
    ("a.jsonl", b"", "a.jsonl holds no rows"),
    ("a.jsonl", b" \n\n", "a.jsonl holds no rows"),
    ("a.json", b"[]", "a.json holds no rows"),
    ("a.csv", b"", "a.csv holds no rows"),
    ("a.csv", b"prompt,response\n", "a.csv holds no rows"),
    ("a.jsonl", GOOD + b'{"prompt": "a",\n', "a.jsonl:2: not valid JSON: expecting property name"),
    ("a.jsonl", b'{"prompt"\n', "a.jsonl:1: not valid JSON: expecting ':' delimiter"),
    ("a.json", b'[%s,\n\n{"prompt" "b"}]' % GOOD, "a.json:4: not valid JSON: expecting ':' delimiter"),
    ("a.jsonl", b"5\n", "a.jsonl:1: a row must be an object, not a number"),
    ("a.json", b'[["a", "b"]]', "a.json[1]: a row must be an object, not a list"),
    ("a.json", b"[" * 200_000, "a.json:1: nested too deeply"),
    ("a.jsonl", GOOD + b'{"a":' * 200_000, "a.jsonl:2: nested too deeply"),
    ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "a.jsonl:1: a number of more than 4,300 digits"),
    ("a.jsonl", GOOD * 2000 + b'{"prompt": "\xff"}\n' + GOOD, "a.jsonl:2001: not UTF-8 text"),
    ("a.json", b'[{"prompt": "a",\n"response": "\xe4"}]', "a.json:2: not UTF-8 text"),
    ("a.csv", b"prompt,response\na,\xfc\n", "a.csv:2: not UTF-8 text"),
    ("a.jsonl", GOOD.decode().encode("utf-16"), "a.jsonl is UTF-16 and not UTF-8 text"),
    ("a.csv", b"prompt,response\na,b,c\n", "a.csv:2: more fields than the header has"),
    ("a.csv", b'prompt,response\n"a,b\n', "a.csv: the row after line 1 opens a quote that is never closed"),
    ("a.jsonl.gz", gzip.compress(GOOD * 1000, mtime=0)[:-20], "a.jsonl.gz is not a valid gzip file"),
    ("a.jsonl.gz", gzip.compress(GOOD * 1000, mtime=0)[:12] + b"\xff" * 20, "a.jsonl.gz is not a valid gzip file"),
    ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "a.jsonl.gz is not a valid gzip file"),
    ("a.jsonl.gz", GOOD, "a.jsonl.gz is not a valid gzip file"),
    ("a.csv.gz", gzip.compress(b"prompt,response\na,\xfc\n", mtime=0), "a.csv.gz:2: not UTF-8 text"),
    ("a.parquet", b"", "a.parquet is not a valid Parquet file"),
    ("a.parquet", b"PAR1" * 10, "a.parquet is not a valid Parquet file"),
    ("a.parquet", packed(ROWS, ".parquet")[:-9], "a.parquet is not a valid Parquet file"),
    ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "a.parquet.gz is not a valid Parquet file"),
    ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0)[:-4], "a.parquet.gz is not a valid gzip file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "reported"), DAMAGED)
def test_a_damaged_file_is_one_sentence_with_its_place(name: str, data: bytes, reported: str) -> None:
    assert refused(name, data).message.startswith(reported)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose bytes cannot be read")
def test_a_file_that_cannot_be_read_is_one_sentence() -> None:
    Path("rows.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be read: .*input/output error"):
        read("rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be read: input/output error"):
        file_digest(Path("rows.jsonl"))


def test_the_starter_dialogs_are_found_by_name() -> None:
    source = find_source(DataConfig())
    assert (source.path, source.license) == (STARTER, "CC0-1.0")
    assert read("starter").dialogs == read(STARTER).dialogs


@pytest.mark.parametrize(
    ("name", "reported", "hint"),
    [
        ("startr", "unknown dataset 'startr' (did you mean 'starter'?)", "dialogkit data list"),
        ("alpaca", "unknown dataset 'alpaca' (did you mean 'alpaca-gpt4'?)", "dialogkit data list"),
        ("zzz", "unknown dataset 'zzz'", "dialogkit data list"),
        ("x" * 300, "unknown dataset 'xxx", "dialogkit data list"),
        ("absent.jsonl", "the dataset file 'absent.jsonl' does not exist", "--dataset rows.csv"),
        (
            "row.jsonl",
            "the dataset file 'row.jsonl' does not exist (did you mean 'rows.csv'?)",
            "--dataset rows.csv",
        ),
        ("absent/rows.jsonl", "the dataset file 'absent/rows.jsonl' does not exist", "dialogkit data list"),
        ("/absent/rows", "the dataset file '/absent/rows' does not exist", "dialogkit data list"),
        (
            "~nobody-of-that-name/a.csv",
            "the dataset file '~nobody-of-that-name/a.csv' does not",
            "dialogkit data list",
        ),
        ("folder", "'folder' is a folder, not a file", "--dataset folder/rows.jsonl"),
        (
            "notes.txt",
            "'notes.txt' has none of the endings .json, .jsonl, .ndjson, .csv, .tsv, .parquet",
            f"{AS_ROWS}, or: --dataset rows.csv",
        ),
        (
            "folder/notes.txt",
            "'folder/notes.txt' has none of the endings",
            f"{AS_ROWS}, or: --dataset folder/rows.jsonl",
        ),
    ],
)
def test_a_dataset_that_is_not_there_says_what_to_type(name: str, reported: str, hint: str) -> None:
    Path("folder").mkdir()
    table, row = "prompt,response\na,b\nc,d\n", '{"prompt": "a", "response": "b"}\n' * 2
    for file, text in {
        **{
            "notes.txt": "Hi",
            "empty.csv": "",
            "alone.csv": "prompt,response\na,b\n",
            "rows.csv": table,
            "\x1b[31m.csv": table,
        },
        **{"folder/rows.jsonl": row, "folder/notes.txt": "Hi"},
    }.items():
        Path(file).write_text(text)
    with pytest.raises(DataError) as error:
        find_source(DataConfig(dataset=name))
    assert error.value.message.startswith(reported)
    assert typed(error.value) == hint


def test_a_file_beside_the_missing_one_is_suggested_only_if_it_is_likely_meant_and_not_refused() -> None:
    table = "prompt,response\na,b\nc,d\n"
    Path("notes.csv").write_text(table)
    Path("shop.csv").write_text(table)
    Path("prices.csv").write_text("prompt,response\na,b\n")
    for name in ("dialogs.jsonl", "price.csv"):
        with pytest.raises(DataError) as error:
            find_source(DataConfig(dataset=name))
        assert error.value.message == f"the dataset file {name!r} does not exist"
        assert typed(error.value) == "dialogkit data list"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.parquet", "--dataset 'other rows.csv'"),
        ("a.jsonl", "--dataset 'other rows.csv'"),
        ("a.jsonl.gz", "pack it again, or: --dataset 'other rows.csv'"),
        ("alone/a.parquet", "--dataset starter"),
    ],
)
def test_in_place_of_a_file_that_cannot_be_read_one_beside_it_is_named(name: str, hint: str) -> None:
    Path("alone").mkdir()
    Path("more.csv").touch()
    Path("other rows.csv").write_text("prompt,response\na,b\nc,d\n")
    assert typed(refused(name, b" ")) == hint


def test_home_is_understood() -> None:
    file = Path.home() / "rows.jsonl"
    file.write_bytes(GOOD)
    assert find_source(DataConfig(dataset="~/rows.jsonl")).path == file


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of hub datasets, in a process that must not open a connection."""
    import datasets

    tried: list[Any] = []
    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, lambda *words, **_: tried.append(words))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub" / "datasets"))
    yield tmp_path / "hub"
    assert tried == []


def test_a_hub_dataset_without_a_network_is_reported_without_trying(hub_cache: Path) -> None:
    for name in ("someone/something", "alpaca-gpt4"):
        with pytest.raises(
            UnavailableError, match="HF_HUB_OFFLINE forbids asking the hub, and the dataset"
        ) as error:
            read(name)
        assert typed(error.value) == "--dataset starter"


def test_a_hub_dataset_in_the_cache_is_read_without_a_network(hub_cache: Path) -> None:
    write_alpaca(hub_cache, rows=30)
    raw = read("alpaca-gpt4")
    assert (raw.rows, raw.format, raw.license) == (30, "alpaca", "CC BY-NC 4.0 (research only)")
    assert raw.dialogs[4] == (
        Message("user", "Which number comes after 4?"), Message("assistant", "5 comes after 4."),
    )  # fmt: skip
    assert raw.revision == read("vicgalle/alpaca-gpt4").revision


def test_a_hub_that_does_not_answer_is_asked_for_nothing(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    for place in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{place}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("dialogkit.system.hub.hub_forbidden", lambda: False)
    monkeypatch.setattr("dialogkit.system.hub.problems", lambda urls: ["did not answer within 10 s"])
    with pytest.raises(
        UnavailableError, match="did not answer within 10 s, and the dataset 'someone/something' is"
    ):
        read("someone/something")
    assert datasets.config.HF_HUB_OFFLINE is False, "other users of the library find it as it was"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_of_a_spreadsheet_is_read_whatever_separates_its_columns(mark: str) -> None:
    Path("rows.csv").write_text(f'prompt{mark}response\n"a, b; c"{mark}d\n')
    assert read("rows.csv").dialogs == [(Message("user", "a, b; c"), Message("assistant", "d"))]
