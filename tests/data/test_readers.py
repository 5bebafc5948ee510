"""Files from anywhere: malformed rows are reported one by one, and no file takes more memory than a row of it."""

import gzip
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialogkit.config.data import DataConfig
from dialogkit.data import readers
from dialogkit.data.readers import read_rows
from dialogkit.data.sources import RawData, find_source, read_dialogs
from dialogkit.errors import DataError, DialogKitError
from tests.conftest import REPOSITORY, Finished, typed

GOOD = '{"prompt": "a", "response": "b"}'


def read(content: bytes, name: str = "rows.jsonl", **settings: Any) -> RawData:
    Path(name).write_bytes(content)
    config = DataConfig(dataset=name, **settings)
    return read_dialogs(find_source(config), config)


MALFORMED: dict[str, str | bytes] = {
    "not valid JSON: expecting value": "nothing",
    "not valid JSON: extra data": GOOD + GOOD,
    "the key 'prompt' appears twice": '{"prompt": "a", "prompt": "b", "response": "c"}',
    "the key 'role' appears twice": '{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}',
    "a row must be an object, not a list": "[1]",
    "nested too deeply": "[" * 200_000,
    "a number of more than 4,300 digits": '{"prompt": ' + "9" * 5000 + "}",
    "a row must be an object, not null": "null",
    "not UTF-8 text": b"\xff\xfe",
    "not valid JSON: unterminated string": GOOD[:-3],
}


@pytest.mark.parametrize("problem", MALFORMED)
def test_a_malformed_row_is_reported_with_its_line_and_passed_over_if_asked(problem: str) -> None:
    bad = MALFORMED[problem]
    row = bad if isinstance(bad, bytes) else bad.encode()
    content = b"\n".join([GOOD.encode(), row, GOOD.encode(), b""])
    with pytest.raises(DataError) as error:
        read(content)
    if problem == "not UTF-8 text":
        assert error.value.message.startswith(f"rows.jsonl:2: {problem}")
    else:
        assert error.value.message == f"rows.jsonl:2: {problem}"
        assert typed(error.value) == "fix that line, or: --max-bad-rows 1"
    raw = read(content, max_bad_rows=1)
    assert (raw.rows, len(raw.dialogs), raw.bad_rows) == (3, 2, [f"rows.jsonl:2: {problem}"])


def test_of_many_malformed_rows_the_first_ten_and_the_number_are_reported() -> None:
    content = "\n".join([GOOD, *["x"] * 30]).encode()
    with pytest.raises(DataError) as error:
        read(content, max_bad_rows=29)
    assert "rows.jsonl:2: " in error.value.message
    assert "(and 29 more such rows)" in error.value.message
    assert [line.partition(": ")[0] for line in error.value.details] == [f"rows.jsonl:{n}" for n in range(3, 12)]
    assert len(read(content, max_bad_rows=30).dialogs) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_another_encoding_is_named_with_the_command_that_converts_it(suffix: str, encoding: str) -> None:
    text = {".csv": "prompt,response\na,b\n", ".json": f"[{GOOD}]"}.get(suffix, GOOD + "\n")
    content = text.encode(encoding)
    with pytest.raises(DataError) as error:
        read(gzip.compress(content, mtime=0) if suffix.endswith(".gz") else content, f"my rows{suffix}")
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert error.value.message == f"my rows{suffix} is {name} and not UTF-8 text"
    assert f"iconv -f {name} -t UTF-8" in str(error.value.hint)
    if shutil.which("iconv"):
        subprocess.run(["sh", "-c", (typed(error.value) or "").partition(" && ")[0]], check=True)
        made = Path(f"my rows-utf8{suffix.removesuffix('.gz')}")
        assert len(read(made.read_bytes(), made.name).dialogs) == 1


def test_text_of_any_script_is_not_taken_for_another_encoding() -> None:
    row = json.dumps({"prompt": "你好\u0000", "response": "Привет"}, ensure_ascii=False)
    assert len(read(f"{row}\n".encode()).dialogs) == 1
    assert len(read(b"prompt,response\na,\0\0\0\0b\n", "rows.csv").dialogs) == 1


