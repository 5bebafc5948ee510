"""A published model is always one whole model, and publishing it loses nobody's files."""

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dialogkit.errors import StorageError
from dialogkit.system import ownership
from dialogkit.system.ownership import FILE_LIST, entries_of, entry_of, read_list, write_list
from dialogkit.tracking import publishing
from dialogkit.tracking.publishing import publish, published_dir, published_dirs

CARD = "---\nlicense: other\ntags: [dialogkit, conversational]\n---\n"


def new_model(folder: Path, weights: str, *more: str) -> Path:
    for name in ("config.json", *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").write_text(weights)
    return folder


def content(folder: Path) -> dict[str, str]:
    """Return the files of a folder, without its list, and where links lead."""
    paths = [path for path in folder.rglob("*") if path.name != FILE_LIST]
    return {
        str(path.relative_to(folder)): f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text()
        for path in paths
        if path.is_symlink() or path.is_file()
    }


def beside(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} - {target.name}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A published model, `old`, and the folder in which it lies."""
    publish(new_model(tmp_path / "runs/1/model", "old", "only_old.json"), tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return new_model(tmp_path / "runs/2/model", "new", "templates/only_new.jinja")


@pytest.fixture(params=["exchange", "two moves"])
def moves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Publish as Linux does, and as where folders cannot be exchanged."""
    if request.param == "two moves":
        monkeypatch.setattr(publishing, "exchange", lambda one, other: False)
    return str(request.param)


def test_a_model_is_published_under_its_name_with_underscores(tmp_path: Path) -> None:
    assert published_dir(tmp_path, "custom-tiny") == tmp_path / "custom_tiny"


def test_publishing_replaces_the_older_model_as_a_whole(moves: str, target: Path, new: Path) -> None:
    assert publish(new, target) == []
    assert content(target) == content(new)
    assert content(target.parent / "runs/1/model")["model.safetensors"] == "old"
    assert beside(target) == {"runs"}
    assert {name: entry.size for name, entry in (read_list(target) or {}).items()} == {
        name: len(text) for name, text in content(new).items()
    }


def test_a_published_model_takes_no_further_room(target: Path) -> None:
    assert (target / "model.safetensors").samefile(target.parent / "runs/1/model/model.safetensors")


def test_without_hard_links_the_files_are_copied(target: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    publish(new, target)
    assert content(target) == content(new)
    assert not (target / "model.safetensors").samefile(new / "model.safetensors")


# What dialogkit did not write


def a_note(target: Path) -> None:
    (target / "notes.txt").write_text("mine")


def a_file_like_ours(target: Path) -> None:
    (target / "model-00001-of-00002.safetensors").write_text("mine")


def a_folder(target: Path) -> None:
    (target / "onnx").mkdir()
    (target / "onnx/model.onnx").write_text("mine")


def a_repository(target: Path) -> None:
    (target / ".git/objects").mkdir(parents=True)
    (target / ".git/HEAD").write_text("ref: refs/heads/main")


def a_link(target: Path) -> None:
    (target / "latest").symlink_to("/nowhere")


def a_link_to_a_folder(target: Path) -> None:
    outside = target.parent / "runs/outside"
    outside.mkdir()
    (outside / "model.safetensors").write_text("mine")
    (target / "weights").symlink_to(outside)


def a_hidden_file(target: Path) -> None:
    (target / ".gitattributes").write_text("*.safetensors lfs")


def an_empty_folder(target: Path) -> None:
    (target / "empty").mkdir()


def a_file_among_templates(target: Path) -> None:
    (target / "templates").mkdir()
    (target / "templates/mine.jinja").write_text("mine")


def a_pipe(target: Path) -> None:
    os.mkfifo(target / "pipe")


PLACES = [a_note, a_file_like_ours, a_folder, a_repository, a_link, a_link_to_a_folder, a_hidden_file]
PLACES += [an_empty_folder, a_file_among_templates, a_pipe]


@pytest.mark.parametrize("add", PLACES)
def test_what_is_not_dialogkits_stays_where_it_was(
    add: Callable[[Path], None], moves: str, target: Path, new: Path
) -> None:
    before = set(target.rglob("*"))
    add(target)
    added = {path: path.lstat() for path in set(target.rglob("*")) - before}
    mine = {name: text for name, text in content(target).items() if target / name in added}
    for _ in range(2):
        assert publish(new, target) == []
        assert content(target) == content(new) | mine
        assert all(
            path.lstat().st_ino == status.st_ino or path.name == "templates" for path, status in added.items()
        )
        assert beside(target) == {"runs"}


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "only_old.json"])
def test_a_file_that_was_changed_since_is_kept(name: str, moves: str, target: Path, new: Path) -> None:
    (target / name).unlink()  # not its other link
    (target / name).write_text("changed")
    reported = publish(new, target)
    if name in content(new):
        assert reported == [
            f"{str(target / name)!r} is not the file that dialogkit wrote: renamed to {name}.kept-1"
        ]
        assert content(target) == content(new) | {f"{name}.kept-1": "changed"}
    else:
        assert reported == []
        assert content(target) == content(new) | {name: "changed"}


