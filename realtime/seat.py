"""Where an agent sits: what a session says of it, and the memory in which the engine and its processes meet.

Two queues of records, a table of clip slots, a place for the state and the seat itself. The engine's end of it is
:mod:`realtime.port`, the process's end :mod:`realtime.worker`, and the bridge says whose turn it is.

An agent's processes come one after the other; each is a *generation*. The one on duty answers, and leaves its state
in shared memory whenever it has changed. The next one stands by: it has loaded and listens. When the bridge has made
sure that the one on duty is dead it puts the next one's number on the seat, and that one takes up the state and the
queues. So at any time one process writes each of them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from realtime.buffers import Arena, Layout, join_frames, record_layout, status_layout
from realtime.protocols import StreamSpec

SLOTS = 10
"""Clips of one agent that may be alive at once: three asked for the coming span and one beyond it, the one that
sounds and two that may still come for it, the last good one, two in a crossfade."""
STATE_BYTES = 512 * 1024
"""Room for an agent's state, twice: the last one stays whole while the next is written."""
RECORD_BYTES = 64 * 1024
TEXT_BYTES = 2048
"""A sentence for the user. It goes to the bridge on a way of its own, as every queue has one reader."""
FAULT_CHARS = 1000
HAND_OVER_SECONDS = 0.005
"""Added to every budget that was measured: what it takes to wake the worker and to be woken."""
BUDGET_MARGIN = 1.5
STATE_LOADING, STATE_MEASURED, STATE_ARMED, STATE_FAILED = range(4)
"""States of a worker: it loads; it is timed and stands by; it is on duty; it cannot be used."""
ENDING, ON_DUTY, ADMITTED = range(3)
"""Places on an agent's seat, which only the bridge writes: whether all go home, the generation on duty, whether the
agent was admitted to the band."""

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


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One agent of a session, ready to be built anywhere.

    Attributes
    ----------
    name, kind
        The stem's name; a key of :data:`realtime.runner.AGENTS`.
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


def fault_words(error: Exception) -> str:
    """Return what went wrong as it is told: what kind of error, and its words, cut to a bounded length."""
    return f"{type(error).__name__}: {error}"[:FAULT_CHARS]