TABLE = [{"prompt": f"ask {number}", "response": f"say {number}"} for number in range(3)]
PRINTED = "\n".join(json.dumps(row, indent=2) for row in TABLE)
READ_TWICE = r"likely cp1252 \('Épülõ'\) or cp1250 \('Épülő'\)$"
"""A Hungarian word that is one in either."""
CHINESE = "".join(f'{{"prompt": "奥斯陆在哪里呢{n}", "response": "是城市。"}}\n' for n in range(2))
COLUMNS = {name: {str(number): row[name] for number, row in enumerate(TABLE)} for name in ("prompt", "response")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", PRINTED),
        ("a.json", PRINTED),
        ("a.jsonl", "\r".join(map(json.dumps, TABLE))),
        ("a.json", json.dumps({"data": TABLE})),
        ("a.json", json.dumps({"version": "1.0", "size": 3, "train": TABLE, "licence": "CC0"}, indent=1)),
        ("a.json", json.dumps({"status": "ok", "meta": {"page": 1}, "results": TABLE})),
        ("a.json", json.dumps(dict(enumerate(TABLE)))),
        ("a.json", json.dumps(COLUMNS)),
        ("a.json", json.dumps(COLUMNS, indent=1)),
        ("a.json", json.dumps({name: list(column.values()) for name, column in COLUMNS.items()})),
        ("a.json", json.dumps({"columns": list(COLUMNS), "data": [list(row.values()) for row in TABLE]})),
        ("a.csv", "sep=;\nprompt;response\n" + "".join(f"{r['prompt']};{r['response']}\n" for r in TABLE)),
        ("a.TSV", " Prompt\tresponse \n" + "".join(f"{r['prompt']}\t{r['response']}\n" for r in TABLE)),
        ("a.csv", "prompt|response\n" + "".join(f"{r['prompt']}|{r['response']}\n" for r in TABLE)),
    ],
)
def test_rows_are_read_in_every_layout(name: str, text: str) -> None:
    dialogs = read(text.encode(), name).dialogs
    assert [[message.content for message in dialog] for dialog in dialogs] == [list(r.values()) for r in TABLE]


def test_a_lone_object_and_turns_under_data_are_dialogs() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    with pytest.raises(DataError, match=r"a.json:1: data is an object, not a list"):
        read(json.dumps({"data": {"prompt": "Hi", "response": "Hello."}}).encode(), "a.json")
    for content in ({"messages": turns}, {"data": turns}, {"id": "0", "data": ["Hi", "Hello."]}):
        assert len(read(json.dumps(content, indent=1).encode(), "a.json").dialogs) == 1


@pytest.mark.parametrize(
    ("name", "content", "reported", "hint"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs"),
        ("a.json", b"\n<html><body>404</body></html>", "a web page", "download the file"),
        ("a.jsonl", b'{"prompt": "a", "response": "b"},\n' * 2, "the lines end in commas", "sed "),
        ("a.jsonl", b"{'prompt': 'a', 'response': 'b'}\n" * 2, "single quotes", "python3 -c"),
        ("a.json", b'[{"prompt": "a", "response": "b"},\n]', "a comma after the last row", "fix that line"),
        ("a.csv", "prompt,response\nGr\xfc\xdfe,Gut\n".encode("latin-1"), "likely cp1252$", "iconv -f CP1252"),
        (
            "a.csv",
            "prompt,response\nZa\u017c\xf3\u0142\u0107,No\n".encode("cp1250"),
            "likely cp1250$",
            "iconv -f CP1250",
        ),
        ("a.csv", "prompt,response\n\xc9p\xfcl\u0151,Ki\n".encode("cp1250"), READ_TWICE, "iconv -f CP1252"),
        ("a.jsonl", CHINESE.encode("gbk"), "most likely gb18030", "iconv -f GB18030"),
        ("a.txt", b"Hello . __eou__ Hi . __eou__\n", "DailyDialog text", "convert it to JSONL"),
        ("a.txt", b"[01/02/24, 10:00:01] Ann: Hi\n", "a WhatsApp chat export", "convert it to JSONL"),
        ("a.yml", b"categories:\n- greetings\nconversations:\n- - Hi\n", "YAML", "convert it to JSONL"),
        ("a.xlsx", b"PK\x03\x04rest", "a spreadsheet", "save it as CSV"),
    ],
)
def test_a_file_that_is_no_dataset_is_named_for_what_it_is(
    name: str, content: bytes, reported: str, hint: str
) -> None:
    Path(name).write_bytes(content)
    config = DataConfig(dataset=name)
    with pytest.raises(DataError, match=reported) as error:
        read_dialogs(find_source(config), config)
    assert hint in (typed(error.value) or "")
    assert "--max-bad-rows" not in (typed(error.value) or "")
    if hint.startswith(("sed", "python3", "iconv")) and shutil.which(hint.split()[0]):
        subprocess.run(["sh", "-c", (typed(error.value) or "").partition(" && ")[0]], check=True)
        [made] = [path for path in Path().iterdir() if path.stem != "a"]
        assert read_dialogs(find_source(DataConfig(dataset=str(made))), config).dialogs


