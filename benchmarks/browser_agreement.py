"""Does a model in the browser say the same as dialogkit, and how fast?

python benchmarks/browser_agreement.py exports/talker-onnx-f32 --model talker --prompts 16

FOLDER is what `dialogkit export --to onnx` wrote. Chromium opens it from a local server of files, reads the test
prompts and prompts of `starter`, and answers them greedily. Compared are the ids of each prompt, and the tokens of
the replies: with those of transformers in float32 on the original weights. Then the page itself is asked, as a
person would: typed, sent, and read from the page.
"""

import argparse
import json
import queue
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from export_agreement import of_the_original

from dialogkit.services.runs.loading import load_for_inference
from dialogkit.services.runs.resolve import resolve_model

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHECK = """<!doctype html>
<script type="module">
import { load } from "./model.js";
import { Sampler } from "./sampling.js";
const send = (result) => fetch("/result", { method: "POST", body: JSON.stringify(result) });
const seconds = (since) => (performance.now() - since) / 1000;
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const until = async (what) => { for (let value;;) { if ((value = what())) return value; await wait(20); } };
try {
  const { texts, most } = await (await fetch("/given.json")).json();
  let since = performance.now();
  const model = await load();
  const result = { load_s: seconds(since), prompts: [], replies: [], first_s: [], token_s: [] };
  const greedy = { temperature: 0, top_k: 0, top_p: 1, repetition_penalty: 1 };
  for (const text of texts) {
    const prompt = model.tokenizer.prompt([{ role: "user", content: text }]), reply = [];
    since = performance.now();
    for await (const token of model.reply(prompt, new Sampler(greedy, 1), most)) {
      if (!reply.length) { result.first_s.push(seconds(since)); since = performance.now(); }
      reply.push(token);
    }
    if (reply.length > 1) result.token_s.push(seconds(since) / (reply.length - 1));
    result.prompts.push(prompt);
    result.replies.push(reply);
  }
  const frame = document.createElement("iframe");
  frame.src = "index.html";
  since = performance.now();
  document.body.append(frame);
  await new Promise((resolve) => { frame.onload = resolve; }); // its scripts have run
  const find = (query) => frame.contentDocument.querySelector(query);
  const field = find("#words");
  frame.contentWindow.localStorage.clear();
  find("#temperature").value = "0";
  field.value = texts[0];
  field.dispatchEvent(new Event("input"));
  find("#say").requestSubmit();
  const shown = await until(() => find(".assistant .text.done") || find(".remark.bad"));
  result.page_s = seconds(since);
  Object.assign(result, { shown: shown.textContent, named: find("#model-name").textContent });
  await send(result);
} catch (error) { await send({ error: String(error.stack || error) }); }
</script>
"""


class _Files(SimpleHTTPRequestHandler):
    """Serves a folder, the check, and what it is given; takes its result."""

    def __init__(self, *details: Any, given: Any, results: "queue.SimpleQueue[Any]", **more: Any) -> None:
        self.given, self.results = given, results
        super().__init__(*details, **more)

    def do_GET(self) -> None:
        """Answer with a file."""
        own = {"/check.html": ("text/html", CHECK), "/given.json": ("application/json", json.dumps(self.given))}
        if self.path not in own:
            super().do_GET()
            return
        kind, text = own[self.path]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        """Take the result."""
        self.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def in_browser(folder: Path, texts: list[str], most: int, *, timeout_s: float) -> dict[str, Any]:
    """Return what the check finds in Chromium, which reaches nothing but the folder."""
    if CHROMIUM is None:
        sys.exit("no Chromium is installed")
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handler = partial(_Files, directory=str(folder), given={"texts": texts, "most": most}, results=results)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        outside = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        address = f"http://127.0.0.1:{server.server_port}/check.html"
        browser = subprocess.Popen(
            [CHROMIUM, *flags, outside, "--remote-debugging-port=0", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            result: dict[str, Any] = results.get(timeout=timeout_s)
        except queue.Empty:
            sys.exit(f"the browser said nothing within {timeout_s:g} s")
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    if "error" in result:
        sys.exit(f"in the browser: {result['error']}")
    return result


def main() -> None:
    """Print how many prompts get the same ids, how many tokens are equal, and the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True, help="what was exported")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="longest reply")
    parser.add_argument("--output-dir", default="models")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the browser")
    parser.add_argument("--json", type=Path, help="file for the figures")
    words = parser.parse_args()
    loaded = load_for_inference(resolve_model(words.model, output=words.output_dir), device="cpu")
    texts, encoded, wanted = of_the_original(loaded, words.prompts, words.tokens)
    found = in_browser(words.folder, texts, words.tokens, timeout_s=words.timeout)
    pairs = list(zip(wanted, found["replies"], strict=True))
    figures = {
        "prompts": len(texts),
        "same_ids": sum(map(list.__eq__, found["prompts"], encoded)),
        "tokens": sum(map(len, wanted)),
        "equal_tokens": sum(a == b for own, reply in pairs for a, b in zip(own, reply, strict=False)),
        "equal_replies": sum(own == reply for own, reply in pairs),
        "load_s": found["load_s"],
        "first_token_s": sorted(found["first_s"])[len(texts) // 2],
        "token_s": sorted(found["token_s"])[len(found["token_s"]) // 2] if found["token_s"] else None,
        "page_s": found["page_s"],
        "page_said": found["shown"],
        "page_named": found["named"],
    }
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if words.json is not None:
        words.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
