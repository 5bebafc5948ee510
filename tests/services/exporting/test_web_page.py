"""The scripts of the page make the ids, the texts and the choices of dialogkit."""

import json
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.generate import GenerateConfig
from dialogkit.config.model import ModelConfig
from dialogkit.dialog import Message, TurnFormat, native_format, plain_format, turns_format
from dialogkit.errors import ModelError
from dialogkit.models.tokenizer import ChatTokenizer, load_tokenizer
from dialogkit.services.exporting.web_page import local_page, require_page, write_page
from dialogkit.services.serving.chat_page import chat_page
from tests.conftest import TOKENIZER
from tests.models.foreign import CHATML, byte_level
from tests.models.test_gguf_file import BYTES, LLAMA3, split, tokenizer_of

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js is installed")
SPACES = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace()] + ["\ufeff", "\u200b", "\u180e"]
WORDS = [
    "Hello", "I'll", "WE'RE", "don'T", "it'\u017f", "naïve", "e\u0301t\u00e9", "Straße", "こんにちは", "안녕",
    "Привет", "שלום", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "😀",
    "\U0001f9d1\U0001f3fd", "1234567", "3.14", "٣٤", "½", "\u2167", "x²", "a_b", "...", "?!", "--", "'", "''s",
    "$€£", "\ufb01", "\u01c5", "\u02bcn", "\x00", "\x7f", "<|end_of_turn|>", "<|user|>", "<think>", "\r\n",
    "\n\n", "\t",
]  # fmt: skip


def texts(count: int) -> list[str]:
    drawn = random.Random(7)
    made = [*WORDS, *(f"a{space}b{space}{space}c {space}" for space in SPACES), "", " ", "a" * 3000]
    while len(made) < count:
        parts = drawn.choices(WORDS + SPACES + [" "] * 40, k=drawn.randint(1, 12))
        made.append("".join(parts))
        letters = [chr(drawn.randrange(0x20, 0x2FFFF)) for _ in range(8)]
        # Libraries differ in the age of their Unicode: what is a letter for one alone is of no account.
        made.append("".join(letter for letter in letters if unicodedata.category(letter) not in ("Cn", "Cs")))
    return made


def in_node(folder: Path, script: str, given: Any) -> Any:
    """Return what a script makes of `given` beside the scripts of the page."""
    assert NODE is not None
    for name in ("tokenizer.js", "sampling.js"):
        (folder / name).write_text(files("dialogkit.services.exporting").joinpath("web", name).read_text("utf-8"))
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "run.js").write_text(
        'import fs from "node:fs";\nimport { Growing, Tokenizer } from "./tokenizer.js";\n'
        'import { Sampler } from "./sampling.js";\n'
        'const read = (name) => JSON.parse(fs.readFileSync(name, "utf8"));\nconst given = read("given.json");\n'
        f"{script}\n"
    )
    done = subprocess.run([NODE, "run.js"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MAKE = """
const settings = read("settings.json");
const tokenizer = new Tokenizer(read("tokenizer.json"), settings.splits, settings.format);
const out = (value) => console.log(JSON.stringify(value));
"""


def write(tokenizer: ChatTokenizer, folder: Path) -> None:
    require_page(tokenizer)
    page = chat_page()
    write_page(
        folder,
        "mine",
        tokenizer,
        GenerateConfig(),
        context=64,
        cache=(1, 1, 8),
        html=page.html,
        digest=page.digest,
    )


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return load_tokenizer(ModelConfig(tokenizer=str(TOKENIZER), layers=1, width=8, heads=1, context=16))


RULES: dict[str, dict[str, Any]] = {
    "own": {},
    "llama": {"pre_tokenizer": split(LLAMA3), "model": {"ignore_merges": True}},
    "qwen": {"pre_tokenizer": split(LLAMA3.replace("{1,3}", "")), "normalizer": {"type": "NFC"}},
    "smollm": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}],
        }
    },
}


