"""Where agents run: in a process of their own when live, in the engine's own when time is virtual.

:class:`AgentRunner` holds one agent and does what the contract says; both kinds of port drive it, so the agent
cannot tell them apart. A worker opens the corpora and models, is niced, and may be late, hang or die: that costs its
own stem a rung of the ladder. The engine's end (:class:`ProcessPort`) never waits: it posts records, reads records,
and says which clip slot an answer goes into, so that no slot is written by two.

An agent's processes come one after the other; each is a *generation*. The one on duty answers, and leaves its state
in shared memory whenever it has changed. The next one stands by: it has loaded and listens. When the bridge has made
sure that the one on duty is dead it puts the next one's number on the seat, and that one takes up the state and the
queues. So at any time one process writes each of them.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib
import json
import os
import signal
import threading
import time
import typing
import zlib
from _thread import interrupt_main
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from multiprocessing.synchronize import Semaphore
from typing import Any, cast

import numpy as np

from realtime.buffers import (
    Arena,
    ArenaHandle,
    AudioRing,
    Layout,
    RecordRing,
    StatusBlock,
    checksum,
    join_frames,
    numbers,
    record_layout,
    status_layout,
)
from realtime.clock import TempoMap
from realtime.messages import decode, encode, seal, to_bytes
from realtime.protocols import HOP_FRAMES, Agent, Block, Clip, Continues, Log, Origin, Span, SpanRequest, StreamSpec
from realtime.scheduler import (
    CONTINUATION,
    FINAL,
    NO_SLOT,
    QUEUE_FULL,
    SUPERSEDED,
    TOO_LONG,
    Reply,
    clip_fault,
    next_span,
    span_seed,
)
from realtime.voice import NEVER

AGENTS = {
    "echo": "realtime.agents.echo:EchoAgent",
    "corpus": "realtime.agents.corpus:CorpusAgent",
}
"""Kinds of agent a session can name, and where they are."""

SLOTS = 10
"""Clips of one agent that may be alive at once: three asked for the coming span and one beyond it, the one that
sounds and two that may still come for it, the last good one, two in a crossfade."""
STATE_BYTES = 512 * 1024
"""Room for an agent's state, twice: the last one stays whole while the next is written."""
RECORD_BYTES = 64 * 1024
TEXT_BYTES = 2048
"""A sentence for the user. It goes to the bridge on a way of its own, as every queue has one reader."""
FAULT_CHARS = 1000
CONFIRMS_KEPT = 8
"""So many spans back a successor is told again what sounded."""
REPLIES_A_FRAME = 2 * SLOTS
"""An agent that answers what it was asked never sends more at once."""
LONGEST_SECONDS = 3600.0
"""No agent says in earnest that it took longer."""
HAND_OVER_SECONDS = 0.005
"""Added to every budget: the engine's wake interval on either side of the worker."""
IDLE_SECONDS = 0.02
"""How often a worker that has nothing to answer listens: what is left to hear when it is asked delays its answer."""
HOPS_A_TURN = 64
"""So much is heard between two signs of life, and before the inbox is looked at again."""
STANDBY_SECONDS = 0.25
"""How often one that stands by looks whether the session is over."""
HEAR_BACK_SECONDS = 24
"""How much of the past a process hears that comes into a session that plays without a state to take up."""
BUDGET_MARGIN = 1.5
RECENT_REPLIES = 128
LEAST_REPLIES = 32
"""Answers seen before their times replace those of the warm-up."""
BUDGET_CHANGE = 0.1
"""A budget that moves by less than this share is not worth a line in the take."""
WARM_UP_RUNS = 200
WARM_UP_SECONDS = 0.4
STANDBY_RUNS = 3
NICE, NICE_STANDBY = 5, 10
STATE_LOADING, STATE_MEASURED, STATE_ARMED, STATE_FAILED = range(4)
"""States of a worker: it loads; it is timed and stands by; it is on duty; it cannot be used."""
LOADING_CPU_SECONDS = 120.0
"""What a file may cost at most to be opened."""
NO_SPAN = Span(-1, Fraction(0), Fraction(0))
ENDING, ON_DUTY, ADMITTED = range(3)
"""Places on an agent's seat, which only the bridge writes: whether all go home, the generation on duty, whether the
agent was admitted to the band."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent of a session, ready to be built anywhere.

    Attributes
    ----------
    name, kind
        The stem's name; a key of :data:`AGENTS`.
    channels
        Width of the stem.
    options
        Passed to the agent's class by name; plain values.
    listens
        ``"input"`` or the name of another agent.
    budget_seconds
        Time it may take for a span; 0 lets a worker measure it.
    """

    name: str
    kind: str
    channels: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    listens: str = "input"
    budget_seconds: float = 0.0


