"""MIDI ports of this machine, and MIDI clock through them: the one file that wraps rtmidi.

What arrives here is as exact as a thread is on time: ticks are stamped when the driver's thread hands them over, late
by tens of microseconds, at worst by what the bridge is busy with; the reader of the clock and who follows it expect
that. Where a DAW and the sound device are on one JACK server, ``jackclock.py`` has every tick to the frame instead.

A port may come and go (a cable): it is looked for again and again, and taken up where it left off.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bridge.midiclock import SPOKEN, ClockReader, ClockWriter, Dialect, Tick, Times
from bridge.sync import Observation, Position

SECOND_NS = 10**9
_HELD = 4096  # messages between two looks: at 300 bpm, half a minute
_LOOK_NS = 2 * SECOND_NS
_AHEAD_NS = 100_000_000
_LATE_NS = 1_000_000


class MidiError(OSError):
    """MIDI could not be used; the text is one sentence for the user."""


def midi_ports(kind: str) -> list[str]:
    """Return the names of this machine's MIDI ports of a kind, ``"input"`` or ``"output"``.

    Raises
    ------
    MidiError
        If the package or the system's MIDI is missing.
    """
    driver = _driver(kind)
    try:
        return [str(name) for name in driver.get_ports()]
    finally:
        driver.delete()


def pick_port(names: Sequence[str], wanted: str) -> int | None:
    """Return the place of the port that is meant, ``None`` if none is: its whole name, else a part only one has.

    Raises
    ------
    MidiError
        If the part fits more than one.
    """
    folded, part = [name.casefold() for name in names], wanted.casefold()
    for matches in (
        [place for place, name in enumerate(folded) if name == part],
        [place for place, name in enumerate(folded) if part in name],
    ):
        if len(matches) > 1:
            found = "; ".join(f"'{names[place]}'" for place in matches)
            raise MidiError(f"MIDI port '{wanted}' fits more than one: {found}; write one of these in full")
        if matches:
            return matches[0]
    return None


def _driver(kind: str) -> Any:
    """Return an rtmidi input or output, not yet connected."""
    try:
        import rtmidi
    except ImportError:
        raise MidiError("MIDI needs the package python-rtmidi: pip install 'sideman[midi]'") from None
    make = rtmidi.MidiIn if kind == "input" else rtmidi.MidiOut
    try:
        return make(name="sideman")
    except OSError as error:
        raise MidiError(
            f"this machine has no MIDI to offer ({error}); on Linux that is ALSA's sequencer (/dev/snd/seq)"
        ) from None


class _Port:
    """A port by its name, there or not. One thread."""

    def __init__(
        self,
        kind: str,
        name: str,
        tell: Callable[[str], None],
        virtual: bool,
        driver: Callable[[str], Any],
    ) -> None:
        self.driver: Any = None
        self.name = name
        self._kind, self._tell, self._virtual, self._make = kind, tell, virtual, driver
        self._open = self._said = False
        self._due_ns = 0

    @property
    def open(self) -> bool:
        """Whether it is connected."""
        return self._open

    def start(self) -> None:
        self.driver = self._make(self._kind)
        if self._virtual:
            try:
                self.driver.open_virtual_port(self.name)
            except (OSError, ValueError, NotImplementedError) as error:
                raise MidiError(f"a MIDI port '{self.name}' cannot be made here: {error}") from None
            self._open = True

    def look(self, now_ns: int) -> None:
        """Every two seconds: open the port if it has come, close it if it has gone. Never raises."""
        if self._virtual or self.driver is None or now_ns < self._due_ns:
            return
        self._due_ns = now_ns + _LOOK_NS
        try:
            self._settle()
        except (OSError, ValueError) as error:
            self._say(f"MIDI {self._kind} '{self.name}': {error}")

    def _settle(self) -> None:
        names = list(self.driver.get_ports())
        place = pick_port(names, self.name)
        if place is None and self._open:
            self.driver.close_port()
            self._open, self._said = False, False
            self._say(f"MIDI {self._kind} '{self.name}' is gone; it is waited for")
        elif place is None:
            there = "; ".join(f"'{name}'" for name in names) or "none"
            self._say(f"there is no MIDI {self._kind} '{self.name}' yet, it is waited for; there is: {there}")
        elif not self._open:
            self.driver.open_port(place)
            self._open, self._said = True, False
            self._tell(f"MIDI {self._kind} is '{names[place]}'")

    def _say(self, text: str) -> None:
        """Say why it is not there, once."""
        if not self._said:
            self._tell(text)
        self._said = True

    def stop(self) -> None:
        if self.driver is not None:
            self.driver.close_port()
            self.driver.delete()
        self.driver, self._open = None, False


class MidiClockIn:
    """MIDI clock from a port of this machine: a source.

    Parameters
    ----------
    name
        Of the source in the session.
    port
        Name of the port, or a part that only one has; or, ``virtual``, the name of a port to make, for others to
        connect to (not on Windows).
    dialect
        How the peer speaks; ``AUTO`` goes by the name of the port, then by what it does.
    tell
        Takes sentences for the user.
    driver, clock
        Make an rtmidi port, and tell monotonic nanoseconds; tests give their own.
    """

    def __init__(
        self,
        name: str,
        port: str,
        *,
        virtual: bool = False,
        dialect: Dialect | str = Dialect.AUTO,
        tell: Callable[[str], None] = lambda text: None,
        driver: Callable[[str], Any] = _driver,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        dialect = Dialect(dialect)
        known = Dialect.of(port) if dialect is Dialect.AUTO else dialect
        self.reader = ClockReader(name, SECOND_NS, known)
        self._port = _Port("input", port, tell, virtual, driver)
        self._clock = clock
        self._heard: deque[tuple[int, bytes]] = deque(maxlen=_HELD)

    def start(self) -> None:
        """Open the port, or begin to wait for it.

        Raises
        ------
        MidiError
            If there is no MIDI here at all.
        """
        self._port.start()
        self._port.driver.ignore_types(sysex=True, timing=False, active_sense=True)
        self._port.driver.set_callback(self._hear)

    def poll(self, now_ns: int) -> Iterable[Observation]:
        """Return what came since the last call."""
        self._port.look(now_ns)
        said: list[Observation] = []
        while self._heard:
            time_ns, message = self._heard.popleft()
            said += self.reader.feed(message, Tick(time_ns))
        return said

    def stop(self) -> None:
        """Close the port."""
        self._port.stop()

    def _hear(self, event: tuple[Sequence[int], float], data: object = None) -> None:
        """Take a message: on the driver's thread, so it is stamped and kept."""
        message = event[0]
        if message and message[0] in SPOKEN:
            self._heard.append((self._clock(), bytes(message)))


