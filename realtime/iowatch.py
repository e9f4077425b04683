"""Who looks after the device process: kills one that hangs, replaces one that has died, and keeps to its device.

The first device that a session opens is the one it waits for from then on, by its full name: a session that asked for
"the default", or for a part of a name, is not moved to another device because that one happens to be there.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from realtime.buffers import Arena
from realtime.devices import IoConfig
from realtime.io import io_process
from realtime.stream import RUNNING, STALE_NS

_OPEN_NS = 5_000_000_000  # a device may take this long to open
_IMPORT_NS = 15_000_000_000  # and a process, on a slow and busy machine, to say its first word
_AGAIN_NS = 1_000_000_000  # between processes that never spoke, or could not be started
_LOOK_SECONDS = 0.02


class Child(Protocol):
    """What the supervisor needs of a process."""

    @property
    def pid(self) -> int | None:
        """Its id."""

    @property
    def exitcode(self) -> int | None:
        """``None`` while it lives."""

    def is_alive(self) -> bool:
        """Whether it lives."""

    def kill(self) -> None:
        """End it at once."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""


class DeviceSupervisor:
    """Keeps a device process alive: kills one that hangs, replaces one that has died, for as long as it takes.

    Lives in the bridge; :meth:`start` gives it a thread of its own. :meth:`stop` ends both.

    Parameters
    ----------
    arena
        Memory laid out by :func:`layout`.
    config
        Which device.
    tell
        Takes each new sentence for the user: what was opened, why it does not open, that it is back.
    spawn
        Starts a device process; tests give their own.
    clock
        Monotonic nanoseconds.
    server
        What the process serves, in words.

    Attributes
    ----------
    sentence
        The last one told.
    restarts
        Processes started beyond the first.
    """

    def __init__(
        self,
        arena: Arena,
        config: IoConfig,
        tell: Callable[[str], None] | None = None,
        spawn: Callable[[IoConfig], Child] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        server: str = "the audio server",
    ) -> None:
        self.sentence = ""
        self.restarts = 0
        self._arena = arena
        self._config = config
        self._say = tell
        self._spawn = spawn or self._spawn_process
        self._clock, self._server = clock, server
        self._status = arena.status("io.status")
        self._texts = arena.records("io.text")
        self._opened = arena.records("io.opened")
        self._child: Child | None = None
        self._spawned_ns = 0
        self._due_ns = 0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Id of the device process, ``None`` while there is none. Any thread."""
        child = self._child
        return child.pid if child is not None else None

    def start(self) -> None:
        """Start the process and the thread that watches it."""
        self.poll()
        self._thread = threading.Thread(target=self._watch, name="device-supervisor", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End the process, kindly if it listens within the timeout, and the thread."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self._arena.status("io.control").publish(stop=1)
        if self._child is not None:
            self._child.join(timeout_seconds)
            self._kill()
        self._hear_texts()

    def poll(self) -> None:
        """Look once: hear what it says, end it if it hangs, replace it if it is gone."""
        self._hear_texts()
        now = self._clock()
        if self._child is None:
            if now >= self._due_ns:
                self._start_child(now)
            return
        if not self._child.is_alive():
            code = self._child.exitcode  # 0: it has said itself why
            self._replace(f"the device process ended with code {code}" if code else "", now)
        elif now - max(self._status.read()["heartbeat_ns"], self._spawned_ns) > self._patience_ns():
            self._kill()
            self._replace(f"{self._server} does not answer; the device process is started again", now)

    def _start_child(self, now: int) -> None:
        """Start a process; where the system has none to give, try again."""
        try:
            self._child, self._spawned_ns = self._spawn(self._config), now
        except OSError as error:
            self._tell(f"the device process cannot be started ({error}); it is tried again")
            self._due_ns = now + _AGAIN_NS

    def _patience_ns(self) -> int:
        """Starting and opening a device may take seconds; serving it, every turn counts."""
        status = self._status.read()
        if status["heartbeat_ns"] <= self._spawned_ns:
            return _IMPORT_NS
        return STALE_NS if status["state"] == RUNNING else _OPEN_NS

    def _replace(self, why: str, now: int) -> None:
        """Forget the dead process and set the time for the next; one that never spoke is given more of it."""
        spoke = self._status.read()["heartbeat_ns"] > self._spawned_ns
        if why:
            self._tell(why)
        self._child = None
        self.restarts += 1
        self._due_ns = now if spoke else now + _AGAIN_NS

    def _kill(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.join(1.0)

    def _hear_texts(self) -> None:
        """Take up what the process has to say: sentences, and which device it is that is waited for from now on."""
        while (record := self._opened.take()) is not None:
            names = json.loads(record)
            self._config = replace(self._config, **{key: name for key, name in names.items() if name})
        while (record := self._texts.take()) is not None:
            self._tell(record.decode(errors="replace"))

    def _tell(self, text: str) -> None:
        if text != self.sentence and self._say is not None:
            self._say(text)
        self.sentence = text

    def _watch(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # processes born here inherit it: Ctrl-C is the bridge's to answer
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        while not self._ending.wait(_LOOK_SECONDS):
            self.poll()

    def _spawn_process(self, config: IoConfig) -> Child:
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=io_process, args=(self._arena.handle, config), name="sideman-io", daemon=True
        )
        process.start()
        return process
