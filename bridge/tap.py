"""From the engine's rings to a take: in this process when time is virtual, in one of its own when live.

The recorder reads what the engine has written, by index, at its own pace; neither waits for the other. A disk that
stands still costs nothing for a minute: so long the rings hold the sound, while decisions, whose queue is shorter,
are gathered in memory. What then is lost is counted and named, and the take stays in order.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bridge.recorder import INPUT, MIX, PadLine, TakeWriter, stem_file
from realtime.buffers import Arena, ArenaHandle, AudioRing, Layout, RecordRing, record_layout
from realtime.engine import EngineConfig, Memory
from realtime.messages import encode
from realtime.protocols import Block
from realtime.stream import LOST_GONE, LOST_UNSEEN, OUT_SECONDS, Departures

CHUNK_FRAMES = 1 << 14
TURN_SECONDS = 0.05
MOST_LINES = 1 << 14
"""Lines that wait in memory for the disk; more stay in the engine's queue, and what that refuses it counts."""
ALL = 1 << 62
MOST_SPANS = 1 << 12
"""Spans that wait to leave for the loudspeaker; those beyond are counted and have no line."""
NOTE_BYTES = 16 * 1024
ORPHAN_SECONDS = 2.0
"""When the bridge is gone the engine fades out at the next bar; one that stands still for so long is gone as well."""


Line: TypeAlias = dict[str, Any]
Marks: TypeAlias = tuple[int, ...]
"""For the input, each stem and the mix: the frame up to which they are to be taken."""


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
    """Copies what is new in the engine's rings to a take. One thread drains; any one may mark.

    Attributes
    ----------
    lost_frames
        Frames that the rings no longer had when the disk was ready for them: zeros in the take, and a line each time.
    """

    def __init__(self, take: TakeWriter, memory: Memory) -> None:
        self._take = take
        self.lost_frames = 0
        self._ways: list[tuple[str, AudioRing, Callable[[Block], None]]] = [(INPUT, memory.inputs, take.input)]
        for name, ring in memory.stems.items():
            self._ways.append((stem_file(name), ring, partial(take.stem, name)))
        self._ways.append((MIX, memory.mix, take.mix))
        self._at = [0] * len(self._ways)
        self._marks: Marks = tuple(self._at)

    def mark(self) -> Marks:
        """Settle how far the next :meth:`drain` goes: to here.

        Whoever takes the log between the two has written down every decision before the sound that follows from
        it, so that a kill at any moment leaves a take that can be replayed. Nothing goes beyond the mix: an engine
        that was held up has heard more than it has answered, and a take ends where its sound does.
        """
        mixed = self._ways[-1][1].written
        self._marks = tuple(min(ring.written, mixed) for _, ring, _ in self._ways)
        return self._marks

    def drain(self, end: int | None = None, marks: Marks | None = None) -> None:
        """Take everything up to the mark (the last, or one that was given out before), not beyond frame ``end``."""
        for index, mark in enumerate(self._marks if marks is None else marks):
            stop = mark if end is None else min(end, mark)
            while self._at[index] < stop:
                self._copy(index, min(CHUNK_FRAMES, stop - self._at[index]))

    def _copy(self, index: int, frames: int) -> None:
        """Copy the next frames of one ring. Those that were overwritten are its oldest: the first ones."""
        file, ring, write = self._ways[index]
        start = self._at[index]
        block = np.empty((frames, ring.channels), np.float32)
        lost = frames - ring.read_into(start, block)
        if lost:
            self.lost_frames += lost
            self._take.log({"type": "pad", **encode(PadLine(file, start, lost))})
        write(block)
        self._at[index] += frames


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
    notes = _Notes(arena.records("recorder.notes"))
    try:
        take = new_take(Path(config.folder), config.engine, config.header)
    except ValueError as error:
        notes.tell(failed=str(error))
        return
    tap = Tap(take, Memory.shared(arena, config.engine))
    scribe, news, ending = Scribe(take, tap), _News(arena), _Ending(arena)
    notes.tell(recording=config.folder)
    marks: Marks = ()
    told = last = False
    while not last:
        last = ending.due()  # looked at before copying: what was there by then is copied
        here = tap.mark()
        lines, all_of_it = news.take(ALL if last else scribe.room, last)
        if last and not all_of_it:  # a record that did not check is looked at twice
            lines += news.take(ALL, last)[0]
        marks = here if all_of_it or last else marks  # else the sound would be there before its decisions
        scribe.hand(lines, marks)
        if take.fault and not told:
            told = notes.tell(fault=take.fault)
        if not last:
            time.sleep(TURN_SECONDS)
    scribe.close()
    frames = take.close(int(arena["place"][0]), news.counters | {"recorder_lost_frames": tap.lost_frames})
    notes.tell(closed=frames, **({"fault": take.fault} if take.fault and not told else {}))


