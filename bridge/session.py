"""session.toml: what is played, by whom, on what grid; read, checked in words, and written again.

A session is read once, before anything opens, into frozen models. Whatever is wrong with it ends in one
:class:`ValueError` of one sentence: the file, the key, what was found, what is allowed, and the likely slip.
The sentence of a key lies beside the key (:func:`key`), so that the file's grammar is this one table of models.

A reader of this module meets :meth:`Session.load`, :func:`override` (the command line), the methods that give
the engine its values (:meth:`Session.tempo_map`, :meth:`Session.chart_for`, ...), :meth:`Session.template`
and :meth:`Session.toml`. Any thread; nothing here opens a device or a process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from realtime.clock import Meter, TempoChange, TempoMap, as_tempo, round_frame
from realtime.foreign import TomlError, parse_toml

if TYPE_CHECKING:
    from bridge.profiles import Dialect
    from realtime.protocols import Chord, StreamSpec

MAX_BYTES = 1_000_000
"""A session is text that a person writes; anything longer is another file."""

CHART_BARS, RAMP_BEATS = 10_000, 4096
"""Every bar of a chart beside changing meters, and every beat of a ramp, is written out when the session starts."""

OSC_DEVICE, NO_DEVICE = "osc", "null"
"""Names of what is no sound device: another program over OSC, and nothing."""

FOLLOWED: dict[str, str] = {
    "midi": "MIDI clock from a port of this machine",
    "jack-midi": "MIDI clock through JACK, to the frame",
    "jack": "JACK's transport",
    "link": "Ableton Link",
    "osc": "a program that tells its position over OSC",
}
LED: dict[str, str] = {
    "midi": "MIDI clock to a port of this machine",
    "jack-midi": "MIDI clock through JACK, to the frame",
    "link": "Ableton Link",
}
"""Whose time a session may follow, and whom it may lead."""

KINDS: dict[str, str] = {
    "corpus": "re-orders units of real recordings",
    "echo": "plays the heard bar back",
}
"""Agent kinds a session may name. A new kind adds its line here when its module is written."""

MODELS = Path(__file__).resolve().parent.parent / "exported_models"
"""Where a model given by its name is looked for."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)  # no file can have these names on Windows
_NUMBER = re.compile(r"\s*\d{1,12}(\.\d{1,12})?(\s*/\s*\d{1,12})?\s*")
_NOTHING = "-"


def key(default: Any, allowed: str, slip: str = "", **bounds: Any) -> Any:
    """Declare a key: its default, what it takes (the words of its error), the likely slip, pydantic's bounds."""
    return Field(default, description=allowed, json_schema_extra={"slip": slip}, **bounds)


class _ClashError(ValueError):
    """Keys that do not go together; ``path`` is the one to name."""

    def __init__(self, path: str, words: str) -> None:
        super().__init__(words)
        self.path = path


def _fraction(value: object) -> Fraction:
    """Read 1, 0.5 or "1/2"; nothing that takes long to read."""
    if isinstance(value, Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise ValueError
    try:
        return Fraction(str(value).replace(" ", "")).limit_denominator(10**6)
    except ZeroDivisionError:
        raise ValueError from None


def _tempo(value: object) -> Fraction:
    return as_tempo(_fraction(value))


def _beats(value: object) -> Fraction:
    beats = _fraction(value)
    if not 0 <= beats <= 128:
        raise ValueError
    return beats


def _grid(value: object) -> Fraction:
    beats = _beats(value)
    if beats and beats < Fraction(1, 8):
        raise ValueError
    return beats


def _meter(value: object) -> Meter:
    if isinstance(value, Meter):
        return value
    if not isinstance(value, str):
        raise ValueError
    return Meter.parse(value)


def _plain(value: Fraction) -> int | str:
    return value.numerator if value.denominator == 1 else str(value)


def _channels(value: object) -> tuple[int, ...]:
    """Check a list of channels counted from 1."""
    if not isinstance(value, (list, tuple)):
        raise ValueError
    whole = all(type(channel) is int and 1 <= channel <= 64 for channel in value)
    if not whole or len(set(value)) != len(value):
        raise ValueError
    return tuple(value)


def _chart_bar(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value.split()) <= 16:
        raise ValueError
    return value


def _options(value: object, depth: int = 0) -> Any:
    """Check what an agent's kind is given by name: plain values, and lists and tables of them, a few deep."""
    if isinstance(value, dict) and depth <= 4:
        return {name: _options(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, list) and 0 < depth <= 4:
        return [_options(inner, depth + 1) for inner in value]
    plain = isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) < 2**63)  # NaN is not
    if not plain or not depth:
        raise ValueError
    return value


Tempo = Annotated[Fraction, PlainValidator(_tempo), PlainSerializer(_plain)]
Beats = Annotated[Fraction, PlainValidator(_beats), PlainSerializer(_plain)]
Grid = Annotated[Fraction, PlainValidator(_grid), PlainSerializer(_plain)]
Bar = Annotated[Meter, PlainValidator(_meter), PlainSerializer(str)]
Channels = Annotated[tuple[int, ...], PlainValidator(_channels)]
ChartBar = Annotated[str, PlainValidator(_chart_bar)]
Options = Annotated[dict[str, Any], PlainValidator(_options)]

_GAIN = "decibels, -96 to 24"
_GAIN_SLIP = "0 leaves the level as it is; silence is mute = true"
_OUTPUTS = "a list of the stream's outputs counted from 1, each once, and [] means the first two"
_FROM_ONE = "channels count from 1"


