"""The processes of a session: born out of the terminal's reach, ended within a bound, tidy when orphaned.

A child never sees Ctrl-C, which is the bridge's to answer, and is in a process group of its own. So whatever is
killed with the bridge, the children are there to notice: they end by themselves and the take is closed. The memory
they share has a name, and what has a name outlives everybody; the janitor, a small process that is there before the
memory is, removes it once the bridge is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Semaphore
from typing import Any

_PATIENCE_SECONDS = 0.3
_REAP_SECONDS = 1.0


class Children:
    """Spawns processes by name and ends them. The bridge's threads."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._processes: dict[str, SpawnProcess] = {}
        self._semaphores: list[Semaphore] = []  # a child finds one by name, so it must not be collected before
        self._janitor = _Janitor() if os.name == "posix" else None

    def reserve(self) -> str:
        """Return a name for shared memory; what is called so is removed when the bridge is gone, from birth on."""
        name = f"sideman-{secrets.token_hex(6)}"
        if self._janitor is not None:
            self._janitor.expect("shared_memory", f"/{name}")
        return name

    def keep(self, memory: str) -> None:
        """Say that the memory is there, and the janitor's business alone."""
        if self._janitor is not None:
            self._janitor.keep("shared_memory", f"/{memory}")

    def semaphore(self) -> Semaphore:
        """Return a wake-up for children that are spawned later."""
        semaphore = self._context.Semaphore(0)
        self._semaphores.append(semaphore)
        if self._janitor is not None:
            name = semaphore._semlock.name  # type: ignore[attr-defined]
            self._janitor.expect("semaphore", name)
            self._janitor.keep("semaphore", name)
        return semaphore

    def spawn(self, name: str, target: Callable[..., None], *args: Any) -> SpawnProcess:
        """Start ``target(*args)`` in a process of its own; the name must be free."""
        process = self._context.Process(target=_be_child, args=(target, args), name=f"sideman-{name}", daemon=True)
        process.start()
        with self._lock:
            self._processes[name] = process
        return process

    def forget(self, name: str) -> None:
        """Let go of one that has ended, or was killed."""
        with self._lock:
            process = self._processes.pop(name, None)
        if process is not None:
            process.join(_REAP_SECONDS)

    def ended(self) -> dict[str, int]:
        """Return the exit codes of those that have ended, by name; negative is the signal that did it."""
        return {name: code for name, process in self._all().items() if (code := process.exitcode) is not None}

    def pids(self) -> dict[str, int]:
        """Return the process ids, by name."""
        return {name: process.pid for name, process in self._all().items() if process.pid is not None}

    def wait(self, name: str, seconds: float) -> bool:
        """Wait for the end of a child, for so long at most; return whether it has ended."""
        process = self._all().get(name)
        if process is not None:
            process.join(seconds)
        return process is None or process.exitcode is not None

    def kill(self, name: str) -> None:
        """End a child that does not listen."""
        process = self._all().get(name)
        if process is not None:
            process.kill()
            process.join(_REAP_SECONDS)

    def end(self) -> None:
        """Give all a moment to end, then kill those that have not."""
        until = time.monotonic() + _PATIENCE_SECONDS
        for process in self._all().values():
            process.join(max(0.0, until - time.monotonic()))
        for name, process in self._all().items():
            if process.is_alive():
                self.kill(name)
        if self._janitor is not None:
            self._janitor.dismiss()

    def _all(self) -> dict[str, SpawnProcess]:
        with self._lock:
            return dict(self._processes)


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


_JANITORS_WORK = """
import sys, time
names = [line.split() for line in sys.stdin]
if ["done"] not in names:
    time.sleep(2)
    import _multiprocessing, _posixshmem
    remove = {"shared_memory": _posixshmem.shm_unlink, "semaphore": _multiprocessing.sem_unlink}
    for kind, name in names:
        try:
            remove[kind](name)
        except OSError:
            pass
"""
"""Its input ends with the bridge. Children that are just being born still find what they were given the name of."""


class _Janitor:
    """The bridge's end of the process that clears up after it. POSIX; not for other threads.

    It is in a group of its own from before its first instruction, so that nothing takes it along with the bridge.
    Python's own resource tracker is in the bridge's group, and complains of what it has to remove; so what the
    janitor looks after is taken off its list.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _JANITORS_WORK]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, process_group=0
        )
        self._told: set[tuple[str, str]] = set()
        self._kept: list[tuple[str, str]] = []

    def expect(self, kind: str, name: str) -> None:
        """Have it look after something that is there, or will be."""
        if self._tell(f"{kind} {name}"):
            self._told.add((kind, name))

    def keep(self, kind: str, name: str) -> None:
        """Take what it was told of, and is there now, off the other's list."""
        if (kind, name) in self._told:
            resource_tracker.unregister(name, kind)
            self._kept.append((kind, name))

    def dismiss(self) -> None:
        """Send it home: from now on its charges are their owners' to remove, as Python knows it."""
        for kind, name in self._kept:
            resource_tracker.register(name, kind)
        self._kept.clear()
        self._tell("done")
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_SECONDS)

    def _tell(self, line: str) -> bool:
        """Write a line; return whether there was somebody to read it."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n".encode())
        except (OSError, ValueError):
            return False
        return True


def _be_child(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Run ``target`` apart from the bridge's group, unless the bridge is gone already."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if parent is None or parent.is_alive():
        target(*args)