class Scribe:
    """Writes on a thread of its own, at the disk's pace: first the lines, then the sound they decided.

    Whoever hands over never waits for it.
    """

    def __init__(self, take: TakeWriter, tap: Tap) -> None:
        self._take, self._tap = take, tap
        self._lines: list[Line] = []
        self._marks: Marks | None = None
        self._writing = 0
        self._closing = False
        self._problem: BaseException | None = None
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def room(self) -> int:
        """How many more lines may be handed over."""
        return max(0, MOST_LINES - len(self._lines) - self._writing)

    def hand(self, lines: Sequence[Line], marks: Marks) -> None:
        """Hand over what is new: lines, and how far the sound that they decided goes."""
        with self._news:
            self._lines += lines
            self._marks = marks
            self._news.notify()
        self._check()

    def close(self) -> None:
        """Wait until all is written."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        try:
            while self._write():
                pass
        except BaseException as problem:  # noqa: BLE001 - it is raised where it is heard of: by the next call
            self._problem = problem

    def _write(self) -> bool:
        """Write what was handed over since the last time; return False when that was all."""
        with self._news:
            self._news.wait_for(lambda: self._marks is not None or self._closing)
            lines, self._lines = self._lines, []
            marks, self._marks = self._marks, None
            self._writing = len(lines)
        if marks is None:
            return False
        for line in lines:
            self._take.log(line)
        self._writing = 0
        self._tap.drain(marks=marks)
        return True


class _News:
    """All that is to be written besides sound: the engine's lines, and what became of the sound on its way out."""

    def __init__(self, arena: Arena) -> None:
        self._log = arena.records("log")
        self._xruns, self._losses, self._outs = _Xruns(arena), Losses(arena), Outs(arena)
        self._told: Line = {}  # by the engine, when it stopped
        self._unread = 0

    @property
    def counters(self) -> Line:
        """Everything counted so far."""
        lines = {"damaged_log_lines": self._log.damaged + self._unread, "unseen_out_frames": self._losses.unseen}
        return {**self._told, **self._xruns.counted, **self._outs.counted, **lines}

    def take(self, room: int, last: bool = False) -> tuple[list[Line], bool]:
        """Return what is new, about ``room`` lines at most, and whether the engine's lines were all among it."""
        lines: list[Line] = []
        record: bytes | None = b""
        while len(lines) < room and (record := self._log.take()) is not None:
            if (line := _line_of(record)) is None:
                self._unread += 1
                continue
            lines.append(line)
            self._outs.expect(line)
            if line.get("type") == "counters":
                self._told |= {key: value for key, value in line.items() if key not in ("type", "frame")}
        outside = (*self._xruns.news(), *self._losses.news(last), *self._outs.news())
        return [*lines, *outside], record is None and not self._log.waiting


