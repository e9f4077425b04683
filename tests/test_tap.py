"""From rings to a take: everything once, decisions before the sound, an end whoever dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rigs
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import tap as taps
from bridge.recorder import TakeReader, TakeWriter
from bridge.tap import Losses, Outs, RecorderConfig, Scribe, Tap, new_take, recorder_layout, run_recorder, take_header
from realtime import io
from realtime.buffers import Arena
from realtime.clock import Meter, TempoChange, TempoMap
from realtime.engine import EngineConfig, Memory, PartConfig, engine_layout
from realtime.messages import decode, to_bytes
from realtime.mixer import Strip
from realtime.protocols import Block, StreamSpec
from realtime.seat import AgentConfig
from realtime.stream import LOST_EMPTY, LOST_GONE, LOST_LATE
from realtime.voice import NEVER

RATE = 8000
SEAT = PartConfig(AgentConfig("keys", "echo"), Strip("keys", 1))
CONFIG = EngineConfig(StreamSpec(RATE, 1, 2, 64, 256), TempoMap.steady(RATE, 120, Meter()), 5, (SEAT,))


def sound(frames: int, channels: int, seed: int = 1) -> Block:
    return np.random.default_rng(seed).uniform(-1, 1, (frames, channels)).astype(np.float32)


class FakeTake:
    """Keeps what a take is given, and in which order."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Block]] = {"input": [], "keys": [], "mix": []}
        self.lines: list[dict[str, object]] = []

    def log(self, line: dict[str, object]) -> None:
        self.lines.append(line)

    def input(self, block: Block) -> None:
        self.kept["input"].append(block)

    def stem(self, name: str, block: Block) -> None:
        self.kept[name].append(block)

    def mix(self, block: Block) -> None:
        self.kept["mix"].append(block)

    def sound(self, name: str) -> Block:
        return np.concatenate(self.kept[name])


def test_everything_is_taken_once_and_in_order() -> None:
    memory, take = Memory.private(CONFIG), FakeTake()
    tap = Tap(take, memory)  # type: ignore[arg-type]
    truth = sound(3 * taps.CHUNK_FRAMES + 17, 1)
    for start in range(0, len(truth), 5000):
        block = truth[start : start + 5000]
        memory.inputs.write(start, block)
        memory.stems["keys"].write(start, -block)
        memory.mix.write(start, np.repeat(block, 2, axis=1))
        tap.mark()
        tap.drain()
        tap.drain()  # nothing new
    assert np.array_equal(take.sound("input"), truth)
    assert np.array_equal(take.sound("keys"), -truth)
    assert np.array_equal(take.sound("mix"), np.repeat(truth, 2, axis=1))
    assert tap.lost_frames == 0


def test_only_what_was_there_at_the_mark_is_taken() -> None:
    memory, take = Memory.private(CONFIG), FakeTake()
    tap = Tap(take, memory)  # type: ignore[arg-type]
    memory.inputs.write(0, sound(100, 1))
    memory.mix.write(0, sound(1000, 2))
    tap.drain()
    assert take.kept["input"] == []
    tap.mark()
    memory.inputs.write(100, sound(50, 1))  # decided on later, so its lines are not written yet
    tap.drain()
    assert len(take.sound("input")) == 100
    tap.mark()
    tap.drain(120)
    assert len(take.sound("input")) == 120


def test_input_is_taken_no_further_than_there_is_sound() -> None:
    """An engine that was held up has heard more than it has answered; the take must not end later than its sound."""
    memory, take = Memory.private(CONFIG), FakeTake()
    tap = Tap(take, memory)  # type: ignore[arg-type]
    truth = sound(1000, 1)
    memory.inputs.write(0, truth)
    memory.mix.write(0, sound(300, 2))
    tap.mark()
    tap.drain()
    assert len(take.sound("input")) == 300
    memory.mix.write(300, sound(700, 2))
    tap.mark()
    tap.drain()
    assert np.array_equal(take.sound("input"), truth), "what was left is taken later"


def test_what_was_overwritten_is_counted_and_keeps_its_place() -> None:
    memory, take = Memory.private(CONFIG), FakeTake()
    tap = Tap(take, memory)  # type: ignore[arg-type]
    capacity = memory.inputs.capacity
    truth = sound(capacity + 300, 1)
    for start in range(0, len(truth), 4000):
        memory.inputs.write(start, truth[start : start + 4000])
    memory.mix.write(len(truth), sound(0, 2))
    tap.mark()
    tap.drain()
    kept = take.sound("input")
    assert tap.lost_frames == 600, "of the input and of the mix"
    holes = [(line["type"], line["file"], line["start"], line["frames"]) for line in take.lines]
    assert holes == [("pad", "input.wav", 0, 300), ("pad", "mix.wav", 0, 300)]
    assert len(kept) == len(truth)
    assert not kept[:300].any()
    assert np.array_equal(kept[300:], truth[300:])


