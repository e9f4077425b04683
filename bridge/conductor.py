"""The bridge's side of musical time: others' clocks go in, commands to the engine and the band's own clock go out.

One thread, a few dozen times a second: it reads what the stream tells of the device's clock, hands what the sources
observed to the :class:`~bridge.sync.Follower`, sends the engine what that wants, and tells the senders where the band
is. It waits for nothing but its own pace, and nothing that a source does ends it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from bridge.follower import INTERNAL, Follower, SyncStatus
from bridge.sync import Position, SessionClock, Source
from realtime.buffers import Arena
from realtime.engine import Command, told_grid

TURN_SECONDS = 0.010
FAILURES_TOLD = 3
"""A source or sender that fails again and again is told of so often."""


class Sender(Protocol):
    """Somebody to whom the band's time is sent. All calls come from one thread; none of them waits.

    ``send`` is called every turn with the position that holds now and the host time; it sends what falls due until
    the next call. ``start`` may raise one clear ``OSError`` or ``ValueError``; ``stop`` may be called twice.
    """

    name: str

    def start(self) -> None: ...

    def send(self, position: Position, now_ns: int) -> None: ...

    def stop(self) -> None: ...


class Conductor:
    """Follows others' time and lets others follow. A ``with``, or start and stop.

    Parameters
    ----------
    arena
        The session's memory: ``stream.status`` and ``engine.grid``.
    clock
        The session's; it is fed here, and here alone.
    follower
        Whom to believe; ``None`` where nobody is followed.
    sources, senders
        Whose time comes in, and to whom the band's goes.
    send
        Hands a command to the engine; returns whether there was room for it.
    tell
        Takes sentences. On this thread.

    Attributes
    ----------
    turns
        How often it looked.
    """

    def __init__(
        self,
        arena: Arena,
        clock: SessionClock,
        follower: Follower | None,
        sources: Sequence[Source],
        senders: Sequence[Sender],
        send: Callable[[Command], bool],
        tell: Callable[[str], None],
    ) -> None:
        self.clock, self.follower, self.turns = clock, follower, 0
        self._stream, self._grid = arena.status("stream.status"), arena.status("engine.grid")
        self._sources, self._senders, self._send, self._tell = list(sources), list(senders), send, tell
        self._stamp = -1
        self._unsent: list[Command] = []
        self._failures: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conductor", daemon=True)

    @property
    def position(self) -> Position | None:
        """Where the band is in the song; ``None`` before the engine has told. Any thread."""
        told = self._grid.read()
        if not told["tempo_above"]:
            return None
        return Position(told_grid(told, self.clock.samplerate), playing=not told["resting"])

    def sync(self) -> SyncStatus | None:
        """Return how following stands; ``None`` where nobody is followed. Any thread."""
        return self.follower.status() if self.follower is not None else None

    @property
    def leader(self) -> str:
        """Who is followed, and in brackets what is wrong with it; empty for nobody. Any thread."""
        status = self.sync()
        if status is None:
            return ""
        if status.leader == INTERNAL:
            return "" if status.playing else "nobody yet"
        return f"{status.leader} (silent)" if status.lost else status.leader

    def frame_at(self, time_ns: int) -> int:
        """Session frame that leaves for the loudspeaker at a host time; 0 before the stream runs. Any thread."""
        return self.clock.frame_at(time_ns) if self.clock.known else 0

    def start(self) -> None:
        """Open what is outside and begin; one who cannot be opened is told of and left out.

        Raises nothing: a session that cannot follow plays by its own clock.
        """
        self._sources = [source for source in self._sources if self._opened(source)]
        self._senders = [sender for sender in self._senders if self._opened(sender)]
        self._thread.start()

    def _opened(self, each: Source | Sender) -> bool:
        try:
            each.start()
        except (OSError, ValueError) as problem:
            self._tell(f"{each.name}: {problem}")
        except Exception as error:  # noqa: BLE001 - whatever a driver does, the session plays
            self._tell(f"{each.name} cannot be opened ({type(error).__name__}: {error})")
        else:
            return True
        return False

    def stop(self) -> None:
        """End, and close what is outside. May be called twice."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(2.0)
        for source in self._sources:
            self._guarded(source.name, source.stop)
        for sender in self._senders:
            self._guarded(sender.name, sender.stop)

    def __enter__(self) -> Conductor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._ended.wait(TURN_SECONDS):
            self._guarded("the conductor", lambda: self.turn(time.monotonic_ns()))

    def turn(self, now_ns: int) -> None:
        """Look once."""
        self.turns += 1
        if self._stream.stamp != self._stamp:
            self._stamp, told = self._stream.stamp, self._stream.read()
            self.clock.observe(told["time_ns"], told["frame"])
        if self.follower is not None:
            for source in self._sources:
                self._guarded(source.name, lambda source=source: self._hear(source, now_ns))  # type: ignore[misc]
            wanted = self.follower.step(now_ns)
            newer = {command.do for command in wanted}  # of what found no room only the last word of a kind counts
            self._unsent = [command for command in self._unsent if command.do not in newer] + wanted
            while self._unsent and self._send(self._unsent[0]):  # in order; what finds no room waits
                self._unsent.pop(0)
        position = self.position if self._senders else None
        if position is not None:
            for sender in self._senders:
                self._guarded(
                    sender.name,
                    lambda sender=sender: sender.send(position, now_ns),  # type: ignore[misc]
                )

    def _hear(self, source: Source, now_ns: int) -> None:
        assert self.follower is not None
        for observation in source.poll(now_ns):
            self.follower.take(observation)

    def _guarded(self, name: str, do: Callable[[], object]) -> None:
        """Do something that must not end the thread."""
        try:
            do()
        except Exception as error:  # noqa: BLE001 - whatever a driver does, the others go on
            count = self._failures[name] = self._failures.get(name, 0) + 1
            if count <= FAILURES_TOLD:
                self._tell(f"{name}: an error that nobody has foreseen ({type(error).__name__}: {error}); it goes on")
