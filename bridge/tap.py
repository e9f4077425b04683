"""From the engine's rings to a take: in this process when time is virtual, in one of its own when live.

The recorder reads what the engine has written, by index, at its own pace; the rings hold a minute, so a slow disk
costs nothing. Neither waits for the other.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bridge.recorder import TakeWriter
from realtime.buffers import Arena, ArenaHandle, AudioRing, Layout, RecordRing, record_layout
from realtime.engine import EngineConfig, Memory
from realtime.messages import encode
from realtime.protocols import Block

CHUNK_FRAMES = 1 << 14
TURN_SECONDS = 0.05
NOTE_BYTES = 16 * 1024
ORPHAN_SECONDS = 2.0
"""When the bridge is gone the engine fades out at the next bar; one that stands still for so long is gone as well."""


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
        self.lost_frames = 0
        self._ways: list[tuple[AudioRing, Callable[[Block], None]]] = [(memory.inputs, take.input)]
        for name, ring in memory.stems.items():
            self._ways.append((ring, partial(take.stem, name)))
        self._ways.append((memory.mix, take.mix))
        self._at = [0] * len(self._ways)
        self._marks = list(self._at)

    def mark(self) -> None:
        """Settle how far the next :meth:`drain` goes: to here.

        Whoever takes the log between the two has written down every decision before the sound that follows from
        it, so that a kill at any moment leaves a take that can be replayed. Nothing goes beyond the mix: an engine
        that was held up has heard more than it has answered, and a take ends where its sound does.
        """
        mixed = self._ways[-1][0].written
        self._marks = [min(ring.written, mixed) for ring, _ in self._ways]

    def drain(self, end: int | None = None) -> None:
        """Take everything up to the mark, and not beyond frame ``end`` where it is given."""
        for index, (ring, write) in enumerate(self._ways):
            stop = self._marks[index] if end is None else min(end, self._marks[index])
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
    """Be the recorder's process: copy until the engine has stopped, or the bridge says so or is gone; then close.

    Decisions are written before the sound that follows from them. When the bridge has died, the engine is given
    time to fade out first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    notes, log = _Notes(arena.records("recorder.notes")), arena.records("log")
    try:
        take = new_take(Path(config.folder), config.engine, config.header)
    except ValueError as error:
        notes.tell(failed=str(error))
        return
    tap = Tap(take, Memory.shared(arena, config.engine))
    notes.tell(recording=config.folder)
    counters: dict[str, object] = {}
    told = False
    ending, xruns = _Ending(arena), _Xruns(arena)
    last = False
    while not last:
        last = ending.due()  # looked at before copying: what was there by then is copied
        tap.mark()
        while (record := log.take()) is not None:
            line = json.loads(record)
            take.log(line)
            if line.get("type") == "counters":
                counters |= {key: value for key, value in line.items() if key not in ("type", "frame")}
        for xrun in xruns.news():
            take.log(xrun)
        tap.drain()
        if take.fault and not told:
            told = notes.tell(fault=take.fault)
        if not last:
            time.sleep(TURN_SECONDS)
    frames = take.close(int(arena["place"][0]), counters | xruns.counted | {"recorder_lost_frames": tap.lost_frames})
    notes.tell(closed=frames, **({"fault": take.fault} if take.fault and not told else {}))


class _Notes:
    """The recorder's way to the bridge."""

    def __init__(self, records: RecordRing) -> None:
        self._records = records

    def tell(self, **note: object) -> bool:
        """Post a note; a sentence too long for it is cut."""
        cut = {key: value[: NOTE_BYTES // 4] if isinstance(value, str) else value for key, value in note.items()}
        return self._records.post(json.dumps(cut, ensure_ascii=False).encode())


class _Xruns:
    """Watches what the device process and the engine's stream count, and makes lines of it."""

    _CAUSES = (  # counter of events, counter of frames, where they are, in words
        ("io.status", "xruns", "lost_frames", "the device's ring ran empty"),
        ("io.status", "starved", "starved_frames", "the engine had not mixed what was due"),
        ("io.status", "overflows", "", "input was lost"),
        ("io.status", "device_xruns", "", "the audio server reported an xrun"),
        ("stream.status", "underruns", "late_frames", "the engine was late"),
    )

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.counted: dict[str, object] = {}
        self._seen = self._read()

    def _read(self) -> dict[str, dict[str, int]]:
        return {name: self._arena.status(name).read() for name in ("io.status", "stream.status")}

    def news(self) -> Iterator[dict[str, object]]:
        """Yield a line for each counter that has moved since the last look."""
        before, self._seen = self._seen, self._read()
        frame = self._seen["stream.status"]["frame"]
        for status, events, frames, cause in self._CAUSES:
            now, old = self._seen[status], before[status]
            self.counted[events] = now[events]
            if now[events] > old[events]:
                lost = now[frames] - old[frames] if frames else 0
                yield {"type": "xrun", "frame": frame, "frames": lost, "cause": cause}


class _Ending:
    """Knows when a recording is over."""

    def __init__(self, arena: Arena) -> None:
        self._place, self._orders = arena["place"], arena.records("recorder.orders")
        self._parent = multiprocessing.parent_process()
        self._seen, self._moved = -1, 0.0  # how far the orphaned engine was, and when it came there

    def due(self) -> bool:
        """Whether the engine has stopped, the bridge has said so, or both are gone."""
        if self._place[3] or self._orders.take() is not None:
            return True
        if self._parent is None or self._parent.is_alive():
            return False
        frame, now = int(self._place[0]), time.monotonic()
        if frame != self._seen:
            self._seen, self._moved = frame, now
        return now - self._moved > ORPHAN_SECONDS
