"""An agent's process: it loads, is timed, stands by until its seat is its own, and answers until the session is over.

It opens the corpora and models and is niced; it may be late, hang or die. How the processes of one agent follow each
other is said in :mod:`realtime.seat`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import threading
import time
from _thread import interrupt_main
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Semaphore
from typing import Any

import numpy as np

from realtime.buffers import Arena, ArenaHandle, AudioRing, RecordRing, checksum
from realtime.clock import TempoMap
from realtime.foreign import lift_cpu_limit, limit_process
from realtime.messages import decode, encode, to_bytes
from realtime.protocols import Origin, Span, SpanRequest, StreamSpec
from realtime.runner import AgentRunner, RingHeard, Superseded, build_agent
from realtime.scheduler import CONTINUATION, FINAL, SUPERSEDED, Reply, next_span, span_seed
from realtime.seat import (
    ADMITTED,
    BUDGET_MARGIN,
    ENDING,
    ON_DUTY,
    STATE_ARMED,
    STATE_FAILED,
    STATE_LOADING,
    STATE_MEASURED,
    TEXT_BYTES,
    AgentConfig,
    StateCell,
    fault_words,
)

IDLE_SECONDS = 0.02
"""How often a worker that has nothing to answer listens: what is left to hear when it is asked delays its answer."""
HOPS_A_TURN = 64
"""So much is heard between two signs of life, and before the inbox is looked at again."""
STANDBY_SECONDS = 0.25
"""How often one that stands by looks whether the session is over."""
HEAR_BACK_SECONDS = 24
"""How much of the past a process hears that comes into a session that plays without a state to take up."""
WARM_UP_RUNS = 200
WARM_UP_SECONDS = 0.4
STANDBY_RUNS = 3
NICE, NICE_STANDBY = 5, 10
LOADING_CPU_SECONDS = 120.0
"""What a file may cost at most to be opened."""


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
            self._runner.trouble(f"while it took up its state: {fault_words(error)}")
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
            self._runner.trouble(f"while it was asked for its state: {fault_words(error)}")
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
