"""The processes of a session: born out of the terminal's reach, ended within a bound, tidy when orphaned.

A child never sees Ctrl-C, which is the bridge's to answer, and is in a process group of its own. So whatever is
killed with the bridge, the children are there to notice: they end by themselves, the take is closed, and the memory
they shared is removed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

_SHARED = Path("/dev/shm")  # where Linux shows shared memory; elsewhere the resource tracker alone cleans up
_PATIENCE_SECONDS = 0.3


class Children:
    """Spawns processes by name and ends them. One thread, the bridge's.

    Parameters
    ----------
    memory
        Name of the shared memory that orphans remove.
    """

    def __init__(self, memory: str) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[str, SpawnProcess] = {}
        self._left = [memory]
        self._semaphores: list[Semaphore] = []  # a child finds one by name, so it must not be collected before

    def semaphore(self) -> Semaphore:
        """Return a wake-up for children that are spawned later."""
        semaphore = self._context.Semaphore(0)
        self._semaphores.append(semaphore)
        self._left.append("sem." + str(semaphore._semlock.name).lstrip("/"))  # type: ignore[attr-defined]
        return semaphore

    def spawn(self, name: str, target: Callable[..., None], *args: Any) -> None:
        """Start ``target(*args)`` in a process of its own."""
        process = self._context.Process(
            target=_be_child, args=(tuple(self._left), target, args), name=f"sideman-{name}", daemon=True
        )
        process.start()
        self._processes[name] = process

    def alive(self, name: str) -> bool:
        """Whether a child of that name was spawned and runs."""
        process = self._processes.get(name)
        return process is not None and process.is_alive()

    def ended(self) -> dict[str, int]:
        """Return the exit codes of those that have ended, by name; negative is the signal that did it."""
        return {name: p.exitcode for name, p in self._processes.items() if p.exitcode is not None}

    def pids(self) -> dict[str, int]:
        """Return the process ids, by name."""
        return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    def wait(self, name: str, seconds: float) -> None:
        """Wait for the end of a child, for so long at most."""
        if name in self._processes:
            self._processes[name].join(seconds)

    def end(self) -> None:
        """Give all a moment to end, then kill those that have not."""
        until = time.monotonic() + _PATIENCE_SECONDS
        for process in self._processes.values():
            process.join(max(0.0, until - time.monotonic()))
        for process in self._processes.values():
            if process.is_alive():
                process.kill()
                process.join(1.0)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back Ctrl-C and the closing of the terminal. Children born meanwhile inherit that, and never see one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_child(left: tuple[str, ...], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run ``target`` apart from the bridge's group; if the bridge is gone by the end, remove what it left."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    try:
        if not _orphaned():
            target(*args)
    finally:
        if _orphaned():
            for name in left:
                with contextlib.suppress(OSError):
                    (_SHARED / name).unlink()


def _orphaned() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
