"""Faults in virtual time: workers that are late, stall, die or answer rubbish, by a script, and who accounts for it.

The engine and its end of the way to a worker are the shipped ones, with their queues, clip slots and checksums; what
is played here is the worker's process. Time is the mixing cursor, so a fault falls on its frame, each run is like the
last, and a day takes minutes. Nothing here looks an answer over: that is the engine's business, and the proof.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np

from bridge.watch import FAULTY_ANSWERS, LATE_SPANS
from realtime.agents.echo import EchoAgent
from realtime.buffers import Arena, Layout, checksum
from realtime.clock import TempoMap
from realtime.engine import Command, Engine, EngineConfig, Memory, PartConfig
from realtime.messages import Sealed, decode, encode, to_bytes
from realtime.mixer import Strip
from realtime.protocols import Agent, Block, Clip, Log, Origin, Span, SpanRequest, StreamSpec
from realtime.scheduler import CONTINUATION, FINAL, LEDGER, SPECULATIVE, Reply
from realtime.voice import NEVER
from realtime.worker import (
    HEAR_BACK_SECONDS,
    ON_DUTY,
    STATE_ARMED,
    STATE_LOADING,
    AgentConfig,
    AgentRunner,
    InlinePort,
    ProcessPort,
    RingHeard,
    StateCell,
    worker_layout,
)

RESPAWN_SECONDS = 0.3
"""From the end of a process that is no good to a successor on duty."""
ATTEMPTS = (SPECULATIVE, FINAL, CONTINUATION)
RUBBISH = {
    "raises": "the agent raises",
    "agent nan": "the agent's clip has a NaN",
    "agent length": "the agent's clip is one frame short",
    "agent channels": "the agent's clip has a channel too many",
    "agent type": "the agent returns no clip",
    "nan": "the process sends a NaN",
    "length": "the process sends one frame too few",
    "lead-in": "the process claims a lead-in longer than a join",
    "torn": "the process says that a clip is there which it has not written: its checksum is stale",
    "span": "the process answers for the span after",
    "stale": "the process sends its answer to an earlier span again, and none to this one",
    "slot": "the process answers from a slot it was not given",
    "garbage": "the process sends a record that is no message",
}
HARMLESS = {"twice": "the answer comes twice", "early": "it comes at once", "rest": "the agent rests"}
LOSSES = {
    "late": "the answer comes later than it might",
    "stall": "the process stops for a while; then it answers all that it was asked",
    "hang": "the process stops and is ended after a while; a successor takes over",
    "kill": "the process dies; a successor takes over",
}
KINDS = (*RUBBISH, *HARMLESS, *LOSSES)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a span, and with which of its questions.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    attempts
        The questions it strikes.
    frames
        How much later than asked an answer comes; how long a stall lasts; how long after the question the process
        dies.
    down
        Frames from a death to a successor on duty.
    """

    kind: str
    attempts: tuple[int, ...]
    frames: int = 0
    down: int = 0


FaultScript = Callable[[SpanRequest], "Fault | None"]


def no_faults(request: SpanRequest) -> Fault | None:
    """Let everything go well."""
    return None


def stalled_from(bar: int) -> FaultScript:
    """Return the script of an agent that answers nothing any more from ``bar`` on."""

    def script(request: SpanRequest) -> Fault | None:
        return Fault("stall", ATTEMPTS, NEVER) if request.span.bar >= bar else None

    return script


