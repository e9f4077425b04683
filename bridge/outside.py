"""Whose time a session follows and whom it leads: built from its ``[sync]``, opened by the conductor.

Only what a session names is imported: a machine without a MIDI driver or Link's package plays all the same, and says
what is missing where somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bridge.conductor import Sender
from bridge.session import FollowTable, LeadTable, Session, profile_of
from bridge.sync import SessionClock, Source
from realtime.engine import EngineConfig

if TYPE_CHECKING:
    from bridge.jackclock import JackClock, JackConfig
    from bridge.profiles import ProfileSource, Value

SendOsc = Callable[[bytes, tuple[str, int]], int]
"""Sends a packet, if it is not empty; returns the port it was sent from, on which is listened."""


class Outside:
    """The sources and senders of a session, not yet opened.

    Parameters
    ----------
    session
        What is asked for.
    config
        What the engine knows.
    clock
        Host time and session frames.
    tell
        Takes sentences, on any thread.
    send
        Sends OSC packets from where we listen.
    make_jack
        Builds what keeps a client of the audio server alive.

    Attributes
    ----------
    sources, senders
        In the session's order.
    offsets
        By how many frames a source's grid is moved later.
    """

    def __init__(
        self,
        session: Session,
        config: EngineConfig,
        clock: SessionClock,
        tell: Callable[[str], None],
        send: SendOsc,
        make_jack: Callable[[JackConfig], JackClock],
    ) -> None:
        self._session, self._config, self._clock = session, config, clock
        self._tell, self._send, self._make_jack = tell, send, make_jack
        self._profiles: list[ProfileSource] = []
        self._jack: JackClock | None = None
        self.sources: list[Source] = []
        self.offsets: dict[str, int] = {}
        for followed in session.sync.follow:
            source = self._source(followed)
            self.sources.append(source)
            self.offsets[source.name] = followed.offset
        self.senders: list[Sender] = [self._sender(told) for told in session.sync.lead]

    def hear(self, address: str, arguments: Sequence[Value], time_ns: int, sender: object) -> bool:
        """Take an OSC message that is none of ours; return whether it meant anything. The OSC server's thread."""
        return any([profile(address, arguments, time_ns, sender) for profile in self._profiles])

    def _source(self, followed: FollowTable) -> Source:
        kind, session, rate = followed.kind, self._session, self._config.spec.samplerate
        if kind == "midi":
            from bridge.midi import MidiClockIn

            return MidiClockIn(
                kind, followed.port, virtual=followed.virtual, dialect=followed.dialect, tell=self._tell
            )
        if kind == "jack-midi":
            from bridge.jackclock import JackMidiClock

            return JackMidiClock(kind, self._jack_clock(), followed.dialect)
        if kind == "jack":
            from bridge.jackclock import JackTransport

            return JackTransport(kind, self._jack_clock(), session.tempo_map(rate))
        if kind == "link":
            from bridge.link import LinkIn, LinkPeer

            return LinkIn(kind, LinkPeer(session.transport.bpm), session.transport.meter)
        return self._profile(followed)

    def _profile(self, followed: FollowTable) -> ProfileSource:
        """Return a source for a program that speaks OSC; of several each has its program's name."""
        from bridge.osc import message
        from bridge.profiles import ProfileSource

        dialect = profile_of(followed)
        program = followed.host, followed.host_port or dialect.port

        def send(address: str, arguments: tuple[str | int | float, ...]) -> None:
            if program[1]:
                self._send(message(address, *arguments), program)

        name = f"osc {dialect.name}"
        song = self._session.tempo_map(self._config.spec.samplerate)
        source = ProfileSource(name, dialect, song, send, port=self._session.osc.port, tell=self._tell)
        self._profiles.append(source)
        return source

    def _sender(self, told: LeadTable) -> Sender:
        if told.kind == "midi":
            from bridge.midi import MidiClockOut

            return MidiClockOut("midi out", told.port, self._clock, virtual=told.virtual, tell=self._tell)
        if told.kind == "jack-midi":
            from bridge.jackclock import JackClockOut

            return JackClockOut("jack-midi out", self._jack_clock())
        from bridge.link import LinkOut, LinkPeer

        return LinkOut("link out", LinkPeer(self._session.transport.bpm), self._clock)

    def _jack_clock(self) -> JackClock:
        """Return the one client of the audio server that all who need one have in common."""
        from bridge.jackclock import JackConfig

        if self._jack is None:
            sync = self._session.sync
            heard = next((clock.port for clock in sync.follow if clock.kind == "jack-midi"), "")
            told = [clock.port for clock in sync.lead if clock.kind == "jack-midi"]
            config = JackConfig(clock_from=heard, clock_to=tuple(port for port in told if port), sends=bool(told))
            self._jack = self._make_jack(config)
        return self._jack
