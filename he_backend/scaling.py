"""What a cluster makes of a Circuit: a simulated schedule on any number of workers.

The model is that of a run on a cluster: tasks as they will be cut, the most urgent ready one to an
idle worker that has most of what it reads, or else to another, which fetches it first; a worker is
one core. The key holder's processes are on a host of their own. What they encrypt, refresh and
decrypt passes one link, which has a bandwidth either way, and Dask's scheduler takes its time for
every task, one after another. Seconds of tasks are the cost table's. Imports no JAX.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from he_backend.errors import BackendError, need_count
from he_backend.expected import bytes_seconds, decrypted_outputs, encoded_seconds
from he_backend.processes.tasks import Schedule, Task, plan
from hesim.circuit.circuit import Circuit

__all__ = ["Network", "Scaling", "expected_scaling"]


@dataclass(frozen=True)
class Network:
    """What connects a cluster.

    Attributes:
      outside_bytes: bytes in a second between the key holder's host and the cluster, either way.
      inside_bytes: bytes in a second that a worker takes from others.
      latency_seconds: of a message.
      dispatch_seconds: of Dask's scheduler, for a task (measured on one core: 2 to 4 ms with the
        parcels that it gives).

    Raises:
      BackendError: no bandwidth, or a negative time.

    Examples:
      >>> import he_backend
      >>> he_backend.Network().outside_bytes  # 1 Gbit/s
      125000000.0
    """

    outside_bytes: float = 1.25e8
    inside_bytes: float = 1.25e9
    latency_seconds: float = 2e-4
    dispatch_seconds: float = 3e-3

    def __post_init__(self) -> None:
        if not (self.outside_bytes > 0 and self.inside_bytes > 0):
            raise BackendError("a network has a bandwidth: bytes in a second, more than 0")
        if not (self.latency_seconds >= 0 and self.dispatch_seconds >= 0):
            raise BackendError("latency_seconds and dispatch_seconds are at least 0")


@dataclass(frozen=True)
class Scaling:
    """What so many workers make of it.

    Attributes:
      workers: their number. seconds: by the clock. speedup: over one worker.
      busy: by resource the share of the time that it is in use: "workers" (their mean), "key
        holder" (the mean of its processes), "network" (the busier way of the key holder's link),
        "scheduler".
      path: the share that the longest chain of tasks takes by itself, in one batch.
      limit: the busiest resource, or "dependencies" where tasks that wait for each other take more
        of the time.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> circuit = hesim.compile(hesim.trace(lambda x: x * x, np.ones(2)), params)
      >>> he_backend.expected_scaling(circuit, [1])[0].speedup
      1.0
    """

    workers: int
    seconds: float
    speedup: float
    busy: dict[str, float] = field(default_factory=dict)
    path: float = 0.0

    @property
    def limit(self) -> str:
        shares = {**self.busy, "dependencies": self.path}
        return max(shares, key=lambda name: shares[name])


def expected_scaling(
    circuit: Circuit,
    workers: Iterable[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    *,
    batches: int = 1,
    at_once: int | None = 1,
    clients: int = 2,
    network: Network | None = None,
    again: bool = True,
    task_seconds: float = 0.1,
) -> tuple[Scaling, ...]:
    """What numbers of workers make of one batch, or of many.

    Args:
      circuit: what is run. workers: their numbers.
      batches: of the Circuit. at_once: that are under way at a time, each a session of its own;
        None for one a worker.
      clients: processes of the key holder, each with a core.
      network: what connects the cluster; by default 1 Gbit/s outside and 10 inside.
      again: whether plaintexts that have room are encoded already.
      task_seconds: that a task should take.

    Raises:
      BackendError: no worker, batch or client.

    Examples:
      >>> import he_backend, hesim, numpy as np
      >>> params = hesim.CKKSParams(
      ...     log_n=12, levels=1, scale_bits=30, first_bits=35, special_bits=40
      ... )
      >>> program = hesim.trace(lambda x, y: x * y + x, np.ones(2), np.ones(2))
      >>> circuit = hesim.compile(program, params)
      >>> one, two = he_backend.expected_scaling(circuit, [1, 2], batches=8, at_once=8)
      >>> one.seconds >= two.seconds > 0
      True
    """
    numbers = list(workers)
    counts = {"clients": clients, "batches": batches, "at_once": 1 if at_once is None else at_once}
    for name, count in (*counts.items(), *(("workers", n) for n in numbers)):
        need_count(name, count)
    work = _Work.of(circuit, again=again, task_seconds=task_seconds)
    net = Network() if network is None else network
    found = {
        n: _Simulation(work, n, clients, batches, at_once or n, net).run() for n in {1, *numbers}
    }
    return tuple(
        Scaling(n, s.seconds, found[1].seconds / s.seconds, s.busy, work.path / s.seconds)
        for n, s in ((n, found[n]) for n in numbers)
    )


@dataclass(frozen=True)
class _Work:
    """What is to be done in a batch.

    schedule: its tasks. seconds: of each, computing alone. sizes: bytes by ciphertext. moving:
    seconds of turning one into bytes and back. waits: tasks that each waits for. path: seconds of
    the longest chain.
    """

    schedule: Schedule
    seconds: list[float]
    sizes: dict[int, int]
    moving: dict[int, float]
    waits: dict[int, int]
    path: float

    @classmethod
    def of(cls, circuit: Circuit, *, again: bool, task_seconds: float) -> _Work:
        decrypt, carried = decrypted_outputs(circuit)
        schedule = plan(circuit, decrypt, task_seconds, follows=again and bool(carried))
        saved = encoded_seconds(circuit, schedule) if again else {}
        seconds = [
            max(0.0, task.seconds - sum(saved.get(i, 0.0) for i in task.instructions))
            for task in schedule.tasks
        ]
        parts, params = circuit.components, circuit.params
        passing = schedule.producer
        sizes = {c: params.ciphertext_bytes(int(circuit.level[c]), int(parts[c])) for c in passing}
        moving = {c: bytes_seconds(circuit, (c,)) for c in passing}
        waits = {task.id: len(schedule.waits_for(task)) for task in schedule.tasks}
        return cls(schedule, seconds, sizes, moving, waits, _longest(schedule, seconds))


def _longest(schedule: Schedule, seconds: Sequence[float]) -> float:
    ends: dict[int, float] = {}
    for task in schedule.tasks:
        before = max((ends[n] for n in schedule.waits_for(task)), default=0.0)
        ends[task.id] = before + seconds[task.id]
    return max(ends.values(), default=0.0)


@dataclass(frozen=True)
class _Ran:
    seconds: float
    busy: dict[str, float]


_OUTSIDE = -1
"""In the place of a worker's number: where the coordinator has a ciphertext."""

