"""Dialogs from files, the hub and the package, prepared into token arrays and padding-free batches."""
