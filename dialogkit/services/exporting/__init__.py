"""Copies of models for other programs: the files, and certificates of how faithful they are."""
