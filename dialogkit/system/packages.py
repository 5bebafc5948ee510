"""Versions of a run's packages, read without importing them."""

import platform
from functools import cache
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
    return versions | {package: found for package in PACKAGES if (found := _version(package)) is not None}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
