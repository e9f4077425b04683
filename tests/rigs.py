"""Small bands in virtual time: the live engine, agents that are easy to check, scripted delays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from realtime.clock import Meter, TempoMap
from realtime.engine import Command, Engine, EngineConfig, Memory, PartConfig
from realtime.mixer import Strip
from realtime.protocols import Agent, Block, Clip, Origin, Piece, Span, SpanRequest, StreamSpec
from realtime.replay import ForcedTiming, ReplayPort, Script
from realtime.runner import AgentRunner, InlinePort, RingHeard
from realtime.seat import AgentConfig

RATE = 48000
Delay = Callable[[SpanRequest], int]


def at_once(request: SpanRequest) -> int:
    """Answer without delay."""
    return 0


def question(bar: int = 1, *, rate: int = RATE, attempt: int = 1, context_end: int | None = None) -> SpanRequest:
    """Return what is asked for a whole bar in 4/4 at 120, known up to a little before it."""
    tempo_map = TempoMap.steady(rate, 120)
    start = tempo_map.bar_frame(bar)
    return SpanRequest(
        agent="a", span=Span(bar, Fraction(0), Fraction(4)), start=start, frames=2 * rate,
        beat_frames=tuple(range(0, 2 * rate, rate // 2)), timeline=tempo_map.timelines[0],
        context_end=start - 1000 if context_end is None else context_end, seed=bar + 1, attempt=attempt,
    )  # fmt: skip


class ClickAgent:
    """Plays a single-sample click on every beat; the louder one is the downbeat. Remembers what it was told."""

    channels = 1

    def __init__(self, level: float = 0.5) -> None:
        self.level = level
        self.hops: list[int] = []
        self.requests: list[SpanRequest] = []
        self.confirmed: list[tuple[Span, Origin | None]] = []
        self.spec = StreamSpec(RATE)

    def prepare(self, spec: StreamSpec) -> None:
        self.spec = spec

    def hear(self, hop: Block, frame: int) -> None:
        self.hops.append(frame)

    def play(self, request: SpanRequest) -> Clip | None:
        self.requests.append(request)
        pieces = tuple(Piece("click", 0, 1, beat, 1) for beat in request.beat_frames)
        return self.realise(request, Origin("click", pieces=pieces))

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        audio = np.zeros((request.frames, self.channels), np.float32)
        for piece in origin.pieces:
            audio[piece.at] = self.level * piece.gain
        return Clip(audio, 0, origin)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        self.confirmed.append((span, origin))

    def snapshot(self) -> bytes:
        return b"{}"

    def restore(self, state: bytes) -> None:
        pass


class NoiseAgent(ClickAgent):
    """Plays noise drawn from the seed, with a lead-in, so that every join is a crossfade of unrelated sound."""

    def play(self, request: SpanRequest) -> Clip | None:
        self.requests.append(request)
        return self.realise(request, Origin("noise", name=str(request.seed)))

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        lead_in = round(0.01 * self.spec.samplerate)
        chance = np.random.default_rng(int(origin.name))
        audio = chance.normal(0, 0.1, (lead_in + request.frames, self.channels)).astype(np.float32)
        return Clip(audio, lead_in, origin)


class Rig:
    """A band on private memory, driven block by block.

    Parameters
    ----------
    agents
        By name.
    tempo_map
        The grid.
    delay
        Frames from request to reply.
    commands
        What the bridge sends, and when it is there.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        tempo_map: TempoMap | None = None,
        *,
        delay: Delay = at_once,
        grid_beats: Fraction = Fraction(0),
        blocksize: int = 128,
        lead: int = 256,
        budget_frames: int = 4800,
        script: Sequence[tuple[int, Command]] = (),
        replay: Sequence[dict[str, Any]] | None = None,
        commands: Sequence[tuple[int, Command]] = (),
        **config: Any,
    ) -> None:
        self.map = tempo_map or TempoMap.steady(RATE, 120, Meter())
        rate = self.map.timelines[0].samplerate
        self.spec = StreamSpec(rate, 1, 2, blocksize, lead)
        seats = tuple(
            PartConfig(AgentConfig(name, "fake", agent.channels), Strip(name, agent.channels), grid_beats)
            for name, agent in agents.items()
        )
        self.config = EngineConfig(self.spec, self.map, 1, seats, **config)
        self.memory = Memory.private(self.config)
        heard = RingHeard(self.memory.inputs, self.memory.stems)
        runners = [AgentRunner(agents[seat.agent.name], seat.agent, self.spec, heard) for seat in seats]
        self.log: list[dict[str, Any]] = []
        timing = None
        if replay is None:
            self.ports = [InlinePort(runner, budget_frames, delay) for runner in runners]
        else:
            forced = Script.read(replay)
            self.ports = [ReplayPort(runner, forced) for runner in runners]
            timing, script = ForcedTiming(forced), forced.commands
        waiting = list(commands)

        def take() -> Command | None:
            return waiting.pop(0)[1] if waiting and waiting[0][0] <= self.engine.mixed else None

        self.engine = Engine(
            self.config, self.ports, self.memory, log=self.log.append, timing=timing, script=script, take_command=take
        )
        for port in self.ports:
            port.now = lambda: self.engine.mixed

    def run(self, frames: int, source: Block | None = None) -> Block:
        """Play from where it stands to ``frames``; return the mix."""
        blocks = []
        while self.engine.mixed < frames and not self.engine.stopped:
            start = self.engine.mixed
            count = min(self.spec.blocksize, frames - start)
            heard = np.zeros((count, 1), np.float32) if source is None else source[start : start + count]
            self.engine.hear(heard)
            blocks.append(self.engine.mix(count).copy())
        return np.concatenate(blocks)

    def stem(self, name: str) -> Block:
        """Return what an agent played, from frame 0 to here (at most the last minute)."""
        return self.memory.stems[name].read(0, self.engine.mixed)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Return the ledger's lines of one type."""
        return [line for line in self.log if line["type"] == kind]

    def beats(self, frames: int) -> list[int]:
        """Return the frames of all whole beats of all bars up to ``frames``, from the tempo map alone."""
        tempo_map, found, bar = self.engine.transport.map, [], 0
        while tempo_map.bar_frame(bar) < frames:
            start, beat = tempo_map.downbeat(bar), Fraction(0)
            while beat < tempo_map.bar_beats(bar):
                found.append(tempo_map.frame_at(start + beat))
                beat += 1
            bar += 1
        return [frame for frame in found if frame < frames]
