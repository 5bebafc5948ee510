"""`python -m dialogkit`."""

from dialogkit.cli.app import main

main()
