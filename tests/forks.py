"""Processes of their own that start in a moment: they are forked from one that has the libraries loaded."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


def start_forked(
    function: Callable[..., Any], *args: Any, folder: Path, **environment: str
) -> multiprocessing.process.BaseProcess:
    """Start a module's function in a separate process that works in `folder`, and do not wait for it."""
    _, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_call, args=(theirs, function, args, folder, environment))
    process.start()
    return process


def run_forked(
    function: Callable[..., Any], *args: Any, folder: Path, timeout: float = 120, **environment: str
) -> Any:
    """Return what a module's function returns in a separate process that works in `folder`."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_call, args=(theirs, function, args, folder, environment))
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise TimeoutError(f"{function.__name__} took more than {timeout} s")
        done, result = ours.recv()
    finally:
        process.join(timeout if process.exitcode is None and ours.closed else 60)
        if process.is_alive():
            process.kill()
    if not done:
        raise AssertionError(result)
    return result


def command_line(words: Sequence[str]) -> int:
    """Run `dialogkit WORDS` in this process; return its exit code."""
    from dialogkit.cli.app import main

    try:
        main(list(words))
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def heard(function: Callable[..., Any], *args: Any, stdin: str = "") -> tuple[Any, str, str]:
    """Return what a function returns, and what it writes to this process's output and errors."""
    reading, writing = os.pipe()
    os.write(writing, stdin.encode())
    os.close(writing)
    os.dup2(reading, 0)
    with (
        open(0, encoding="utf-8", closefd=False) as sys.stdin,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        result = function(*args)
        sys.stdout.flush()
        sys.stderr.flush()
        out.seek(0)
        err.seek(0)
        return result, out.read().decode(), err.read().decode()


def command_line_into(words: Sequence[str], file: str) -> None:
    """Run `dialogkit WORDS` in this process and end it; all that it says is in a file."""
    with open(file, "wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    code = command_line(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _call(
    pipe: Any, function: Callable[..., Any], args: tuple[Any, ...], folder: Path, environment: Mapping[str, str]
) -> None:
    import traceback

    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(environment)
    try:
        reported = (True, function(*args))
    except BaseException:
        reported = (False, traceback.format_exc())
    with suppress(BrokenPipeError):  # nobody waits for it
        pipe.send(reported)
