"""How DAWs say over OSC where their song is, as tables; and a source made of one.

A :class:`Dialect` is what one program says and takes: which argument of which address means what and in which unit,
what it must be told so that it speaks, and how its transport is commanded. Addresses are data, so a session changes
them where a program lets its user do so (REAPER) or has none of its own (Max, Pure Data, TouchOSC: ``free``).

A :class:`ProfileSource` is a dialect that is spoken to: it takes messages as the OSC server hands them over, makes
observations of them, and asks again when nothing comes, as a program that was restarted has forgotten who listens.

``ardour`` was run against Ardour 7.3. The others are from the programs' own documentation or source (AbletonOSC,
DrivenByMoss, the Default.ReaperOSC that REAPER installs, Max's reference), as :attr:`Dialect.seen` says.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from types import MappingProxyType

from bridge.heard import Log
from bridge.sync import Observation
from realtime.clock import Meter, TempoMap
from realtime.hostclock import SECOND_NS

Value = str | int | float | bool | bytes | None
"""What an OSC argument can be, as the server hands it over."""

QUEUE = 4096
"""Observations kept for a caller that does not come; the oldest are let go."""
FINER_NS = 2 * SECOND_NS
"""A rough position is not heard while a finer one was said so lately."""
MAX_TEXT = 64
FINEST = 10**9
"""Denominator of the finest number that is told from its neighbours."""
_PLACE = re.compile(r"\s*(-?\d{1,7})[.:|](\d{1,4})((?:[.:|]\d{1,6}){0,3})\s*")
_METER = re.compile(r"\s*(\d{1,3})\s*/\s*(\d{1,3})\s*")


class Says(StrEnum):
    """What an argument can say."""

    PLACE = "place"
    """Text: bar, beat, and parts of a beat, as in ``5.2.50``, ``005|02|0960`` or ``5.2.3:00``."""
    BEAT = "beat"
    """A number: quarter notes from the song's start, in units of ``scale``."""
    BAR = "bar"
    """A whole number."""
    BAR_BEAT = "bar_beat"
    """A number: the beat in the bar, in the notes that the meter counts or, where ``quarters`` says so, quarters."""
    TEMPO = "tempo"
    """A number: quarter notes per minute, in units of ``scale``."""
    METER = "meter"
    """Text, as in ``7/8``."""
    COUNT = "count"
    """A whole number: the upper one of the meter."""
    UNIT = "unit"
    """A whole number: the lower one."""
    PLAYING = "playing"
    """Whether it plays: not 0."""
    STOPPED = "stopped"
    """Whether it stands: not 0. What is 0 says nothing."""
    ALIVE = "alive"
    """That it is there, and nothing else."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one argument of one address means.

    Attributes
    ----------
    address
        As it arrives, with its slash.
    says
        What it means.
    argument
        Which argument, counted from 0.
    counts_from
        What the first bar and the first beat of a bar are called, 1 or 0. Where that is 1 there is no bar 0, and -1
        is the bar before the first.
    parts
        Of a place: how many of each further part make one of the part before it, and what the first is called.
    ticks
        Of a place: its last part are ticks of which so many make a quarter note, whatever its beats are; 0 for none.
    quarters
        Whether the beats of a place are quarter notes whatever the meter; else they are what the meter counts.
    scale
        Units of a number in one that is meant: 480 for ticks of which 480 make a quarter note.
    rough
        Only to be heard while nothing finer is said.
    """

    address: str
    says: Says
    argument: int = 0
    counts_from: int = 1
    parts: tuple[tuple[int, int], ...] = ()
    ticks: int = 0
    quarters: bool = False
    scale: int = 1
    rough: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A message to a program.

    ``{port}``, ``{tempo}``, ``{beat}``, ``{seconds}`` and ``{frames}`` stand for values: our port, quarter notes per
    minute, and a place in the song in quarter notes, seconds, and frames of the session's rate.
    """

    address: str
    arguments: tuple[str | int | float, ...] = ()

    def filled(self, values: Mapping[str, int | float]) -> tuple[str, tuple[str | int | float, ...]]:
        """Return address and arguments with the values in place; ``KeyError`` names one that is missing."""
        return self.address, tuple(
            values[argument[1:-1]] if isinstance(argument, str) and argument.startswith("{") else argument
            for argument in self.arguments
        )


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one program says and takes.

    Attributes
    ----------
    name, title
        In a session, and for people.
    patterns
        What it says.
    port
        Where it listens unless its user chose otherwise, 0 where there is no custom.
    reply_port
        Where it sends to if it cannot be told, 0 if it answers whoever speaks or is told.
    subscribe, unsubscribe
        What makes it speak, and be silent again.
    commands
        ``"play"``, ``"stop"``, ``"continue"``, ``"tempo"``, ``"locate"``, as far as it takes them.
    quiet_seconds
        After so long a silence it is asked again; 0 for never.
    seen
        What this table was taken from.
    """

    name: str
    title: str
    patterns: tuple[Pattern, ...] = ()
    port: int = 0
    reply_port: int = 0
    subscribe: tuple[Said, ...] = ()
    unsubscribe: tuple[Said, ...] = ()
    commands: Mapping[str, Said] = field(default_factory=lambda: MappingProxyType({}))
    quiet_seconds: float = 0.0
    seen: str = ""

    def with_patterns(self, patterns: Sequence[Pattern]) -> Dialect:
        """Return the dialect as a user has changed it: what they say of a meaning replaces all there is of it."""
        said = {pattern.says for pattern in patterns}
        kept = tuple(pattern for pattern in self.patterns if pattern.says not in said)
        return replace(self, patterns=(*kept, *patterns))