class Outbox:
    """Messages that leave at their time: a thread that sleeps until then. Any thread may add.

    Attributes
    ----------
    late
        Messages that left more than a millisecond late.
    failed
        Messages that the driver did not take.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.late = self.failed = 0
        self._send, self._clock = send, clock
        self._news = threading.Condition()
        self._waiting: deque[tuple[int, bytes]] = deque(maxlen=_HELD)
        self._ending = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="midi-out", daemon=True)
        self._thread.start()

    def add(self, messages: Iterable[tuple[int, bytes]]) -> None:
        """Have messages sent at their host times; they come in order."""
        with self._news:
            self._waiting.extend(messages)
            self._news.notify()

    def stop(self) -> None:
        """End; what has not left is dropped."""
        with self._news:
            self._ending = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join(1.0)

    def due(self, now_ns: int) -> int:
        """Send what is due; return the time of the next, 0 for none."""
        while self._waiting:
            at_ns, message = self._waiting[0]
            if at_ns > now_ns:
                return at_ns
            self._waiting.popleft()
            self.late += now_ns - at_ns > _LATE_NS
            try:
                self._send(message)
            except (OSError, ValueError):
                self.failed += 1
        return 0

    def _run(self) -> None:
        with self._news:
            while not self._ending:
                next_ns = self.due(self._clock())
                self._news.wait((next_ns - self._clock()) / SECOND_NS if next_ns else None)


class MidiClockOut:
    """Sends the band's time as MIDI clock through a port of this machine: a sender.

    Parameters
    ----------
    name
        Of the sender in the session.
    port, virtual, tell, driver, clock
        As in :class:`MidiClockIn`.
    times
        When a frame leaves the loudspeaker.
    outbox
        What sends; tests give one that has no thread.
    """

    def __init__(
        self,
        name: str,
        port: str,
        times: Times,
        *,
        virtual: bool = False,
        tell: Callable[[str], None] = lambda text: None,
        driver: Callable[[str], Any] = _driver,
        clock: Callable[[], int] = time.monotonic_ns,
        outbox: type[Outbox] = Outbox,
    ) -> None:
        self.name = name
        self.writer = ClockWriter()
        self.outbox = outbox(self._deliver, clock)
        self._times = times
        self._port = _Port("output", port, tell, virtual, driver)
        self._until: int | None = None

    def start(self) -> None:
        """Open the port, or begin to wait for it.

        Raises
        ------
        MidiError
            If there is no MIDI here at all.
        """
        self._port.start()
        self.outbox.start()

    def send(self, position: Position, now_ns: int) -> None:
        """Send what falls due until the next call, and some more: a tenth of a second."""
        self._port.look(now_ns)
        times = self._times
        now, end = times.frame_at(now_ns), times.frame_at(now_ns + _AHEAD_NS)
        first = self._until if self._until is not None and abs(self._until - now) < 10 * (end - now) else now
        if end > first:
            events = self.writer.write(position, first, end)
            self.outbox.add((times.time_ns_at(frame), message) for frame, message in events)
            self._until = end

    def stop(self) -> None:
        """Close the port."""
        self.outbox.stop()
        self._port.stop()

    def _deliver(self, message: bytes) -> None:
        if self._port.open:
            self._port.driver.send_message(message)
