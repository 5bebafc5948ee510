"""Tokenizers with their chat formats, and models: built from scratch or loaded."""
