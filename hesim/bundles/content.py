"""What the files of a bundle hold, and the digest of it all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hesim.bundles import versions

if TYPE_CHECKING:
    from hesim.bundles.bundle import Bundle, Leaf

__all__ = ["CIRCUIT", "OPENED", "PUBLICS", "digest", "entry", "files", "manifest", "sealed", "text"]

CIRCUIT, OPENED, PUBLICS = "circuit.npz", "opened.npz", "publics.npz"
"""Names of files."""


def digest(bundle: Bundle) -> str:
    """SHA-256, in hex, of a Bundle's content, whether or not it was saved."""
    listed = {name: entry(data) for name, data in files(bundle)}
    return hashlib.sha256(text(manifest(bundle, listed))).hexdigest()


def files(bundle: Bundle) -> Iterator[tuple[str, memoryview]]:
    """Names and contents of all files but the manifest."""
    held = io.BytesIO()
    bundle.circuit.save(held)
    yield CIRCUIT, held.getbuffer()
    arrays = {
        f"{k}_{j}": step
        for k, each in enumerate(bundle.opened)
        for j, step in enumerate(each.steps)
        if not isinstance(step, str)
    }
    for name, group in ((OPENED, arrays), (PUBLICS, bundle.publics)):
        held = io.BytesIO()
        np.savez(held, **_arrays(group))
        yield name, held.getbuffer()
    for name, operand in _operands(bundle):
        held = io.BytesIO()
        np.save(held, operand, allow_pickle=False)
        yield name, held.getbuffer()


def manifest(bundle: Bundle, listed: dict[str, list]) -> dict[str, Any]:
    """What bundle.json says, but for its own digest. listed: `entry` of each file."""
    return {
        "format": versions.FORMAT,
        "name": bundle.name,
        "versions": dict(bundle.versions),
        "whole": bundle.whole,
        "call": bundle.call,
        "leaves": [_leaf(leaf) for leaf in bundle.leaves],
        "operands": None if bundle.operands is None else len(bundle.operands),
        "opened": [
            [each.operand, each.leaf, each.inverse, [_step(step) for step in each.steps]]
            for each in bundle.opened
        ],
        "result": bundle.result,
        "publics": sorted(bundle.publics),
        "ranges": [[int(c), *map(float, bundle.ranges[c])] for c in sorted(bundle.ranges)],
        "files": listed,
    }


def _leaf(leaf: Leaf) -> list:
    bounds = [float(b) if np.isfinite(b) else None for b in (leaf.low, leaf.high)]
    return [leaf.label, list(leaf.shape), leaf.dtype, leaf.encrypted, *bounds]


def _step(step: str | np.ndarray) -> str | None:
    """A conversion by its name; what is taken is in a file."""
    return step if isinstance(step, str) else None


def _arrays(group: Mapping[Any, np.ndarray]) -> dict[str, Any]:
    return {str(key): np.asarray(array) for key, array in group.items()}


def entry(content: memoryview) -> list:
    """Size in bytes and SHA-256 of a file's content."""
    return [len(content), hashlib.sha256(content).hexdigest()]


def text(found: dict[str, Any]) -> bytes:
    """A manifest as the one text whose digest is that of the bundle."""
    return json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sealed(found: dict[str, Any]) -> bytes:
    """A manifest with its own digest, to be read by people as well."""
    own = hashlib.sha256(text(found)).hexdigest()
    return json.dumps({**found, "digest": own}, indent=1).encode()


def _operands(bundle: Bundle) -> Iterator[tuple[str, np.ndarray]]:
    """The operands that are known, by the names of their files."""
    for k, operand in enumerate(bundle.operands or ()):
        if operand is not None:
            yield f"operands/{k}.npy", operand
