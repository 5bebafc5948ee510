"""A model folder of a stranger is taken or refused with one sentence, whatever is wrong with it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL, Finished
from tests.models.strange import CASES, make, write_sound

TRAIN = [
    word
    for name, value in SMALL.items()
    if not name.startswith("model.")
    for word in ("--set", f"{name}={json.dumps(value)}")
]
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "show": (["models", "show"], []),
    "generate": (["generate"], ["--prompt", f"Hello! {'a' * 60}!", "--max-new-tokens", "4", "--no-cuda"]),
    "train": (["train"], ["--dry-run", *TRAIN]),
    "evaluate": (["evaluate"], ["--quick", "--samples", "4", "--no-cuda"]),
}
SOME = [
    "sound", "config is a list", "config is a deep list", "config of 9 GB", "num_hidden_layers is huge",
    "num_hidden_layers is infinite", "hidden_size is huge", "heads that do not divide the width",
    "fewer layers than the weights", "config.json is a pipe", "model.safetensors is a pipe",
    "tokenizer.json is a link to a pipe", "weights' header of length 2^63", "weights' header is a list",
    "a shape 6", "nan in model.norm.weight", "inf in model.embed_tokens.weight", "an index to 0",
    "tokenizer with a pattern 0", "tokenizer with an id beyond the model", "an adapter of 'a folder with a pipe'",
]  # fmt: skip
SOUND_ODDITIES = {"sound", "an adapter sound", "weights of half precision", "weights with a tensor more"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sound")
    yield write_sound(folder)
    shutil.rmtree(folder)


def require_one_sentence(done: Finished) -> None:
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, len(errors)) in ((0, 0), (2, 1)), done.err
    assert "Traceback" not in done.err
    assert "panicked" not in done.err


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "kind", [*SOME, *(pytest.param(k, marks=pytest.mark.faults) for k in CASES if k not in SOME)]
)
def test_a_strange_folder_is_shown_and_loaded_or_refused_with_one_sentence(
    kind: str, sound: Path, dialogkit: Callable[..., Finished], request: pytest.FixtureRequest
) -> None:
    folder = make(kind, sound, Path("strange"))
    ordinary = {"show", "generate"}  # the others load a model in the same way
    every = request.node.get_closest_marker("faults") is not None
    codes = {}
    for name, (words, more) in COMMANDS.items():
        if every or name in ordinary:
            done = dialogkit(*words, str(folder), *more)
            require_one_sentence(done)
            codes[name] = done.code
    if kind in SOUND_ODDITIES:
        assert set(codes.values()) == {0}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("nan in model.norm.weight", "its tensor 'model.norm.weight' holds NaN"),
        ("inf in model.embed_tokens.weight", "its tensor 'model.embed_tokens.weight' holds infinity"),
        ("num_hidden_layers is huge", "num_hidden_layers in 'strange/config.json' is 1000000000"),
        ("hidden_size is fraction", "hidden_size in 'strange/config.json' is 2.5"),
        ("config.json is a pipe", "'strange/config.json' is a named pipe"),
        ("an index to 0", "names the weights file '../../x', which is not in its folder"),
    ],
)
def test_the_sentence_names_the_file_and_the_value(
    kind: str, sentence: str, sound: Path, dialogkit: Callable[..., Finished]
) -> None:
    make(kind, sound, Path("strange"))
    for words, more in (COMMANDS["generate"], COMMANDS["evaluate"]):
        assert sentence in dialogkit(*words, "./strange", *more).err


def test_a_published_folder_that_is_strange_does_not_hide_the_others(
    sound: Path, dialogkit: Callable[..., Finished], trained: Any
) -> None:
    shutil.copytree(trained.output, "models")
    (Path("models/custom_nano") / "config.json").write_text("[]")
    listed = dialogkit("models", "list", "--json")
    rows = {row["name"]: row for row in listed.json["data"]}
    assert listed.code == 0
    assert "holds a list, not a JSON object" in rows["custom-nano"]["description"]
    assert len(rows) > 1