class _Table(BaseModel):
    """A table of the file: no key it does not know, no value of another type, never changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True, allow_inf_nan=False)


class Head(_Table):
    """``[session]``."""

    name: str = key("untitled", "1 to 64 characters on one line", pattern=r"^[^\x00-\x1f\x7f/\\]{1,64}$")
    seed: int = key(0, "a whole number from 0", "every chance in a session is drawn from it", ge=0, lt=2**63)
    spares: bool = key(True, "true or false")


class StreamTable(_Table):
    """``[stream]``: where the sound comes from and goes to."""

    device: str = key(
        "", 'a part of a device\'s name, "" for the default one, "osc" for audio over OSC or "null" for none',
        max_length=200,
    )  # fmt: skip
    samplerate: int = key(
        48000, "frames per second, a whole number from 8000 to 192000", "44.1 kHz is 44100", ge=8000, le=192000
    )
    blocksize: int = key(128, "frames, 1 to 8192", "agents need a fixed block; 128 is usual", ge=1, le=8192)
    inputs: Channels = key(
        (1,), "a list of 1 to 64 of the device's inputs counted from 1, each once, as in [1, 2]", _FROM_ONE
    )
    outputs: int = key(2, "how many outputs there are, 1 to 64", "did you give a list of channels?", ge=1, le=64)
    lead: int = key(
        0, "frames mixed ahead, 0 (chosen at start) to 65536", "did you give seconds or milliseconds?", ge=0, le=65536
    )
    latency: int = key(
        0, "the round trip in frames, 0 (as calibrated) to 192000", "did you give seconds or milliseconds?", ge=0,
        le=192000,
    )  # fmt: skip
    latency_offset: int = key(
        0, "frames added to the round trip, -192000 to 192000", "did you give milliseconds?", ge=-192000, le=192000
    )


class Change(_Table):
    """``[[transport.changes]]``: a tempo or a meter that is planned."""

    bar: int = key(..., "a bar counted from 1", "the first bar is 1", ge=1, le=1_000_000)
    beat: Beats = key(
        Fraction(0), 'quarter notes after the downbeat, from 0, as in 2 or "1/2"', "the downbeat is beat 0, not 1"
    )
    bpm: Tempo | None = key(None, "quarter notes per minute, 20 to 400, a number or a fraction in quotes")
    meter: Bar | None = key(None, 'a meter in quotes, as in "7/8"')
    ramp_beats: int = key(0, "whole quarter notes, 0 (at once) to 1024", "a ramp lasts whole beats", ge=0, le=1024)


class TransportTable(_Table):
    """``[transport]``: tempo, meter, form."""

    bpm: Tempo = key(
        Fraction(120),
        'quarter notes per minute, 20 to 400, a number or a fraction in quotes as in "240/7"',
        "did you give a period, or count eighths?",
    )
    meter: Bar = key(Meter(), 'count and unit in quotes, as in "4/4", "3/4" or "7/8"', "did you forget the quotes?")
    count_in_bars: int = key(0, "bars, 0 to 8", ge=0, le=8)
    downbeat_seconds: float = key(
        0.0,
        "seconds from a file's start to its first downbeat, -60 to 36000",
        "did you give frames?",
        ge=-60,
        le=36000,
    )
    chart: tuple[ChartBar, ...] = key(
        (),
        'a list with one entry a bar: chords split evenly as in "Dm7 G7", or "-" for nothing',
        "at most 16 symbols to the bar",
        strict=False,
        max_length=10_000,
    )
    changes: tuple[Change, ...] = key(
        (), "changes written as [[transport.changes]], in double brackets", strict=False, max_length=1_000
    )


class MixerTable(_Table):
    """``[mixer]``: what of the player is heard, and how loud all of it may get."""

    monitor: bool = key(False, "true or false")
    monitor_gain_db: float = key(0.0, _GAIN, _GAIN_SLIP, ge=-96, le=24)
    monitor_outputs: Channels = key((), _OUTPUTS, _FROM_ONE)
    ceiling_db: float = key(-1.0, "the limiter's ceiling in decibels, -24 to 0", "0 is full scale", ge=-24, le=0)


class MetronomeTable(_Table):
    """``[metronome]``: the click, on outputs of its own if you like."""

    on: bool = key(False, "true or false")
    outputs: Channels = key((), _OUTPUTS, _FROM_ONE)
    gain_db: float = key(-12.0, _GAIN, _GAIN_SLIP, ge=-96, le=24)


class AgentTable(_Table):
    """``[[agents]]``: a player with a stem of its own."""

    name: str = key(
        ...,
        "1 to 32 letters, digits, _ or -",
        "it names the stem's file, so no spaces",
        pattern=r"^[A-Za-z0-9_-]{1,32}$",
    )
    kind: str = key(..., "a kind of agent in quotes")
    corpus: str = key("", "a folder that `sideman corpus build` wrote, in quotes", max_length=1000)
    model: str = key("", "a model's folder or its name in exported_models, in quotes", max_length=1000)
    listens: str = key("input", '"input" or another agent\'s name')
    follows: tuple[str, ...] = key(
        (), 'a list of agents\' names, as in ["keys"]', "one name stands in brackets too", strict=False, max_length=64
    )
    grid_beats: Grid = key(
        Fraction(0), 'quarter notes asked for at a time, "1/8" to a bar, or 0 for the bar', "did you give frames?"
    )
    channels: int = key(0, "1 to 64, or 0 for the kind's own", "did you give a list of channels?", ge=0, le=64)
    gain_db: float = key(0.0, _GAIN, _GAIN_SLIP, ge=-96, le=24)
    pan: float = key(0.0, "-1 (left) to 1 (right)", "did you give a percentage?", ge=-1, le=1)
    mute: bool = key(False, "true or false")
    solo: bool = key(False, "true or false")
    outputs: Channels = key((), _OUTPUTS, _FROM_ONE)
    budget_seconds: float = key(
        0.0, "seconds to answer in, to 60, or 0 for measured", "did you give milliseconds?", ge=0, le=60
    )
    options: Options = key({}, "a table of plain values, as in options = { continuity = 0.8 }")
    lighter: tuple[Options, ...] = key(
        (), "up to 8 tables of what to change, as in [{ model = '' }]", "one table stands in brackets too",
        strict=False, max_length=8,
    )  # fmt: skip
    memory_mb: int = key(4096, "megabytes its process may use, 256 to 1048576", "did you give GB?", ge=256, le=2**20)


class OscTable(_Table):
    """``[osc]``: who may speak to the session over OSC, and where."""

    on: bool = key(False, "true or false")
    port: int = key(9770, "a UDP port, 1 to 65535, or 0 to have one chosen", ge=0, le=65535)
    audio_port: int = key(9771, "a UDP port for stream.device = 'osc', or 0 to have one chosen", ge=0, le=65535)
    bind: str = key(
        "127.0.0.1", "the address of one of this machine's interfaces, as a number", "this machine alone: 127.0.0.1",
        max_length=64,
    )  # fmt: skip
    token: str = key(
        "", "8 to 128 printable characters that senders of other machines have to say",
        pattern=r"^([\x21-\x7e]{8,128})?$",
    )  # fmt: skip


class PatternTable(_Table):
    """An entry of ``patterns``: what one argument of one OSC address means."""

    address: str = key(..., "an OSC address in quotes, with its slash", pattern=r"^/[\x21-\x7e]{1,200}$")
    says: str = key(..., 'what it means, in quotes, as in "beat", "bar", "tempo" or "playing"')
    argument: int = key(0, "which argument, from 0 to 63", "the first is 0", ge=0, le=63)
    counts_from: int = key(1, "what the first bar or beat is called, 0 or 1", ge=0, le=1)
    scale: int = key(1, "units of the number in one that is meant, 1 to 1000000", ge=1, le=10**6)
    ticks: int = key(0, "of a place in text, ticks to a beat, 0 (none) to 100000", ge=0, le=100_000)
    quarters: bool = key(False, "true or false")


class FollowTable(_Table):
    """``[[sync.follow]]``: somebody whose time is followed; the first that rolls leads."""

    kind: str = key(..., "a kind of clock in quotes")
    port: str = key("", "a MIDI port's name, or a part of it, in quotes", max_length=200)
    virtual: bool = key(False, "true or false")
    dialect: str = key("auto", '"auto", "standard" or "ardour"', pattern="^(auto|standard|ardour)$")
    profile: str = key("", 'the program, in quotes, as in "reaper", "live" or "ardour"', max_length=32)
    patterns: tuple[PatternTable, ...] = key(
        (), "a list of tables, as in [{ address = '/beat', says = 'beat' }]", strict=False, max_length=64
    )
    host: str = key("127.0.0.1", "the address of the program's machine, as a number", max_length=64)
    host_port: int = key(0, "the program's UDP port, 1 to 65535, or 0 for its usual one", ge=0, le=65535)
    offset: int = key(0, "frames by which its grid is moved later, -192000 to 192000", ge=-192000, le=192000)


class LeadTable(_Table):
    """``[[sync.lead]]``: somebody who is told the band's time."""

    kind: str = key(..., "a kind of clock in quotes")
    port: str = key("", "a MIDI port's name, or a part of it, in quotes", max_length=200)
    virtual: bool = key(False, "true or false")