def test_what_lies_beside_the_model_of_a_run_is_not_published(target: Path, new: Path) -> None:
    write_list(new, entries_of(new))
    a_note(new)
    a_repository(new)
    publish(new, target)
    assert "notes.txt" not in content(target)
    assert not (target / ".git").exists()


def test_without_locks_nobody_clears_what_another_process_fills(
    target: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    filled = target.with_name(".m.new-abcdefgh")
    filled.mkdir()
    write_list(filled, {}, name="m")
    (filled / "config.json").write_text("{}")
    publish(new, target)
    assert (filled / "config.json").is_file()
    day = 25 * 3600
    os.utime(filled, (time.time() - day, time.time() - day))
    publish(new, target)
    assert not filled.exists()


def test_an_older_model_that_was_renamed_stays(target: Path, new: Path) -> None:
    names = ("m.replaced-original", "m-2025", ".m.new-version", "m.old")
    for name in names:
        shutil.copytree(target, target.with_name(name))
    before = {name: content(target.with_name(name)) for name in names}
    publish(new, target)
    assert {name: content(target.with_name(name)) for name in names} == before


def a_file(target: Path) -> None:
    target.write_text("thesis")


def a_folder_of_mine(target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("thesis")


def a_model_from_elsewhere(target: Path) -> None:
    new_model(target, "downloaded")
    (target / "README.md").write_text("---\nlicense: mit\n---\nI like dialogkit.")


def a_model_whose_card_names_dialogkit(target: Path) -> None:
    new_model(target, "hand-made")
    (target / "README.md").write_text("---\nlicense: mit\ntags: [dialogkit, mine]\n---\n")


def a_model_without_a_card(target: Path) -> None:
    new_model(target, "downloaded")
    (target / "README.md").unlink()


def a_link_to_another_model(target: Path) -> None:
    target.symlink_to(new_model(target.with_name("another"), "other"))


def a_copy_of_another_published_model(target: Path) -> None:
    publish(new_model(target.parent / "runs/3/model", "other"), target.with_name("another"))
    shutil.copytree(target.with_name("another"), target)


def a_list_that_leads_out(target: Path) -> None:
    new_model(target, "hand-made")
    (target.parent / "mine.txt").write_text("mine")
    write_list(target, {"../mine.txt": entry_of(target.parent / "mine.txt")})


@pytest.mark.parametrize(
    "make",
    [
        a_file,
        a_folder_of_mine,
        a_model_from_elsewhere,
        a_model_whose_card_names_dialogkit,
        a_model_without_a_card,
        a_link_to_another_model,
        a_copy_of_another_published_model,
        a_list_that_leads_out,
    ],
)
def test_what_dialogkit_did_not_publish_is_never_replaced(
    tmp_path: Path, new: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "m")
    before = content(tmp_path)
    with pytest.raises(StorageError, match="left unchanged"):
        publish(new, tmp_path / "m")
    assert content(tmp_path) == before


def test_a_model_of_0_1_0_is_known_by_the_run_that_made_it(target: Path, new: Path) -> None:
    (target / FILE_LIST).unlink()
    a_note(target)
    publish(new, target)
    assert content(target) == content(new) | {"notes.txt": "mine"}


@pytest.mark.parametrize("damage", ["the run is gone", "the weights were changed"])
def test_a_model_of_0_1_0_that_may_be_the_only_copy_is_left_as_it_is(damage: str, target: Path, new: Path) -> None:
    (target / FILE_LIST).unlink()
    if damage == "the run is gone":
        shutil.rmtree(target.parent / "runs/1")
    else:
        (target / "model.safetensors").unlink()
        (target / "model.safetensors").write_text("OLD")
    before = content(target)
    with pytest.raises(StorageError, match="left unchanged"):
        publish(new, target)
    assert content(target) == before
    assert published_dirs(target.parent) == [target]


@pytest.fixture
def mount(target: Path) -> Iterator[Path]:
    """A folder of somebody's that is mounted in the published one."""
    disk, place = target.parent / "runs/disk", target / "data"
    disk.mkdir()
    (disk / "model.safetensors").write_text("old")
    place.mkdir()
    if subprocess.run(["mount", "--bind", disk, place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_mount_is_not_entered(mount: Path, target: Path, new: Path) -> None:
    before = content(target)
    with pytest.raises(StorageError, match="data' is a mount"):
        publish(new, target)
    assert content(target) == before
    assert ownership.mounts_in(target) == {"data"}
    assert beside(target) == {"runs"}


# Failures and kills


def stop_at(turn: int, real: Callable[..., Any], failure: BaseException) -> Callable[..., Any]:
    """Return `real`, which fails the `turn`-th time that it is called."""
    turns = iter(range(1, 1000))

    def called(*words: Any, **options: Any) -> Any:
        if next(turns) == turn:
            raise failure
        return real(*words, **options)

    return called


CALLS = [(shutil, "copy2", 1), (shutil, "copy2", 3), (Path, "rename", 1), (Path, "rename", 2), (os, "replace", 2)]


@pytest.mark.parametrize(("module", "function", "turn"), CALLS)
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_wherever_publishing_stops_the_older_model_stays_whole(
    target: Path, new: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, turn: int,
    failure: BaseException,
) -> None:  # fmt: skip
    a_note(target)
    before = content(target)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "exchange", lambda one, other: False)
        patch.setattr(os, "link", lambda *_: os.stat("/nowhere"))
        patch.setattr(module, function, stop_at(turn, getattr(module, function), failure))
        with pytest.raises(StorageError if isinstance(failure, OSError) else KeyboardInterrupt):
            publish(new, target)
    assert content(target) == before
    assert beside(target) == {"runs"}
    publish(new, target)
    assert content(target) == content(new) | {"notes.txt": "mine"}


def fork(function: Callable[..., Any], *args: Any) -> int:
    """Start a function in a separate process, and return its number."""
    if (number := os.fork()) == 0:
        try:
            function(*args)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return number


def wait_for(process: int) -> int:
    """Return with which code a process ends."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def publish_until(calls: int, new: Path, target: Path) -> None:
    """Publish, and end this process before the `calls`-th call that changes the disk."""
    made = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == calls:
                os._exit(9)
            return real(*words, **options)

        return call

    for module, name in [(os, "link"), (os, "replace"), (os, "mkdir"), (Path, "rename"), (Path, "unlink")]:
        setattr(module, name, counted(getattr(module, name)))
    Path.rmdir = counted(Path.rmdir)  # type: ignore[method-assign]
    publishing.exchange = counted(publishing.exchange)  # type: ignore[attr-defined]
    publish(new, target)


@pytest.mark.faults
def test_a_process_that_is_killed_at_any_moment_leaves_a_whole_model_and_all_files(tmp_path: Path) -> None:
    moments, ended = 0, False
    while not ended:
        moments += 1
        output = tmp_path / str(moments)
        target = output / "m"
        publish(new_model(output / "runs/1/model", "old", "only_old.json"), target)
        a_note(target)
        a_folder(target)
        old, new = content(output / "runs/1/model"), new_model(output / "runs/2/model", "new", "only_new.json")
        ended = wait_for(fork(publish_until, moments, new, target)) == 0
        there = content(target)
        mine = {"notes.txt": "mine", "onnx/model.onnx": "mine"}
        assert {k: v for k, v in there.items() if k not in mine} in (old, content(new))
        # What is not in its place is in a folder whose name everybody sees.
        seen = [content(path) for path in output.iterdir() if path.name.startswith("m")]
        assert mine.items() <= {name: text for folder in seen for name, text in folder.items()}.items()
        publish(new, target)
        assert content(target) == content(new) | mine
        assert beside(target) == {"runs"}
    assert moments > 10


# Runs that finish together


def publish_at(moment: float, model: Path, target: Path, exchanging: bool, linking: bool) -> None:
    if not exchanging:
        publishing.exchange = lambda one, other: False  # type: ignore[attr-defined]
    if not linking:
        os.link = lambda *_: os.stat("/nowhere")  # type: ignore[assignment]
    time.sleep(max(0.0, moment - time.time()))
    assert publish(model, target) == []


def publish_together(
    folder: Path, runs: int, *, apart_s: float, seed: int, exchanging: bool, linking: bool
) -> None:
    """Let models be published at about the same moment, and find one of them whole."""
    chance, target = random.Random(seed), folder / "m"
    names = ("config.json", "tokenizer.json", "only_{}.json")
    models = [
        new_model(folder / f"runs/{run}/model", f"{run} " * 10_000, *(name.format(run) for name in names))
        for run in range(runs)
    ]
    start = time.time() + 0.02 * runs
    processes = [
        fork(publish_at, start + chance.uniform(0, apart_s), model, target, exchanging, linking)
        for model in models
    ]
    assert [wait_for(process) for process in processes] == [0] * runs
    assert content(target) in [content(model) for model in models]
    assert beside(target) == {"runs"}


@pytest.mark.parametrize(
    ("runs", "rounds"),
    [(2, 3), *(pytest.param(*some, marks=pytest.mark.faults) for some in ((2, 300), (10, 20), (50, 4)))],
)
@pytest.mark.parametrize(
    ("exchanging", "linking"),
    [
        (True, True),
        (False, False),
        *(pytest.param(*some, marks=pytest.mark.faults) for some in ((False, True), (True, False))),
    ],
)
def test_runs_that_finish_together_end_with_one_whole_model(
    runs: int, rounds: int, exchanging: bool, linking: bool, tmp_path: Path
) -> None:
    for number in range(rounds):
        folder = tmp_path / str(number)
        publish_together(
            folder, runs, apart_s=0.06 * number / rounds, seed=number, exchanging=exchanging, linking=linking
        )
        shutil.rmtree(folder)