def _line_of(record: bytes) -> Line | None:
    """Read one of the engine's lines; what no take can carry is None: a recording does not end for it."""
    try:
        line = json.loads(record, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


class _Notes:
    """The recorder's way to the bridge."""

    def __init__(self, records: RecordRing) -> None:
        self._records = records

    def tell(self, **note: object) -> bool:
        """Post a note; a sentence too long for it is cut."""
        cut = {key: value[: NOTE_BYTES // 4] if isinstance(value, str) else value for key, value in note.items()}
        return self._records.post(json.dumps(cut, ensure_ascii=False).encode())


class _Xruns:
    """Watches what the device process and the engine's stream count, and makes lines of what is not in the sound."""

    _CAUSES = (  # counter of events, counter of frames, where they are, in words
        ("io.status", "overflows", "", "input was lost"),
        ("io.status", "device_xruns", "", "the audio server reported an xrun"),
        ("stream.status", "underruns", "late_frames", "the engine was late"),
    )
    _COUNTED = ("xruns", "lost_frames", "starved", "starved_frames")  # their places are known: see Losses

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.counted: Line = {}
        self._seen = self._read()

    def _read(self) -> dict[str, dict[str, int]]:
        return {name: self._arena.status(name).read() for name in ("io.status", "stream.status")}

    def news(self) -> Iterator[Line]:
        """Yield a line for each counter that has moved since the last look."""
        before, self._seen = self._seen, self._read()
        frame = self._seen["stream.status"]["frame"]
        self.counted |= {name: self._seen["io.status"][name] for name in self._COUNTED}
        for status, events, frames, cause in self._CAUSES:
            now, old = self._seen[status], before[status]
            self.counted[events] = now[events]
            if now[events] > old[events]:
                lost = now[frames] - old[frames] if frames else 0
                yield {"type": "xrun", "frame": frame, "frames": lost, "cause": cause}


class Losses:
    """Finds every range of frames that never left for the loudspeaker, exactly: frame by frame, not by looking often.

    The device process writes down what became of each frame (:class:`~realtime.stream.Departures`).
    """

    def __init__(self, arena: Arena) -> None:
        self._out, self._stream = arena.ring("io.out"), arena.status("stream.status")
        self._at = 0
        self._since, self._code = 0, 0  # the run that has not ended yet
        self._begun = False  # before the device's first frame nothing is lost
        self.unseen = 0

    def news(self, last: bool = False) -> Iterator[Line]:
        """Yield a line for each range that has ended since the last look; at the ``last`` one, for all."""
        end = self._out.written
        while self._at < end:
            yield from self._look(min(CHUNK_FRAMES, end - self._at))
        if last:
            yield from self._end()

    def _look(self, frames: int) -> Iterator[Line]:
        told = np.empty((frames, 1), np.float32)
        unseen = frames - self._out.read_into(self._at, told)
        self.unseen += unseen
        codes = np.clip(told[:, 0], min(Departures.words), 1).astype(np.int64)  # 1: it went out
        codes[:unseen] = 1  # overwritten before it was read: counted, and not called lost
        for change in [0, *(np.flatnonzero(np.diff(codes)) + 1)]:
            yield from self._turn(self._at + int(change), int(codes[change]))
        self._at += frames

    def _end(self) -> Iterator[Line]:
        """Tell of a loss that has not ended, be it that the device is gone for good."""
        clock = int(self._stream.read()["frame"])
        if (
            clock - self._at > self._out.capacity // OUT_SECONDS
        ):  # it was a second ago, so the device is not just late
            yield from self._turn(self._at, 0)
            yield from self._turn(clock, 1)
        elif self._code < 0:  # frames that were nobody's, behind the session's end, are not lost
            yield from self._turn(self._at, 0)

    def _turn(self, frame: int, code: int) -> Iterator[Line]:
        """Note that from ``frame`` on it is ``code``; what was before is told if it was lost."""
        if code == self._code:
            return
        lost = self._code < 0 or (self._code == 0 and self._begun)
        if lost and frame > self._since:
            cause = Departures.words[self._code or LOST_GONE]
            yield {"type": "xrun", "frame": self._since, "frames": frame - self._since, "cause": cause}
        self._begun = self._begun or code > 0
        self._since, self._code = frame, code


class Outs:
    """Waits until each span's first frame has left for the loudspeaker, or is lost for certain, and has its line."""

    def __init__(self, arena: Arena) -> None:
        self._departures = Departures(arena)
        self._device = arena.status("io.status")
        self._waiting: list[tuple[int, int, Line]] = []  # a heap by frame; the count tells equal frames apart
        self._expected = 0
        self.counted: Line = {"spans_not_heard": 0, "spans_not_seen": 0}

    def expect(self, line: Line) -> None:
        """Take note of a line; one that says that a span sounds is waited for."""
        start = line.get("start")
        if line.get("type") != "span" or not line.get("rung") or type(start) is not int or start < 0:
            return
        if len(self._waiting) >= MOST_SPANS:
            self.counted["spans_not_seen"] += 1
            return
        self._expected += 1
        heapq.heappush(self._waiting, (start, self._expected, line))

    def news(self) -> Iterator[Line]:
        """Yield a line for each span of which it is known by now."""
        while self._waiting and (margin := self._departures.of(self._waiting[0][0])) is not None:
            start, _, span = heapq.heappop(self._waiting)
            if margin == LOST_UNSEEN:
                self.counted["spans_not_seen"] += 1
            elif self._has_device():
                self.counted["spans_not_heard"] += margin < 0
                place = {key: span.get(key) for key in ("agent", "bar", "beat")}
                yield {"type": "out", **place, "wanted": start, **self._what(start, margin)}

    def _has_device(self) -> bool:
        """Whether a device is played to at all; to the null device nothing goes out, and nothing is lost."""
        device = self._device.read()
        return bool(device["epoch"] or device["heartbeat_ns"])

    @staticmethod
    def _what(start: int, margin: int) -> Line:
        if margin >= 0:
            return {"actual": start, "margin_frames": margin}
        return {"actual": None, "margin_frames": None, "cause": Departures.words[margin]}


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