class RandomFaults:
    """Strikes a share of all spans, each in a way drawn from the seed, the agent and the span.

    Parameters
    ----------
    seed
        Draws everything.
    share
        Of spans that are struck.
    kinds
        What may happen, each as likely as the other.
    samplerate
        Of the session: deaths take 20 ms to 1.5 s, whatever the tempo.
    """

    def __init__(self, seed: int, share: float, samplerate: int, kinds: Sequence[str] = KINDS) -> None:
        self._seed, self._share, self._samplerate, self._kinds = seed, share, samplerate, tuple(kinds)

    def __call__(self, request: SpanRequest) -> Fault | None:
        """Return what befalls the span of a question, ``None`` if nothing does."""
        chance = Random(f"{self._seed}/{request.agent}/{request.span.bar}/{request.span.beat}")
        if chance.random() >= self._share:
            return None
        kind = chance.choice(self._kinds)
        attempts = chance.choice([(FINAL,), (SPECULATIVE, FINAL), ATTEMPTS])
        span = request.frames
        if kind in ("stall", "hang"):
            frames = int(span * chance.choice([0.3, 1, 2.5, 6]))
        elif kind == "kill":
            frames = int(span * chance.uniform(0, 0.5))
        else:
            frames = int(span * chance.choice([0.05, 0.5, 1.1, 2.5]) * chance.uniform(0.5, 1.5))
        down = int(self._samplerate * chance.choice([0.02, 0.3, 1.5]))
        return Fault(kind, attempts, frames, down)


@dataclass(slots=True)
class Told:
    """One question as the worker saw it, and what became of it: the truth that the take is held against."""

    attempt: int
    posted: int
    fault: str = ""  # the kind that struck it
    sent: int = NEVER  # when anything came back
    due: int = NEVER  # when a good answer was in
    rests: bool = False


class _PrivateMemory:
    """Stands in for shared memory where everybody is in one process."""

    def __init__(self, size: int) -> None:
        self.name, self.buf = "private", memoryview(bytearray(size))

    def close(self) -> None:
        """Do nothing."""


class _NoWake:
    """Stands in for a semaphore: nobody sleeps here."""

    def release(self) -> None:
        """Do nothing."""


def private_arena(layout: Layout) -> Arena:
    """Return an arena on this process's own memory."""
    size = sum(dtype.itemsize * int(np.prod(shape)) + 4096 for dtype, shape in layout.values())
    return Arena(_PrivateMemory(size), layout)  # type: ignore[arg-type]


