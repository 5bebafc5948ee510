"""Versions of a run's packages, read without importing them."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from dialogkit import __version__

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "safetensors",
    "numpy",
    "pydantic",
    "wandb",
    "huggingface_hub",
)


def package_versions() -> dict[str, str]:
    """Return the versions of dialogkit, Python and the packages that matter."""
    versions = {"dialogkit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
