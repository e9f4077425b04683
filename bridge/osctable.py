"""The OSC addresses of a session, as a table: types, units, ranges, what each does and what it answers.

:data:`SECTIONS` is the table and :data:`REPORTS` what is told to those who subscribed. Nothing else says what may be
said: an address that is not in it does nothing, and none takes the name of a path, or of code.

Bars, beats and outputs count from 1 here, as people do; the bars of a count-in are 0 and below. A beat is a quarter
note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Final

from bridge.addresses import (
    VERSION,
    Address,
    Answer,
    Argument,
    Book,
    Do,
    Field,
    RefusedError,
    Report,
    Request,
    Section,
    meant,
)
from bridge.desk import AgentFacts, Desk, Fader, decibels
from bridge.shelves import FACTS
from realtime.clock import MAX_BARS, Locate, Meter, TempoChange
from realtime.engine import LONGEST_RAMP_BEATS, SHORTEST_GRID, Command
from realtime.foreign import shown

PREFIX: Final = "/sideman/"
REPLY: Final = "/sideman/reply"
ERROR: Final = "/sideman/error"
REPORT: Final = "/sideman/report/"
"""What we say begins so. Whoever hears it from another sideman does nothing: two of them cannot talk for ever."""

LOUDEST_DB, SOFTEST_DB = 24.0, -96.0
LONGEST_BEATS = Meter(32, 1).beats
ACTION_CHARS, PINGED = 64, 8
FASTEST_REPORT_HZ, SLOWEST_REPORT_HZ, REPORT_HZ = 30.0, 0.1, 5.0
LONGEST_LEASE_SECONDS, LEASE_SECONDS = 600.0, 10.0
SCHEMA_CHARS = 1000
"""Of the schema in one answer: so it fits any network's packets."""


# What they do: transport


def _play(request: Request, pressed: bool) -> None:
    if pressed:
        request.send(Command("rest", value=0))


def _rest(request: Request, pressed: bool) -> None:
    if pressed:
        request.send(Command("rest", value=1))


def _playing(request: Request, on: bool) -> None:
    request.send(Command("rest", value=0 if on else 1))


def _stop(request: Request, pressed: bool) -> None:
    if pressed:
        request.send(Command("stop", name="bar"))


def _stop_now(request: Request, pressed: bool) -> None:
    if pressed:
        request.send(Command("stop"))


def _session_bar(request: Request, bar: int) -> int:
    """Return a bar of the session as the engine counts, from 0; the next one for 0."""
    return bar - 1 if bar else request.desk.place().bar + 1


def _tempo(request: Request, bpm: Fraction, ramp_beats: int, bar: int, beat: Fraction) -> None:
    change = TempoChange(_session_bar(request, bar), beat, bpm, None, ramp_beats)
    request.send(Command("tempo", change=change))


def _meter(request: Request, count: int, unit: int, bar: int) -> None:
    try:
        meter = Meter(count, unit)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    request.send(Command("tempo", change=TempoChange(_session_bar(request, bar), meter=meter)))


def _locate(request: Request, song_bar: int, bar: int, as_written: bool) -> None:
    locate = Locate(_session_bar(request, bar), song_bar - 1, 0, as_written)
    request.send(Command("locate", locate=locate))


def _loop(request: Request, song_bar: int, bars: int, bar: int) -> None:
    request.send(Command("locate", locate=Locate(_session_bar(request, bar), song_bar - 1, bars)))


def _position(request: Request) -> list[Answer]:
    return [_place_of(request.desk)]


def _sync(request: Request) -> list[Answer]:
    return [_sync_of(request.desk)]


def _sync_of(desk: Desk) -> Answer:
    status = desk.sync()
    if status is None:
        return ("internal", True, False, None, 0.0, 0)
    tempo = None if status.tempo is None else float(status.tempo)
    return status.leader, status.playing, status.lost, tempo, 1000 * status.spread_seconds, status.anchors


def _place_of(desk: Desk) -> Answer:
    place = desk.place()
    meter, tempo = place.meter, place.tempo
    return (
        place.frame,
        place.bar + 1,
        place.beat + 1,
        None if place.song_bar is None else place.song_bar + 1,
        None if tempo is None else float(tempo),
        None if meter is None else meter.count,
        None if meter is None else meter.unit,
        place.playing and not place.stopped,
    )


