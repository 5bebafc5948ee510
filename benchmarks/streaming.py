"""Does a stream of any length take the same memory, how fast is it, and does it go on at the very dialog?

python benchmarks/streaming.py memory --dataset FILE --rows 5000000
python benchmarks/streaming.py speed --dataset FILE --rows 500000 --workers 0 2
python benchmarks/streaming.py kill --dataset FILE --rows 300000

The rows of FILE become one shard, which hard links repeat until there are as many rows as asked for. What is read
are the batches that training would get, tokenized and collated, without a model. Memory is the resident set of
the reading process, and of its workers what each has for itself (PSS). `kill` ends a reading process by SIGKILL
and goes on, with another number of workers, from the last place it had saved; each 10,000 dialogs are compared by
their SHA-256 with those of a process that was not ended.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dialogkit.config.data import DataConfig
from dialogkit.config.model import ModelConfig
from dialogkit.data.collate import collate_dialogs
from dialogkit.data.sources import find_source, read_dialogs
from dialogkit.data.stream_setup import StreamedData, prepare_stream
from dialogkit.models.tokenizer import load_tokenizer

BATCH, WINDOW = 16, 10_000
processes = multiprocessing.get_context("spawn")


def make_shards(dataset: str, rows: int, folder: Path, *, packed: str, characters: int | None = None) -> int:
    """Write a folder of at least so many rows, and return how many they are."""
    config = DataConfig(dataset=dataset)
    dialogs = list(read_dialogs(find_source(config), config).dialogs)
    if characters is not None:
        dialogs = [dialog for dialog in dialogs if sum(len(message.content) for message in dialog) <= characters]
    contents = [{"messages": [message._asdict() for message in dialog]} for dialog in dialogs]
    first = folder / f"00000.{packed}"
    if packed == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(contents), first, row_group_size=1000)
    else:
        first.write_text("".join(json.dumps(content) + "\n" for content in contents), encoding="utf-8")
    number = -(-rows // len(contents))
    for shard in range(1, number):
        os.link(first, folder / f"{shard:05}.{packed}")
    return number * len(contents)


def opened(folder: Path) -> StreamedData:
    """Return the folder as a stream, with the tokenizer that ships."""
    tokenizer = load_tokenizer(ModelConfig(layers=1, width=8, heads=1, context=1024))
    return prepare_stream(DataConfig(dataset=str(folder), streaming=True), tokenizer, context=1024, seed=42)


def resident() -> tuple[float, float]:
    """Return the MiB of this process, and of its children."""
    own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    lines = [line for child in children for line in Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()]
    return own / 2**20, sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**10


def memory(folder: Path, rows: int, workers: int) -> list[dict[str, Any]]:
    """Read as many rows as a pass has, and return the memory at each tenth of them."""
    before = resident()[0]
    data = opened(folder)
    table, started, due = [], time.perf_counter(), 0
    print("| rows | MiB | of workers | s |\n|---:|---:|---:|---:|")
    for _ in data.stream.batches(BATCH, collate_dialogs, workers):
        if (read := data.stream.counts.rows) >= due:
            own, others = resident()
            row = {"rows": read, "mib": own, "workers_mib": others, "s": time.perf_counter() - started}
            print(f"| {read:,} | {own:,.0f} | {others:,.0f} | {row['s']:,.0f} |", flush=True)
            table.append(row)
            due += rows // 10
        if data.stream.passes >= 1:
            break
    print(f"\nbefore the data was opened: {before:,.0f} MiB; {data.ledger}; {data.stream.counts}")
    data.stream.close()
    return table


def speed(folder: Path, rows: int, workers: int) -> dict[str, Any]:
    """Return rows and tokens per second, the time to the first batch, and the CPU time, including the workers'."""
    data, tokens = opened(folder), 0
    cpu_before = sum(os.times()[:4])
    started = first = time.perf_counter()
    for number, batch in enumerate(data.stream.batches(BATCH, collate_dialogs, workers)):
        if not number:
            first = time.perf_counter()
        tokens += batch["input_ids"].numel()
        if data.stream.passes >= 1:
            break
    seconds, read = time.perf_counter() - first, data.stream.counts.rows
    data.stream.close()
    return {
        "workers": workers,
        "rows_per_s": read / seconds,
        "tokens_per_s": tokens / seconds,
        "first_s": first - started,
        "cpu_us_per_row": 1e6 * (sum(os.times()[:4]) - cpu_before) / read,
    }