@needs_node
@pytest.mark.parametrize("kind", RULES)
def test_the_page_makes_the_ids_of_dialogkit(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(RULES[kind])
    tokenizer.hf.add_tokens(["<think>"])
    tokenizer = ChatTokenizer(tokenizer.hf, native_format())
    write(tokenizer, tmp_path)
    wanted = [(text, tokenizer.encode_prompt([Message("user", text)])[1:-2]) for text in texts(600)]
    encode = "out(given.map((text) => tokenizer.encode(text)));"
    made = in_node(tmp_path, MAKE + encode, [text for text, _ in wanted])
    assert [(text, ids) for (text, _), ids in zip(wanted, made, strict=True)] == wanted
    assert tokenizer.hf.convert_tokens_to_ids("<think>") in made[WORDS.index("<think>")]


FORMATS = [native_format(), plain_format("<|end_of_text|>"), turns_format("<|end_of_text|>", "<|pad|>")]


@needs_node
@pytest.mark.parametrize("turn_format", FORMATS, ids=lambda one: one.name)
def test_the_page_writes_a_dialog_in_the_chat_format_and_reads_replies(
    turn_format: TurnFormat, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    other = ChatTokenizer(tokenizer.hf, turn_format)
    write(other, tmp_path)
    dialog = [Message("system", "Be brief."), Message("user", " Hi,\n<|user|>! "), Message("assistant", "Hi. 😀")]
    dialogs = [dialog[1:2], dialog[:2], [*dialog, Message("user", "Why?")]]
    said = [
        other.encode_prompt([Message("user", text)]) for text in ("  Ein Straßencafé 😀 \n\n ja  ", "\n", "👩‍👩‍👧")
    ]
    cut = said[2][: len(said[2]) // 2]  # ends within a character
    both = "out([given.dialogs.map((d) => tokenizer.prompt(d)), given.said.map((ids) => tokenizer.decode(ids))]);"
    made = in_node(
        tmp_path,
        MAKE + both,
        {"dialogs": [[message.turn() for message in each] for each in dialogs], "said": [*said, cut]},
    )
    assert made == [[other.encode_prompt(each) for each in dialogs], [other.decode(ids) for ids in [*said, cut]]]


@needs_node
def test_the_page_draws_from_what_dialogkit_draws_from(tmp_path: Path) -> None:
    scores = [1.0, 4.0, -2.0, 3.5, 3.9, 0.0, 3.0]
    cases: list[dict[str, float]] = [
        {"temperature": 0},
        {"temperature": 0.7, "top_k": 3},
        {"temperature": 0.5, "top_p": 0.6},
        {"temperature": 1.5, "top_k": 0, "top_p": 1.0},
        {"temperature": 1.0, "top_k": 2, "repetition_penalty": 8.0},
    ]
    script = """
    out(given.cases.map((config) => [1, 2].map((seed) => {
      const counts = given.scores.map(() => 0), drawn = new Sampler(config, seed);
      for (let n = 0; n < 1500; n++) {
        drawn.seen = new Set(config.repetition_penalty > 1 ? [1] : []);
        counts[drawn.choose(Float32Array.from(given.scores))]++;
      }
      return counts.map((count) => count / 1500);
    })));
    """
    import torch

    from dialogkit.inference.sampling import Sampler

    configs = [GenerateConfig.model_validate({"repetition_penalty": 1.0, **case}) for case in cases]
    out = "const out = (value) => console.log(JSON.stringify(value));"
    made = in_node(tmp_path, out + script, {"cases": [each.model_dump() for each in configs], "scores": scores})
    for config, shares in zip(configs, made, strict=True):
        earlier = torch.tensor([[1]]).expand(1500, 1) if config.repetition_penalty > 1 else None
        rows = torch.tensor(scores).repeat(1500, 1)
        generators = [torch.Generator().manual_seed(seed) for seed in range(1500)]
        tokens = Sampler(config).choose(rows, earlier, generators)
        wanted = torch.bincount(tokens, minlength=7) / 1500
        assert (wanted > 0).tolist() == [share > 0 for share in shares[0]]
        assert shares[0] == pytest.approx(wanted.tolist(), abs=0.05)
        assert (shares[0] != shares[1]) == (config.temperature > 0)


def test_a_format_or_token_that_the_page_does_not_write_is_refused(tokenizer: ChatTokenizer) -> None:
    from tokenizers import AddedToken

    tokens = ("<|im_start|>", "<|im_end|>")
    foreign = ChatTokenizer(byte_level(*tokens, eos="<|im_end|>", template=CHATML), None)
    with pytest.raises(ModelError, match="the model has a chat template of its own"):
        require_page(foreign)
    greedy = byte_level(*tokens, AddedToken("<x>", lstrip=True), eos="<|im_end|>")
    with pytest.raises(ModelError, match=r"the token '<x>' changes the text around it \(lstrip\)"):
        require_page(ChatTokenizer(greedy, turns_format("<|im_end|>")))


def test_the_page_of_the_server_is_the_page_in_the_browser() -> None:
    page = chat_page()
    local = local_page(page.html, page.digest)
    assert page.digest in local
    added = [line for line in local.splitlines() if line not in page.html.splitlines()]
    assert [re.split(r"[ =]", line)[0] for line in added] == ["<meta", "<script"]
    assert local.index('src="local.js"') < local.index('fetch("v1/models"')
