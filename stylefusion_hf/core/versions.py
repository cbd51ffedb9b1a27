"""Versions of installed packages."""

from importlib import metadata


def version(package: str) -> str | None:
    """Return the version in a package's metadata, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