# Agents, stems


def _agents(request: Request) -> list[Answer]:
    return [(agent.name, agent.kind, *_agent_of(agent)) for agent in request.desk.agents()]


def _agent_of(agent: AgentFacts) -> Answer:
    return (
        agent.state, agent.now, 1000 * agent.margin_seconds, 1000 * agent.budget_seconds, agent.late, agent.faults,
        agent.generation,
    )  # fmt: skip


def _actions(request: Request) -> list[Answer]:
    declared = request.desk.actions(request.agent) or ()
    return [(action.name, action.least, action.most, action.meaning) for action in declared]


def _action(request: Request, value: float) -> None:
    agent, name = request.agent, request.names["action"]
    declared = request.desk.actions(agent)
    if declared is not None:
        known = {action.name: action for action in declared}
        if name not in known:
            listed = ", ".join(known) or "none"
            raise RefusedError(f"{agent} has no action {shown(name)}{meant(name, known)}; it has {listed}")
        if not known[name].least <= value <= known[name].most:
            allowed = f"{known[name].least:g} to {known[name].most:g}"
            raise RefusedError(f"value is {value:g}; {name} of {agent} takes {allowed}")
    if len(name) > ACTION_CHARS:
        raise RefusedError(f"an action's name has at most {ACTION_CHARS} characters; {len(name)} came")
    request.send(Command("action", agent, name, value))


def _grid(request: Request, beats: Fraction) -> None:
    if beats and beats < SHORTEST_GRID:
        raise RefusedError(f"beats is {beats}; it takes 0 for the bar, or {SHORTEST_GRID} to {LONGEST_BEATS}")
    request.send(Command("grid", request.agent, str(beats)))


def _quarantine(request: Request, pressed: bool) -> None:
    agent = request.agent
    if pressed:
        request.send(Command("quarantine", agent))


def _stems(request: Request) -> list[Answer]:
    return [_fader_of(fader) for fader in request.desk.faders()]


def _fader_of(fader: Fader) -> Answer:
    return fader.name, fader.channels, fader.gain_db, fader.pan, fader.mute, fader.solo


def _gain(request: Request, level: float) -> None:
    request.send(Command("gain", request.stem, value=level))


def _pan(request: Request, pan: float) -> None:
    request.send(Command("pan", request.stem, value=pan))


def _mute(request: Request, on: bool) -> None:
    request.send(Command("mute", request.stem, value=float(on)))


def _solo(request: Request, on: bool) -> None:
    request.send(Command("solo", request.stem, value=float(on)))


def _metronome(request: Request, on: bool) -> None:
    request.send(Command("metronome", value=float(on)))


# The session and its folders


def _session(request: Request) -> list[Answer]:
    setup = request.desk.setup()
    return [(setup.name, setup.version, setup.samplerate, setup.blocksize, setup.inputs, setup.outputs)]


def _latency(request: Request) -> list[Answer]:
    setup = request.desk.setup()
    return [
        (setup.lead_frames, setup.latency_frames, setup.device_in_frames, setup.device_out_frames, setup.samplerate)
    ]


def _audio(request: Request) -> list[Answer]:
    setup = request.desk.setup()
    if not setup.audio_port:
        raise RefusedError("this session takes no audio over OSC; it plays through a sound device")
    return [(setup.audio_port, setup.samplerate, setup.blocksize, setup.inputs, setup.outputs)]


def _counters(request: Request) -> list[Answer]:
    counted = {**request.desk.counted(), **request.host.counted()}
    return list(counted.items())


def _shelf(kind: str) -> Do:
    """Return what lists a shelf, or shows one thing of it."""

    def show(request: Request, name: str) -> list[Answer]:
        return [(item.name, *item.facts) for item in request.desk.shelf(kind, name)]

    return show


# Who listens


def _hello(request: Request, token: str, reply_port: int) -> list[Answer]:
    request.host.greet(request.sender, token, reply_port)
    setup = request.desk.setup()
    return [(setup.name, setup.version, VERSION)]


