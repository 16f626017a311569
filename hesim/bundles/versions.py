"""Which versions a bundle was made with, and whether it may be used with those that are here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from hesim.errors import BundleError

__all__ = ["FORMAT", "HESIM", "check", "here"]

FORMAT = 1
"""Of the files of a bundle."""

HESIM = "0.1.0"
"""Of this package; a checkout that is not installed has no other place that says it."""

_LIBRARIES = ("numpy", "pyfhel")


def here() -> dict[str, str]:
    """Versions by name, of this package and of the libraries of machines that are installed."""
    found = {"hesim": HESIM}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check(made: Mapping[str, str], library: str | None = None) -> None:
    """Raise BundleError unless what a bundle was made with fits what is here.

    Args:
      made: `here()` where it was made.
      library: of a machine that is to run it; its version must be the same. Of this package, only
        the last number may differ.
    """
    now = here()
    names = ["hesim", *((library,) if library is not None else ())]
    for name in names:
        was, is_now = made.get(name, "none"), now.get(name, "none")
        same = _release(was) == _release(is_now) if name == "hesim" else was == is_now
        if not same and was != "none":
            raise BundleError(
                f"the bundle was made with {name} {was}, and here is {name} {is_now}: install "
                f"{name} {was}, or make the bundle again with the version that is here"
            )


def _release(text: str) -> list[str]:
    return text.split(".")[:2]