Each = tuple[int, int]
"""A batch's number, and a task's or a ciphertext's."""


class _Simulation:
    """One run of all batches, event by event; see the module for the model."""

    def __init__(
        self, work: _Work, workers: int, clients: int, batches: int, at_once: int, network: Network
    ):
        self.work, self.network, self.batches = work, network, batches
        self.counts = {"workers": workers, "key holder": clients}
        self.idle = set(range(workers))
        self.holders = clients
        self.waits: dict[Each, int] = {}
        self.left: dict[Each, int] = {}
        self.places: dict[Each, set[int]] = {}
        self.open = {b: len(work.schedule.tasks) for b in range(batches)}
        self.ready: dict[str, list[Each]] = {"worker": [], "client": []}
        self.events: list[tuple[float, int, str, Each, int]] = []
        self.now, self.count, self.at_once = 0.0, 0, at_once
        self.free = {"scheduler": 0.0, "in": 0.0, "out": 0.0}
        self.used = {"workers": 0.0, "key holder": 0.0, "scheduler": 0.0, "in": 0.0, "out": 0.0}

    def run(self) -> _Ran:
        for b in range(min(self.at_once, self.batches)):
            self._begin(b)
        while self.events:
            self.now, _, kind, each, worker = heapq.heappop(self.events)
            if kind == "ready":
                side = "client" if self._task(each).client else "worker"
                heapq.heappush(self.ready[side], each)
            else:
                self._finish(each, worker)
            if not self.events or self.events[0][0] > self.now:
                self._hand_out()
        seconds = self.now or 1e-12
        busy = {name: self.used[name] / seconds / n for name, n in self.counts.items()}
        busy["network"] = max(self.used["in"], self.used["out"]) / seconds
        busy["scheduler"] = self.used["scheduler"] / seconds
        return _Ran(seconds, busy)

    def _task(self, each: Each) -> Task:
        return self.work.schedule.tasks[each[1]]

    def _at(self, time: float, kind: str, each: Each, worker: int = _OUTSIDE) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, kind, each, worker))

    def _takes(self, resource: str, seconds: float, after: float) -> float:
        """When one that serves one after another is through with something."""
        self.free[resource] = max(self.free[resource], after) + seconds
        self.used[resource] += seconds
        return self.free[resource]

    def _begin(self, batch: int) -> None:
        for task in self.work.schedule.tasks:
            self.waits[batch, task.id] = self.work.waits[task.id]
            if not self.work.waits[task.id]:
                self._make_ready((batch, task.id))

    def _make_ready(self, each: Each) -> None:
        task = self._task(each)
        if task.side == "server":  # the coordinator's own is done at once
            self._at(self.now, "done", each)
        elif task.client:
            self._at(self.now, "ready", each)
        else:
            known = self._takes("scheduler", self.network.dispatch_seconds, self.now)
            self._at(known + self.network.latency_seconds, "ready", each)

    def _hand_out(self) -> None:
        while self.ready["client"] and self.holders:
            self._serve(heapq.heappop(self.ready["client"]))
        while self.ready["worker"] and self.idle:
            self._evaluate(heapq.heappop(self.ready["worker"]))

    def _serve(self, each: Each) -> None:
        """A task of the key holder's: what it reads comes over the link."""
        self.holders -= 1
        batch, number = each
        sizes, start = self.work.sizes, self.now
        brought = [
            c for c in self._task(each).needs if _OUTSIDE not in self.places.get((batch, c), ())
        ]
        if brought:
            size = sum(sizes[c] for c in brought)
            start = self._takes("in", size / self.network.outside_bytes, self.now)
            start += self.network.latency_seconds
            for c in brought:
                self.places.setdefault((batch, c), set()).add(_OUTSIDE)
        self.used["key holder"] += self.work.seconds[number]
        self._at(start + self.work.seconds[number], "done", each)

    def _evaluate(self, each: Each) -> None:
        """A task of a worker's: the one that has most of what it reads, if one of these is idle."""
        batch, number = each
        task, sizes, network = self._task(each), self.work.sizes, self.network
        held: dict[int, int] = {}
        for c in task.needs:
            for w in self.places.get((batch, c), ()):
                if w in self.idle:
                    held[w] = held.get(w, 0) + sizes[c]
        worker = max(held, key=lambda w: (held[w], -w)) if held else next(iter(self.idle))
        self.idle.remove(worker)
        start, seconds = self.now, self.work.seconds[number]
        for c in task.needs:
            places = self.places.setdefault((batch, c), set())
            if worker in places:
                continue
            if places <= {_OUTSIDE}:
                arrived = self._takes("out", sizes[c] / network.outside_bytes, self.now)
            else:
                arrived = start + sizes[c] / network.inside_bytes
            start = max(start, arrived + network.latency_seconds)
            seconds += self.work.moving[c]
            places.add(worker)
        self.used["workers"] += seconds
        self._at(start + seconds, "done", each, worker)

    def _finish(self, each: Each, worker: int) -> None:
        batch, number = each
        task = self._task(each)
        if worker != _OUTSIDE:
            self.idle.add(worker)
        elif task.client:
            self.holders += 1
        for c in task.gives:
            self.places[batch, c] = {worker}
            self.left[batch, c] = len(self.work.schedule.consumers.get(c, ()))
        for c in task.needs:
            self.left[batch, c] = self.left.get((batch, c), 1) - 1
            if not self.left[batch, c]:
                self.places.pop((batch, c), None)
                del self.left[batch, c]
        for other in self.work.schedule.followers.get(number, ()):
            self.waits[batch, other] -= 1
            if not self.waits[batch, other]:
                self._make_ready((batch, other))
        self.open[batch] -= 1
        if not self.open[batch] and batch + self.at_once < self.batches:
            self._begin(batch + self.at_once)
