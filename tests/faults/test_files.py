"""Data files that nobody should make: one sentence each, little memory, and no process that ends by itself."""

import gzip
import io
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from dialogkit.config.data import DataConfig
from dialogkit.data.sources import find_source, read_dialogs
from dialogkit.errors import DataError
from tests.conftest import SMALL
from tests.data.test_readers import MALFORMED
from tests.data.test_sources import DAMAGED
from tests.forks import run_forked

GOOD = b'{"prompt": "a", "response": "b"}\n'
ROW = {"prompt": ["a"], "response": ["b"]}
MANY = 1_000_000
noise = random.Random(0).randbytes


def parquet(columns: Any, **settings: Any) -> bytes:
    """Return a Parquet file of columns, or of a table."""
    stream = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), stream, **settings)
    return stream.getvalue()


def arrow(column: str, values: Any, kind: Any) -> bytes:
    return parquet({**ROW, column: pa.array(values, kind)})


def no_utf8() -> bytes:
    buffers = pa.array([b"a", b"\xff\xfe"]).buffers()
    return parquet({"prompt": pa.Array.from_buffers(pa.string(), 2, buffers), "response": ["b", "c"]})


def as_feather() -> bytes:
    stream = io.BytesIO()
    feather.write_feather(pa.table(ROW), stream)
    return stream.getvalue()


def torn_page() -> bytes:
    content = bytearray(parquet({"prompt": [noise(9).hex() for _ in range(999)], "response": ["b"] * 999}))
    content[200:900] = noise(700)
    return bytes(content)


