"""From rings to a take: everything once, decisions before the sound, an end whoever dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bridge import tap as taps
from bridge.recorder import TakeReader, TakeWriter
from bridge.tap import RecorderConfig, Tap, new_take, recorder_layout, run_recorder, take_header
from realtime import io
from realtime.buffers import Arena
from realtime.clock import Meter, TempoChange, TempoMap
from realtime.engine import EngineConfig, Memory, PartConfig, engine_layout
from realtime.messages import decode, to_bytes
from realtime.mixer import Strip
from realtime.protocols import Block, StreamSpec
from realtime.worker import AgentConfig

RATE = 8000
SEAT = PartConfig(AgentConfig("keys", "echo"), Strip("keys", 1))
CONFIG = EngineConfig(StreamSpec(RATE, 1, 2, 64, 256), TempoMap.steady(RATE, 120, Meter()), 5, (SEAT,))


def sound(frames: int, channels: int, seed: int = 1) -> Block:
    return np.random.default_rng(seed).uniform(-1, 1, (frames, channels)).astype(np.float32)


class FakeTake:
    """Keeps what a take is given."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Block]] = {"input": [], "keys": [], "mix": []}

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


def test_what_the_device_lost_is_a_line_and_a_counter_of_the_take(tmp_path: Path) -> None:
    live = Rig(tmp_path / "take")
    live.note()
    live.arena.status("stream.status").publish(frame=4800)
    live.arena.status("io.status").publish(xruns=1, lost_frames=300)
    log = tmp_path / "take" / "take.jsonl"
    until(lambda: "the device's ring ran empty" in log.read_text())
    live.play(0, 480)
    live.close()
    take = TakeReader(tmp_path / "take")
    assert [(xrun.frame, xrun.frames, xrun.cause) for xrun in take.xruns] == [
        (4800, 300, "the device's ring ran empty")
    ]
    assert take.end is not None
    assert (take.end.counters["xruns"], take.end.counters["overflows"]) == (1, 0)