def _subscribe(request: Request, topic: str, rate_hz: float, lease_seconds: float) -> list[Answer]:
    request.host.subscribe(request.sender, topic, rate_hz, lease_seconds)
    return [(topic, rate_hz, lease_seconds)]


def _unsubscribe(request: Request, topic: str) -> list[Answer]:
    return [(request.host.unsubscribe(request.sender, "" if topic == "all" else topic),)]


def _ping(request: Request) -> list[Answer]:
    ones = [value for value in request.arguments if value is None or isinstance(value, str | int | float)]
    return [tuple(value for value in ones if not isinstance(value, int) or abs(value) < 2**63)[:PINGED]]


def _help(request: Request, path: str) -> list[Answer]:
    book = request.host.book
    if not path:
        return [(address.path, address.meaning) for address in book.addresses]
    return [(line,) for line in book.named(path).explained()]


def _schema(request: Request) -> list[Answer]:
    text = request.host.book.schema()
    return [(text[at : at + SCHEMA_CHARS],) for at in range(0, len(text), SCHEMA_CHARS)]


# The table


_PRESS = Argument("pressed", "press", "how far down a button is", default=True)
_BAR = Argument(
    "bar", "whole", "bar of the session it is for, from 1; 0 for the next one that there is time for", "bars",
    0, MAX_BARS, 0, slip="bars count from 1",
)  # fmt: skip
_SONG_BAR = Argument(
    "song_bar", "whole", "bar of the song, counted from 1", "bars", 1, MAX_BARS, slip="bars count from 1"
)
_ON = Argument("on", "switch", "whether it is on")
_POSITION = (
    Field("frame", "frames", "of the session"),
    Field("bar", "bars", "of the session, from 1; 0 and below in a count-in"),
    Field("beat", "quarter notes", "in the bar, from 1"),
    Field("song_bar", "bars", "of the song, from 1; N where it is not known"),
    Field("tempo", "bpm", "N where it is not known"),
    Field("count", "", "of the meter; N where it is not known"),
    Field("unit", "", "of the meter; N where it is not known"),
    Field("playing", "", "whether the band plays"),
)
_SYNC = (
    Field("leader", "", "who is followed; internal for nobody"),
    Field("playing", "", "whether it rolls"),
    Field("silent", "", "whether it has fallen silent while it did"),
    Field("tempo", "bpm", "as it was found; N where it is not known"),
    Field("spread", "ms", "how far what it says scatters"),
    Field("moves", "", "how often the band's grid was moved for it"),
)
_AGENT = (
    Field("state", "", "how its process stands: armed, loading, gone, failed, refused, quarantined, ..."),
    Field("now", "", "what of it sounds, in a word"),
    Field("margin", "ms", "how early its last answer came"),
    Field("budget", "ms", "how long it is given for one"),
    Field("late", "", "answers that came late"),
    Field("faults", "", "answers that were none"),
    Field("generation", "", "how often its process was replaced"),
)


def _listing(kind: str, one: str, meaning: str) -> Address:
    name = Argument("name", "text", f"of one {one}, as it is listed; all of them without", default="")
    facts = tuple(Field(*fact) for fact in FACTS[kind])
    return Address(
        f"/sideman/{kind}", (name,), meaning, _shelf(kind), (Field("name"), *facts), many=True, slow=True
    )  # fmt: skip


def _report_agents(desk: Desk) -> Iterable[tuple[str, Answer]]:
    return [(f"/{agent.name}", _agent_of(agent)) for agent in desk.agents()]


def _report_levels(desk: Desk) -> Iterable[tuple[str, Answer]]:
    return [("/" + one.name.replace(" ", "/"), (decibels(one.peak), decibels(one.rms))) for one in desk.loudness()]


def _report_stems(desk: Desk) -> Iterable[tuple[str, Answer]]:
    return [(f"/{fader.name}", _fader_of(fader)[2:]) for fader in desk.faders()]


_FADER = (
    Field("gain", "dB"),
    Field("pan", "", "-1 left, 1 right"),
    Field("mute"),
    Field("solo"),
)

