"""From the engine's rings to a take: in this process when time is virtual, in one of its own when live.

The recorder reads what the engine has written, by index, at its own pace; the rings hold a minute, so a slow disk
costs nothing. Neither waits for the other.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.recorder import TakeWriter
from realtime.buffers import Arena, ArenaHandle, AudioRing, Layout, record_layout
from realtime.engine import EngineConfig, Memory
from realtime.messages import encode
from realtime.protocols import Block

CHUNK_FRAMES = 1 << 14
TURN_SECONDS = 0.05
NOTE_BYTES = 2048


def take_header(config: EngineConfig, version: str, session: str) -> dict[str, object]:
    """Return the first line of a take: all that a replay needs, and the session as it was."""
    spec = config.spec
    return {
        "samplerate": spec.samplerate,
        "lead": spec.lead,
        "latency": spec.latency,
        "seed": config.seed,
        "sideman": version,
        "engine": encode(config),
        "session": session,
    }


def new_take(folder: Path, config: EngineConfig, header: Mapping[str, object]) -> TakeWriter:
    """Open a take for a band and write down its grid."""
    stems = [(part.agent.name, part.agent.channels) for part in config.parts]
    take = TakeWriter(folder, header, stems, config.spec.inputs, config.spec.outputs)
    for line in tempo_lines(config):
        take.log(line)
    return take


def tempo_lines(config: EngineConfig) -> list[dict[str, object]]:
    """Return one line for each timeline of the map as planned."""
    lines: list[dict[str, object]] = []
    tempo_map = config.tempo_map
    for timeline in tempo_map.timelines:
        bar = timeline.bar_at(timeline.beat)
        lines.append(
            {"type": "tempo", "frame": timeline.frame_at(timeline.beat), "bar": bar,
             "beat": timeline.beat - timeline.downbeat(bar), "tempo": timeline.tempo, "meter": timeline.meter,
             "ramp_beats": 0}
        )  # fmt: skip
    return lines


class Tap:
    """Copies what is new in the engine's rings to a take. One thread."""

    def __init__(self, take: TakeWriter, memory: Memory) -> None:
        self._take = take
        self._done = 0
        self.lost_frames = 0
        self._ways: list[tuple[AudioRing, Callable[[Block], None]]] = [(memory.inputs, take.input)]
        for name, ring in memory.stems.items():
            self._ways.append((ring, lambda block, name=name: take.stem(name, block)))  # type: ignore[misc]
        self._ways.append((memory.mix, take.mix))
        self._at = [0] * len(self._ways)

    def drain(self, end: int | None = None) -> None:
        """Take everything that is there, up to frame ``end`` where it is given."""
        for index, (ring, write) in enumerate(self._ways):
            stop = ring.written if end is None else min(end, ring.written)
            self.lost_frames += max(0, ring.written - ring.capacity - self._at[index])
            while self._at[index] < stop:
                count = min(CHUNK_FRAMES, stop - self._at[index])
                write(ring.read(self._at[index], self._at[index] + count))
                self._at[index] += count


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """What the recorder process is started with."""

    folder: str
    engine: EngineConfig
    header: Mapping[str, Any]


def recorder_layout() -> Layout:
    """Return the arrays the recorder shares with the bridge: its notes, and the word to close."""
    return {**record_layout("recorder.notes", 16, NOTE_BYTES), **record_layout("recorder.orders", 4, 64)}


def run_recorder(handle: ArenaHandle, config: RecorderConfig) -> None:
    """Be the recorder's process: copy until the engine has stopped, or the bridge says so or is gone; then close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    notes, orders, log, place = (
        arena.records("recorder.notes"),
        arena.records("recorder.orders"),
        arena.records("log"),
        arena["place"],
    )
    try:
        take = new_take(Path(config.folder), config.engine, config.header)
    except ValueError as error:
        notes.post(json.dumps({"failed": str(error)}).encode()[:NOTE_BYTES])
        return
    tap = Tap(take, Memory.shared(arena, config.engine))
    notes.post(json.dumps({"recording": config.folder}).encode()[:NOTE_BYTES])
    parent = multiprocessing.parent_process()
    counters: dict[str, object] = {}
    told = False
    while True:
        ending = bool(place[3]) or orders.take() is not None or not (parent is None or parent.is_alive())
        tap.drain()
        while (record := log.take()) is not None:
            line = json.loads(record)
            take.log(line)
            if line.get("type") == "counters":
                counters |= {key: value for key, value in line.items() if key not in ("type", "frame")}
        if take.fault and not told:
            told = notes.post(json.dumps({"fault": take.fault}).encode()[:NOTE_BYTES])
        if ending:
            break
        time.sleep(TURN_SECONDS)
    frames = take.close(int(place[0]), counters | {"recorder_lost_frames": tap.lost_frames})
    notes.post(json.dumps({"closed": frames, "fault": take.fault}).encode()[:NOTE_BYTES])
