"""The engine's end of the way to an agent's processes.

It never waits: it posts records, reads records, and says which clip slot an answer goes into, so that no slot is
written by two. It trusts nothing that comes back. A process may be late, hang or die: that costs its own stem a rung
of the ladder.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from multiprocessing.synchronize import Semaphore
from typing import Any

import numpy as np

from realtime.buffers import (
    Arena,
    RecordRing,
    StatusBlock,
    add_checksums,
    checksum,
    is_finite,
    join_frames,
    numbers,
)
from realtime.messages import decode, seal, to_bytes
from realtime.protocols import Clip, Log, Origin, Span, SpanRequest
from realtime.scheduler import CONTINUATION, FINAL, NO_SLOT, NOT_FINITE, QUEUE_FULL, TOO_LONG, Reply
from realtime.seat import (
    BUDGET_MARGIN,
    FAULT_CHARS,
    HAND_OVER_SECONDS,
    ON_DUTY,
    RECORD_BYTES,
    SLOTS,
    STATE_ARMED,
    AgentConfig,
    fault_words,
)
from realtime.voice import NEVER

CONFIRMS_KEPT = 8
"""So many spans back a successor is told again what sounded."""
REPLIES_A_FRAME = 2 * SLOTS
"""An agent that answers what it was asked never sends more at once."""
LONGEST_SECONDS = 3600.0
"""No agent says in earnest that it took longer."""
RECENT_REPLIES = 128
LEAST_REPLIES = 32
"""Answers seen before their times replace those of the warm-up."""
BUDGET_CHANGE = 0.1
"""A budget that moves by less than this share is not worth a line in the take."""
EXAMINED_AT_ONCE = 1 << 15
"""Samples looked at in one go: they stay in the processor's own memory from the first look to the second."""
READING_SAMPLES = 1 << 15
"""To read a reply takes as long as to look at so many samples."""
NO_SPAN = Span(-1, Fraction(0), Fraction(0))


