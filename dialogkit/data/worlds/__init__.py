"""Worlds: folders of topics, from which dialogs are made."""