def agent_class(kind: str) -> type[Agent]:
    """Import and return the class of a kind of agent, or of ``"module:Class"``, which no session file may name.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind not in AGENTS and ":" not in kind:
        raise ValueError(f"agent kind {kind!r} is not known; there are {', '.join(sorted(AGENTS))}")
    module, _, name = AGENTS.get(kind, kind).partition(":")
    return cast("type[Agent]", getattr(importlib.import_module(module), name))


def build_agent(config: AgentConfig) -> Agent:
    """Make the agent of a session's entry; it still has to be prepared.

    Raises
    ------
    ValueError
        In one sentence that names the agent, if an option is unknown or its value cannot be used.
    """
    kind = agent_class(config.kind)
    _check_options(config, typing.get_type_hints(kind.__init__))
    try:
        return kind(**config.options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"agent {config.name!r}: {error}") from None


_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}


def _check_options(config: AgentConfig, allowed: Mapping[str, Any]) -> None:
    names = sorted(set(allowed) - {"return", "corpus", "model", "channels", "source"})  # these are keys of their own
    for option, value in config.options.items():
        if option not in allowed:
            near = difflib.get_close_matches(option, names, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"agent {config.name!r}: the kind {config.kind} takes no {option!r}; "
                f"its options are: {', '.join(names) or 'none'}{meant}"
            )
        kind = allowed[option]
        fits = isinstance(value, (int, float) if kind is float else kind) if kind in _PLAIN else True
        if not fits or (isinstance(value, bool) and kind in (int, float)):
            raise ValueError(f"agent {config.name!r}: option {option} is {value!r}; it takes {_PLAIN[kind]}")


class RingHeard:
    """The past as the rings hold it, shared or private."""

    def __init__(self, inputs: AudioRing, stems: Mapping[str, AudioRing]) -> None:
        self._inputs = inputs
        self._stems = stems

    def input(self, start: int, end: int) -> Block:
        """Return the input in ``[start, end)``."""
        return self._inputs.read(start, end)

    def stem(self, agent: str, start: int, end: int) -> Block:
        """Return an agent's stem in ``[start, end)``."""
        return self._stems[agent].read(start, end)

    def settled(self, agent: str, lead: int) -> int:
        """Return how far an agent may hear already: every request that comes from now on knows at least so much.

        A request is made where the stems end, or later, and knows what was heard ``lead`` frames before that, as
        :class:`realtime.scheduler.LiveTiming` says.
        """
        return min(self._inputs.written, self._stems[agent].written - lead)

    def listen(self, source: str, start: int, end: int) -> Block:
        """Return what an agent that listens to ``source`` hears."""
        return self.input(start, end) if source == "input" else self.stem(source, start, end)


class UpTo:
    """A view of the past that ends where the agent's knowledge does: later frames are zeros."""

    def __init__(self, heard: RingHeard, end: int) -> None:
        self._heard = heard
        self._end = end

    def input(self, start: int, end: int) -> Block:
        """Return the input in ``[start, end)``, zeros from the end of knowledge on."""
        return self._cut(self._heard.input(start, end), start)

    def stem(self, agent: str, start: int, end: int) -> Block:
        """Return an agent's stem in ``[start, end)``, zeros from the end of knowledge on."""
        return self._cut(self._heard.stem(agent, start, end), start)

    def _cut(self, block: Block, start: int) -> Block:
        block[max(0, self._end - start) :] = 0
        return block


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:FAULT_CHARS]


class Superseded(BaseException):
    """Ends a speculative answer whose final question is there. No ``Exception``: an agent must not catch it."""


