"""Detect IPython and notebooks, and show errors there."""

import os
import sys
import warnings
from traceback import walk_tb
from types import FrameType
from typing import Any

from dialogkit.errors import DialogKitError

HOOK = "_render_traceback_"
"""The method of an exception that IPython asks for its traceback."""


def ipython() -> Any:
    """Return the running shell of IPython; None without one."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    return hasattr(ipython(), "kernel")


def show_sentences() -> None:
    """Let IPython show an error of this package as a sentence and what to do about it, without its traceback."""
    # tqdm's, which the libraries use, about widgets that nothing here shows.
    warnings.filterwarnings("ignore", message="IProgress not found")
    setattr(DialogKitError, HOOK, _rendered)


def _rendered(error: DialogKitError) -> list[str]:
    """Return what IPython prints of an error: `%tb`, in a later cell, or `DIALOGKIT_DEBUG` have the traceback."""
    shell = ipython()
    # IPython asks more than once in the cell of the error.
    cell = error.__dict__.setdefault("shown_in_cell", shell.execution_count)
    if cell != shell.execution_count or os.environ.get("DIALOGKIT_DEBUG"):
        lines: list[str] = shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
        return lines
    return [*sentences(error), "(%tb shows the traceback)"]


def _is_called(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(("dialogkit.api.", "dialogkit.services."))


def sentences(error: DialogKitError) -> list[str]:
    """Return an error as lines: what is wrong, its details, and what to do in Python."""
    from dialogkit.api import hints
    from dialogkit.redaction import redact
    from dialogkit.text import sanitize

    lines = [f"{type(error).__name__}: {error.message}", *(f"    {detail}" for detail in error.details[:10])]
    called = {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__) if _is_called(frame)}
    if advice := hints.render(error.hint, called=called):
        lines.append(f"try: {redact(advice)}")
    return list(map(sanitize, lines))