REPORTS: tuple[Report, ...] = (
    Report("position", REPORT + "position", _POSITION, "Where the session is.", lambda desk: [("", _place_of(desk))]),
    Report("sync", REPORT + "sync", _SYNC, "Whose time is followed.", lambda desk: [("", _sync_of(desk))]),
    Report("agents", REPORT + "agents/{agent}", _AGENT, "How each agent does.", _report_agents),
    Report(
        "levels",
        REPORT + "levels/{signal}",
        (
            Field("peak", "dB", "of full scale since the last report, -120 for silence"),
            Field("rms", "dB", "the same"),
        ),
        "How loud each stem (before its fader), input and output/1, output/2, ... are.",
        _report_levels,
    ),
    Report("stems", REPORT + "stems/{stem}", _FADER, "How the faders were set last.", _report_stems),
)
TOPICS = tuple(report.topic for report in REPORTS)


SECTIONS: tuple[Section, ...] = (
    Section(
        "Transport",
        (
            Address(
                "/sideman/play",
                (_PRESS,),
                "The band plays, from the next bar line on; a DAW that is followed has the next word.",
                _play,
            ),
            Address(
                "/sideman/rest",
                (_PRESS,),
                "The band fades out and rests; the bars go on. A DAW that is followed has the next word.",
                _rest,
            ),
            Address("/sideman/playing", (_ON,), "Play (1) or rest (0), for a button that stays down.", _playing),
            Address(
                "/sideman/stop",
                (_PRESS,),
                "Ends the session on the next bar line and closes the take; to pause, rest.",
                _stop,
            ),
            Address("/sideman/stop/now", (_PRESS,), "Ends the session at once and closes the take.", _stop_now),
            Address(
                "/sideman/tempo",
                (
                    Argument("bpm", "tempo", "the new tempo", slip="did you give a period, or count eighths?"),
                    Argument(
                        "ramp_beats",
                        "whole",
                        "over how many beats it gets there, 0 for at once",
                        "quarter notes",
                        0,
                        LONGEST_RAMP_BEATS,
                        0,
                        slip="a ramp lasts whole beats",
                    ),
                    _BAR,
                    Argument(
                        "beat",
                        "beats",
                        "how far into the bar it begins",
                        "quarter notes",
                        0,
                        float(LONGEST_BEATS) - 1,
                        Fraction(0),
                        slip="the downbeat is 0 here",
                    ),
                ),
                "Changes the tempo, on the next bar line unless a bar is named.",
                _tempo,
            ),
            Address(
                "/sideman/meter",
                (
                    Argument("count", "whole", "how many to the bar", "", 1, 32, slip="7/8 is 7 and 8"),
                    Argument("unit", "whole", "of what: 1, 2, 4, 8, 16 or 32", "", 1, 32, slip="7/8 is 7 and 8"),
                    _BAR,
                ),
                "Changes the meter on a bar line.",
                _meter,
            ),
            Address(
                "/sideman/locate",
                (
                    _SONG_BAR,
                    _BAR,
                    Argument(
                        "as_written",
                        "switch",
                        "whether tempi set by hand are given up for those planned",
                        default=False,
                    ),
                ),
                "The song goes on from another bar, on a bar line; ends a loop.",
                _locate,
            ),
            Address(
                "/sideman/loop",
                (
                    _SONG_BAR,
                    Argument("bars", "whole", "how many go round, 0 for no loop", "bars", 0, MAX_BARS),
                    _BAR,
                ),
                "The song goes on from a bar, on a bar line, and goes round from there.",
                _loop,
            ),
            Address("/sideman/position", (), "Says where the session is.", _position, _POSITION),
            Address("/sideman/sync", (), "Says whose time is followed, and how that goes.", _sync, _SYNC),
        ),
    ),
    Section(
        "Agents",
        (
            Address(
                "/sideman/agents",
                (),
                "Lists the agents.",
                _agents,
                (Field("name"), Field("kind"), *_AGENT),
                many=True,
            ),
            Address(
                "/sideman/agent/{agent}/actions",
                (),
                "Lists what an agent can be made to do; none where it does not say.",
                _actions,
                (Field("name"), Field("least"), Field("most"), Field("meaning")),
                many=True,
            ),
            Address(
                "/sideman/agent/{agent}/action/{action}",
                (Argument("value", "number", "what the action makes of it", "", -1e6, 1e6, 1.0),),
                "Hands an action to an agent, with the next answer it is asked for.",
                _action,
            ),
            Address(
                "/sideman/agent/{agent}/grid",
                (
                    Argument(
                        "beats",
                        "beats",
                        "how much it is asked for at a time: 1/8 or more, or 0 for the bar",
                        "quarter notes",
                        0,
                        float(LONGEST_BEATS),
                        slip="did you give frames?",
                    ),
                ),
                "Sets how much music an agent is asked for at a time.",
                _grid,
            ),
            Address(
                "/sideman/agent/{agent}/quarantine",
                (_PRESS,),
                "Asks an agent for nothing any more in this session; to silence it for a while, mute its stem.",
                _quarantine,
            ),
        ),
    ),
    Section(
        "Stems",
        (
            Address(
                "/sideman/stems",
                (),
                "Lists the stems, with monitor and metronome, and how their faders were set last.",
                _stems,
                (Field("name"), Field("channels"), *_FADER),
                many=True,
            ),
            Address(
                "/sideman/stem/{stem}/gain",
                (
                    Argument(
                        "level",
                        "number",
                        "0 leaves it as it is",
                        "dB",
                        SOFTEST_DB,
                        LOUDEST_DB,
                        slip="silence is mute",
                    ),
                ),
                "Moves a stem's fader.",
                _gain,
            ),
            Address(
                "/sideman/stem/{stem}/pan",
                (
                    Argument(
                        "pan",
                        "number",
                        "-1 is left, 0 the middle, 1 right",
                        "",
                        -1,
                        1,
                        slip="did you give a percentage?",
                    ),
                ),
                "Turns a stem's pan.",
                _pan,
            ),
            Address("/sideman/stem/{stem}/mute", (_ON,), "Silences a stem, or lets it sound again.", _mute),
            Address("/sideman/stem/{stem}/solo", (_ON,), "Lets only soloed stems sound, or ends that.", _solo),
            Address("/sideman/metronome", (_ON,), "Switches the click.", _metronome),
        ),
    ),
    Section(
        "Session",
        (
            Address(
                "/sideman/session",
                (),
                "Says what the session is made of.",
                _session,
                (
                    Field("name"),
                    Field("version", "", "of sideman"),
                    Field("samplerate", "Hz"),
                    Field("blocksize", "frames"),
                    Field("inputs", "channels"),
                    Field("outputs", "channels"),
                ),
            ),
            Address(
                "/sideman/latency",
                (),
                "Says what lies between playing and hearing.",
                _latency,
                (
                    Field("lead", "frames", "mixed ahead of the loudspeaker"),
                    Field("latency", "frames", "round trip out of the loudspeaker and back in, as set or calibrated"),
                    Field("device_in", "frames", "as the device states it"),
                    Field("device_out", "frames", "as the device states it"),
                    Field("samplerate", "Hz"),
                ),
            ),
            Address(
                "/sideman/audio",
                (),
                "Says where a DAW streams its audio to, if it does; what is said there is a protocol of its own.",
                _audio,
                (
                    Field("port", "", "UDP port, on the same interface"),
                    Field("samplerate", "Hz"),
                    Field("blocksize", "frames"),
                    Field("inputs", "channels"),
                    Field("outputs", "channels"),
                ),
            ),
            Address(
                "/sideman/counters",
                (),
                "Lists what went wrong and how often: the device, the stream, packets that were dropped and why.",
                _counters,
                (Field("name"), Field("count")),
                many=True,
            ),
            _listing("corpora", "corpus", "Lists the corpora in the session's folders."),
            _listing("models", "model", "Lists the models that came with sideman."),
            _listing("sessions", "session", "Lists the sessions beside this one."),
            _listing("takes", "take", "Lists the takes of this session's folder, the newest first."),
        ),
    ),
    Section(
        "You and sideman",
        (
            Address(
                "/sideman/hello",
                (
                    Argument("token", "text", "the session's; not needed on sideman's own machine", default=""),
                    Argument(
                        "reply_port",
                        "whole",
                        "where answers go on your machine; 0 for where you send from",
                        "port",
                        0,
                        65535,
                        0,
                    ),
                ),
                "Lets you in, and says where your answers go. Say it first from another machine, and again after ten "
                "minutes of silence.",
                _hello,
                (
                    Field("name", "", "of the session"),
                    Field("version", "", "of sideman"),
                    Field("table", "", "version of these addresses"),
                ),
            ),
            Address(
                "/sideman/subscribe",
                (
                    Argument("topic", "text", "what of", choices=TOPICS),
                    Argument(
                        "rate",
                        "number",
                        "how often",
                        "Hz",
                        SLOWEST_REPORT_HZ,
                        FASTEST_REPORT_HZ,
                        REPORT_HZ,
                    ),
                    Argument(
                        "lease",
                        "number",
                        "for how long; subscribe again before it is over",
                        "s",
                        1,
                        LONGEST_LEASE_SECONDS,
                        LEASE_SECONDS,
                        slip="a lease is renewed, it does not last for ever",
                    ),
                ),
                "Tells you of something again and again, until the lease is over.",
                _subscribe,
                (Field("topic"), Field("rate", "Hz"), Field("lease", "s")),
            ),
            Address(
                "/sideman/unsubscribe",
                (Argument("topic", "text", "what of; everything without", default="all", choices=(*TOPICS, "all")),),
                "Tells you no more of it.",
                _unsubscribe,
                (Field("ended", "", "how many subscriptions"),),
            ),
            Address(
                "/sideman/ping",
                (),
                f"Answers with the arguments that came, up to {PINGED}, but for blobs and arrays.",
                _ping,
                (Field("...", "", "the same"),),
                variadic=True,
            ),
            Address(
                "/sideman/help",
                (Argument("address", "text", "the one to explain; all are listed without", default=""),),
                "Explains an address: its meaning, arguments and answers, a line each.",
                _help,
                (Field("text", "", "without an argument: an address, and a second text, its meaning"),),
                many=True,
            ),
            Address(
                "/sideman/schema",
                (),
                "Answers with this table as JSON in pieces, to be put together in order.",
                _schema,
                (Field("piece"),),
                many=True,
            ),
        ),
    ),
)
"""All addresses there are."""


