"""The ledger of a Circuit: every count from the instructions themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hesim.circuit.circuit import Kind, PlaintextFamily
from hesim.circuit.cost import encoding_seconds, instruction_seconds, key_seconds
from hesim.circuit.costs.memory import cipher_bytes, plaintext_bytes
from hesim.circuit.costs.spending import Ledger, Spending
from hesim.circuit.costs.table import current
from hesim.circuit.layout import unique_rows
from hesim.circuit.limits.budget import peak_bytes
from hesim.circuit.refresher import BOOTSTRAP_SECONDS, KEY_HOLDER, Refresher
from hesim.params import CKKSParams

__all__ = ["ledger"]


def ledger(
    params: CKKSParams,
    data: dict[str, np.ndarray],
    packs: tuple[PlaintextFamily, ...],
    outputs: int,
    price: float | None,
    names: Sequence[str],
    sources: Sequence[str],
    refresher: Refresher = KEY_HOLDER,
    layouts: Sequence[tuple[int, str]] = (),
    carried: int = 0,
    slots: int | None = None,
) -> Ledger:
    """Counts and predicted seconds.

    Args:
      data: instruction arrays (`emission.arrays`).
      outputs: ciphertexts that are decrypted at the end.
      price: seconds of a refresh where the caller set one, for `seconds_bootstrapped`.
      names, sources: of the program's operations.
      refresher: who refreshes, in the slots that are in use.
      layouts: of inputs and of each operation's result, the ciphertexts and where in them it lies.
      carried: inputs that later runs take from the run before.
      slots: effective ones; all that the ring has by default.
    """
    kind, terms, log_n = data["kind"], np.diff(data["arg_ptr"]), params.log_n
    scalar = np.array([p.scalar for p in packs] or [False])[data["plain_pack"]]
    each = _seconds(data, scalar, refresher, log_n)
    depth, levels, rounds = _longest(data)
    refreshed = float(each[kind == Kind.REFRESH].sum())
    encoding = _encoding(data, scalar, log_n)
    seconds = float(each[kind != Kind.REFRESH].sum() + encoding.sum())
    steps = len(np.unique(data["param"][kind == Kind.ROTATE]))
    peak, keys = peak_bytes(params, data, packs, slots or params.slots, refresher)

    def count(k: int) -> int:
        return int(np.sum(kind == k))

    def inner(k: int) -> int:
        return int(np.sum(terms[kind == k]))

    refreshes = count(Kind.REFRESH)
    plain = plaintext_bytes(params, data["plain_level"], scalar)
    alive = cipher_bytes(params, data)
    bootstrap = _bootstrap_price(price, refresher, log_n)
    return Ledger(
        depth=depth,
        levels=levels,
        refreshes=refreshes,
        refresh_rounds=rounds,
        rotations=count(Kind.ROTATE),
        relinearizations=count(Kind.RELINEARIZE),
        rescales=count(Kind.RESCALE),
        additions=inner(Kind.ADD)
        - count(Kind.ADD)
        + inner(Kind.DOT)
        - count(Kind.DOT)
        + inner(Kind.DOT_PLAIN)
        - count(Kind.DOT_PLAIN),
        plain_additions=count(Kind.ADD_PLAIN),
        plain_products=inner(Kind.DOT_PLAIN),
        products=inner(Kind.DOT),
        drops=count(Kind.DROP),
        inputs=count(Kind.INPUT),
        outputs=outputs,
        rotation_keys=steps,
        key_bytes=keys,
        plaintexts=len(data["plain_pack"]),
        plaintext_bytes=plain,
        cipher_bytes=alive,
        peak_bytes=peak,
        key_seconds=keys / params.key_bytes() * key_seconds(params),
        costs=current().name,
        seconds=seconds + refreshed,
        seconds_bootstrapped=seconds + refreshes * bootstrap,
        encoding_seconds=float(encoding.sum()),
        operations=_operations(data, each, encoding, ("input", *names), ("", *sources), layouts),
        carried=carried,
    )


def _seconds(
    data: dict[str, np.ndarray], scalar: np.ndarray, refresher: Refresher, log_n: int
) -> np.ndarray:
    """float64 (I,): of each instruction, found once for all that are alike.

    scalar: bool, by plaintext, whether it is a number.
    """
    kind, level, start = data["kind"], data["level"], data["arg_ptr"][:-1]
    terms = np.diff(data["arg_ptr"])
    of_others = terms > 0
    below, numbers = level.astype(np.int64), np.zeros(len(kind), np.int64)
    below[of_others] = level[data["arg"][start[of_others]]]
    plain = kind == Kind.DOT_PLAIN
    numbers[plain] = scalar[data["arg2"][start[plain]]]
    rows = np.stack([kind, level, below, terms, numbers], axis=1)
    distinct, place = unique_rows(rows)
    found = [
        refresher.seconds(at, to, log_n)
        if k == Kind.REFRESH
        else instruction_seconds(k, at, count, log_n, scalar=bool(number))
        for k, to, at, count, number in distinct.tolist()
    ]
    return np.asarray(found, np.float64)[place]


def _longest(data: dict[str, np.ndarray]) -> tuple[int, int, int]:
    """Most rescales one after another, in all and between two refreshes, and most refreshes."""
    kind, ptr = data["kind"].tolist(), data["arg_ptr"].tolist()
    arg, other = data["arg"].tolist(), data["arg2"].tolist()
    depth, rescales, refreshes = [0] * len(kind), [0] * len(kind), [0] * len(kind)
    for i, k in enumerate(kind):
        used = arg[ptr[i] : ptr[i + 1]]
        if k == Kind.DOT:
            used += other[ptr[i] : ptr[i + 1]]
        if used:
            depth[i] = max([depth[a] for a in used]) + (k == Kind.RESCALE)
        if k == Kind.REFRESH:
            refreshes[i] = 1 + refreshes[used[0]]
        elif used:
            rescales[i] = max([rescales[a] for a in used]) + (k == Kind.RESCALE)
            refreshes[i] = max([refreshes[a] for a in used])
    return max(depth, default=0), max(rescales, default=0), max(refreshes, default=0)


def _encoding(data: dict[str, np.ndarray], scalar: np.ndarray, log_n: int) -> np.ndarray:
    """float64 (I,): seconds in which vectors are encoded, each for the instruction that uses it
    first.

    scalar: bool, by plaintext, whether it is a number.
    """
    level = data["plain_level"].astype(np.int64)
    prices = np.array([encoding_seconds(k, log_n) for k in range(int(level.max(initial=0)) + 1)])
    count = len(data["kind"])
    consumer = np.repeat(np.arange(count), np.diff(data["arg_ptr"]))
    plain = np.isin(data["kind"][consumer], (Kind.DOT_PLAIN, Kind.ADD_PLAIN))
    used, first = np.unique(data["arg2"][plain], return_index=True)
    vectors = ~scalar[used]
    found = np.zeros(count)
    np.add.at(found, consumer[plain][first[vectors]], prices[level[used[vectors]]])
    return found


def _bootstrap_price(price: float | None, refresher: Refresher, log_n: int) -> float:
    """Seconds of a refresh as a bootstrap: the caller's, the refresher's own, or the usual."""
    if price is not None and np.isfinite(price):
        return price
    own = refresher.price is not None
    return refresher.seconds(refresher.min_input_level, 0, log_n) if own else BOOTSTRAP_SECONDS


def _operations(
    data: dict[str, np.ndarray],
    seconds: np.ndarray,
    encoding: np.ndarray,
    names: Sequence[str],
    sources: Sequence[str],
    layouts: Sequence[tuple[int, str]],
) -> tuple[Spending, ...]:
    """Instructions by the operation that they are made for."""
    kind, level, scale = data["kind"], data["level"], data["scale"]
    place = data["source"] + 1
    count = len(names)
    lying = layouts or [(0, "")] * count

    def of(*kinds: int, weights: np.ndarray | None = None) -> list[int]:
        chosen = np.isin(kind, kinds)
        weighed = None if weights is None else weights[chosen]
        return np.bincount(place[chosen], weighed, count).astype(int).tolist()

    terms = np.diff(data["arg_ptr"])
    rotations, relinearizations = of(Kind.ROTATE), of(Kind.RELINEARIZE)
    rescales, refreshes = of(Kind.RESCALE), of(Kind.REFRESH)
    plain, products = of(Kind.DOT_PLAIN, weights=terms), of(Kind.DOT, weights=terms)
    spent = np.bincount(place, seconds, count).tolist()
    encoded = np.bincount(place, encoding, count).tolist()
    last = np.full(count, -1)
    made = np.flatnonzero(kind != Kind.REFRESH)
    order = made[np.argsort(-level[made], kind="stable")]
    last[place[order]] = order  # the lowest of each operation
    return tuple(
        Spending(
            name=names[k],
            source=sources[k],
            level=int(level[last[k]]) if last[k] >= 0 else -1,
            scale_bits=float(np.log2(scale[last[k]])) if last[k] >= 0 else 0.0,
            rotations=rotations[k],
            relinearizations=relinearizations[k],
            rescales=rescales[k],
            plain_products=plain[k],
            products=products[k],
            refreshes=refreshes[k],
            seconds=spent[k],
            ciphertexts=lying[k][0],
            layout=lying[k][1],
            encoding=encoded[k],
        )
        for k in range(count)
    )