class SyncTable(_Table):
    """``[sync]``: whose time holds, and who is told."""

    internal: bool = key(False, "true or false")
    follow: tuple[FollowTable, ...] = key(
        (), "up to 8 clocks written as [[sync.follow]], in double brackets", strict=False, max_length=8
    )
    lead: tuple[LeadTable, ...] = key(
        (), "up to 8 clocks written as [[sync.lead]], in double brackets", strict=False, max_length=8
    )


class TakeTable(_Table):
    """``[take]``: where what was played is kept."""

    folder: str = key("takes", "a folder in quotes", min_length=1, max_length=1000)
    record: bool = key(True, "true or false")


class Session(_Table):
    """A whole session, checked. Frozen; any thread.

    Attributes
    ----------
    session, stream, transport, mixer, metronome, osc, sync, agents, take
        The tables of the file, by the same names.
    """

    session: Head = key(Head.model_construct(), "a table [session]")
    stream: StreamTable = key(StreamTable.model_construct(), "a table [stream]")
    transport: TransportTable = key(TransportTable.model_construct(), "a table [transport]")
    mixer: MixerTable = key(MixerTable.model_construct(), "a table [mixer]")
    metronome: MetronomeTable = key(MetronomeTable.model_construct(), "a table [metronome]")
    osc: OscTable = key(OscTable.model_construct(), "a table [osc]")
    sync: SyncTable = key(SyncTable.model_construct(), "a table [sync]")
    agents: tuple[AgentTable, ...] = key(
        (), "up to 32 agents written as [[agents]], in double brackets", strict=False, max_length=32
    )
    take: TakeTable = key(TakeTable.model_construct(), "a table [take]")
    _path: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _agree(self) -> Session:
        for problem in _disagreements(self):
            raise problem
        return self

    # -- reading and writing -------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Session:
        """Read and check a session file.

        Raises
        ------
        ValueError
            In one sentence, whatever is wrong: the file, its text, a key, or keys that do not go together.
        """
        file = Path(path)
        return cls.parse(_read(file), str(path)).placed(file)

    @classmethod
    def parse(cls, text: str, where: str = "the session") -> Session:
        """Check a session given as text; ``where`` names it in errors. Raises as :meth:`load`."""
        return _checked(_toml(text, where), where)

    @classmethod
    def template(cls, agents: Sequence[AgentTable] = (), **transport: str | float) -> str:
        """Return an annotated session.toml with these agents, or with one echo where none are given.

        ``transport`` sets keys of that table, say ``bpm=96`` or ``meter="3/4"``. The text passes :meth:`parse`.
        """
        import tomlkit

        document = tomlkit.parse(_TEMPLATE)
        table: Any = document["transport"]
        for name, value in transport.items():
            table[name] = value
        text = tomlkit.dumps(document)
        if agents:
            first, *others = (tomlkit.dumps(_said(agent)) for agent in agents)
            players = "\n[[agents]]\n".join((first + _notes(first), *others))
            text = text.replace(_TEMPLATE_AGENT, players)
        cls.parse(text, "the new session")
        return text

    def toml(self) -> str:
        """Return the session as TOML, complete and with its paths made absolute: it may lie in any folder."""
        import tomlkit

        tables = self.model_dump(exclude_none=True)
        for agent, table in zip(self.agents, tables["agents"], strict=True):
            if agent.corpus:
                table["corpus"] = str(self.locate(agent.corpus))
            if agent.model and not _by_name(agent.model):
                table["model"] = str(self.locate(agent.model))
            table["lighter"] = [self._located(way) for way in agent.lighter]
        tables["take"]["folder"] = str(self.locate(self.take.folder))
        return tomlkit.dumps(_listed(tables))

    def _located(self, way: dict[str, Any]) -> dict[str, Any]:
        """Return a lighter way with its paths made absolute."""
        paths = {
            name: str(self.locate(way[name]))
            for name in ("corpus", "model")
            if way.get(name) and not (name == "model" and _by_name(way[name]))
        }
        return way | paths

    def placed(self, path: Path | None) -> Session:
        """Return this session as one that was read from ``path``: that is what its errors name."""
        self._path = path
        return self

    # -- what the engine is given --------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The file this was read from, ``None`` for a session given as text."""
        return self._path

    def locate(self, path: str) -> Path:
        """Return a path of the file in full: relative ones lie beside the session file."""
        beside = self._path.parent if self._path else Path()
        return (beside / Path(path).expanduser()).resolve()

    def agent(self, name: str) -> AgentTable:
        """Return the agent of that name; ``ValueError`` where there is none."""
        for agent in self.agents:
            if agent.name == name:
                return agent
        names = [agent.name for agent in self.agents]
        raise ValueError(f'the session has no agent "{name}"{_meant(name, names)}; it has {_said_list(names)}')

    def corpus_path(self, agent: AgentTable) -> Path:
        """Return the agent's corpus folder; ``ValueError`` in one sentence where there is no such folder."""
        folder = self.locate(agent.corpus)
        if folder.is_dir():
            return folder
        found = "is a file" if folder.exists() else "does not exist"
        raise ValueError(
            f"{self._where}: agents.{agent.name}.corpus: {folder} {found}; it takes a folder that "
            "`sideman corpus build` wrote, given relative to the session file"
        )

    def model_path(self, agent: AgentTable) -> Path | None:
        """Return the agent's model folder, ``None`` where it names none; ``ValueError`` where it is not there."""
        if not agent.model:
            return None
        folder = MODELS / agent.model if _by_name(agent.model) else self.locate(agent.model)
        if folder.is_dir():
            return folder
        known = sorted(p.parent.name for p in MODELS.glob("*/card.toml"))
        raise ValueError(
            f"{self._where}: agents.{agent.name}.model: there is no folder {folder}{_meant(agent.model, known)}; "
            f"it takes a model's folder or one of {_said_list(known)}"
        )

    def spec(self, lead: int = 1024) -> StreamSpec:
        """Return the stream as the engine wants it; ``lead`` (frames) counts where the session leaves it open."""
        from realtime.protocols import StreamSpec

        stream = self.stream
        return StreamSpec(
            samplerate=stream.samplerate,
            inputs=len(stream.inputs),
            outputs=stream.outputs,
            blocksize=stream.blocksize,
            lead=stream.lead or lead,
            latency=stream.latency,
        )

    def routed(self, outputs: Sequence[int] = ()) -> tuple[int, ...]:
        """Turn outputs as the file counts them (from 1, none for the main ones) into the engine's, from 0."""
        return tuple(channel - 1 for channel in outputs) or tuple(range(min(2, self.stream.outputs)))

    def downbeat_frame(self, samplerate: int) -> int:
        """Return the frame of bar 1's downbeat in a file, from ``transport.downbeat_seconds``."""
        return round_frame(Fraction(str(self.transport.downbeat_seconds)) * samplerate)

    def count_in_frame(self, samplerate: int) -> int:
        """Return the frame of bar 1's downbeat after the count-in, where the clock starts with it."""
        transport = self.transport
        bars = TempoMap.steady(samplerate, transport.bpm, transport.meter)
        return bars.bar_frame(transport.count_in_bars)

    def changes(self) -> tuple[TempoChange, ...]:
        """Return the planned changes in order, bars counted from 0."""
        return tuple(
            TempoChange(change.bar - 1, change.beat, change.bpm, change.meter, change.ramp_beats)
            for change in self.transport.changes
        )

    def tempo_map(self, samplerate: int, downbeat_frame: int = 0) -> TempoMap:
        """Return the grid of the whole session, planned changes included; bar 0 starts at ``downbeat_frame``."""
        tempo_map = TempoMap.steady(samplerate, self.transport.bpm, self.transport.meter, downbeat_frame)
        for change in self.changes():
            tempo_map = change.applied(tempo_map)
        return tempo_map

    def meter_at(self, bar: int) -> Meter:
        """Return the meter of a bar, counted from 0."""
        meter = self.transport.meter
        for change in self.transport.changes:
            if change.meter is not None and change.bar - 1 <= bar:
                meter = change.meter
        return meter

    def chart_for(self, bar: int) -> tuple[Chord, ...]:
        """Return the chords of a bar, counted from 0; the chart repeats, and a count-in (negative) has none.

        Offsets and lengths are quarter notes: an entry's symbols share its bar evenly.
        """
        chart = self.transport.chart
        return self._chords(bar % len(chart), self.meter_at(bar)) if chart and bar >= 0 else ()

    def _chords(self, entry: int, meter: Meter) -> tuple[Chord, ...]:
        """Return the chords of an entry of the chart, in a bar of that meter."""
        from realtime.protocols import Chord

        symbols = self.transport.chart[entry].split()
        part = meter.beats / len(symbols)
        return tuple(Chord(s, part * i, part) for i, s in enumerate(symbols) if s != _NOTHING)

    def chart(self) -> tuple[tuple[Chord, ...], ...]:
        """Return the chords of bar 0 and after, one entry a bar, for a reader that starts again at its end.

        One round of the chart; where the meter changes, as many rounds as it takes to be right for hours.
        """
        rounds = len(self.transport.chart)
        meters = {change.bar - 1: change.meter for change in self.transport.changes if change.meter is not None}
        if rounds and meters:
            rounds *= -(-(max(meters) + 1 + 4096) // rounds)
        bars: list[tuple[Chord, ...]] = []
        known: dict[tuple[int, Meter], tuple[Chord, ...]] = {}
        meter = self.transport.meter
        for bar in range(rounds):
            meter = meters.get(bar, meter)
            place = bar % len(self.transport.chart), meter
            if place not in known:
                known[place] = self._chords(*place)
            bars.append(known[place])
        return tuple(bars)

    @property
    def _where(self) -> str:
        return str(self._path) if self._path else "the session"


def override(
    session: Session,
    *,
    bpm: float | str | Fraction | None = None,
    meter: str | Meter | None = None,
    downbeat_seconds: float | None = None,
    seed: int | None = None,
) -> Session:
    """Return the session with values from the command line in place of the file's.

    A tempo or meter given by hand holds throughout: changes the file plans for it are dropped, for they
    belong to another piece of music.

    Raises
    ------
    ValueError
        Naming the option, what was found and what is allowed.
    """
    tables = session.model_dump(exclude_none=True)
    transport = tables["transport"]
    given = {"bpm": bpm, "meter": meter, "downbeat_seconds": downbeat_seconds}
    transport |= {name: value for name, value in given.items() if value is not None}
    if downbeat_seconds is not None:
        transport["downbeat_seconds"] = float(downbeat_seconds)
    if seed is not None:
        tables["session"]["seed"] = seed
    dropped = {name for name in ("bpm", "meter") if given[name] is not None}
    changes = [{k: v for k, v in c.items() if k not in dropped} for c in transport["changes"]]
    transport["changes"] = [_unramped(c) for c in changes if "bpm" in c or "meter" in c]
    options = {
        "transport.bpm": "--bpm",
        "transport.meter": "--meter",
        "transport.downbeat_seconds": "--downbeat",
        "session.seed": "--seed",
    }
    return _checked(tables, session._where, options).placed(session.path)


def _unramped(change: dict[str, Any]) -> dict[str, Any]:
    return change if "bpm" in change else {**change, "ramp_beats": 0}


# -- checks across keys ------------------------------------------------------------------------------------------


def _disagreements(session: Session) -> Iterator[_ClashError]:
    """Yield what does not go together, the first thing to mend first."""
    yield from _names(session)
    for agent in session.agents:
        yield from _agent(session, agent)
    yield from _rings(session)
    yield from _outputs(session)
    yield from _osc(session)
    yield from _sync(session)
    if not session.stream.inputs:
        yield _ClashError("stream.inputs", "is []; it takes at least one input that is heard, as in [1]")
    yield from _changes(session)
    yield from _grids(session)
    yield from _chart(session)


def _osc(session: Session) -> Iterator[_ClashError]:
    """Yield what of ``[osc]`` would leave a session open to others, or a name that audio over OSC cannot serve."""
    from bridge.guard import GuardError, check_entrance

    try:
        check_entrance(session.osc.bind, session.osc.token)
    except GuardError as problem:
        yield _ClashError("osc.bind", f"is {_said_found(session.osc.bind)}; {problem}")
    if session.stream.device == OSC_DEVICE and any(agent.name == "mix" for agent in session.agents):
        yield _ClashError("stream.device", 'is "osc", and an agent is called "mix"; that is the mix\'s name there')


def _sync(session: Session) -> Iterator[_ClashError]:
    """Yield what of ``[sync]`` names nobody, or cannot be had as it stands."""
    for index, clock in enumerate(session.sync.follow, 1):
        yield from _clock_kind(f"sync.follow[{index}]", clock, FOLLOWED)
        if clock.kind == "osc":
            yield from _profile(f"sync.follow[{index}]", clock, session.osc.on)
    for index, told in enumerate(session.sync.lead, 1):
        yield from _clock_kind(f"sync.lead[{index}]", told, LED)
    for path, kinds in (("sync.follow", [c.kind for c in session.sync.follow if c.kind != "osc"]),
                        ("sync.lead", [c.kind for c in session.sync.lead])):  # fmt: skip
        twice = [kind for kind in kinds if kinds.count(kind) > 1]
        if twice:
            yield _ClashError(path, f'names "{twice[0]}" twice; each kind of clock is there once')
    if {"link"} & {clock.kind for clock in session.sync.follow} & {told.kind for told in session.sync.lead}:
        yield _ClashError("sync.lead", 'is "link", which is followed; who follows a Link session does not lead it')


def _clock_kind(path: str, clock: FollowTable | LeadTable, kinds: Mapping[str, str]) -> Iterator[_ClashError]:
    if clock.kind not in kinds:
        words = f"is {_said_found(clock.kind)}{_meant(clock.kind, kinds)}; it takes one of {_said_list(kinds)}"
        yield _ClashError(f"{path}.kind", words)
    elif clock.kind == "midi" and not clock.port:
        yield _ClashError(f"{path}.port", "is missing; MIDI clock takes the name of a port, or a part of it")


def _profile(path: str, clock: FollowTable, listening: bool) -> Iterator[_ClashError]:
    from bridge.profiles import DIALECTS

    if clock.profile not in DIALECTS:
        meant = _meant(clock.profile, DIALECTS)
        yield _ClashError(
            f"{path}.profile", f"is {_said_found(clock.profile)}{meant}; it takes one of {_said_list(DIALECTS)}"
        )
    elif not listening:
        yield _ClashError(f"{path}.kind", 'is "osc", and nobody listens; set on = true in [osc]')
    else:
        try:
            profile_of(clock)
        except ValueError as problem:
            yield _ClashError(f"{path}.patterns", f"do not do: {problem}")


def profile_of(clock: FollowTable) -> Dialect:
    """Return what a program says, as its entry has it; ``ValueError`` where that says nowhere where the song is."""
    from bridge.profiles import Pattern, Says, dialect

    known = [says.value for says in Says]
    for pattern in clock.patterns:
        if pattern.says not in known:
            raise ValueError(f'{pattern.address} says "{pattern.says}"; it takes one of {_said_list(known)}')
    patterns = [
        Pattern(
            each.address, Says(each.says), each.argument, each.counts_from, ((each.ticks, 0),) if each.ticks else (),
            quarters=each.quarters, scale=each.scale,
        )
        for each in clock.patterns
    ]  # fmt: skip
    return dialect(clock.profile, patterns)


def _names(session: Session) -> Iterator[_ClashError]:
    seen: dict[str, str] = {}
    for index, agent in enumerate(session.agents, 1):
        path = f"agents[{index}].name"
        if agent.name.lower() == "input":
            yield _ClashError(path, f'is "{agent.name}"; that is what agents call the player, so choose another name')
        if _RESERVED.fullmatch(agent.name):
            yield _ClashError(path, f'is "{agent.name}"; no file may be called so on Windows, so choose another name')
        if agent.name.lower() in seen:
            found = seen[agent.name.lower()]
            same = "" if found == agent.name else " but for capitals, which some disks do not tell apart"
            yield _ClashError(
                path, f'is "{agent.name}", the name of an agent before it{same}; each name is used once'
            )
        seen[agent.name.lower()] = agent.name


def _agent(session: Session, agent: AgentTable) -> Iterator[_ClashError]:
    path = f"agents.{agent.name}"
    others = [other.name for other in session.agents if other.name != agent.name]
    if agent.kind not in KINDS:
        kinds = _said_list(KINDS)
        yield _ClashError(
            f"{path}.kind", f"is {_said_found(agent.kind)}{_meant(agent.kind, KINDS)}; it takes one of {kinds}"
        )
    if agent.kind == "corpus" and not agent.corpus:
        words = "is missing; a corpus agent takes the folder that `sideman corpus build` wrote"
        yield _ClashError(f"{path}.corpus", words)
    if agent.kind == "echo" and agent.corpus:
        yield _ClashError(
            f"{path}.corpus", f'is {_said_found(agent.corpus)}; an echo has none (did you mean kind = "corpus"?)'
        )
    yield from _lighter(agent)
    for key_name, names in (("listens", (agent.listens,)), ("follows", agent.follows)):
        allowed = ["input", *others] if key_name == "listens" else others
        for name in names:
            if name not in allowed:
                itself = " itself" if name == agent.name else ""
                words = f"names{itself} {_said_found(name)}{_meant(name, allowed)}"
                words += f"; it takes {_said_list(allowed, 'no other agent')}"
                yield _ClashError(f"{path}.{key_name}", words)
    if len(set(agent.follows)) < len(agent.follows):
        yield _ClashError(f"{path}.follows", f"is {_said_found(list(agent.follows))}; it takes each name once")


def _lighter(agent: AgentTable) -> Iterator[_ClashError]:
    """Check what of the lighter ways can be told without the kind's own options."""
    keys = [name for name in AgentTable.model_fields if name not in ("model", "corpus", "options", "lighter")]
    keys.append("source")  # it is what listens says
    for number, way in enumerate(agent.lighter, 1):
        path = f"agents.{agent.name}.lighter[{number}]"
        if not way:
            yield _ClashError(
                path, "changes nothing; it takes model, corpus or the kind's options, as { model = '' }"
            )
        for name in ("model", "corpus"):
            if name in way and not (isinstance(way[name], str) and len(way[name]) <= 1000):
                words = AgentTable.model_fields[name].description
                yield _ClashError(f"{path}.{name}", f"is {_said_found(way[name])}; it takes {words}")
        if "corpus" in way and (agent.kind == "echo" or not way["corpus"]):
            words = "an echo has none" if agent.kind == "echo" else "a corpus agent takes a folder, in quotes"
            yield _ClashError(f"{path}.corpus", f"is {_said_found(way['corpus'])}; {words}")
        for name in way:
            if name not in ("model", "corpus") and (meant := _meant(name, ("model", "corpus"))):
                words = "it takes model, corpus and the kind's options"
                yield _ClashError(f"{path}.{_bare(name)}", f"is not known{meant}; {words}")
        if "options" in way:
            words = "stands there as a table; the kind's options are named beside model, as { taboo = 4 }"
            yield _ClashError(f"{path}.options", words)
        for name in keys:
            if name in way:
                words = "cannot be changed in a lighter way; it takes model, corpus and the kind's options"
                yield _ClashError(f"{path}.{name}", words)


def _rings(session: Session) -> Iterator[_ClashError]:
    try:
        TopologicalSorter({agent.name: agent.follows for agent in session.agents}).prepare()
    except CycleError as error:
        ring: list[str] = error.args[1][::-1]  # graphlib lists the followed before the follower
        words = f"goes round in a ring ({' follows '.join(ring)}); let one of them follow nobody (listens may ring)"
        yield _ClashError(f"agents.{ring[0]}.follows", words)


def _outputs(session: Session) -> Iterator[_ClashError]:
    routes = {
        "mixer.monitor_outputs": session.mixer.monitor_outputs,
        "metronome.outputs": session.metronome.outputs,
        **{f"agents.{agent.name}.outputs": agent.outputs for agent in session.agents},
    }
    count = session.stream.outputs
    for path, outputs in routes.items():
        if outputs and max(outputs) > count:
            words = f"is {list(outputs)}, but stream.outputs is {count}; it takes outputs 1 to {count}"
            yield _ClashError(path, f"{words}, or raise stream.outputs to {max(outputs)}")


def _changes(session: Session) -> Iterator[_ClashError]:
    last = (0, Fraction(0))
    ramps = sum(change.ramp_beats for change in session.transport.changes)
    if ramps > RAMP_BEATS:
        words = f"ramp over {ramps} beats together; {RAMP_BEATS} are allowed, so ramp faster or less often"
        yield _ClashError("transport.changes", words)
    for index, change in enumerate(session.transport.changes, 1):
        path = f"transport.changes[{index}]"
        if change.bpm is None and change.meter is None:
            yield _ClashError(path, "changes nothing; it takes bpm, meter or both")
        if change.ramp_beats and change.bpm is None:
            yield _ClashError(f"{path}.ramp_beats", f"is {change.ramp_beats} without a bpm; only a tempo can ramp")
        if change.meter is not None and change.beat:
            words = f"is {_plain(change.beat)}; a meter changes only on a downbeat (beat 0)"
            yield _ClashError(f"{path}.beat", words)
        length = session.meter_at(change.bar - 1).beats
        if change.beat >= length:
            words = f"is {_plain(change.beat)}, but bar {change.bar} is {_plain(length)} quarter notes long"
            yield _ClashError(f"{path}.beat", f"{words}; it takes less than that, or the next bar")
        if (change.bar, change.beat) <= last:
            words = f"is for bar {change.bar}, beat {_plain(change.beat)}, but comes after one for bar {last[0]}"
            yield _ClashError(
                path, f"{words}, beat {_plain(last[1])}; write changes in the order in which they sound"
            )
        last = (change.bar, change.beat)


def _grids(session: Session) -> Iterator[_ClashError]:
    meters = [session.transport.meter, *(c.meter for c in session.transport.changes if c.meter is not None)]
    shortest = min(meters, key=lambda meter: meter.beats)
    for agent in session.agents:
        if agent.grid_beats > shortest.beats:
            words = f"is {_plain(agent.grid_beats)}, longer than a bar of {shortest} ({_plain(shortest.beats)} beats)"
            yield _ClashError(f"agents.{agent.name}.grid_beats", f"{words}; it takes up to a bar, or 0 for the bar")


def _chart(session: Session) -> Iterator[_ClashError]:
    if not session.transport.chart:
        return
    for index, change in enumerate(session.transport.changes, 1):
        if change.meter is not None and change.bar > CHART_BARS:
            words = f"is {change.bar}, and there is a chart; beside one a meter changes up to bar {CHART_BARS}"
            yield _ClashError(f"transport.changes[{index}].bar", words)
    from realtime.features import chord_chroma  # the one place that knows how chords are spelt

    known = {_NOTHING}
    for bar, entry in enumerate(session.transport.chart, 1):
        for symbol in entry.split():
            if symbol in known:
                continue
            try:
                chord_chroma(symbol)
            except ValueError as error:
                yield _ClashError(f"transport.chart[{bar}]", f"is {_said_found(entry)}; {_ending(str(error))}")
            known.add(symbol)


# -- reading -----------------------------------------------------------------------------------------------------


def _read(file: Path) -> str:
    """Return the text of a file that looks like a session; ``ValueError`` in one sentence otherwise."""
    try:
        if file.is_dir():
            inside = file / "session.toml"
            meant = f" (did you mean {inside}?)" if inside.is_file() else ""
            raise ValueError(f"{file} is a folder{meant}; a session is one TOML file")
        if not file.exists():
            raise ValueError(
                f"{file} does not exist{_meant_file(file)}; a session is a TOML file (`sideman session new`)"
            )
        if not file.is_file():
            raise ValueError(f"{file} is no regular file; a session is a TOML file")
        with file.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); a session is a TOML file you may read") from None
    if not data:
        raise ValueError(f"{file} is empty (0 bytes); a session is a TOML file (`sideman session new` writes one)")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{file} is larger than 1 MB; a session is a short TOML file (did you give the audio?)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text (byte {error.start}: 0x{data[error.start]:02x}); a session is TOML saved as "
            "UTF-8 (did you give the audio?)"
        ) from None


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except TomlError as error:
        raise ValueError(
            f"{where} is not valid TOML: {error}; strings stand in quotes and tables in [brackets]"
        ) from None