def test_a_header_rebuilds_the_engine_and_the_grid(tmp_path: Path) -> None:
    tempo_map = TempoChange(2, Fraction(0), Fraction(90), None, 4).applied(CONFIG.tempo_map)
    config = replace(CONFIG, tempo_map=tempo_map)
    header = take_header(config, "1.2.3", "# the session")
    new_take(tmp_path / "take", config, header).close()
    take = TakeReader(tmp_path / "take")
    assert decode(EngineConfig, take.header["engine"]) == config
    assert (take.header["sideman"], take.header["session"], take.seed, take.lead) == (
        "1.2.3",
        "# the session",
        5,
        256,
    )
    assert [take.tempo_map.bar_frame(bar) for bar in range(9)] == [tempo_map.bar_frame(bar) for bar in range(9)]


class Rig:
    """A recorder on a thread, with the test as engine and bridge."""

    def __init__(self, folder: Path) -> None:
        self.arena = Arena.create({**engine_layout(CONFIG), **io.layout(CONFIG.spec), **recorder_layout()})
        self.memory = Memory.shared(self.arena, CONFIG)
        config = RecorderConfig(str(folder), CONFIG, take_header(CONFIG, "1", ""))
        self._thread = threading.Thread(target=run_recorder, args=(self.arena.handle, config))
        self._thread.start()

    def play(self, start: int, frames: int) -> None:
        """Do what an engine does in a turn: a decision, then its sound, then the place."""
        self.arena.records("log").post(to_bytes({"type": "note", "frame": start}))
        self.memory.inputs.write(start, sound(frames, 1, start))
        self.memory.stems["keys"].write(start, sound(frames, 1, start + 1))
        self.memory.mix.write(start, sound(frames, 2, start + 2))
        self.arena["place"][0] = start + frames

    def note(self) -> dict[str, object]:
        """Return the recorder's next note."""
        found: list[bytes] = []

        def heard() -> bool:
            if (record := self.arena.records("recorder.notes").take()) is not None:
                found.append(record)
            return bool(found)

        until(heard)
        note: dict[str, object] = json.loads(found[0])
        return note

    def close(self) -> None:
        self.arena.records("recorder.orders").post(b"close")
        self._thread.join(10)
        self.memory = Memory.private(CONFIG)
        self.arena.unlink()
        self.arena.close()
        assert not self._thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a recorder be a thread: only a process's first thread may set signal handlers."""
    monkeypatch.setattr("bridge.tap.signal.signal", lambda *_: None)


@pytest.mark.parametrize("end", ["the engine stops", "the bridge says so", "the bridge is gone"])
def test_a_recording_ends_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    class Gone:
        @staticmethod
        def is_alive() -> bool:
            return False

    if end == "the bridge is gone":
        monkeypatch.setattr(taps, "ORPHAN_SECONDS", 0.2)
        monkeypatch.setattr("bridge.tap.multiprocessing.parent_process", Gone)
    rig = Rig(tmp_path / "take")
    assert rig.note() == {"recording": str(tmp_path / "take")}
    rig.play(0, 3000)
    rig.play(3000, 2000)
    rig.arena.records("log").post(to_bytes({"type": "counters", "frame": 5000, "agent_faults": 3}))
    if end == "the engine stops":
        rig.arena["place"][3] = 1
    elif end == "the bridge says so":
        rig.arena.records("recorder.orders").post(b"close")
    assert rig.note() == {"closed": 5000}
    rig.close()
    take = TakeReader(tmp_path / "take")
    assert take.frames == 5000
    assert take.end is not None
    counted = {name: count for name, count in take.end.counters.items() if count}
    assert counted == {"agent_faults": 3}
    assert take.end.counters["recorder_lost_frames"] == 0
    assert np.array_equal(take.stem("keys", 3000, 2000), sound(2000, 1, 3001))
    assert [line["frame"] for line in take.lines if line["type"] == "note"] == [0, 3000]


