"""Versions of installed packages."""

from importlib import metadata


def version(package: str) -> str | None:
    """As its metadata say; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
