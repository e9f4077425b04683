"""A band in virtual time on private memory: the shipped engine and ports, and workers that follow a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from faultport import FaultPort
from faults import FaultScript, no_faults

from bridge.watch import FAULTY_ANSWERS, LATE_SPANS
from realtime.buffers import Arena, Layout
from realtime.clock import TempoMap
from realtime.engine import Command, Engine, EngineConfig, Memory, PartConfig
from realtime.mixer import Strip
from realtime.protocols import Agent, Block, Log, SpanRequest, StreamSpec
from realtime.runner import AgentRunner, InlinePort, RingHeard
from realtime.scheduler import LEDGER
from realtime.seat import AgentConfig, worker_layout

RESPAWN_SECONDS = 0.3
"""From the end of a process that is no good to a successor on duty."""


class _PrivateMemory:
    """Stands in for shared memory where everybody is in one process."""

    def __init__(self, size: int) -> None:
        self.name, self.buf = "private", memoryview(bytearray(size))

    def close(self) -> None:
        """Do nothing."""


def private_arena(layout: Layout) -> Arena:
    """Return an arena on this process's own memory."""
    size = sum(dtype.itemsize * int(np.prod(shape)) + 4096 for dtype, shape in layout.values())
    return Arena(_PrivateMemory(size), layout)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Seat:
    """One agent of a band: how it is built, and where it sits."""

    name: str
    build: Callable[[], Agent]
    grid_beats: Fraction = Fraction(0)
    follows: tuple[str, ...] = ()
    listens: str = "input"
    script: FaultScript = no_faults
    delay: Callable[[SpanRequest], int] | None = None
    """Frames to each answer, whatever came before: such a seat has no worker's process and overtakes itself."""


class Stage:
    """A band in virtual time: the shipped engine, the shipped ports, workers that follow a script.

    Parameters
    ----------
    seats
        The band.
    tempo_map
        The grid it begins with.
    log
        Takes the take's lines, beside those who account.
    blocksize
        Frames at a time; what comes out does not depend on it.
    budget_seconds, answer_seconds
        What agents are held to take, and what they take when all goes well.
    take_command
        The bridge's end: asked once a block.
    supervised
        Whether agents that go on failing get another process, by the bridge's rules.
    config
        More for :class:`realtime.engine.EngineConfig`.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        tempo_map: TempoMap,
        *,
        log: Log = lambda line: None,
        blocksize: int = 8192,
        budget_seconds: float = 0.08,
        answer_seconds: float = 0.03,
        lead: int = 1024,
        take_command: Callable[[], Command | None] = lambda: None,
        supervised: bool = False,
        **config: Any,
    ) -> None:
        rate = tempo_map.timelines[0].samplerate
        self.spec = StreamSpec(rate, 1, 2, blocksize, lead)
        parts = tuple(
            PartConfig(
                AgentConfig(seat.name, "scripted", listens=seat.listens, budget_seconds=budget_seconds),
                Strip(seat.name, 1),
                seat.grid_beats,
                seat.follows,
            )
            for seat in seats
        )
        self.config = EngineConfig(self.spec, tempo_map, 1, parts, **config)
        self.memory = Memory.private(self.config)
        heard = RingHeard(self.memory.inputs, self.memory.stems)
        layout: Layout = {}
        for part in parts:
            layout |= worker_layout(part.agent, self.spec, round(self.config.longest_span_seconds * rate))
        self._arena, self._log, self._answer_frames = private_arena(layout), log, round(answer_seconds * rate)
        self.ports: dict[str, FaultPort] = {}
        self._supervised = supervised
        ports = [self._port(seat, part.agent, heard) for seat, part in zip(seats, parts, strict=True)]
        self.engine = Engine(self.config, ports, self.memory, log=log, take_command=take_command)
        for port in ports:
            port.now = lambda: self.engine.mixed

    def _port(self, seat: Seat, config: AgentConfig, heard: RingHeard) -> FaultPort | InlinePort:
        if seat.delay is not None:
            budget = round(config.budget_seconds * self.spec.samplerate)
            return InlinePort(AgentRunner(seat.build(), config, self.spec, heard), budget, seat.delay)
        self.ports[seat.name] = FaultPort(
            config, self._arena, self.spec, heard, self._log, build=seat.build, script=seat.script,
            answer_frames=self._answer_frames,
        )  # fmt: skip
        return self.ports[seat.name]

    def advance(self, block: Block) -> Block:
        """Hear a block, ``(frames, 1)``, and mix as many frames; the array is used again."""
        self.engine.hear(block)
        mixed = self.engine.mix(len(block))
        for part in self.engine.parts if self._supervised else ():
            row = dict(zip(LEDGER, part.ledger(), strict=True))
            if row["faulty_in_a_row"] >= FAULTY_ANSWERS or row["late_in_a_row"] >= LATE_SPANS:
                self.ports[part.name].end(self.engine.mixed, round(RESPAWN_SECONDS * self.spec.samplerate))
        return mixed