def test_an_orphaned_recording_goes_on_while_the_engine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        @staticmethod
        def is_alive() -> bool:
            return False

    clock = [100.0]
    monkeypatch.setattr("bridge.tap.multiprocessing.parent_process", Gone)
    monkeypatch.setattr("bridge.tap.time.monotonic", lambda: clock[0])
    arena = Arena.create({**engine_layout(CONFIG), **recorder_layout()})
    ending = taps._Ending(arena)
    for _ in range(10):  # a slow bar goes by
        arena["place"][0] += 1000
        assert not ending.due()
        clock[0] += 1.5
    assert not ending.due()
    clock[0] += taps.ORPHAN_SECONDS
    assert ending.due()
    arena.close()
    arena.unlink()


def test_decisions_are_written_before_the_sound_they_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    keep_log, keep_stem = TakeWriter.log, TakeWriter.stem

    def log(self: TakeWriter, line: dict[str, object]) -> None:
        order.append(str(line["type"]))
        keep_log(self, line)

    def stem(self: TakeWriter, name: str, block: Block) -> None:
        order.append("sound")
        keep_stem(self, name, block)

    monkeypatch.setattr(TakeWriter, "log", log)
    monkeypatch.setattr(TakeWriter, "stem", stem)
    monkeypatch.setattr(taps, "TURN_SECONDS", 0.3)
    rig = Rig(tmp_path / "take")
    rig.note()
    rig.play(0, 1000)
    until(lambda: "sound" in order)
    rig.close()
    assert order[: order.index("sound") + 1][-2:] == ["note", "sound"]


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "take").mkdir()
    (tmp_path / "take" / "mix.wav").touch()
    rig = Rig(tmp_path / "take")
    assert "already holds a take" in str(rig.note()["failed"])
    rig.close()


def test_a_disk_that_fails_is_told_once_and_the_take_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "take")
    rig.note()
    rig.play(0, RATE)
    until(lambda: (tmp_path / "take" / "mix.wav").stat().st_size > RATE)

    def full(self: object, position: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bridge.wav.WavWriter._write_at", full)
        rig.play(RATE, RATE)
        fault = str(rig.note()["fault"])
    assert "the disk is full" in fault
    assert "make room" in fault
    rig.arena["place"][3] = 1
    assert rig.note() == {"closed": RATE}
    rig.close()
    assert TakeReader(tmp_path / "take").frames == RATE


def told(arena: Arena, *runs: tuple[int, float]) -> None:
    """Say what became of the next frames, as the device process does: how many, and what of each."""
    ring = arena.ring("io.out")
    for frames, value in runs:
        ring.write(ring.written, np.full((frames, 1), value, np.float32))


def test_what_the_device_lost_is_a_line_with_its_exact_place(tmp_path: Path) -> None:
    live = Rig(tmp_path / "take")
    live.note()
    live.arena.status("stream.status").publish(frame=4800, underruns=1, late_frames=7)
    live.arena.status("io.status").publish(xruns=1, lost_frames=300)
    told(live.arena, (100, 0), (4000, 65), (300, LOST_EMPTY), (50, 1), (20, 0), (9, 1), (5, LOST_LATE), (1, 1))
    live.play(0, 480)
    live.close()
    take = TakeReader(tmp_path / "take")
    assert sorted((xrun.frame, xrun.frames, xrun.cause) for xrun in take.xruns) == [
        (4100, 300, "the device's ring ran empty"),
        (4450, 20, "no device was there"),
        (4479, 5, "the engine had not mixed it"),
        (4800, 7, "the engine was late"),
    ]
    assert take.end is not None
    assert (take.end.counters["xruns"], take.end.counters["overflows"]) == (1, 0)


CODES = {1: "", 0: "no device was there", LOST_EMPTY: "the device's ring ran empty",
         LOST_LATE: "the engine had not mixed it", LOST_GONE: "no device was there"}  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(1, 700), st.sampled_from([1, 1, 9, 0, -1, -2, -3])), max_size=12),
    looks=st.lists(st.integers(1, 900), max_size=9),
)
def test_no_lost_range_is_missed_however_seldom_one_looks(runs: list[tuple[int, int]], looks: list[int]) -> None:
    arena = Arena.create({**io.layout(CONFIG.spec)})
    truth = np.repeat([value for _, value in runs], [frames for frames, _ in runs]).astype(np.float32)
    losses, found, at = Losses(arena), [], 0
    for frames in [*looks, len(truth)]:
        told(arena, *((1, float(value)) for value in truth[at : at + frames]))
        at += frames
        found += list(losses.news())
    found += list(losses.news(last=True))
    begun = np.maximum.accumulate(truth > 0) if len(truth) else truth > 0
    ended = np.maximum.accumulate((truth != 0)[::-1])[::-1] if len(truth) else truth > 0
    lost = (truth < 0) | ((truth == 0) & begun & ended)
    named = np.zeros(len(truth), bool)
    for line in found:
        place = slice(line["frame"], line["frame"] + line["frames"])
        assert not named[place].any(), "each frame once"
        assert all(CODES[min(1, int(value))] == line["cause"] for value in truth[place])
        named[place] = True
    assert np.array_equal(named, lost), "and silence behind the last frame is not lost"
    arena.close()
    arena.unlink()