def windows(folder: Path, place: Path, dialogs: int, workers: int) -> None:
    """Read so many dialogs from the place on; write the SHA-256 of each window, then the place, beside it."""
    data = opened(folder)
    done = (place / "windows").read_text().splitlines() if (place / "stream-0.json").exists() else []
    data.stream.restore(place if done else None)
    digest, count, started = hashlib.sha256(), 0, time.perf_counter()
    for batch in data.stream.batches(BATCH, collate_dialogs, workers):
        if not count and done:
            print(
                f"gone on after {len(done)} windows, the first batch after {time.perf_counter() - started:.2f} s"
            )
        digest.update(batch["input_ids"].numpy().tobytes())
        count += BATCH
        if count % WINDOW == 0:
            done.append(digest.hexdigest())
            # The place last, and whole: what is after it would be read again.
            (place / "windows.new").write_text("\n".join(done))
            (place / "new").mkdir(exist_ok=True)
            data.stream.save(place / "new")
            os.replace(place / "windows.new", place / "windows")
            os.replace(place / "new/stream-0.json", place / "stream-0.json")
            digest = hashlib.sha256()
        if len(done) * WINDOW >= dialogs:
            break
    data.stream.close()


def kill(folder: Path, dialogs: int, scratch: Path) -> bool:
    """Return whether a process that was ended twice read what one read that was not."""
    found = []
    for name, ends in (("whole", 0), ("killed", 2)):
        place = scratch / name
        place.mkdir()
        for attempt in range(ends + 1):
            process = processes.Process(target=windows, args=(folder, place, dialogs, (0, 2, 1)[attempt]))
            process.start()
            while attempt < ends and _windows(place) < (attempt + 1) * dialogs // WINDOW // 3:
                time.sleep(0.01)
            if attempt < ends:
                time.sleep(0.3)  # in the midst of a window
                os.kill(process.pid or 0, signal.SIGKILL)
                print(f"killed with {_windows(place)} windows done")
            process.join()
        found.append((place / "windows").read_text().split())
    same = found[0] == found[1]
    print(f"{len(found[0])} windows of {WINDOW:,} dialogs: {'the same' if same else 'NOT the same'}")
    return same


def _windows(place: Path) -> int:
    path = place / "windows"
    return len(path.read_text().splitlines()) if path.exists() else 0


def main() -> None:
    """Measure one thing, print it, and write it as JSON beside if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "speed", "kill"])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--characters", type=int, help="only dialogs of at most so many")
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--shards", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--json", type=Path, help="write the figures here")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        folder.mkdir()
        rows = make_shards(words.dataset, words.rows, folder, packed=words.shards, characters=words.characters)
        figures: list[Any] = []
        if words.what == "kill":
            figures.append({"same": kill(folder, words.rows, Path(scratch))})
        elif words.what == "memory":
            # In a process of its own, which has not read the file as a whole.
            with processes.Pool(1) as pool:
                figures += pool.apply(memory, (folder, rows, 0))
        else:
            print(
                "| workers | rows/s | tokens/s | first batch after s | CPU us a row |\n|---:|---:|---:|---:|---:|"
            )
            for workers in words.workers:
                figures.append(row := speed(folder, rows, workers))
                rates = f"{row['rows_per_s']:,.0f} | {row['tokens_per_s']:,.0f} | {row['first_s']:.2f}"
                print(f"| {workers} | {rates} | {row['cpu_us_per_row']:.0f} |", flush=True)
    if words.json:
        words.json.write_text(json.dumps(figures, indent=1))
    sys.exit(0 if words.what != "kill" or figures[0]["same"] else 1)


if __name__ == "__main__":
    main()
