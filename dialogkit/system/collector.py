"""Python's cyclic garbage collector, in a process that runs nothing but dialogkit.

Loading torch and transformers makes half a million objects, none of them garbage. Python would look through all of
them several times meanwhile, and HF's Trainer once more.
"""

import gc

_FULL_EVERY = 100
"""Collections of the middle generation before a full one, by default 10; loading the libraries makes fewer."""

is_own = False


def take_over() -> None:
    """Make full collections rarer. Only for a process that is dialogkit's own, such as that of a command."""
    global is_own
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_EVERY)
    is_own = True


def spare_loaded() -> None:
    """Leave all objects that exist by now out of collections; nothing in a process of somebody else.

    To be called once the libraries are loaded, and before there is a model: what is spared is never collected.
    """
    if is_own:
        gc.freeze()