class MoodyAgent:
    """An agent that answers as its mood is: well, or rubbish."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.mood = agent, ""
        self.deaf = getattr(agent, "deaf", isinstance(agent, EchoAgent))  # takes no hops: spared listening
        if hasattr(agent, "carry_on"):
            self.carry_on = lambda request: self._spoilt(agent.carry_on(request))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def play(self, request: SpanRequest) -> Clip | None:
        """Play what the agent plays, as the mood allows."""
        return self._spoilt(self.agent.play(request))

    def _spoilt(self, clip: Clip | None) -> Any:
        if self.mood == "raises":
            raise ArithmeticError("no idea comes")
        if self.mood == "agent type":
            return "la la la"
        if self.mood == "rest":
            return None
        if clip is None or not self.mood.startswith("agent"):
            return clip
        if self.mood == "agent length":
            return replace(clip, audio=clip.audio[:-1])
        if self.mood == "agent channels":
            return replace(clip, audio=np.repeat(clip.audio, 2, axis=1))
        audio = clip.audio.copy()
        audio[len(audio) // 3] = np.nan
        return replace(clip, audio=audio)


class FaultPort(ProcessPort):
    """The shipped port, with a worker behind it that lives in virtual time and follows a script.

    Parameters
    ----------
    config, arena, spec, heard, log
        As for the port and for a worker.
    build
        Makes an agent: one for each generation. An agent that is ``deaf`` (an attribute) is spared listening.
    script
        What goes wrong.
    answer_frames
        How long a good answer takes; less than the budget.

    Attributes
    ----------
    told
        By bar and beat, what was asked and what became of it; whoever reads it throws away what is old.
    down
        From and to which frame nobody was on duty.
    struck
        Questions struck, by kind of fault.
    """

    def __init__(
        self,
        config: AgentConfig,
        arena: Arena,
        spec: StreamSpec,
        heard: RingHeard,
        log: Log,
        *,
        build: Callable[[], Agent],
        script: FaultScript = no_faults,
        answer_frames: int = 0,
    ) -> None:
        super().__init__(config, arena, _NoWake(), spec.samplerate, log)  # type: ignore[arg-type]
        self.now: Callable[[], int] = lambda: 0  # set by the stage: the mixing cursor
        self.told: dict[tuple[int, Fraction], list[Told]] = {}
        self.down: deque[tuple[int, int]] = deque(maxlen=64)
        self.struck: Counter[str] = Counter()
        self._spec, self._past, self._build, self._script = spec, heard, build, script
        self._answer_frames = answer_frames
        self._questions = arena.records(f"{config.name}.requests")
        self._answers = arena.records(f"{config.name}.replies")
        self._slots, self._chair = arena[f"{config.name}.clips"], arena[f"{config.name}.seat"]
        self._state = StateCell(arena, config.name)
        self._blocks = [arena.status(f"{config.name}.worker{parity}") for parity in (0, 1)]
        self._out: list[tuple[int, int, bytes, int, Block | None]] = []  # due, order, record, slot, sound
        self._inbox: list[tuple[str, Any, int]] = []  # what came in a stall
        self._once: deque[tuple[int, Fraction, str]] = deque(maxlen=16)  # spans that a worker stalled or died in
        self._stalled_until = self._busy_until = -1
        self._dies = self._returns = NEVER
        self._down_frames = self._serial = 0
        self._earlier: dict[str, Any] | None = None
        self._serve(0)

    # The engine's side

    def post(self, request: SpanRequest) -> str:
        """Send a question; the worker looks at it at once, or when it can."""
        now = self.now()
        self._work(now)
        why = super().post(request)
        if not why:
            self.told.setdefault((request.span.bar, request.span.beat), []).append(Told(request.attempt, now))
            self._receive("play", _unsealed(request), now)
        return why

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the worker what sounded."""
        now = self.now()
        self._work(now)
        super().confirm(span, origin)
        self._receive("confirm", (span, _opened(origin)), now)

    def take(self, now: int) -> Reply | None:
        """Let the worker do what it does up to now; return the next reply that is in."""
        self._work(now)
        return super().take(now)

    def next_due(self) -> int:
        """Return when something will happen behind the port: here time is virtual."""
        stall = self._stalled_until if self._inbox and self._stalled_until < self._dies else NEVER
        return min(self._out[0][0] if self._out else NEVER, self._dies, self._returns, stall)

    def behind(self, frame: int) -> bool:
        """Whether at a frame places for clips were held because of a fault: by answers that were overdue, or that
        never came and after which no good one has.
        """
        if frame < self._stalled_until:
            return True
        asked = [told for questions in self.told.values() for told in questions if told.posted <= frame]
        latest = max((told.posted for told in asked if told.due <= frame), default=-1)
        return any(told.fault and (told.sent > frame or told.posted > latest) for told in asked)

    def end(self, now: int, down_frames: int) -> None:
        """End the process on duty, as the bridge does with one that is no good; nothing if nobody is on duty."""
        if self._returns == NEVER:
            self._down_frames = down_frames
            self._die(now)

    # The worker's side

    def _receive(self, kind: str, content: Any, now: int) -> None:
        record = self._questions.take()
        if record is None or self._returns < NEVER:
            return  # the queue was full, or nobody is there to read it
        slot = next(reversed(self._asked)) if kind == "play" else -1  # as the record says, which takes long to read
        if now >= self._stalled_until:
            self._do(kind, content, slot, now)
        else:
            self._inbox.append((kind, content, slot))
        if kind == "play" and now < self._stalled_until:
            self._told(content).fault = "hang" if self._dies < NEVER else "stall"

    def _told(self, request: SpanRequest) -> Told:
        asked = self.told.get((request.span.bar, request.span.beat), [])
        return next((told for told in reversed(asked) if told.attempt == request.attempt), Told(request.attempt, 0))

    def _work(self, now: int) -> None:
        """Do everything that is due by frame ``now``, in order of time."""
        while (due := self.next_due()) <= now:
            if due == self._dies:
                self._die(due)
            elif due == self._returns:
                self._serve(due)
            elif self._out and due == self._out[0][0]:
                _, _, record, slot, sound = self._out.pop(0)
                if sound is not None:
                    self._slots[slot].reshape(-1)[: sound.size] = sound.reshape(-1)
                self._answers.post(record)
            else:
                inbox, self._inbox = self._inbox, []
                for kind, content, slot in inbox:
                    self._do(kind, content, slot, due)

    def _do(self, kind: str, content: Any, slot: int, now: int) -> None:
        if kind == "confirm":
            self._runner.confirm(*content)
            self._state.write(self._runner.agent.snapshot())
            return
        request: SpanRequest = content
        told, fault = self._told(request), self._fault_for(request)
        if fault is not None:
            told.fault = fault.kind
            self.struck[fault.kind] += 1
            if fault.kind in ("stall", "hang"):
                self._stalled_until = min(NEVER, now + fault.frames)
                self._inbox.append(("play", request, slot))
            if fault.kind in ("kill", "hang"):
                self._dies, self._down_frames = now + fault.frames, fault.down
            if fault.kind in ("stall", "hang"):
                return
        self._answer(request, slot, now, told, fault)

    def _fault_for(self, request: SpanRequest) -> Fault | None:
        fault = self._script(request)
        if fault is None or request.attempt not in fault.attempts:
            return None
        if fault.kind in ("stall", "hang", "kill"):  # one is enough for a span: it is asked again
            place = (request.span.bar, request.span.beat, fault.kind)
            if place in self._once or self._dies < NEVER:
                return None
            self._once.append(place)
        return fault

    def _answer(self, request: SpanRequest, slot: int, now: int, told: Told, fault: Fault | None) -> None:
        kind = fault.kind if fault is not None else ""
        agent: Any = self._runner.agent
        if agent.deaf:
            self._runner.skip_to(request.context_end)
        agent.mood = kind
        reply = self._runner.play(request)
        agent.mood = ""
        due = now if kind == "early" else now + self._answer_frames
        if fault is not None and kind == "late":
            due = now + fault.frames
        record, sound = self._record(reply, slot)
        if due < self._busy_until:  # one after the other: what an earlier answer took is missing here
            due, told.fault = self._busy_until, told.fault or "late"
        self._busy_until = told.sent = due
        if kind in RUBBISH:
            self._send(due, *self._spoilt(kind, record, sound, request))
            return
        told.rests = reply.clip is None
        if reply.fault:
            told.fault = told.fault or "the agent's own"
        else:
            told.due, self._earlier = due, record
        self._send(due, record, slot, sound)
        if kind == "twice":
            self._send(due, record, slot, sound)

    def _send(self, due: int, record: dict[str, Any] | bytes, slot: int, sound: Block | None) -> None:
        self._serial += 1
        data = record if isinstance(record, bytes) else to_bytes(record)
        self._out.append((due, self._serial, data, slot, sound))
        self._out.sort(key=lambda entry: entry[:2])

    @staticmethod
    def _record(reply: Reply, slot: int) -> tuple[dict[str, Any], Block | None]:
        """Return a reply as a worker puts it, and its sound."""
        record: dict[str, Any] = {
            "span": encode(reply.span), "attempt": reply.attempt, "slot": slot, "fault": reply.fault,
            "compute_seconds": 0.0, "origin": None,
        }  # fmt: skip
        if reply.clip is None:
            return record, None
        sound = np.ascontiguousarray(reply.clip.audio)
        record |= {"origin": encode(reply.clip.origin), "frames": len(sound), "lead_in": reply.clip.lead_in,
                   "checksum": checksum(sound)}  # fmt: skip
        return record, sound

    def _spoilt(
        self, kind: str, record: dict[str, Any], sound: Block | None, request: SpanRequest
    ) -> tuple[dict[str, Any] | bytes, int, Block | None]:
        """Return what a process that has gone wrong sends instead: record, slot, sound."""
        slot = int(record["slot"])
        earlier = self._earlier
        if kind == "garbage":
            return b'{"span": [[[', slot, None
        if kind == "stale":
            return (earlier or record | {"attempt": 7}), slot, None
        if kind == "span":
            return record | {"span": encode(replace(request.span, bar=request.span.bar + 1))}, slot, sound
        if kind == "slot":
            return record | {"slot": 10**6}, slot, None
        if sound is None:
            return record, slot, None
        if kind == "torn":
            return record | {"checksum": record["checksum"] ^ 1}, slot, sound
        if kind == "nan":
            sound = sound.copy()
            sound[len(sound) // 2] = np.nan
        elif kind == "length":
            sound = sound[:-1]
        elif kind == "lead-in":
            record = record | {"lead_in": record["lead_in"] + 10**5}
        return record | {"frames": len(sound), "checksum": checksum(sound)}, slot, sound

    def _die(self, now: int) -> None:
        for asked in self.told.values():
            for told in asked:
                if told.sent > now:
                    told.sent, told.due, told.fault = NEVER, NEVER, "kill"
        self._out.clear()
        self._inbox.clear()
        self._stalled_until, self._busy_until, self._dies = -1, -1, NEVER
        self._returns = now + self._down_frames
        self.down.append((now, self._returns))

    def _serve(self, now: int) -> None:
        """Put the next generation on duty, with the state that the one before left."""
        generation = int(self._chair[ON_DUTY]) + (self._returns < NEVER)
        self._returns = NEVER
        agent: Any = MoodyAgent(self._build())
        self._runner = AgentRunner(agent, self._config, self._spec, self._past)
        state = self._state.read() if generation else None
        if state is not None:
            agent.restore(state)
        settled = self._past.settled(self._config.name, self._spec.lead)
        self._runner.skip_to(settled if agent.deaf else settled - HEAR_BACK_SECONDS * self._spec.samplerate)
        self._runner.hear_up_to(settled)
        block = self._blocks[generation % 2]
        block.publish(state=STATE_LOADING, generation=generation)
        block.publish(state=STATE_ARMED, continues=self._runner.continues, warm_up_runs=1)
        self._chair[ON_DUTY] = generation


# A band on private memory


def _opened(origin: Origin | None) -> Origin | None:
    """Open an origin that came sealed from a worker, as the way to another process would."""
    return decode(Origin, json.loads(origin.text)) if isinstance(origin, Sealed) else origin


def _unsealed(request: SpanRequest) -> SpanRequest:
    plans = tuple(replace(plan, origin=_opened(plan.origin)) for plan in request.plans)
    return replace(request, after=_opened(request.after), plans=plans)


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


# Who accounts

FULL = ("no free clip slot", "request queue full")
GONE = ("lost", "loading", "not asked")
CAUSES: Mapping[str, tuple[str, ...]] = {
    "raises": ("ArithmeticError",),
    "agent nan": ("NaN",),
    "agent length": ("clip of",),
    "agent channels": ("clip of",),
    "agent type": ("str where a Clip",),
    "nan": ("NaN",),
    "length": ("clip of",),
    "lead-in": ("a lead-in of", "clip of"),
    "torn": ("checksum",),
    "span": ("another question", "late"),
    "stale": ("another question", "late"),
    "slot": ("another question", "late"),
    "garbage": ("late",),
    "late": ("late",),
    "stall": ("late",),
    "hang": ("late", *GONE),
    "kill": ("late", *GONE),
    "the agent's own": ("",),
}
"""What the take may give as the cause where a final question was struck; ``late`` also for whatever came too late."""


class Account:
    """Holds every decision in the take against what really happened behind the :class:`FaultPort` of an agent.

    The rung must be the best answer that was in by then, on the design's ladder, found here from what the workers
    sent and not from what the engine believes. Where that is not the final answer, its question must have been
    struck, or nobody was there to ask; and the cause in the take must be the one.

    Attributes
    ----------
    spans
        How many were judged, by rung.
    causes
        How many for each fault that struck.
    unexplained
        What does not agree: a sentence each, at most 100.
    """

    def __init__(self, ports: Mapping[str, FaultPort]) -> None:
        self._ports = ports
        self._good: set[str] = set()
        self.spans: Counter[int] = Counter()
        self.causes: Counter[str] = Counter()
        self.joins = self.wrong = 0
        self.unexplained: list[str] = []

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of the take."""
        if line.get("agent") not in self._ports:
            return
        if line["type"] == "span":
            self._judge(line, self._ports[line["agent"]])
        elif line["type"] == "join":
            self.joins += 1
            self._good.add(line["agent"])
            asked = self._ports[line["agent"]].told.get((line["bar"], Fraction(line["beat"])), [])
            if not any(told.attempt == line["attempt"] and told.due <= line["arrived"] for told in asked):
                self._wonder(line, "an answer was joined late that was not in")

    def _wonder(self, line: Mapping[str, Any], why: str) -> None:
        self.wrong += 1
        if len(self.unexplained) < 100:
            place = f"{line['agent']} bar {line['bar']} beat {line['beat']}"
            self.unexplained.append(f"{place}: {why}; the take says {dict(line)}")

    def _judge(self, line: Mapping[str, Any], port: FaultPort) -> None:
        agent, rung, cause, decided = line["agent"], line["rung"], line["cause"], line["decided"]
        self.spans[rung] += 1
        asked = port.told.get((line["bar"], Fraction(line["beat"])), [])
        good = {told.attempt: told for told in asked if told.due <= decided}
        finals = [told for told in asked if told.attempt == FINAL]
        expected = self._expected(good, agent in self._good, bool(finals))
        if rung != expected:
            self._wonder(line, f"rung {expected} was due ({[_words(told) for told in asked]})")
        elif FINAL in good:
            if cause:
                self._wonder(line, "a cause, though the final answer was in")
        else:
            self._explain(line, port, finals, cause)
        if rung in (1, 2, 3):
            self._good.add(agent)
        for place in [place for place in port.told if place[0] < line["bar"] - 12]:
            del port.told[place]

    @staticmethod
    def _expected(good: Mapping[int, Told], played: bool, asked: bool) -> int:
        for attempt, rung in ((FINAL, 1), (SPECULATIVE, 2)):
            if attempt in good:
                return 0 if good[attempt].rests else rung
        if CONTINUATION in good and not good[CONTINUATION].rests:
            return 3
        if played:
            return 4
        return 5 if asked else 0

    def _explain(self, line: Mapping[str, Any], port: FaultPort, finals: list[Told], cause: str) -> None:
        since = line["start"] - 3 * line["frames"]
        away = any(begin <= line["decided"] and end >= since for begin, end in port.down)
        struck = finals[-1].fault if finals else ""
        late = finals and finals[-1].sent > line["decided"] and cause == "late"
        if struck and (late or any(words in cause for words in CAUSES.get(struck, ()))):
            self.causes[struck] += 1
        elif away and cause in ("late", *GONE, *FULL):
            self.causes["kill"] += 1
        elif cause in FULL and port.behind(line["hops"]["request"][1]):
            self.causes["stall"] += 1
        else:
            self._wonder(line, f"no fault explains it ({[_words(told) for told in finals]})")


def _words(told: Told) -> str:
    due = "never" if told.due == NEVER else told.due
    return f"attempt {told.attempt} posted {told.posted} in {due} {told.fault}".strip()