def test_a_device_that_never_came_back_is_told_at_the_end() -> None:
    arena = Arena.create({**io.layout(CONFIG.spec)})
    told(arena, (1000, 5))
    arena.status("stream.status").publish(frame=5 * RATE)
    losses = Losses(arena)
    assert list(losses.news()) == []
    (line,) = losses.news(last=True)
    assert (line["frame"], line["frames"], line["cause"]) == (1000, 5 * RATE - 1000, "no device was there")
    arena.close()
    arena.unlink()


def test_frames_that_nobody_looked_at_in_time_are_counted_and_not_called_lost() -> None:
    arena = Arena.create({**io.layout(CONFIG.spec)})
    told(arena, (10, 1), (100, LOST_EMPTY), (arena.ring("io.out").capacity, 1))
    losses = Losses(arena)
    assert list(losses.news(last=True)) == []
    assert losses.unseen == 110
    arena.close()
    arena.unlink()


def span(bar: int, start: int, rung: int = 1) -> dict[str, object]:
    return {"type": "span", "agent": "keys", "bar": bar, "beat": "0", "beats": "4", "start": start,
            "frames": 1000, "rung": rung, "cause": ""}  # fmt: skip


def test_every_span_that_sounds_gets_a_line_of_how_it_went_out(tmp_path: Path) -> None:
    live = Rig(tmp_path / "take")
    live.note()
    live.arena.status("io.status").publish(epoch=1)
    for bar, rung in enumerate([0, 1, 4, 1, 1]):
        live.arena.records("log").post(to_bytes(span(bar, 1000 * bar, rung)))
    told(live.arena, (1500, 65), (1000, LOST_EMPTY), (1400, 33))
    live.play(0, 5000)
    live.close()
    take = TakeReader(tmp_path / "take")
    assert [(out.bar, out.wanted, out.actual, out.margin_frames, out.cause) for out in take.outs] == [
        (1, 1000, 1000, 64, ""),  # bar 0 rests; what comes after bar 3 has not gone out
        (2, 2000, None, None, "the device's ring ran empty"),
        (3, 3000, 3000, 32, ""),
    ]
    assert take.outs[0].key == take.spans[1].key
    assert take.end is not None
    assert (take.end.counters["spans_not_heard"], take.end.counters["spans_not_seen"]) == (1, 0)


def test_a_session_without_a_device_has_no_such_lines(tmp_path: Path) -> None:
    live = Rig(tmp_path / "take")
    live.note()
    live.arena.status("stream.status").publish(frame=10 * RATE)
    live.arena.records("log").post(to_bytes(span(1, 1000)))
    live.play(0, 5000)
    live.close()
    assert TakeReader(tmp_path / "take").outs == []


def test_spans_that_wait_to_go_out_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "MOST_SPANS", 3)
    arena = Arena.create({**io.layout(CONFIG.spec)})
    outs = Outs(arena)
    arena.status("io.status").publish(epoch=1)
    for bar in range(5):
        outs.expect(span(bar, 1000 * bar))
    assert outs.counted["spans_not_seen"] == 2
    told(arena, (2500, 4))
    assert [line["wanted"] for line in outs.news()] == [0, 1000, 2000]
    arena.close()
    arena.unlink()


