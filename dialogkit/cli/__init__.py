"""The command line: parses words, calls one service, prints its result."""