class AgentRunner:
    """One agent and what it has heard. One thread.

    Parameters
    ----------
    agent
        Already built; it is prepared here.
    config, spec
        The session's.
    heard
        The rings it listens to.
    """

    def __init__(self, agent: Agent, config: AgentConfig, spec: StreamSpec, heard: RingHeard) -> None:
        self.agent, self.config, self._spec, self._heard = agent, config, spec, heard
        self.playing: SpanRequest | None = None  # what the agent works at; only then may it be interrupted
        self.given_up: Callable[[SpanRequest], bool] = lambda request: False
        self._next_hop = 0
        self._trouble = ""  # what went wrong since the last answer, to be told with the next
        agent.prepare(spec)

    @property
    def continues(self) -> bool:
        """Whether the agent can carry on from its last span."""
        return hasattr(self.agent, "carry_on")

    def play(self, request: SpanRequest, origin: Origin | None = None) -> Reply:
        """Let the agent hear up to the request's context, then play; with ``origin``, make that decision's sound."""
        begin = time.perf_counter()
        clip, fault = None, ""
        try:
            self.hear_up_to(request.context_end)
            request = replace(request, heard=UpTo(self._heard, request.context_end))
            try:
                self.playing = request
                if self.given_up(request):  # looked at once it can be interrupted: no word is lost in between
                    raise Superseded
                clip = self._answer(request, origin)
            finally:
                self.playing = None
            fault = self._trouble or self._fault(clip, request)
        except Superseded:
            self.playing, clip, fault = None, None, SUPERSEDED
        except Exception as error:  # noqa: BLE001 - an agent may fail in any way; it costs its stem a rung, and is told
            clip, fault = None, _words(error)
        self._trouble = ""
        return Reply(request.span, request.attempt, None if fault else clip, fault, time.perf_counter() - begin)

    def _answer(self, request: SpanRequest, origin: Origin | None) -> Clip | None:
        if origin is not None:
            return self.agent.realise(request, origin)
        if request.attempt == CONTINUATION:
            return cast(Continues, self.agent).carry_on(request)
        return self.agent.play(request)

    def skip_to(self, frame: int) -> None:
        """Leave out what was to be heard before ``frame``."""
        self._next_hop = max(self._next_hop, frame // HOP_FRAMES)

    def snapshot(self) -> bytes:
        """Return the agent's state, and how far it has heard."""
        return self._next_hop.to_bytes(8, "little") + self.agent.snapshot()

    def restore(self, state: bytes) -> None:
        """Take up what :meth:`snapshot` gave: what was heard since is heard again."""
        self.agent.restore(state[8:])
        self._next_hop = int.from_bytes(state[:8], "little")

    def hear_up_to(self, end: int, most: int = 1 << 62) -> int:
        """Feed the agent each whole hop that ends by frame ``end``, once and ``most`` at a time; return how many.
        If the agent fails, its next answer does.
        """
        first = self._next_hop
        while (self._next_hop + 1) * HOP_FRAMES <= end and self._next_hop - first < most:
            frame = self._next_hop * HOP_FRAMES
            self._next_hop += 1
            try:
                self.agent.hear(self._heard.listen(self.config.listens, frame, frame + HOP_FRAMES), frame)
            except Exception as error:  # noqa: BLE001 - as in play
                self._trouble = f"while it listened: {_words(error)}"
        return self._next_hop - first

    def trouble(self, text: str) -> None:
        """Let the next answer fail, with these words."""
        self._trouble = text

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the agent what sounded; if it fails, its next answer does."""
        try:
            self.agent.confirm(span, origin)
        except Exception as error:  # noqa: BLE001 - as in play
            self._trouble = f"while it was told what sounded: {_words(error)}"

    def _fault(self, clip: Clip | None, request: SpanRequest) -> str:
        if clip is None:
            return ""
        if not isinstance(clip, Clip):
            return f"{type(clip).__name__} where a Clip or None was asked for"
        if not isinstance(clip.origin, Origin):
            return f"a clip with {clip.origin!r} where an Origin was asked for"
        encode(clip.origin)  # it has to travel
        if not isinstance(clip.lead_in, int | np.integer):
            return f"a lead-in of {clip.lead_in!r} where a whole number of frames was asked for"
        return clip_fault(clip, request, self.config.channels, join_frames(self._spec.samplerate))


class InlinePort:
    """A port whose agent runs in this process, at once, while virtual time stands still.

    Parameters
    ----------
    runner
        The agent.
    budget_frames
        What the agent is held to take.
    delay
        Frames from posting to the reply's arrival, per request; ``NEVER`` for one that never comes. A test's fault
        script, or a replay's record. By default replies are in at once.
    """

    def __init__(
        self, runner: AgentRunner, budget_frames: int, delay: Callable[[SpanRequest], int] = lambda request: 0
    ) -> None:
        self._runner, self._budget_frames, self._delay = runner, budget_frames, delay
        self._due: list[tuple[int, Reply]] = []
        self.now: Callable[[], int] = lambda: 0  # set by the engine: its mixing cursor

    def armed(self) -> bool:
        """Return True: what runs here was prepared before time began."""
        return True

    def continues(self) -> bool:
        """Whether the agent can carry on from its last span."""
        return self._runner.continues

    def generation(self) -> int:
        """Return 0: nothing dies here."""
        return 0

    def renew(self) -> int:
        """Return 0."""
        return 0

    def budget_frames(self) -> int:
        """Return the budget given."""
        return self._budget_frames

    def post(self, request: SpanRequest) -> str:
        """Answer now; the reply is in after the scripted delay."""
        reply = self._answer(request)
        if (delay := self._delay(request)) < NEVER:
            self._due.append((self.now() + delay, reply))
            self._due.sort(key=lambda due: due[0])
        return ""

    def _answer(self, request: SpanRequest) -> Reply:
        return self._runner.play(request)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the agent."""
        self._runner.confirm(span, origin)

    def take(self, now: int) -> Reply | None:
        """Return the next reply due."""
        return self._due.pop(0)[1] if self._due and self._due[0][0] <= now else None

    def ready(self) -> bool:
        """Return False: when a reply is due is known."""
        return False

    def next_due(self) -> int:
        """Return when the next reply is due."""
        return self._due[0][0] if self._due else NEVER

    def release(self, reply: Reply) -> None:
        """Do nothing: the clip is ordinary memory."""


# The live way: two queues of records, a table of clip slots, a place for the state, one wake-up.

_STATUS = {
    "state": "i8",
    "generation": "i8",
    "heartbeat_ns": "i8",
    "busy_since_ns": "i8",  # 0: it has nothing to answer
    "budget_seconds": "f8",
    "final_seconds": "f8",  # the longest of the warm-up
    "speculative_seconds": "f8",
    "continuation_seconds": "f8",
    "usual_seconds": "f8",  # of the processor, for one span with all that is asked for it
    "continues": "i8",
    "warm_up_runs": "i8",
    "spans": "i8",
    "faults": "i8",
    "snapshot_bytes": "i8",
    "pid": "i8",
}


def worker_layout(config: AgentConfig, spec: StreamSpec, longest_span_frames: int) -> Layout:
    """Return the shared arrays of one agent's processes."""
    frames = longest_span_frames + join_frames(spec.samplerate)
    return {
        **record_layout(f"{config.name}.requests", 32, RECORD_BYTES),
        **record_layout(f"{config.name}.replies", 32, RECORD_BYTES),
        **record_layout(f"{config.name}.text", 4, TEXT_BYTES),
        **status_layout(f"{config.name}.worker0", _STATUS),  # of the even generations; one stands by while one serves
        **status_layout(f"{config.name}.worker1", _STATUS),
        f"{config.name}.state.data": (np.dtype("u1"), (2, STATE_BYTES)),
        f"{config.name}.state.head": (np.dtype("i8"), (2, 4)),
        f"{config.name}.seat": (np.dtype("i8"), (8,)),  # written by the bridge
        f"{config.name}.clips": (np.dtype("f4"), (SLOTS, frames, config.channels)),
    }


def _budget_of(status: Mapping[str, Any]) -> float:
    """Return the budget that a worker says it measured; one that makes no sense is a second."""
    seconds = float(status["budget_seconds"])
    return seconds if 0 <= seconds <= LONGEST_SECONDS else 1.0


class StateCell:
    """The latest state of an agent, as its process on duty left it. One writer at a time.

    Two places are written in turn, each with a stamp before and after and a checksum: a process that dies while it
    writes leaves the state before.
    """

    def __init__(self, arena: Arena, name: str) -> None:
        self._data, self._head = arena[f"{name}.state.data"], arena[f"{name}.state.head"]

    def write(self, state: bytes) -> bool:
        """Keep a state; return False if it is too large, and none is kept then."""
        if len(state) > self._data.shape[1]:
            return False
        stamp = int(self._head[:, 3].max()) + 1
        head = self._head[stamp % 2]
        head[0] = stamp
        self._data[stamp % 2, : len(state)] = np.frombuffer(state, np.uint8)
        head[1], head[2], head[3] = len(state), zlib.crc32(state), stamp
        return True

    def read(self) -> bytes | None:
        """Return the newest state that is whole, ``None`` if there is none."""
        for at in np.argsort(-self._head[:, 3]):
            before, length, crc, after = (int(value) for value in self._head[at])
            state = self._data[at, : max(0, min(length, self._data.shape[1]))].tobytes()
            if before == after > 0 and zlib.crc32(state) == crc:
                return state
        return None


class ProcessPort:
    """The engine's end of the way to an agent's processes. Engine thread only; never waits, never trusts."""

    def __init__(self, config: AgentConfig, arena: Arena, wake: Semaphore, samplerate: int, log: Log) -> None:
        self._requests: RecordRing = arena.records(f"{config.name}.requests")
        self._replies: RecordRing = arena.records(f"{config.name}.replies")
        self._statuses: list[StatusBlock] = [arena.status(f"{config.name}.worker{parity}") for parity in (0, 1)]
        self._seat = numbers(arena[f"{config.name}.seat"])
        self._clips = arena[f"{config.name}.clips"]
        self._free = list(range(SLOTS))
        self._asked: dict[int, tuple[Span, int]] = {}  # what each slot was given out for
        self._config, self._wake, self._samplerate, self._log = config, wake, samplerate, log
        self._generation = 0
        self._armed = self._continues = False
        self._budget_seconds = self._told_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_REPLIES)
        self._lines: deque[dict[str, object]] = deque(maxlen=RECENT_REPLIES)
        self._confirmed: deque[bytes] = deque(maxlen=CONFIRMS_KEPT)
        self._taken, self._taken_at = 0, -1

    def armed(self) -> bool:
        """Whether the process on duty has loaded and serves."""
        if not self._armed and int(self._seat[ON_DUTY]) == self._generation:
            status = self._statuses[self._generation % 2].read()
            if status["state"] == STATE_ARMED and status["generation"] == self._generation:
                self._armed, self._continues = True, bool(status["continues"])
                self._budget_seconds = self._config.budget_seconds or self._budget_seconds or _budget_of(status)
                self._tell({"type": "armed", "budget_frames": self.budget_frames(), "generation": self._generation,
                            "warm_up_runs": status["warm_up_runs"]})  # fmt: skip
        return self._armed

    def continues(self) -> bool:
        """Whether the agent can carry on from its last span."""
        return self._continues

    def generation(self) -> int:
        """Return the generation that the bridge has put on the seat."""
        return int(self._seat[ON_DUTY])

    def renew(self) -> int:
        """Take up the generation on the seat: the one before is dead, and nobody will write into its slots.

        What it was told last is told again, as it may have died before it kept it.
        """
        self._generation, self._armed = self.generation(), False
        self._free += self._asked
        self._asked.clear()
        for record in self._confirmed:
            self._requests.post(record)
        return self._generation

    def budget_frames(self) -> int:
        """Return what the session says; else 1.5 times what answers took of late (all but one of 128), or in the
        warm-up as long as few were seen, and the hand-over.
        """
        if not self._armed and not self.armed():
            return 0
        seconds = self._budget_seconds
        if not self._config.budget_seconds:
            seconds += HAND_OVER_SECONDS
        return round(seconds * self._samplerate)

    def _learn(self, seconds: float) -> None:
        """Take in how long an answer took. One stall of the machine is no reason to listen earlier."""
        self._recent.append(seconds)
        if self._config.budget_seconds or len(self._recent) < 2:
            return
        ordered = sorted(self._recent)
        slow = BUDGET_MARGIN * ordered[-2]
        enough = len(self._recent) >= LEAST_REPLIES
        self._budget_seconds = slow if enough else max(slow, self._budget_seconds)
        if abs(self._budget_seconds - self._told_seconds) > BUDGET_CHANGE * self._told_seconds:
            self._told_seconds = self._budget_seconds
            self._tell({"type": "budget", "budget_frames": self.budget_frames(),
                        "p50_seconds": ordered[(len(ordered) - 1) // 2], "p99_seconds": ordered[-2]})  # fmt: skip

    def _tell(self, line: dict[str, object]) -> None:
        """Keep a line for the take until it is known which frame it is."""
        self._lines.append(line | {"agent": self._config.name})

    def post(self, request: SpanRequest) -> str:
        """Send the request with a place for its clip."""
        if request.frames + join_frames(self._samplerate) > self._clips.shape[1]:
            return "span longer than the clip memory"
        if not self._free:
            return NO_SLOT
        slot = self._free[-1]
        record = to_bytes({"play": request, "slot": slot, "generation": self._generation})
        if len(record) > RECORD_BYTES:
            return TOO_LONG
        if not self._requests.post(record):
            return QUEUE_FULL
        self._free.pop()
        self._asked[slot] = (request.span, request.attempt)
        self._wake.release()
        return ""

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the process on duty."""
        record = to_bytes({"confirm": span, "origin": origin})
        self._confirmed.append(record)
        self._requests.post(record)
        self._wake.release()

    def take(self, now: int) -> Reply | None:
        """Return the next reply that is in; its clip is a view of its slot, checked against its checksum.

        One that makes no sense, or is about another slot than its question's, answers nothing: it is returned as a
        fault of no span, and what it should have answered is late.
        """
        while self._lines:
            self._log(self._lines.popleft() | {"frame": now})
        self._taken = self._taken + 1 if now == self._taken_at else 0
        self._taken_at = now
        record = self._replies.take() if self._taken < REPLIES_A_FRAME else None  # of a flood the rest waits
        if record is None:
            return None
        try:
            if len(record) > RECORD_BYTES:
                raise ValueError(f"it has {len(record)} bytes")
            return self._reply(json.loads(record))
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as problem:
            return Reply(NO_SPAN, -1, None, f"an answer that makes no sense: {_words(problem)}"[:FAULT_CHARS])

    def _reply(self, message: dict[str, Any]) -> Reply:
        span, attempt, slot = decode(Span, message["span"]), int(message["attempt"]), int(message["slot"])
        fault, seconds = str(message["fault"])[:FAULT_CHARS], float(message["compute_seconds"])
        if not 0 <= seconds <= LONGEST_SECONDS:
            raise ValueError(f"it says that it took {seconds} seconds")
        if self._asked.get(slot) != (span, attempt):
            raise ValueError(f"it is for bar {span.bar} and slot {slot}, which is no question that waits")
        clip = None
        if message["origin"] is not None and not fault:
            audio = self._clips[slot, : int(message["frames"])]
            clip = Clip(audio, int(message["lead_in"]), seal(Origin, message["origin"]))
            if checksum(audio) != int(message["checksum"]):
                clip, fault = None, "the clip's checksum is wrong"
        self._over(slot)
        if not fault and attempt != CONTINUATION:  # what was given up says nothing about how long an answer takes
            self._learn(seconds)
        return Reply(span, attempt, clip, fault, seconds, slot)

    def _over(self, slot: int) -> None:
        """Note that a question is answered. Answers come in order: what was asked before it will have none."""
        for other in list(self._asked):
            del self._asked[other]
            if other == slot:
                return
            self._free.append(other)

    def ready(self) -> bool:
        """Whether there is news: a reply that was not taken yet, another generation, or one that is armed now."""
        return (
            self._replies.waiting
            or int(self._seat[ON_DUTY]) != self._generation
            or (not self._armed and self.armed())
        )

    def next_due(self) -> int:
        """Return ``NEVER``: real time does not say."""
        return NEVER

    def release(self, reply: Reply) -> None:
        """Give the clip's slot back."""
        if reply.slot is not None and reply.slot not in self._free:
            self._free.append(reply.slot)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process is started with.

    Attributes
    ----------
    agent, spec, stems, tempo_map, grid_beats
        The session's.
    generation
        Which of the agent's processes this is, from 0.
    measure
        Whether to time the agent; one that stands by for another that was timed is only warmed up.
    memory_bytes
        What it may use at most, 0 for no limit.
    """

    agent: AgentConfig
    spec: StreamSpec
    stems: tuple[str, ...]
    tempo_map: TempoMap
    grid_beats: Any  # Fraction
    generation: int = 0
    measure: bool = True
    memory_bytes: int = 0


def run_worker(handle: ArenaHandle, config: WorkerConfig, wake: Semaphore, call: Semaphore) -> None:
    """Be a worker process: load, warm up, stand by until called, then answer until told to stop.

    Parameters
    ----------
    handle
        The session's memory.
    config
        Who to be.
    wake
        Says that there is something to answer.
    call
        Says to one that stands by that the seat may be its own.
    """
    from realtime.foreign import lift_cpu_limit, limit_process  # the engine, which needs this module, needs no files

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to handle
    arena = Arena.attach(handle)
    worker = _Worker(arena, config, wake)
    if hasattr(os, "nice"):
        os.nice(NICE if worker.wanted else NICE_STANDBY)
    if not _uses_gpu(config.agent):
        limit_process(config.memory_bytes, LOADING_CPU_SECONDS)
    try:
        worker.load()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a user's corpus or model, it is told in words
        arena.records(f"{config.agent.name}.text").post(_about(config.agent.name, error).encode()[:TEXT_BYTES])
        worker.status.publish(state=STATE_FAILED)
        return
    lift_cpu_limit()
    gc.collect()
    gc.freeze()
    if worker.stand_by(call):
        worker.serve()


def _uses_gpu(agent: AgentConfig) -> bool:
    """Whether the agent's model may run on a GPU, whose driver reserves more memory than there is."""
    if "model" not in agent.options:
        return False
    from realtime.inference import missing_for

    return not missing_for("cuda")


class _Worker:
    """One of an agent's processes."""

    def __init__(self, arena: Arena, config: WorkerConfig, wake: Semaphore) -> None:
        name = config.agent.name
        self._config, self._wake, self._parent = config, wake, os.getppid()
        self._requests, self._replies = arena.records(f"{name}.requests"), arena.records(f"{name}.replies")
        self._clips, self._seat, self._state = arena[f"{name}.clips"], arena[f"{name}.seat"], StateCell(arena, name)
        self._heard = RingHeard(arena.ring("input"), {stem: arena.ring(f"stem.{stem}") for stem in config.stems})
        self.status = arena.status(f"{name}.worker{config.generation % 2}")
        self._inbox: deque[dict[str, Any]] = deque()
        self._spans = self._faults = 0
        self._changed = False  # since the state was kept
        self.status.publish(
            state=STATE_LOADING, generation=config.generation, pid=os.getpid(), heartbeat_ns=time.monotonic_ns(),
            busy_since_ns=0, spans=0, faults=0,
        )  # fmt: skip

    @property
    def wanted(self) -> bool:
        """Whether this one is to be timed, or waited for: its seat is empty."""
        return self._config.measure or self._seat[ON_DUTY] == self._config.generation

    def load(self) -> None:
        """Open the agent's files and time it."""
        config = self._config
        figures = warm_up(config)
        self._runner = AgentRunner(build_agent(config.agent), config.agent, config.spec, self._heard)
        self.status.publish(continues=self._runner.continues, **asdict(figures))

    def stand_by(self, call: Semaphore) -> bool:
        """Wait until it is this one's turn, then take up state and past; return False if its turn never comes."""
        self.status.publish(state=STATE_MEASURED, heartbeat_ns=time.monotonic_ns())
        while not (self._seat[ADMITTED] and self._seat[ON_DUTY] == self._config.generation):
            if self._over():
                return False
            call.acquire(timeout=STANDBY_SECONDS)
            self.status.publish(heartbeat_ns=time.monotonic_ns())
        if hasattr(os, "nice"):
            with contextlib.suppress(OSError):  # up again takes rights; without them it serves at the lower priority
                os.nice(NICE - os.nice(0))
        self._take_up_state()
        while self._listen(self._settled()):  # to what went by since, or while it loaded
            pass
        self.status.publish(state=STATE_ARMED, heartbeat_ns=time.monotonic_ns())
        return True

    def _take_up_state(self) -> None:
        """Go on where the one before left off; a state that does not fit costs nothing but that."""
        state = self._state.read() if self._config.generation else None
        try:
            if state is not None:
                self._runner.restore(state)
        except Exception as error:  # noqa: BLE001 - an agent may fail in any way; it starts afresh
            self._runner.trouble(f"while it took up its state: {_words(error)}")
        self._runner.skip_to(self._settled() - HEAR_BACK_SECONDS * self._config.spec.samplerate)

    def _settled(self) -> int:
        return self._heard.settled(self._config.agent.name, self._config.spec.lead)

    def _listen(self, settled: int) -> bool:
        """Hear a portion of what is settled, with a sign of life; return whether more is left."""
        heard = self._runner.hear_up_to(settled, HOPS_A_TURN)
        self.status.publish(heartbeat_ns=time.monotonic_ns())
        return heard == HOPS_A_TURN

    def _over(self) -> bool:
        return bool(self._seat[ENDING]) or os.getppid() != self._parent

    def serve(self) -> None:
        """Answer until all go home, or another generation is on the seat."""
        _interruptible(self._runner)
        self._runner.given_up = lambda request: _superseded(request, list(self._inbox))
        news = threading.Condition()
        threading.Thread(target=self._receive, args=(news,), daemon=True).start()
        while not self._over() and self._seat[ON_DUTY] == self._config.generation:
            settled = self._settled()  # looked at before the inbox is
            with news:
                if not self._inbox:
                    news.wait(IDLE_SECONDS)
            self.status.publish(heartbeat_ns=time.monotonic_ns())
            while not (self._inbox or self._requests.waiting) and self._listen(settled):
                pass
            while self._inbox:
                self._do(self._inbox.popleft())
            if self._changed:
                self._keep_state()

    def _receive(self, news: threading.Condition) -> None:
        """Take messages off the queue as they come, and end a speculative answer whose final question is there.

        Runs on a thread of its own, beside an agent that may be deep in a computation.
        """
        while True:
            self._wake.acquire()
            while (record := self._requests.take()) is not None:
                message = json.loads(record)
                with news:
                    self._inbox.append(message)
                    news.notify()
                playing = self._runner.playing
                if playing is not None and _superseded(playing, [message]):
                    _interrupt()

    def _do(self, message: dict[str, Any]) -> None:
        if "confirm" in message:
            origin = message["origin"]
            self._runner.confirm(decode(Span, message["confirm"]), None if origin is None else decode(Origin, origin))
            self._changed = True
            return
        if message["generation"] != self._config.generation:
            return  # asked of one that is dead; its slot was taken back
        request = decode(SpanRequest, message["play"])
        self.status.publish(busy_since_ns=time.monotonic_ns())
        if _superseded(request, list(self._inbox)):
            reply = Reply(request.span, request.attempt, None, SUPERSEDED)
        else:
            reply = self._runner.play(request)
        _send(reply, int(message["slot"]), self._clips, self._replies)
        self._spans += 1
        self._faults += bool(reply.fault) and reply.fault != SUPERSEDED
        self.status.publish(heartbeat_ns=time.monotonic_ns(), busy_since_ns=0, spans=self._spans, faults=self._faults)

    def _keep_state(self) -> None:
        """Leave the state where a successor finds it; done when nothing waits for an answer."""
        self._changed = False
        try:
            state = self._runner.snapshot()
            kept = self._state.write(state)
        except Exception as error:  # noqa: BLE001 - as in play
            self._runner.trouble(f"while it was asked for its state: {_words(error)}")
            return
        self.status.publish(snapshot_bytes=len(state) if kept else -1)


_INTERRUPT = getattr(signal, "SIGUSR1", None)
"""Sent by a worker to itself. Where there is no such signal a speculative answer is not cut short."""


def _interruptible(runner: AgentRunner) -> None:
    """Let :func:`_interrupt` end the speculative answer that the runner works at. Main thread."""

    def end_it(number: int, frame: object) -> None:
        if runner.playing is not None and runner.playing.attempt != FINAL:
            raise Superseded

    if _INTERRUPT is not None:
        signal.signal(_INTERRUPT, end_it)


def _interrupt() -> None:
    if _INTERRUPT is not None:
        interrupt_main(_INTERRUPT)


def _about(name: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(f"agent {name!r}") else f"agent {name!r}: {text}"


def _superseded(request: SpanRequest, later: Iterable[dict[str, Any]]) -> bool:
    """Whether a final question is there that an answer only made to be safe would keep waiting.

    A speculative answer gives way to the final one for its span or one before, a continuation to any.
    """
    if request.attempt == FINAL:
        return False
    finals = (message["play"] for message in later if "play" in message and message["play"]["attempt"] == FINAL)
    spans = [decode(Span, play["span"]) for play in finals]
    return any(
        request.attempt == CONTINUATION or (s.bar, s.beat) <= (request.span.bar, request.span.beat) for s in spans
    )


def _send(reply: Reply, slot: int, clips: np.ndarray[Any, np.dtype[np.float32]], replies: RecordRing) -> None:
    message: dict[str, Any] = {
        "span": encode(reply.span), "attempt": reply.attempt, "slot": slot, "fault": reply.fault,
        "compute_seconds": reply.compute_seconds, "origin": None,
    }  # fmt: skip
    if reply.clip is not None:
        frames = len(reply.clip.audio)
        clips[slot, :frames] = reply.clip.audio
        message |= {"origin": encode(reply.clip.origin), "frames": frames, "lead_in": reply.clip.lead_in,
                    "checksum": checksum(clips[slot, :frames])}  # fmt: skip
    record = to_bytes(message)
    if len(record) > replies.size_bytes:
        record = to_bytes(message | {"origin": None, "fault": "the clip's origin is too long to tell"})
    replies.post(record)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a warm-up found: how long an answer takes at most, in seconds, and the budget that follows.

    ``usual_seconds`` is the processor's time for a span as a rule, both answers and the continuation: what the
    machine or its other processes delayed does not count there.
    """

    budget_seconds: float
    final_seconds: float
    speculative_seconds: float
    continuation_seconds: float
    usual_seconds: float
    warm_up_runs: int


def warm_up(config: WorkerConfig) -> Figures:
    """Time an agent on this machine, beside whatever else runs there now.

    The budget is 1.5 times the longest of up to 200 runs, cut short after 0.4 seconds. The agent that is timed is a
    throw-away: it hears noise, and the one that plays starts fresh.
    """
    spec, tempo_map = config.spec, config.tempo_map
    span = next_span(None, config.grid_beats, tempo_map, 2)
    first = tempo_map.downbeat(span.bar) + span.beat
    start = tempo_map.frame_at(first)
    ring_frames = max(2 * start, spec.samplerate)
    noise = np.random.default_rng(1).normal(0, 0.1, (ring_frames, 1)).astype(np.float32)
    inputs = AudioRing.private(ring_frames, spec.inputs)
    inputs.write(0, np.repeat(noise, spec.inputs, axis=1))
    stem = AudioRing.private(ring_frames, config.agent.channels)
    stem.write(0, np.repeat(noise, config.agent.channels, axis=1))
    runner = AgentRunner(
        build_agent(config.agent), config.agent, spec, RingHeard(inputs, dict.fromkeys(config.stems, stem))
    )
    beats = range(-(-span.beats.numerator // span.beats.denominator))
    request = SpanRequest(
        agent=config.agent.name, span=span, start=start, frames=tempo_map.frame_at(first + span.beats) - start,
        beat_frames=tuple(tempo_map.frame_at(first + beat) - start for beat in beats),
        timeline=tempo_map.at_beat(first), context_end=start, seed=0,
    )  # fmt: skip
    runner.hear_up_to(start)
    answers, continuations, used = [], [0.0], []  # seconds that passed; seconds of the processor
    begin = time.perf_counter()
    for run in range(1, (WARM_UP_RUNS if config.measure else STANDBY_RUNS) + 1):
        busy = time.process_time()
        reply = _rehearsed(runner, replace(request, seed=span_seed(run, config.agent.name, span)))
        answers.append(reply.compute_seconds)
        used.append(time.process_time() - busy)
        if runner.continues and reply.clip is not None and run % 4 == 1:
            more = replace(request, attempt=CONTINUATION, after=reply.clip.origin)
            continuations.append(_rehearsed(runner, more).compute_seconds)
        if time.perf_counter() - begin > WARM_UP_SECONDS:
            break
    usual = 2 * sum(used) / run + min(continuations[1:], default=0.0)
    return Figures(BUDGET_MARGIN * max(answers), max(answers), max(answers), max(continuations), usual, run)


def _rehearsed(runner: AgentRunner, request: SpanRequest) -> Reply:
    reply = runner.play(request)
    if reply.fault:
        raise ValueError(f"it failed while it was warmed up: {reply.fault}")
    return reply