# What stands in a file, and what the sentence says. Those of tests/data are added below.
CONTENTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    # Encodings
    "UTF-16 without a mark": ("a.jsonl", lambda: GOOD.decode().encode("utf-16-le"), "a.jsonl is UTF-16LE"),
    "UTF-32": ("a.json", lambda: b"[" + GOOD.decode().encode("utf-32") + b"]", "a.json:1: not UTF-8 text"),
    "Latin-1 in a table": ("a.csv", lambda: b"prompt,response\n\xe9,\xfc\n", "a.csv:2: not UTF-8 text"),
    "a mark in the middle": ("a.jsonl", lambda: GOOD + b"\xef\xbb\xbf" + GOOD, "a.jsonl:2: not valid JSON"),
    "half of a pair": ("a.jsonl", lambda: GOOD.replace(b"a", b"\\ud800"), "none of the 1 rows"),
    "half of a pair as a key": ("a.jsonl", lambda: b'{"\\udfff": 1}', "a.jsonl has the columns \udfff"),
    "zeros": ("a.jsonl", lambda: bytes(MANY), "a.jsonl:1: not valid JSON"),
    "zeros in a table": ("a.csv", lambda: b"prompt,response\n" + bytes(MANY), "none of the 1 rows"),
    "a steering text": ("a.jsonl", lambda: b'{"\\u001b]0;owned\\u0007\\u202e[red]": 1}', "a.jsonl has the"),
    # Shapes
    "many brackets in a row": ("a.jsonl", lambda: b'{"prompt": ' + b"[" * MANY, "a.jsonl:1: nested too deeply"),
    "deep objects in an array": ("a.json", lambda: b"[" + b'{"a":' * MANY, "a.json:1: nested too deeply"),
    "a long line": ("a.jsonl", lambda: GOOD + b"x" * 30 * MANY, "a.jsonl:2: longer than 4 MiB"),
    "a long text without an end": ("a.json", lambda: b'[{"prompt": "' + b"x" * 30 * MANY, "a.json:1: not valid"),
    "a row of empty lists": ("a.jsonl", lambda: b'{"a": [' + b"[]," * (MANY + MANY // 3) + b"[]]}", "a.jsonl has"),
    "rows that are numbers": ("a.jsonl", lambda: b"1\n" * 10 * MANY, "a.jsonl:1: a row must be an object"),
    "an array of numbers": ("a.json", lambda: b"[" + b"1," * MANY + b"1]", "a.json[1]: a row must be an object"),
    "a number without an end": ("a.json", lambda: b'[{"a": ' + b"9" * MANY + b"}]", "a.json:1: a number of more"),
    "many keys and one twice": (
        "a.jsonl",
        lambda: b"{" + b",".join(b'"%x":0' % number for number in range(MANY // 4)) + b',"a":1}',
        "a.jsonl:1: the key 'a' appears twice",
    ),
    "long keys twice": (
        "a.jsonl",
        lambda: (b'{"%b": 1, "%b": 2}\n' % (b"k" * MANY, b"k" * MANY)) * 12,
        "a.jsonl:1: the key 'kkk",
    ),
    "a long role": (
        "a.jsonl",
        lambda: json.dumps({"messages": [{"role": "x" * MANY, "content": "y"}]}).encode(),
        "none of the 1 rows",
    ),
    "a wrapper of nothing known": ("a.json", lambda: b'{"data": [{"a": 1}]}', "a.json has the columns a"),
    "two rows in a line": ("a.jsonl", lambda: GOOD + GOOD.strip() * 2, "a.jsonl:2: not valid JSON: extra data"),
    "a comma too many": ("a.json", lambda: b"[%b,]" % GOOD, "a.json:2: a comma after the last row"),
    "a comment": ("a.jsonl", lambda: b"// rows\n" + GOOD, "a.jsonl:1: not valid JSON"),
    "words of Python": ("a.jsonl", lambda: str(json.loads(GOOD)).encode(), "a.jsonl:1: written with single"),
    "a page of the web": ("a.json", lambda: b"<!DOCTYPE html><title>404</title>", "a.json is a web page"),
    "a pointer to a file": ("a.parquet", lambda: b"version https://git-lfs.github.com\n", "a.parquet is a"),
    "noise": ("a.jsonl", lambda: noise(MANY), "a.jsonl:1: not UTF-8 text"),
    "an archive": ("a.csv", lambda: b"PK\x03\x04" + noise(MANY), "a.csv is a spreadsheet or an"),
    "figures that are none": ("a.jsonl", lambda: b'{"prompt": NaN, "response": 1e999}', "none of the 1 rows"),
    "nulls": ("a.jsonl", lambda: b'{"prompt": null, "response": null}\n' * 9, "none of the 9 rows"),
    "empty texts": ("a.jsonl", lambda: b'{"prompt": "", "response": ""}\n' * 9, "none of the 9 rows"),
    "one dialog": ("a.jsonl", lambda: GOOD, "a.jsonl leaves 1 usable dialog;"),
    "one dialog many times": ("a.jsonl", lambda: GOOD * 99, "a.jsonl leaves 99 usable dialogs"),
    # Tables
    "many columns without a name": ("a.csv", lambda: b"," * MANY + b"\n" + b"," * MANY, "a.csv has the columns"),
    "many columns with one name": ("a.csv", lambda: b"a," * MANY + b"\n", "a.csv:1: the column 'a' appears twice"),
    "a quote that takes in all": ("a.csv", lambda: b'prompt,response\n"' + b"x\n" * 9 * MANY, "a.csv: the row"),
    "a row of many lines": ("a.csv", lambda: b'prompt,response\n"' + b'x\n","' * 2 * MANY, "a.csv: the row after"),
    "a quote within a field": ("a.csv", lambda: b'prompt,response\n"a"b,c\n', "a.csv:2: ',' expected after '\"'"),
    # Packed files
    "zeros packed": ("a.jsonl.gz", lambda: gzip.compress(bytes(2**27)), "a.jsonl.gz unpacks to more than 200"),
    "packed twice": ("a.jsonl.gz", lambda: gzip.compress(gzip.compress(GOOD)), "a.jsonl.gz:1: not UTF-8 text"),
    "bytes after it": ("a.jsonl.gz", lambda: gzip.compress(GOOD) + b"x", "a.jsonl.gz is not a valid gzip file"),
    "a packed table of zeros": ("a.parquet.gz", lambda: gzip.compress(bytes(2**27)), "a.parquet.gz unpacks to"),
    # Parquet
    "one text in many rows": (
        "a.parquet",
        lambda: parquet(
            {"prompt": pa.DictionaryArray.from_arrays([0] * 3000, ["x" * MANY]), "response": ["b"] * 3000}
        ),
        "a.parquet unpacks to more than 200 times",
    ),
    "pages of blanks": (
        "a.parquet",
        lambda: parquet(
            {"prompt": [" " * MANY] * 90, "response": ["b"] * 90}, compression="zstd", use_dictionary=False
        ),
        "a.parquet unpacks to more than 200 times",
    ),
    "a torn page": ("a.parquet", torn_page, "a.parquet cannot be read after row 0: "),
    "no UTF-8 in Parquet": ("a.parquet", no_utf8, "a.parquet[2]: not UTF-8 text"),
    "bytes": ("a.parquet", lambda: parquet({"prompt": [b"a"], "response": [b"b"]}), "none of the 1 rows"),
    "a map": (
        "a.parquet",
        lambda: parquet({"messages": pa.array([[("role", "user")]], pa.map_(pa.string(), pa.string()))}),
        "none of the 1 rows",
    ),
    "a day that is none": ("a.parquet", lambda: arrow("at", [2**30], pa.date32()), "a.parquet cannot be read"),
    "a time that is none": (
        "a.parquet", lambda: arrow("at", [2**62], pa.timestamp("us")), "a.parquet cannot be read after row 0",
    ),
    "a column twice in Parquet": (
        "a.parquet",
        lambda: parquet(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["prompt", "response", "prompt"])),
        "a.parquet: the column 'prompt' appears twice",
    ),
    "no columns": ("a.parquet", lambda: parquet({}), "a.parquet holds no rows"),
    "many columns": ("a.parquet", lambda: parquet({f"c{n}": [1] for n in range(3000)}), "a.parquet has the"),
    "another format": ("a.parquet", as_feather, "a.parquet is not a valid Parquet file"),
    "Parquet named otherwise": ("a.jsonl", lambda: parquet(ROW), "a.jsonl:1: not"),
}  # fmt: skip


def link_to(target: str) -> str:
    os.symlink(target, "a.jsonl")
    return "a.jsonl"


def folder() -> str:
    os.mkdir("a.jsonl")
    return "a.jsonl"


def pipe() -> str:
    os.mkfifo("a.jsonl")
    return "a.jsonl"


def bound_socket() -> str:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("a.jsonl")
    return "a.jsonl"


# What stands in the place of a file.
PLACES: dict[str, tuple[Callable[[], str], str]] = {
    "a folder": (folder, "'a.jsonl' is a folder, not a file"),
    "a pipe": (pipe, "'a.jsonl' is neither a file nor a folder"),
    "a socket": (bound_socket, "'a.jsonl' is neither a file nor a folder"),
    "a device": (lambda: "/dev/zero", "'/dev/zero' is neither a file nor a folder"),
    "a link to a device": (lambda: link_to("/dev/zero"), "'a.jsonl' is a broken link"),
    "a link to itself": (lambda: link_to("a.jsonl"), "'a.jsonl' is a broken link"),
    "a link to nothing": (lambda: link_to("nowhere"), "'a.jsonl' is a broken link"),
    "a file without bytes": (lambda: link_to("/proc/self/mem"), "a.jsonl cannot be read: input/output error"),
    "nothing": (lambda: "a.jsonl", "the dataset file 'a.jsonl' does not exist"),
    "a name with a zero": (lambda: "a\0.jsonl", "the dataset file 'a\\x00.jsonl' does not exist"),
    "a long name": (lambda: "x" * 4000 + ".jsonl", "the dataset file 'xxx"),
}  # fmt: skip


def in_tables() -> dict[str, tuple[Callable[[], str], str]]:
    """Return all of them alike: what makes the file and returns its name, and what the sentence begins with."""

    def written(name: str, content: bytes) -> str:
        Path(name).write_bytes(content)
        return name

    rows = {reported: row if isinstance(row, bytes) else row.encode() for reported, row in MALFORMED.items()}
    malformed = {
        f"rows: {reported}": (lambda row=row: written("rows.jsonl", row), "") for reported, row in rows.items()
    }
    damaged = {
        f"{reported}, {number}": (lambda name=name, data=data: written(name, data), reported)
        for number, (name, data, reported) in enumerate(DAMAGED)
    }
    contents = {
        kind: (lambda name=name, make=make: written(name, make()), reported)
        for kind, (name, make, reported) in CONTENTS.items()
    }
    return {**PLACES, **contents, **damaged, **malformed}


ALL = in_tables()


def some(kinds: list[str]) -> list[Any]:
    """Return all kinds, of which every second is left to `make faults`."""
    return [
        pytest.param(kind, marks=pytest.mark.faults) if number % 2 else kind for number, kind in enumerate(kinds)
    ]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose bytes cannot be read")
@pytest.mark.parametrize("kind", some([*PLACES, *(kind for kind in CONTENTS if "one dialog" not in kind)]))
def test_a_hostile_file_is_one_sentence_that_names_it(kind: str) -> None:
    make, reported = ALL[kind]
    config = DataConfig(dataset=make())
    with pytest.raises(DataError) as refused:
        read_dialogs(find_source(config), config)
    assert refused.value.message.startswith(reported)
    assert "\n" not in refused.value.message
    assert (refused.value.exit_code, len(refused.value.details) <= 9, bool(refused.value.hint)) == (2, True, True)
    assert all(len(line) < 1000 for line in (refused.value.message, *refused.value.details))


def train_on(dataset: str) -> tuple[int, str, str, int]:
    """Run the command line on a dataset; return exit code, both outputs, and the most memory held, in MiB."""
    import contextlib
    import resource

    from dialogkit.cli.app import main

    sets = [word for name, value in SMALL.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["train", "custom-nano", *sets, "--dataset", dataset])
        except SystemExit as left:
            code = int(left.code or 0)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return code, out.getvalue(), err.getvalue(), held


OFTEN = ["one text in many rows"]


@pytest.mark.parametrize(
    "kind", [kind if kind in OFTEN else pytest.param(kind, marks=pytest.mark.faults) for kind in ALL]
)
def test_the_command_line_says_it_in_three_lines_and_a_gibibyte(kind: str, tmp_path: Path) -> None:
    make, reported = ALL[kind]
    dataset = make()
    code, out, err, held = run_forked(train_on, dataset, folder=tmp_path)
    lines = err.splitlines()
    details = [line for line in lines if line.startswith("       ")]
    assert (code, out, len(details) <= 9) == (2, "", True)
    assert lines[0].startswith(f"error: {reported.encode('ascii', 'backslashreplace').decode()}")
    assert (len(lines) - len(details), lines[-1].startswith("try: ")) == (2, True)
    assert max(map(len, lines)) < 1000
    assert held < 1024
    assert not Path("models").exists()
