"""Find, list, compare, report and prune runs."""