class ProcessPort:
    """The engine's end of the way to an agent's processes. Engine thread only; never waits, never trusts."""

    def __init__(
        self,
        config: AgentConfig,
        arena: Arena,
        wake: Semaphore,
        samplerate: int,
        log: Log,
        turn_frames: int = 0,
    ) -> None:
        self._requests: RecordRing = arena.records(f"{config.name}.requests")
        self._replies: RecordRing = arena.records(f"{config.name}.replies")
        self._statuses: list[StatusBlock] = [arena.status(f"{config.name}.worker{parity}") for parity in (0, 1)]
        self._seat = numbers(arena[f"{config.name}.seat"])
        self._clips = arena[f"{config.name}.clips"]
        self._free = list(range(SLOTS))
        self._asked: dict[int, tuple[Span, int]] = {}  # what each slot was given out for
        self._config, self._wake, self._samplerate, self._log = config, wake, samplerate, log
        self._turn_frames = turn_frames
        self._generation = 0
        self._armed = self._continues = False
        self._budget_seconds = self._told_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT_REPLIES)
        self._lines: deque[dict[str, object]] = deque(maxlen=RECENT_REPLIES)
        self._confirmed: deque[bytes] = deque(maxlen=CONFIRMS_KEPT)
        self._taken, self._taken_at = 0, -1
        self._incoming: Incoming | None = None

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
        warm-up as long as few were seen, and the hand-over. And a turn of the engine: what it asks and decides in one
        turn happens at one moment.
        """
        if not self._armed and not self.armed():
            return 0
        seconds = self._budget_seconds
        if not self._config.budget_seconds:
            seconds += HAND_OVER_SECONDS
        return round(seconds * self._samplerate) + self._turn_frames

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
        if self._taken >= REPLIES_A_FRAME or not self._receive():  # of a flood the rest waits
            return None
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        reply = incoming.reply()
        if reply.slot is not None:
            self._over(reply.slot)
        if reply.slot is not None and not reply.fault and reply.attempt != CONTINUATION:
            self._learn(reply.compute_seconds)  # what was given up says nothing about how long an answer takes
        return reply

    def examine(self, samples: int) -> int:
        """Look at a part of the reply that waits; to read what it says costs as much as some samples."""
        before = self._incoming
        if not self._receive():
            return samples
        assert self._incoming is not None
        return self._incoming.examine(samples if before is not None else samples - READING_SAMPLES)

    def _receive(self) -> bool:
        """Read the next reply, if none is being looked at; return whether there is one."""
        if self._incoming is None and (record := self._replies.take()) is not None:
            try:
                if len(record) > RECORD_BYTES:
                    raise ValueError(f"it has {len(record)} bytes")
                self._incoming = self._read(json.loads(record))
            except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as problem:
                fault = f"an answer that makes no sense: {fault_words(problem)}"[:FAULT_CHARS]
                self._incoming = Incoming(Reply(NO_SPAN, -1, None, fault))
        return self._incoming is not None

    def _read(self, message: dict[str, Any]) -> Incoming:
        span, attempt, slot = decode(Span, message["span"]), int(message["attempt"]), int(message["slot"])
        fault, seconds = str(message["fault"])[:FAULT_CHARS], float(message["compute_seconds"])
        if not 0 <= seconds <= LONGEST_SECONDS:
            raise ValueError(f"it says that it took {seconds} seconds")
        if self._asked.get(slot) != (span, attempt):
            raise ValueError(f"it is for bar {span.bar} and slot {slot}, which is no question that waits")
        clip, total = None, 0
        if message["origin"] is not None and not fault:
            audio = self._clips[slot, : int(message["frames"])]
            clip = Clip(audio, int(message["lead_in"]), seal(Origin, message["origin"]))
            total = int(message["checksum"])
        return Incoming(Reply(span, attempt, clip, fault, seconds, slot), total)

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
            self._incoming is not None
            or self._replies.waiting
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


class Incoming:
    """A reply whose sound is still to be looked at: whether it is whole, and whether all of it is finite.

    Looking at a bar's sound for the first time means fetching it from another core, some 100 to 300 us for two
    seconds of stereo; so it can be done in parts, in moments in which the engine has little else to do.
    """

    def __init__(self, reply: Reply, total: int = 0) -> None:
        self._reply, self._total = reply, total
        self._samples = reply.clip.audio.reshape(-1) if reply.clip is not None else np.zeros(0, np.float32)
        self._at, self._sum, self._finite = 0, 0, True

    def reply(self) -> Reply:
        """Return the reply, which looks at what is left when it is asked to."""
        return self._reply if self._reply.clip is None else replace(self._reply, look=self.look)

    def examine(self, samples: int) -> int:
        """Look at up to so many samples of a final reply; return how many were not needed, -1 if some are left."""
        return self._examine(samples) if self._reply.attempt == FINAL else samples

    def look(self) -> str:
        """Look at what is left; say what is wrong, an empty string if nothing is."""
        self._examine(len(self._samples) + 1)
        if self._sum != self._total:
            return "the clip's checksum is wrong"
        return "" if self._finite else NOT_FINITE

    def _examine(self, samples: int) -> int:
        end = min(len(self._samples), self._at + (max(0, samples) & ~1))  # in pairs, as the sum goes
        while self._at < end:
            part = self._samples[self._at : min(end, self._at + EXAMINED_AT_ONCE)]
            self._sum = add_checksums(self._sum, checksum(part))
            self._finite = self._finite and is_finite(part)
            self._at += len(part)
            samples -= len(part)
        return samples if end == len(self._samples) else -1


def _budget_of(status: Mapping[str, Any]) -> float:
    """Return the budget that a worker says it measured; one that makes no sense is a second."""
    seconds = float(status["budget_seconds"])
    return seconds if 0 <= seconds <= LONGEST_SECONDS else 1.0