_LIVE = ("current_song_time", "tempo", "is_playing", "signature_numerator", "signature_denominator", "beat")

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        dialect.name: dialect
        for dialect in (
            Dialect(
                "ardour",
                "Ardour 7 and 8",
                (
                    Pattern("/position/bbt", Says.PLACE, ticks=1920),
                    Pattern("/transport_play", Says.PLAYING),
                    Pattern("/transport_stop", Says.STOPPED),
                    Pattern("/heartbeat", Says.ALIVE),
                ),
                port=3819,
                # no bank, all strips; heartbeat 8, play and stop 16, bar and beat 32; the port it is to answer to
                subscribe=(Said("/set_surface", (0, 159, 8 + 16 + 32, 0, 0, 0, "{port}")),),
                unsubscribe=(Said("/set_surface", (0, 159, 0, 0, 0, 0, "{port}")),),
                commands=MappingProxyType(
                    {
                        "play": Said("/transport_play"),
                        "continue": Said("/transport_play"),
                        "stop": Said("/transport_stop"),
                        "locate": Said("/locate", ("{frames}", 0)),
                    }
                ),
                quiet_seconds=5.0,
                seen="run against 7.3; it tells no tempo and no meter, and its position 10 times a second",
            ),
            Dialect(
                "reaper",
                "REAPER",
                (
                    Pattern("/beat/str", Says.PLACE, parts=((100, 0),)),
                    Pattern("/tempo/raw", Says.TEMPO),
                    Pattern("/play", Says.PLAYING),
                    Pattern("/stop", Says.STOPPED),
                    Pattern("/pause", Says.STOPPED),
                ),
                port=8000,
                reply_port=9000,
                subscribe=(Said("/action", (41743,)),),  # "Control surface: refresh all surfaces"
                commands=MappingProxyType(
                    {
                        "play": Said("/play", (1.0,)),
                        "continue": Said("/play", (1.0,)),
                        "stop": Said("/stop", (1.0,)),
                        "tempo": Said("/tempo/raw", ("{tempo}",)),
                        "locate": Said("/time", ("{seconds}",)),
                    }
                ),
                quiet_seconds=10.0,
                seen="Default.ReaperOSC; ports and patterns are the user's",
            ),
            Dialect(
                "live",
                "Ableton Live through AbletonOSC",
                (
                    Pattern("/live/song/get/current_song_time", Says.BEAT),
                    Pattern("/live/song/get/beat", Says.BEAT, rough=True),
                    Pattern("/live/song/get/tempo", Says.TEMPO),
                    Pattern("/live/song/get/is_playing", Says.PLAYING),
                    Pattern("/live/song/get/signature_numerator", Says.COUNT),
                    Pattern("/live/song/get/signature_denominator", Says.UNIT),
                    Pattern("/live/startup", Says.ALIVE),
                ),
                port=11000,
                reply_port=11001,
                subscribe=tuple(Said(f"/live/song/start_listen/{what}") for what in _LIVE),
                unsubscribe=tuple(Said(f"/live/song/stop_listen/{what}") for what in _LIVE),
                commands=MappingProxyType(
                    {
                        "play": Said("/live/song/start_playing"),
                        "continue": Said("/live/song/continue_playing"),
                        "stop": Said("/live/song/stop_playing"),
                        "tempo": Said("/live/song/set/tempo", ("{tempo}",)),
                        "locate": Said("/live/song/set/current_song_time", ("{beat}",)),
                    }
                ),
                quiet_seconds=10.0,
                seen="AbletonOSC's source; it answers to port 11001 of whoever asked",
            ),
            Dialect(
                "bitwig",
                "Bitwig Studio through DrivenByMoss",
                (
                    Pattern("/beat/str", Says.PLACE, parts=((4, 1), (100, 0)), quarters=True),
                    Pattern("/tempo/raw", Says.TEMPO),
                    Pattern("/time/signature", Says.METER),
                    Pattern("/play", Says.PLAYING),
                    Pattern("/update", Says.ALIVE),
                ),
                port=8000,
                reply_port=9000,
                subscribe=(Said("/refresh", (1,)),),
                commands=MappingProxyType(
                    {
                        "play": Said("/play", (1,)),
                        "continue": Said("/play", (1,)),
                        "stop": Said("/play", (0,)),
                        "tempo": Said("/tempo/raw", ("{tempo}",)),
                        "locate": Said("/time", ("{beat}",)),
                    }
                ),
                quiet_seconds=10.0,
                seen="DrivenByMoss' source; it says what has changed, so a place comes as it is reached",
            ),
            Dialect(
                "max",
                "Max and Max for Live",
                (
                    # [transport]'s outlets packed in their order: bars, beats, units, resolution, tempo, the two
                    # numbers of the time signature, state, ticks; 480 ticks are a quarter note
                    Pattern("/transport", Says.BEAT, argument=8, scale=480),
                    Pattern("/transport", Says.TEMPO, argument=4),
                    Pattern("/transport", Says.COUNT, argument=5),
                    Pattern("/transport", Says.UNIT, argument=6),
                    Pattern("/transport", Says.PLAYING, argument=7),
                    Pattern("/transport/ticks", Says.BEAT, scale=480),
                    Pattern("/transport/tempo", Says.TEMPO),
                    Pattern("/transport/timesig", Says.COUNT),
                    Pattern("/transport/timesig", Says.UNIT, argument=1),
                    Pattern("/transport/state", Says.PLAYING),
                ),
                commands=MappingProxyType(
                    {
                        "play": Said("/transport/state", (1,)),
                        "continue": Said("/transport/state", (1,)),
                        "stop": Said("/transport/state", (0,)),
                        "tempo": Said("/transport/tempo", ("{tempo}",)),
                    }
                ),
                seen="Max's reference of [transport]; the addresses are what a patch sends with [udpsend]",
            ),
            Dialect("free", "whatever speaks OSC", seen="patterns of the session's own"),
        )
    }
)
"""What is known, by the name that a session gives."""


