"""Where agents run: in a process of their own when live, in the engine's own when time is virtual.

:class:`AgentRunner` holds one agent and does what the contract says; both kinds of port drive it, so the agent
cannot tell them apart. A worker opens the corpora and models, is niced, and may be late, hang or die: that costs its
own stem a rung of the ladder. The engine's end (:class:`ProcessPort`) never waits: it posts records, reads records,
and says which clip slot an answer goes into, so that no slot is written by two.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import json
import os
import time
import typing
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
    record_layout,
    status_layout,
)
from realtime.clock import TempoMap
from realtime.messages import decode, encode, to_bytes
from realtime.protocols import HOP_FRAMES, Agent, Block, Clip, Log, Origin, Span, SpanRequest, StreamSpec
from realtime.scheduler import Reply, next_span, span_seed
from realtime.voice import NEVER

AGENTS = {
    "echo": "realtime.agents.echo:EchoAgent",
    "corpus": "realtime.agents.corpus:CorpusAgent",
}
"""Kinds of agent a session can name, and where they are."""

SLOTS = 8
"""Clips of one agent that may be alive at once: two asked for, two in the sounding span, the last good ones, two in
a crossfade."""
RECORD_BYTES = 64 * 1024
TEXT_BYTES = 2048
"""A sentence for the user. It goes to the bridge on a way of its own, as every queue has one reader."""
FAULT_CHARS = 1000
HAND_OVER_SECONDS = 0.005
"""Added to every budget: the engine's wake interval on either side of the worker."""
IDLE_SECONDS = 0.02
"""How often a worker that has nothing to answer listens: what is left to hear when it is asked delays its answer."""
BUDGET_MARGIN = 1.5
RECENT_REPLIES = 32
WARM_UP_RUNS = 200
WARM_UP_SECONDS = 1.0
STATE_LOADING, STATE_ARMED, STATE_FAILED = 0, 1, 2


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
    """Import and return the class of a kind of agent.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind not in AGENTS:
        raise ValueError(f"agent kind {kind!r} is not known; there are {', '.join(sorted(AGENTS))}")
    module, _, name = AGENTS[kind].partition(":")
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
        self._next_hop = 0
        self._trouble = ""  # what went wrong since the last answer, to be told with the next
        agent.prepare(spec)

    def play(self, request: SpanRequest, origin: Origin | None = None) -> Reply:
        """Let the agent hear up to the request's context, then play; with ``origin``, make that decision's sound."""
        begin = time.perf_counter()
        clip, fault = None, ""
        try:
            self.hear_up_to(request.context_end)
            request = replace(request, heard=UpTo(self._heard, request.context_end))
            clip = self.agent.play(request) if origin is None else self.agent.realise(request, origin)
            fault = self._trouble or self._fault(clip, request)
        except Exception as error:  # noqa: BLE001 - an agent may fail in any way; it costs its stem a rung, and is told
            fault = _words(error)
        self._trouble = ""
        return Reply(request.span, request.attempt, None if fault else clip, fault, time.perf_counter() - begin)

    def hear_up_to(self, end: int) -> None:
        """Feed the agent every whole hop that ends by frame ``end``, each once; if it fails, its next answer does."""
        while (self._next_hop + 1) * HOP_FRAMES <= end:
            frame = self._next_hop * HOP_FRAMES
            self._next_hop += 1
            try:
                self.agent.hear(self._heard.listen(self.config.listens, frame, frame + HOP_FRAMES), frame)
            except Exception as error:  # noqa: BLE001 - as in play
                self._trouble = f"while it listened: {_words(error)}"

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
        shape = (clip.lead_in + request.frames, self.config.channels)
        if clip.audio.shape != shape or clip.audio.dtype != np.float32:
            return f"clip of {clip.audio.dtype} {clip.audio.shape} where float32 {shape} was asked for"
        if not (
            isinstance(clip.lead_in, int | np.integer) and 0 <= clip.lead_in <= join_frames(self._spec.samplerate)
        ):
            return f"a lead-in of {clip.lead_in} frames; 0 to {join_frames(self._spec.samplerate)} are allowed"
        return "" if np.isfinite(clip.audio).all() else "NaN or infinity in the clip"


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


# The live way: two queues of records, a table of clip slots, one wake-up.

_STATUS = {
    "state": "i8",
    "heartbeat_ns": "i8",
    "budget_seconds": "f8",
    "warm_up_runs": "i8",
    "spans": "i8",
    "pid": "i8",
}


def worker_layout(config: AgentConfig, spec: StreamSpec, longest_span_frames: int) -> Layout:
    """Return the shared arrays of one worker."""
    frames = longest_span_frames + join_frames(spec.samplerate)
    return {
        **record_layout(f"{config.name}.requests", 32, RECORD_BYTES),
        **record_layout(f"{config.name}.replies", 32, RECORD_BYTES),
        **record_layout(f"{config.name}.text", 4, TEXT_BYTES),
        **status_layout(f"{config.name}.worker", _STATUS),
        f"{config.name}.ending": (np.dtype("i8"), (1,)),  # written by the bridge
        f"{config.name}.clips": (np.dtype("f4"), (SLOTS, frames, config.channels)),
    }


class ProcessPort:
    """The engine's end of the way to a worker process. Engine thread only; never waits."""

    def __init__(self, config: AgentConfig, arena: Arena, wake: Semaphore, samplerate: int, log: Log) -> None:
        self._requests: RecordRing = arena.records(f"{config.name}.requests")
        self._replies: RecordRing = arena.records(f"{config.name}.replies")
        self._status: StatusBlock = arena.status(f"{config.name}.worker")
        self._clips = arena[f"{config.name}.clips"]
        self._free = list(range(SLOTS))
        self._config, self._wake, self._samplerate, self._log = config, wake, samplerate, log
        self._armed = False
        self._budget_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_REPLIES)

    def armed(self) -> bool:
        """Whether the worker has loaded and timed its agent."""
        if not self._armed:
            status = self._status.read()
            if status["state"] == STATE_ARMED:
                self._budget_seconds = self._config.budget_seconds or status["budget_seconds"]
                self._armed = True
                self._log({"type": "armed", "agent": self._config.name, "budget_frames": self.budget_frames(),
                           "warm_up_runs": status["warm_up_runs"]})  # fmt: skip
        return self._armed

    def budget_frames(self) -> int:
        """Return what the session says; else what was measured at the start, or lately if that is more.

        Of the latest replies the slowest but one counts: one stall of the machine is no reason to listen earlier.
        """
        if not self.armed():
            return 0
        seconds = self._budget_seconds
        if not self._config.budget_seconds:
            slow = sorted(self._recent)[-2] if len(self._recent) > 1 else 0.0
            seconds = max(seconds, BUDGET_MARGIN * slow) + HAND_OVER_SECONDS
        return round(seconds * self._samplerate)

    def post(self, request: SpanRequest) -> str:
        """Send the request with a place for its clip."""
        if request.frames + join_frames(self._samplerate) > self._clips.shape[1]:
            return "span longer than the clip memory"
        if not self._free:
            return "no free clip slot"
        slot = self._free[-1]
        if not self._requests.post(to_bytes({"play": request, "slot": slot})):
            return "request queue full"
        self._free.pop()
        self._wake.release()
        return ""

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the worker."""
        self._requests.post(to_bytes({"confirm": span, "origin": origin}))
        self._wake.release()

    def take(self, now: int) -> Reply | None:
        """Return the next reply that is in; its clip is a view of its slot, checked against its checksum."""
        record = self._replies.take()
        if record is None:
            return None
        message: dict[str, Any] = json.loads(record)
        span, slot = decode(Span, message["span"]), int(message["slot"])
        clip, fault = None, str(message["fault"])
        if message["origin"] is not None:
            audio = self._clips[slot, : int(message["frames"])]
            clip = Clip(audio, int(message["lead_in"]), decode(Origin, message["origin"]))
            if checksum(audio) != int(message["checksum"]):
                clip, fault = None, "the clip's checksum is wrong"
        seconds = float(message["compute_seconds"])
        if not fault:  # what was given up says nothing about how long an answer takes
            self._recent.append(seconds)
        return Reply(span, int(message["attempt"]), clip, fault, seconds, slot)

    def ready(self) -> bool:
        """Whether there is news: a reply that was not taken yet, or an agent that was loading and is armed now."""
        return self._replies.waiting or (not self._armed and self.armed())

    def next_due(self) -> int:
        """Return ``NEVER``: real time does not say."""
        return NEVER

    def release(self, reply: Reply) -> None:
        """Give the clip's slot back."""
        if reply.slot is not None and reply.slot not in self._free:
            self._free.append(reply.slot)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process is started with."""

    agent: AgentConfig
    spec: StreamSpec
    stems: tuple[str, ...]
    tempo_map: TempoMap
    grid_beats: Any  # Fraction


def run_worker(handle: ArenaHandle, config: WorkerConfig, wake: Semaphore) -> None:
    """Be a worker process: load, warm up, then answer until told to stop or the bridge is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to handle
    parent = os.getppid()
    if hasattr(os, "nice"):
        os.nice(5)
    arena = Arena.attach(handle)
    name = config.agent.name
    requests, replies = arena.records(f"{name}.requests"), arena.records(f"{name}.replies")
    status, clips = arena.status(f"{name}.worker"), arena[f"{name}.clips"]
    heard = RingHeard(arena.ring("input"), {stem: arena.ring(f"stem.{stem}") for stem in config.stems})
    status.publish(state=STATE_LOADING, pid=os.getpid(), heartbeat_ns=time.monotonic_ns())
    try:
        budget_seconds, runs = warm_up(config)
        runner = AgentRunner(build_agent(config.agent), config.agent, config.spec, heard)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a user's corpus or model, it is told in words
        arena.records(f"{name}.text").post(_about(name, error).encode()[:TEXT_BYTES])
        status.publish(state=STATE_FAILED)
        return
    gc.collect()
    gc.freeze()
    runner.hear_up_to(heard.settled(name, config.spec.lead))  # the bars that went by while it loaded
    status.publish(state=STATE_ARMED, budget_seconds=budget_seconds, warm_up_runs=runs)
    spans, ending = 0, arena[f"{name}.ending"]
    while os.getppid() == parent and not ending[0]:
        settled = heard.settled(name, config.spec.lead)  # looked at before the queue is
        if not requests.waiting:
            runner.hear_up_to(settled)
        wake.acquire(timeout=IDLE_SECONDS)
        status.publish(heartbeat_ns=time.monotonic_ns())
        batch: list[dict[str, Any]] = []
        while (record := requests.take()) is not None:
            batch.append(json.loads(record))
        for index, message in enumerate(batch):
            if "confirm" in message:
                origin = message["origin"]
                runner.confirm(decode(Span, message["confirm"]), None if origin is None else decode(Origin, origin))
                continue
            request = decode(SpanRequest, message["play"])
            if request.final or not _superseded(request, batch[index + 1 :]):
                reply = runner.play(request)
            else:
                reply = Reply(request.span, request.attempt, None, "superseded")
            _send(reply, int(message["slot"]), clips, replies)
            spans += 1
            status.publish(heartbeat_ns=time.monotonic_ns(), spans=spans)


def _about(name: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(f"agent {name!r}") else f"agent {name!r}: {text}"


def _superseded(request: SpanRequest, later: list[dict[str, Any]]) -> bool:
    """Whether the final request for the same span is already waiting: the speculative one is not worth its time."""
    spans = (decode(Span, message["play"]["span"]) for message in later if "play" in message)
    return request.span in spans


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


def warm_up(config: WorkerConfig) -> tuple[float, int]:
    """Time an agent on this machine; return its budget in seconds and how often it was run.

    The budget is 1.5 times the longest of up to 200 runs, cut short after a second. The agent that is timed is a
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
    longest, begin = 0.0, time.perf_counter()
    for run in range(1, WARM_UP_RUNS + 1):
        reply = runner.play(replace(request, seed=span_seed(run, config.agent.name, span)))
        if reply.fault:
            raise ValueError(f"it failed while it was warmed up: {reply.fault}")
        longest = max(longest, reply.compute_seconds)
        if time.perf_counter() - begin > WARM_UP_SECONDS:
            break
    return BUDGET_MARGIN * longest, run
