"""Runs: found, listed, compared, reported and pruned."""