class SlowTake(FakeTake):
    """A take on a disk that stands still until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = threading.Event()
        self.order: list[str] = []

    def log(self, line: dict[str, object]) -> None:
        self.disk.wait(10)
        super().log(line)
        self.order.append(f"line {line['frame']}")

    def mix(self, block: Block) -> None:
        super().mix(block)
        self.order.append("sound")


def test_a_disk_that_stands_still_holds_nobody_up_and_the_order_stays() -> None:
    memory, take = Memory.private(CONFIG), SlowTake()
    tap = Tap(take, memory)  # type: ignore[arg-type]
    scribe = Scribe(take, tap)  # type: ignore[arg-type]
    for turn in range(200):
        memory.inputs.write(100 * turn, sound(100, 1))
        memory.stems["keys"].write(100 * turn, sound(100, 1))
        memory.mix.write(100 * turn, sound(100, 2))
        scribe.hand([{"type": "note", "frame": 100 * turn}], tap.mark())
    take.disk.set()
    scribe.close()
    assert [line["frame"] for line in take.lines] == list(range(0, 20_000, 100))
    assert len(take.sound("mix")) == 20_000
    sounded = 0
    for at, step in enumerate(take.order):
        sounded += len(take.kept["mix"][take.order[:at].count("sound")]) if step == "sound" else 0
        decided = sum(step.startswith("line") for step in take.order[:at])
        assert sounded <= 100 * decided, "sound never goes before its decisions"


def test_of_too_many_lines_the_rest_stays_in_the_engines_queue_and_its_sound_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    keep_log, keep_mix = TakeWriter.log, TakeWriter.mix

    def log(self: TakeWriter, line: dict[str, Any]) -> None:
        order.append(("line", line.get("frame", 0)))
        time.sleep(0.002)
        keep_log(self, line)

    def mix(self: TakeWriter, block: Block) -> None:
        order.append(("sound", len(block)))
        keep_mix(self, block)

    monkeypatch.setattr(TakeWriter, "log", log)
    monkeypatch.setattr(TakeWriter, "mix", mix)
    monkeypatch.setattr(taps, "MOST_LINES", 5)
    monkeypatch.setattr(taps, "TURN_SECONDS", 0.005)
    rig = Rig(tmp_path / "take")
    rig.note()
    for turn in range(60):
        rig.play(50 * turn, 50)
    rig.close()
    take = TakeReader(tmp_path / "take")
    assert [line["frame"] for line in take.lines if line["type"] == "note"] == list(range(0, 3000, 50))
    sounded, decided = 0, -1
    for what, value in order:
        decided = max(decided, value) if what == "line" else decided
        sounded += value if what == "sound" else 0
        assert sounded <= decided + 50


def test_a_line_that_no_take_can_carry_does_not_end_the_recording(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "take")
    rig.note()
    for record in (b'{"type":"reply","compute_seconds":NaN}', b"[1]", b"\xff\xfe", b"{", b"[" * 10_000):
        rig.arena.records("log").post(record)
    rig.play(0, 500)
    rig.arena["place"][3] = 1
    assert rig.note() == {"closed": 500}
    rig.close()
    take = TakeReader(tmp_path / "take")
    assert [line["type"] for line in take.lines if line["type"] in ("note", "reply")] == ["note"]
    assert take.end is not None
    assert take.end.counters["damaged_log_lines"] == 5


def test_what_goes_wrong_in_the_writing_thread_is_heard_of() -> None:
    class Broken(FakeTake):
        def log(self, line: dict[str, object]) -> None:
            raise RuntimeError("a mistake of ours")

    memory, take = Memory.private(CONFIG), Broken()
    scribe = Scribe(take, Tap(take, memory))  # type: ignore[arg-type]
    scribe.hand([{"type": "note"}], ())
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        scribe.close()


def test_a_kill_at_any_moment_leaves_sound_that_can_be_replayed() -> None:
    """Whatever was written last: the lines that are there make the sound that is there, bit for bit."""
    steps: list[dict[str, Any] | int] = []  # a line, or how many frames of sound

    class Ordered(FakeTake):
        def log(self, line: dict[str, object]) -> None:
            steps.append(line)

        def stem(self, name: str, block: Block) -> None:
            super().stem(name, block)
            steps.append(len(block))

    rng = np.random.default_rng(5)
    delays = [int(frames) for frames in rng.choice([0, 0, 3000, 30000, NEVER], 400)]
    rig = rigs.Rig({"keys": rigs.NoiseAgent()}, delay=lambda request: delays.pop(), grid_beats=Fraction(2))
    take = Ordered()
    tap = Tap(take, rig.memory)  # type: ignore[arg-type]
    scribe = Scribe(take, tap)  # type: ignore[arg-type]
    for turn in range(1, 11):
        rig.run(20_000 * turn)
        marks = tap.mark()
        rig.run(20_000 * turn + 700)  # what is decided meanwhile may be there earlier than its sound
        scribe.hand(list(rig.log), marks)
        rig.log.clear()
    scribe.close()
    truth = take.sound("keys")
    assert len(truth) == 200_000
    for cut in rng.integers(1, len(steps), 12):
        there = sum(step for step in steps[:cut] if isinstance(step, int))
        lines = [step for step in steps[:cut] if not isinstance(step, int)]
        if there:
            again = rigs.Rig({"keys": rigs.NoiseAgent()}, grid_beats=Fraction(2), replay=lines)
            again.run(there)
            assert np.array_equal(again.stem("keys"), truth[:there])