def dialect(name: str, patterns: Sequence[Pattern] = ()) -> Dialect:
    """Return a dialect by its name, changed as its user says.

    Raises
    ------
    ValueError
        If there is none of that name, or none that says where the song is.
    """
    if name not in DIALECTS:
        raise ValueError(f'profile "{name}" is not known; it takes {", ".join(DIALECTS)}')
    found = DIALECTS[name].with_patterns(patterns)
    if not any(pattern.says in (Says.PLACE, Says.BEAT, Says.BAR) for pattern in found.patterns):
        raise ValueError(
            f'profile "{name}" says nowhere where the song is; it takes a pattern that says '
            f'"{Says.PLACE}", "{Says.BEAT}" or "{Says.BAR}"'
        )
    return found


@dataclass(slots=True)
class _Words:
    """What one message says, before it is an observation."""

    beat: Fraction | None = None
    bar: int | None = None
    counted: Fraction | None = None  # into the bar, in the notes that are counted
    beyond: Fraction = Fraction(0)  # and in quarter notes
    quarters: bool = False
    tempo: Fraction | None = None
    playing: bool | None = None


class ProfileSource:
    """A source that understands one dialect.

    :meth:`__call__` is for the OSC server's thread, everything else for the bridge's. What makes no sense is counted
    in ``refused``, told in one sentence, and ignored.

    Parameters
    ----------
    name
        The source's in the session.
    dialect
        What it understands.
    song
        The session's plan: its meters say what a beat is for programs that do not tell theirs.
    send
        Sends a message to the program; takes address and arguments.
    port
        Where we listen, for programs that must be told.
    tell
        Takes sentences for the log.

    Attributes
    ----------
    heard, refused
        Messages that meant something, and values that could not be.
    asked
        Times that it was asked to speak.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        song: TempoMap,
        send: Callable[[str, tuple[str | int | float, ...]], None],
        *,
        port: int = 0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name, self.dialect = name, dialect
        self.heard = self.refused = self.asked = 0
        self._song, self._send, self._port = song, send, port
        self._log = Log(tell)
        self._patterns: dict[str, list[Pattern]] = {}
        for pattern in dialect.patterns:
            self._patterns.setdefault(pattern.address, []).append(pattern)
        self._queue: deque[Observation] = deque(maxlen=QUEUE)
        self._count: int | None = None
        self._unit: int | None = None
        self._fine_ns: int | None = None
        self._heard_ns: int | None = None
        self._asked_ns: int | None = None
        self._open = False

    # -- the bridge's thread ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Ask the program to speak. It need not be there yet: it is asked again."""
        self._open = True
        self._ask()

    def stop(self) -> None:
        """Tell the program that nobody listens any more."""
        if self._open:
            self._open = False
            for said in self.dialect.unsubscribe:
                self._send(*said.filled({"port": self._port}))

    def poll(self, now_ns: int) -> Iterable[Observation]:
        """Return what was observed since the last call; ask again if nothing is heard."""
        quiet_ns = round(self.dialect.quiet_seconds * SECOND_NS)
        self._asked_ns = now_ns if self._asked_ns is None else self._asked_ns
        last = max(self._asked_ns, self._heard_ns or 0)
        if self._open and quiet_ns and now_ns - last >= quiet_ns:
            self._asked_ns = now_ns
            self._ask()
        observations: list[Observation] = []
        while self._queue:
            observations.append(self._queue.popleft())
        return observations

    def command(self, what: str, *, tempo: Fraction | None = None, beat: Fraction | None = None) -> bool:
        """Command the program's transport; return whether it takes such a command.

        Parameters
        ----------
        what
            ``"play"``, ``"stop"``, ``"continue"``, ``"tempo"`` (with ``tempo``) or ``"locate"`` (with ``beat``).
        """
        said = self.dialect.commands.get(what)
        if said is None:
            return False
        values: dict[str, int | float] = {"port": self._port}
        if tempo is not None:
            values["tempo"] = float(tempo)
        if beat is not None:
            start = self._song.timelines[0]
            frames = self._song.frame_at(beat) - start.frame_at(Fraction(0))
            values |= {"beat": float(beat), "frames": frames, "seconds": frames / start.samplerate}
        try:
            self._send(*said.filled(values))
        except KeyError:
            return False
        return True

    def _ask(self) -> None:
        self.asked += 1
        for said in self.dialect.subscribe:
            self._send(*said.filled({"port": self._port}))

    # -- the server's thread ------------------------------------------------------------------------------------

    def __call__(self, address: str, arguments: Sequence[Value], time_ns: int, sender: object = "") -> bool:
        """Take a message; return whether it means anything here."""
        patterns = self._patterns.get(address)
        if patterns is None:
            return False
        self.heard += 1
        self._heard_ns = time_ns
        observation = self.take(address, arguments, time_ns, sender)
        if observation is not None:
            self._queue.append(observation)
        return True

    def take(self, address: str, arguments: Sequence[Value], time_ns: int, sender: object = "") -> Observation | None:
        """Return what a message says, ``None`` if that is nothing or makes no sense."""
        heard = _Words()
        told = False
        for pattern in self._patterns.get(address, ()):
            if pattern.argument >= len(arguments):
                self._refuse(pattern, "nothing", f"it takes {pattern.argument + 1} or more arguments")
                continue
            told = self._hear(pattern, arguments[pattern.argument], time_ns, heard) or told
        if not told:
            return None
        placed = heard.bar is not None or heard.beat is not None
        meter = self._meter()
        return Observation(
            self.name,
            time_ns,
            beat=heard.beat,
            bar=heard.bar,
            bar_beat=self._bar_beat(heard, meter),
            tempo=heard.tempo,
            # With a place only: of a meter's two numbers one comes first, and alone it would be another meter.
            meter=meter if placed else None,
            playing=heard.playing,
            sender=_sender(sender),
        )

    def _bar_beat(self, heard: _Words, meter: Meter | None) -> Fraction | None:
        if heard.bar is None:
            return None
        counted = heard.counted or Fraction(0)
        unit = 4 if heard.quarters else (meter or self._song.at_bar(heard.bar).meter).unit
        return counted * 4 / unit + heard.beyond

    def _meter(self) -> Meter | None:
        if self._count is None or self._unit is None:
            return None
        try:
            return Meter(self._count, self._unit)
        except ValueError as error:
            self.refused += 1
            self._log("meter", f"{self.name}: a {error}; it is ignored")
            self._count = self._unit = None
            return None

    def _hear(self, pattern: Pattern, value: Value, time_ns: int, heard: _Words) -> bool:
        """Note what one argument says; return whether it says anything now."""
        says = pattern.says
        if says is Says.ALIVE:
            return True
        if pattern.rough and self._fine_ns is not None and time_ns - self._fine_ns < FINER_NS:
            return False
        if says in (Says.PLACE, Says.METER):
            return self._hear_text(pattern, value, time_ns, heard)
        number = _number(value)
        if number is None:
            return self._refuse(pattern, value, "it takes a number")
        if says in (Says.PLAYING, Says.STOPPED):
            playing = bool(number) == (says is Says.PLAYING)
            if says is Says.STOPPED and playing:
                return False
            heard.playing = playing
        elif says is Says.TEMPO:
            heard.tempo = number / pattern.scale
        elif says is Says.BEAT:
            heard.beat = number / pattern.scale
            self._fine_ns = self._fine_ns if pattern.rough else time_ns
        elif says is Says.BAR_BEAT:
            heard.counted, heard.quarters = number - pattern.counts_from, pattern.quarters
        else:
            return self._hear_whole(pattern, number, time_ns, heard)
        return True

    def _hear_whole(self, pattern: Pattern, number: Fraction, time_ns: int, heard: _Words) -> bool:
        if number.denominator != 1 or abs(number) > 10**7:
            return self._refuse(pattern, float(number), "it takes a whole number")
        if pattern.says is Says.COUNT:
            self._count = int(number)
            return False
        if pattern.says is Says.UNIT:
            self._unit = int(number)
            return False
        heard.bar = self._bar(pattern, int(number))
        self._fine_ns = time_ns
        return heard.bar is not None

    def _hear_text(self, pattern: Pattern, value: Value, time_ns: int, heard: _Words) -> bool:
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if isinstance(text, str) and not text.strip():
            return False  # a surface that is cleared
        if pattern.says is Says.METER:
            found = _METER.fullmatch(text) if isinstance(text, str) and len(text) <= MAX_TEXT else None
            if found is None:
                return self._refuse(pattern, value, "it takes a meter as in 7/8")
            self._count, self._unit = int(found[1]), int(found[2])
            return False
        place = _PLACE.fullmatch(text) if isinstance(text, str) and len(text) <= MAX_TEXT else None
        if place is None:
            return self._refuse(pattern, value, "it takes bar, beat and parts of it, as in 5.2.50")
        counted = _counted(pattern, place)
        if counted is None:
            return self._refuse(pattern, value, "its beat, or a part of one, is beyond what there can be")
        heard.bar = self._bar(pattern, int(place[1]))
        heard.counted, heard.quarters = counted, pattern.quarters
        if pattern.ticks:
            heard.beyond = Fraction(_parts(place)[-1], pattern.ticks)
        self._fine_ns = time_ns
        return heard.bar is not None

    def _bar(self, pattern: Pattern, bar: int) -> int | None:
        """Return a bar counted from 0."""
        if not pattern.counts_from:
            return bar
        if not bar:
            self._refuse(pattern, bar, "its bars count from 1, so there is no bar 0")
            return None
        return bar - 1 if bar > 0 else bar

    def _refuse(self, pattern: Pattern, value: object, why: str) -> bool:
        self.refused += 1
        self._log(f"{pattern.address} {why}", f"{self.name}: {pattern.address} {_shown(value)} is ignored: {why}")
        return False


