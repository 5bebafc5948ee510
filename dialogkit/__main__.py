"""`dialogkit` and `python -m dialogkit`."""


def main() -> None:
    """Run the command line; Ctrl-C while it is loaded ends it as quietly as later."""
    try:
        from dialogkit.cli.app import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