_INTRODUCTION = f"""\
# OSC addresses

sideman listens for Open Sound Control over UDP, on its own machine only unless it is told otherwise.
This page is made from the table that answers; `/sideman/help` and `/sideman/schema` say the same of a session that
plays.

- **Answers** come to the port you send from, or to the one you named in `/sideman/hello`: `{REPLY}`, the address that
  was asked, then what is listed below. What is refused answers with `{ERROR}`, the address, and a sentence.
  Where several things are listed, each answer goes on with its number, from 1, and how many there are.
- **Arguments** are given as is handy: whole numbers for decimals and the other way round, numbers as text, 1 and 0
  for T and F. The usual OSC type is named first. What does not fit is refused with a sentence, and nothing is done.
- **Bars, beats and outputs** count from 1; the bars of a count-in are 0 and below. A beat is a quarter note.
- **Bundles with a time tag** are carried out at their time, up to a minute ahead, where the sender's clock agrees
  with this machine's. What changes on bar lines does so on the first one after that. Anything else takes effect on
  the frame that leaves for the loudspeaker at that time, if it comes early enough (a lead and a half before), else at
  once. A time that has passed means now.
- **Packets** have at most 8,192 bytes, 64 messages, and bundles 4 deep. Address patterns are not taken.
- **Other machines** are heard only if the session says so, and each sender has to say the session's token first
  (`/sideman/hello`). Whoever can listen in on the network can read it there: use a network of your own.
- **Too much** is dropped before it is read: more than 1,000 packets a second of one sender.
"""


def book(more: Sequence[Section] = ()) -> Book:
    """Return all addresses, with those that others answer."""
    return Book((*SECTIONS, *more), REPORTS, _INTRODUCTION)


def markdown() -> str:
    """Return the documentation of all addresses, in Markdown."""
    return book().markdown()