def _checked(tables: Mapping[str, Any], where: str, options: Mapping[str, str] | None = None) -> Session:
    try:
        return Session.model_validate(tables)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [p for p in problems if p["type"] == "extra_forbidden"]  # a misspelt key is also a missing one
        path, words = _sentence(dict((unknown or problems)[0]), tables)
    except RecursionError:
        path, words = "agents", "are nested too deeply"
    said = (options or {}).get(path, f"{where}: {path}")
    raise ValueError(f"{said} {words}") from None


def _sentence(problem: dict[str, Any], tables: Mapping[str, Any]) -> tuple[str, str]:
    """Turn the first of pydantic's errors into a key path and plain words."""
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, _ClashError):
        return cause.path, str(cause)
    loc: tuple[str | int, ...] = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return _unknown(loc, tables)
    table, name, depth = _declared(loc)
    field = table.model_fields[name]
    path = _path(loc[:depth], tables)
    if problem["type"] == "missing":
        return path, f"is missing; it takes {field.description}"
    if depth < len(loc) and isinstance(item := loc[depth], int):
        path = f"{path}[{item + 1}]"
    slip = _slip(problem["type"], problem["input"], field)
    return path, f"is {_said_found(problem['input'])}; it takes {field.description}{slip}"


def _slip(error: str, found: object, field: FieldInfo) -> str:
    """Say the likely slip: quotes by the type of the error, anything else by the key."""
    if error == "string_type" and isinstance(found, (int, float)):
        return " (did you forget the quotes?)"
    if error in ("int_type", "float_type", "bool_type") and isinstance(found, str):
        return " (write it without quotes)"
    extra = field.json_schema_extra
    slip = extra.get("slip") if isinstance(extra, dict) else None
    return f" ({slip})" if slip else ""


