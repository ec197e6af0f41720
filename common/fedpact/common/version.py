"""Which fedpact this is."""

from importlib.metadata import PackageNotFoundError, version


def fedpact_version() -> str:
    """The version that is installed; 0 when run from a source tree."""
    try:
        return version("fedpact")
    except PackageNotFoundError:
        return "0"