def _counted(pattern: Pattern, place: re.Match[str]) -> Fraction | None:
    """Return how far into the bar a place is, in the notes that are counted; ``None`` if that cannot be."""
    beat = int(place[2]) - pattern.counts_from
    if beat < 0:
        return None
    given = _parts(place)
    if pattern.ticks:
        return Fraction(beat) if given and given[-1] < pattern.ticks * 4 else None
    counted, size = Fraction(beat), 1
    for number, (parts, first) in zip(given, pattern.parts, strict=False):
        if not 0 <= number - first < parts:
            return None
        size *= parts
        counted += Fraction(number - first, size)
    return counted


def _parts(place: re.Match[str]) -> list[int]:
    return [int(text) for text in re.findall(r"\d+", place[3])]


def _number(value: Value) -> Fraction | None:
    """Return a number as a fraction: of a float of 32 bits the one that its sender will have meant."""
    if isinstance(value, bool | int):
        return Fraction(value)
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        try:
            return Fraction(str(float(value))).limit_denominator(FINEST)
        except (ValueError, OverflowError):
            return None
    if not isinstance(value, float) or value - value != 0:  # neither NaN nor infinite
        return None
    from numpy import errstate, float32

    with errstate(over="ignore"):
        short = float32(value)
    return Fraction(str(short) if float(short) == value else repr(value)).limit_denominator(FINEST)


def _sender(sender: object) -> str:
    """Return who sent a message as a word: an address and port come as a pair."""
    return ":".join(str(part) for part in sender) if isinstance(sender, tuple) else str(sender)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