def test_a_row_that_is_too_long_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_ROW", 1000)
    raw = read(f"{GOOD}\n{'x' * 5000}\n{GOOD}\n".encode(), max_bad_rows=1)
    assert [bad.partition(":")[2] for bad in raw.bad_rows] == ["2: longer than 4 MiB"]
    assert len(raw.dialogs) == 2


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_an_array_is_the_same_however_it_is_read(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    rows = [{"prompt": "ä" * length, "response": 'b"]},\n\\'} for length in range(1, 30)]
    Path("rows.json").write_text("\ufeff \n" + json.dumps(rows, ensure_ascii=False, indent=1) + "\n ")
    assert [row.content for row in read_rows(Path("rows.json"))] == rows
    Path("rows.json").write_text(json.dumps(rows, indent=1)[:-40])
    with pytest.raises(DataError, match=r"rows.json:\d+: not valid JSON"):
        list(read_rows(Path("rows.json")))


@pytest.mark.parametrize("end", ["]]", "] x", "", ",]", "}"])
def test_an_array_that_does_not_end_well_is_reported(end: str) -> None:
    with pytest.raises(DataError, match=r"^rows.json:1: "):
        read(f"[{GOOD}{end}".encode(), "rows.json")


def test_a_column_that_stands_twice_is_reported() -> None:
    with pytest.raises(DataError, match="the column 'prompt' appears twice"):
        read(b"prompt,response,prompt\na,b,c\n", "rows.csv")


def test_what_unpacks_to_far_more_than_text_does_is_refused() -> None:
    bomb = gzip.compress(b" " * 2**27, mtime=0)
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(bomb, "rows.jsonl.gz")


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


ROWS = [{"prompt": "a", "response": "b"}] * 3
SEEDS: dict[str, bytes] = {
    "rows.json": json.dumps(ROWS).encode(),
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "rows.csv": b"prompt,response\n" + b"a,b\n" * 3,
    "rows.jsonl.gz": gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS), mtime=0),
    "rows.parquet": parquet(ROWS),
}
SPLICES = (b"", b"\x00", b"\xff", b'"', b"{", b"[" * 3000, b"9" * 6000, b"null", b"\n", b"NaN", b"\\ud800", b",")


def mutate(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, splice in changes:
        start = at % (len(seed) + 1)
        seed = seed[:start] + splice + seed[start + length :]
    return seed


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 10_000), st.integers(0, 40), st.one_of(st.sampled_from(SPLICES), st.binary(max_size=8))
    ),
    min_size=1,
    max_size=4,
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize(
    "examples", [pytest.param(20, id="few"), pytest.param(1000, id="many", marks=pytest.mark.faults)]
)
@pytest.mark.parametrize("name", [name for name in SEEDS if name != "rows.parquet"])
def test_a_file_that_was_changed_at_random_is_read_or_refused(name: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, derandomize=True, database=None)
    @given(CHANGES)
    def check(changes: list[tuple[int, int, bytes]]) -> None:
        reported = None
        try:
            read(mutate(SEEDS[name], changes), name)
        except DialogKitError as error:
            reported = error
        if reported is not None:
            assert reported.exit_code == 2
            assert len(reported.details) <= 9
            assert "\n" not in reported.message

    check()


@pytest.mark.faults
def test_a_parquet_file_that_was_changed_at_random_ends_no_process(tmp_path: Path) -> None:
    # A separate process: what is tested is that a library in C does not end it.
    program = (
        "import random, sys; from pathlib import Path; from tests.data.test_readers import SEEDS, mutate, read\n"
        "from dialogkit.errors import DataError\n"
        "chance = random.Random(0); reported = 0\n"
        "for _ in range(1000):\n"
        "    change = [(chance.randrange(9999), chance.randrange(9), chance.randbytes(chance.randrange(9)))]\n"
        "    try: read(mutate(SEEDS['rows.parquet'], change), 'rows.parquet')\n"
        "    except DataError: reported += 1\n"
        "print(reported)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100


def test_the_command_line_passes_over_what_it_is_asked_to(dialogkit: Callable[..., Finished]) -> None:
    Path("rows.jsonl").write_text("\n".join([GOOD, "x", GOOD.replace("a", "c"), "y"]))
    words = ["train", "custom-nano", "--dataset", "rows.jsonl", "--wandb", "disabled"]
    done = dialogkit(*words, "--max-bad-rows", "1")
    assert (done.code, done.err.splitlines()[-1]) == (2, "try: fix that line, or: --max-bad-rows 2")
    assert not Path("models").exists()
