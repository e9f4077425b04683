"""Workers in virtual time that are late, stall, die or answer rubbish, behind the engine's own end of the way there.

That end is the shipped one, with its queues, clip slots and checksums; what is played here is the worker's process.
Time is the mixing cursor, so a fault falls on its frame, and a day takes minutes. Nothing here looks an answer over:
that is the engine's business, and the proof.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from faults import RUBBISH, Fault, FaultScript, no_faults

from realtime.agents.echo import EchoAgent
from realtime.buffers import Arena, checksum
from realtime.messages import Sealed, decode, encode, to_bytes
from realtime.port import ProcessPort
from realtime.protocols import Agent, Block, Clip, Log, Origin, Span, SpanRequest, StreamSpec
from realtime.runner import AgentRunner, RingHeard
from realtime.scheduler import Reply
from realtime.seat import ON_DUTY, STATE_ARMED, STATE_LOADING, AgentConfig, StateCell
from realtime.voice import NEVER
from realtime.worker import HEAR_BACK_SECONDS


@dataclass(slots=True)
class Told:
    """One question as the worker saw it, and what became of it: the truth that the take is held against."""

    attempt: int
    posted: int
    fault: str = ""  # the kind that struck it
    sent: int = NEVER  # when anything came back
    due: int = NEVER  # when a good answer was in
    rests: bool = False


class _NoWake:
    """Stands in for a semaphore: nobody sleeps here."""

    def release(self) -> None:
        """Do nothing."""


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
            self._deliver("play", _unsealed(request), now)
        return why

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the worker what sounded."""
        now = self.now()
        self._work(now)
        super().confirm(span, origin)
        self._deliver("confirm", (span, _opened(origin)), now)

    def renew(self) -> int:
        """Take up the next generation, which reads at once what it is told again."""
        generation = super().renew()
        while self._questions.take() is not None:
            pass
        return generation

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

    def _deliver(self, kind: str, content: Any, now: int) -> None:
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
        unsent = {due for due, *_ in self._out}  # it dies before these leave it, due or not
        for asked in self.told.values():
            for told in asked:
                if told.sent > now or told.sent in unsent:
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


def _opened(origin: Origin | None) -> Origin | None:
    """Open an origin that came sealed from a worker, as the way to another process would."""
    return decode(Origin, json.loads(origin.text)) if isinstance(origin, Sealed) else origin


def _unsealed(request: SpanRequest) -> SpanRequest:
    plans = tuple(replace(plan, origin=_opened(plan.origin)) for plan in request.plans)
    return replace(request, after=_opened(request.after), plans=plans)
