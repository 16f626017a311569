"""What becomes of a session on a cluster whose coordinator is gone. Imports no JAX."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import SchedulerPlugin
from distributed.scheduler import Scheduler

__all__ = ["Housekeeping"]


class Housekeeping(SchedulerPlugin):
    """Has the workers let go of a session's keys and files when its coordinator leaves, or dies.

    Args:
      session: its unique name, with which the names of its worker plugins begin.
      client: by which the scheduler knows the coordinator.
    """

    def __init__(self, session: str, client: str):
        self.name = f"{session}-housekeeping"
        self.session, self.client = session, client
        self._tasks: set[Any] = set()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """The coordinator's connection is closed."""
        if client == self.client:
            task = asyncio.ensure_future(self._clear(scheduler))
            self._tasks.add(task)  # the loop holds no reference of its own
            task.add_done_callback(self._tasks.discard)

    async def _clear(self, scheduler: Scheduler) -> None:
        names = [name for name in scheduler.worker_plugins if self._owns(name)]
        await asyncio.gather(
            *(scheduler.unregister_worker_plugin(None, name) for name in names),
            return_exceptions=True,
        )
        scheduler.plugins.pop(self.name, None)

    def _owns(self, name: str) -> bool:
        return name == self.session or name.startswith(f"{self.session}-")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tasks": set()}
