"""`dialogkit` and `python -m dialogkit`."""

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is loaded ends it as quietly as later."""
    _use_utf8()
    try:
        from dialogkit.cli.app import main as run
        from dialogkit.system.collector import take_over

        take_over()
        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if words and file names would be read in another encoding.

    Python uses this mode by default where the locale is C, but not with PYTHONUTF8=0: it then can neither open a
    file whose name is not ASCII nor read a prompt that is not.
    """
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
