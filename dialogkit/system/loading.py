"""The libraries whose loading takes seconds, and what is said meanwhile."""

import sys

LOADING = "loading torch and transformers"


def loads_libraries() -> bool:
    """Return whether the first computation has yet to load them."""
    return not {"torch", "transformers"} <= sys.modules.keys()
