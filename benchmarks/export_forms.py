"""How long does each form of an export take, how large is it, and how soon does it say its first token?

python benchmarks/export_forms.py talker --forms gguf-f32 gguf-q8_0 onnx-q8_0 bundle server --runtime DIR

Each form is written and certified as `dialogkit export` does. A page is then opened in Chromium; `server` is
`dialogkit serve`, a process of its own. Their seconds are those from the start to the first token of a reply, of
which the server's include the imports and the page's the loading of the model, and those to the first token of the
next prompts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from browser_agreement import in_browser

from dialogkit import export
from dialogkit.config.generate import TEST_PROMPTS

FORMS = [f"gguf-{kind}" for kind in ("f32", "f16", "q8_0", "q4_0")] + ["onnx-f32", "onnx-q8_0", "bundle"]
PROMPTS = list(TEST_PROMPTS)


def of_the_page(folder: Path) -> dict[str, float]:
    """Return the seconds to the first tokens of a page."""
    found = in_browser(folder, PROMPTS, 2, timeout_s=170)
    return {"start_s": found["load_s"] + found["first_s"][0], "next_s": median(found["first_s"][1:])}


def of_the_server(model: str, output: str) -> dict[str, float]:
    """Return the seconds to the first tokens of a server."""
    import httpx

    words = [sys.executable, "-m", "dialogkit", "serve", model, "--output-dir", output, "--port", "0"]
    started = time.perf_counter()
    with subprocess.Popen(
        [*words, "--no-cuda"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = next(line for line in server.stdout if "http://" in line)
            url = "http://" + line.partition("http://")[2].split()[0].rstrip(";")
            seconds: list[float] = []
            with httpx.Client(base_url=url, timeout=100) as http:
                for text in PROMPTS:
                    asked = time.perf_counter()
                    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "stream": True}
                    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                        for part in answer.iter_lines():
                            if part.startswith("data: {") and json.loads(part[6:])["choices"][0]["delta"].get(
                                "content"
                            ):
                                break
                    seconds.append(time.perf_counter() - (asked if seconds else started))
        finally:
            server.terminate()
    return {"start_s": seconds[0], "next_s": median(seconds[1:])}


def main() -> None:
    """Print a row for each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--forms", nargs="+", default=[*FORMS, "server"], choices=[*FORMS, "server"])
    parser.add_argument("--runtime", help="folder of the npm package onnxruntime-web")
    parser.add_argument("--output-dir", default="models")
    words = parser.parse_args()
    print("| form | seconds to export | bytes | equal tokens | first token after the start, s | of the next, s |")
    print("|---|---:|---:|---:|---:|---:|")
    for form in words.forms:
        with tempfile.TemporaryDirectory() as folder:
            cells, first = ["", "", ""], None
            if form == "server":
                first = of_the_server(words.model, words.output_dir)
            else:
                to, _, kind = form.partition("-")
                options: dict[str, Any] = {"type": kind} if kind else {}
                runtime = {"runtime": words.runtime} if to == "onnx" else {}
                started = time.perf_counter()
                result = export(
                    words.model, to=to, folder=folder, output=words.output_dir, force=True, **options, **runtime
                )
                seconds, made = time.perf_counter() - started, result.certificate
                cells = [f"{seconds:.1f}", f"{made.bytes:,}", f"{made.equal_tokens:.2%}"]
                first = of_the_page(Path(folder)) if to == "onnx" else None
            cells += [f"{first['start_s']:.2f}", f"{first['next_s']:.3f}"] if first else ["", ""]
            print(f"| {form} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