def _unknown(loc: tuple[str | int, ...], tables: Mapping[str, Any]) -> tuple[str, str]:
    table = _table_at(loc[:-1])
    name, known = str(loc[-1]), list(table.model_fields)
    words = f"is not known{_meant(name, known)}; "
    if len(loc) == 1:
        words += f"the tables are {', '.join(known)}"
        return f"[{_bare(name)}]", words
    return _path(loc, tables), f"{words}this table takes {', '.join(known)}"


def _table_at(loc: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the model of the table at ``loc``."""
    table: type[BaseModel] = Session
    for part in loc:
        if isinstance(part, str) and part in table.model_fields:
            table = _inner(table, part) or table
    return table


def _declared(loc: tuple[str | int, ...]) -> tuple[type[BaseModel], str, int]:
    """Return the innermost declared key on the way ``loc``: its table, its name, and how far in it lies."""
    table: type[BaseModel] = Session
    found: tuple[type[BaseModel], str, int] = (Session, str(loc[0]), 1)
    for depth, part in enumerate(loc, 1):
        if isinstance(part, str) and part in table.model_fields:
            found = (table, part, depth)
            table = _inner(table, part) or _Table
    return found


@lru_cache(maxsize=256)
def _inner(table: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model a key holds, alone or in a list; ``None`` where it holds a plain value."""
    annotation = table.model_fields[name].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _path(loc: tuple[str | int, ...], tables: Mapping[str, Any]) -> str:
    """Write a key's path as people read it: agents by name, other lists counted from 1."""
    words = ""
    for depth, part in enumerate(loc):
        if isinstance(part, str):
            words += f".{_bare(part)}" if words else _bare(part)
            continue
        name = _agent_name(tables, part) if loc[depth - 1] == "agents" else None
        words += f".{name}" if name else f"[{part + 1}]"
    return words


def _bare(name: str) -> str:
    """Write a key as TOML does: in quotes where it is no plain word."""
    return name if _NAME.fullmatch(name) else _said_found(name)


def _agent_name(tables: Mapping[str, Any], index: int) -> str | None:
    """Return the name an agent goes by in the raw file, if it has one of its own."""
    agents = [a.get("name") if isinstance(a, Mapping) else None for a in tables.get("agents", ())]
    name = agents[index]
    fine = isinstance(name, str) and _NAME.fullmatch(name) is not None and agents.count(name) == 1
    return name if fine else None


# -- saying it ---------------------------------------------------------------------------------------------------


def _said_found(value: object) -> str:
    """Write a value as it stood in the file, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, str):
        text = '"' + value.encode("unicode_escape").decode() + '"'
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(_said_found(item) for item in value[:9])}{', ...' if len(value) > 9 else ''}]"
    elif isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    else:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _ending(text: str) -> str:
    """Shorten a sentence that quotes what is already quoted at its beginning."""
    return text if len(text) <= 400 else "..." + text[-300:]


def _said_list(names: Iterable[str], none: str = "none") -> str:
    return ", ".join(f'"{name}"' for name in names) or none


def _meant(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    lowered = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), lowered, 1, 0.6)
    return f' (did you mean "{lowered[close[0]]}"?)' if close else ""


def _meant_file(file: Path) -> str:
    beside = [p.name for p in sorted(file.parent.glob("*.toml"))[:200]] if file.parent.is_dir() else []
    return _meant(file.name, beside) or _meant(f"{file.name}.toml", beside)


def _by_name(model: str) -> bool:
    """Whether a model is given by its name in exported_models rather than by a path."""
    return _NAME.fullmatch(model) is not None


def _said(table: BaseModel) -> dict[str, Any]:
    """Return what a table says beyond its defaults, ready for TOML."""
    said: dict[str, Any] = _listed(table.model_dump(exclude_defaults=True, exclude_none=True))
    return said


def _notes(said: str) -> str:
    """Return the template's notes on those keys of an agent that it leaves out."""
    lines = [line for line in _TEMPLATE_AGENT.splitlines(keepends=True) if line.startswith("# ")]
    return "".join(line for line in lines if not re.search(rf"^{line.split()[1]} = ", said, re.MULTILINE))


def _listed(value: Any) -> Any:
    """Turn tuples into lists, which is what TOML has."""
    if isinstance(value, dict):
        return {name: _listed(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(inner) for inner in value]
    return value


_TEMPLATE_AGENT = """\
name = "echo"           # letters, digits, _ and -; it names the stem's file
kind = "echo"           # "corpus" re-orders recordings, "echo" plays the heard bar back
# corpus = "corpora/piano"  # a folder that `sideman corpus build` wrote, relative to this file
# model = ""            # "onset" lets a corpus agent hear how busy you are, and leave space
# listens = "input"     # or another agent's name
# follows = []          # agents that decide before this one, whose plans it is told
# grid_beats = 0        # beats asked for at a time: 0 is the bar, 1 or "1/2" are less
# channels = 0          # 0 is the kind's own
# gain_db = 0.0         # its fader; a corpus sounds as loud as it was recorded
# pan = 0.0             # -1 left to 1 right
# mute = false
# solo = false
# outputs = []
# budget_seconds = 0.0  # time to answer; 0 is measured live, 0.25 offline
# options = {}          # the kind's own, for a corpus say { max_continuity = 4, taboo = 16 }
# lighter = []          # what to change where this machine is too slow for it, best first, say [{ model = "" }]
# memory_mb = 4096      # what its process may use; one that wants more is replaced
"""

_TEMPLATE = f"""\
# A session of sideman: what is played, by whom, on what grid. Every key may be left out; what stands here
# is its default unless the note beside it says otherwise. Play it: sideman play FILE (this file)

[session]
name = "untitled"
seed = 0                # every chance is drawn from it; another number, other choices
spares = true           # live, a second process for each agent stands by and takes over if the first one dies

[stream]
device = ""             # a part of the device's name; "" is the default one, "osc" audio over OSC, "null" none
samplerate = 48000      # frames per second; a device at another rate is resampled
blocksize = 128         # frames mixed at a time
inputs = [1]            # the device's inputs that are heard, counted from 1
outputs = 2             # how many outputs there are
lead = 0                # frames mixed ahead of the loudspeaker; 0 measures this machine and prints its choice
latency = 0             # round trip in frames by which what is heard is shifted back; 0: as `sideman calibrate` found
latency_offset = 0      # frames added to it by hand

[transport]
bpm = 120               # quarter notes per minute; a fraction in quotes is exact: "240/7"
meter = "4/4"
count_in_bars = 1       # live: bars of click before bar 1 (by default 0)
downbeat_seconds = 0.0  # in a file: where bar 1 starts; live: when, in place of the count-in
chart = []              # one entry a bar, repeating: ["Dm7 G7", "Cmaj7", "-"]; symbols share their bar evenly

# A change of tempo or meter that is planned; as many as you like, in order:
# [[transport.changes]]
# bar = 9               # counted from 1
# beat = 0              # quarter notes after its downbeat; a meter changes only at 0
# bpm = 132
# meter = "3/4"
# ramp_beats = 8        # get to the tempo gradually, over whole beats

[mixer]
monitor = false         # pass the input on to the outputs
monitor_gain_db = 0.0
monitor_outputs = []    # outputs counted from 1; [] is the first two, here and below
ceiling_db = -1.0       # the limiter's ceiling

[metronome]
on = true               # by default false
outputs = []            # a headphone's outputs, say [3]
gain_db = -12.0

[osc]
on = false              # let other programs ask, steer and watch: `sideman osc` lists the addresses
port = 9770             # UDP; audio over OSC (stream.device = "osc") has a port of its own
audio_port = 9771
bind = "127.0.0.1"      # this machine's programs alone; another interface needs a token
token = ""              # what senders of other machines say first, to /sideman/hello

[sync]
internal = false        # play by the session's own tempo until one of those who are followed is heard

# Whose time is followed, the best first: midi, jack-midi, jack, link or osc (which takes on = true in [osc]).
# [[sync.follow]]
# kind = "midi"
# port = "clock"        # a part of the port's name; for jack-midi, JACK's
# profile = "reaper"    # for osc: or ardour, live, bitwig, max, free; the program sends to the port of [osc]
# offset = 0            # frames by which its grid is moved later
# Who is told the band's time: midi, jack-midi or link.
# [[sync.lead]]
# kind = "link"

# Each agent plays a stem of its own.
[[agents]]
{_TEMPLATE_AGENT}
[take]
folder = "takes"        # relative to this file
record = true
"""
