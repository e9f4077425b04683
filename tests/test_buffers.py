"""Memory that outlives a block: rings against plain models, processes that race, writers that die in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.buffers import (
    Arena,
    ArenaHandle,
    AudioRing,
    RecordRing,
    StatusBlock,
    StemRings,
    _Segment,
    checksum,
    crossfade,
    is_finite,
    join_frames,
    lane,
    record_layout,
    ring_layout,
    status_layout,
    stem_columns,
    stems_layout,
)
from realtime.protocols import Block

SPAWN = get_context("spawn")


def counting(start: int, end: int, channels: int = 1) -> Block:
    """Frames that say which they are: frame f is f + 1 in channel 0, its negative in channel 1."""
    ramp = np.arange(start, end, dtype=np.float32)[:, None] + 1
    return np.concatenate([ramp * (-1) ** channel for channel in range(channels)], axis=1)


class TestAudioRing:
    @given(
        capacity=st.integers(1, 12),
        steps=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12),
        reads=st.lists(st.tuples(st.integers(-20, 400), st.integers(0, 40)), max_size=12),
    )
    @settings(max_examples=200, deadline=None)
    def test_it_is_the_last_frames_of_an_endless_tape(
        self, capacity: int, steps: list[tuple[int, int]], reads: list[tuple[int, int]]
    ) -> None:
        ring = AudioRing.private(capacity, 2)
        tape = np.zeros((1000, 2), np.float32)  # frame f is at f + 100, so that frames below 0 are there too
        written = 0
        for gap, frames in steps:
            start = written + max(0, gap - 20)  # two thirds of the writes follow on directly
            block = counting(start, start + frames, 2)
            tape[100 + start : 100 + start + frames] = block
            ring.write(start, block)
            written = start + frames
            assert ring.written == written
            for first, length in [(written - capacity - 3, capacity + 8), *reads]:
                model = tape[100 + first : 100 + first + length].copy()
                model[: max(0, written - capacity - first)] = 0
                assert np.array_equal(ring.read(first, first + length), model)

    def test_it_says_how_many_of_the_frames_asked_for_were_held(self) -> None:
        ring = AudioRing.private(10, 1)
        ring.write(0, counting(0, 25))
        out = np.full((20, 1), 9, np.float32)
        assert ring.read_into(10, out) == 10
        assert np.array_equal(out[5:15], counting(15, 25))
        assert not out[:5].any()
        assert not out[15:].any()
        assert ring.read_into(25, out) == 0
        assert not out.any()

    def test_a_jump_leaves_silence_behind_and_never_goes_back(self) -> None:
        ring = AudioRing.private(10, 1)
        ring.write(0, counting(0, 10))
        ring.jump(14)
        assert ring.written == 14
        assert np.array_equal(ring.read(4, 14)[:, 0], [5, 6, 7, 8, 9, 10, 0, 0, 0, 0])
        ring.jump(3)
        assert ring.written == 14

    def test_what_the_writer_overtakes_while_it_is_copied_is_lost_not_mixed_up(self) -> None:
        index = np.zeros(2, np.int64)
        audio = np.zeros((8, 1), np.float32)
        ring = AudioRing(audio, index)
        ring.write(0, counting(0, 8))
        index[1], audio[0:3] = 11, 99  # the writer is in the middle of frames 8 to 10, over 0 to 2
        assert np.array_equal(ring.read(0, 8)[:, 0], [0, 0, 0, 4, 5, 6, 7, 8])

    def test_a_reader_lapped_by_another_process_reads_right_frames_or_zeros(self) -> None:
        arena = Arena.create({**ring_layout("r", 64, 1), **status_layout("go", {"stop": "i8"})})
        writer = SPAWN.Process(target=lap, args=(arena.handle,))
        try:
            writer.start()
            ring = arena.ring("r")
            wait_until(lambda: ring.written > 0)
            begin, right, lost = time.monotonic(), 0, 0
            while time.monotonic() - begin < 0.4:
                end = ring.written
                start = max(0, end - 64)
                got = ring.read(start, end)[:, 0]
                wanted = (np.arange(start, end) % 100_003 + 1).astype(np.float32)
                wrong = (got != wanted) & (got != 0)
                assert not wrong.any(), f"frames {start + np.flatnonzero(wrong)} hold another frame's sound"
                right += int(np.count_nonzero(got))
                lost += int(np.count_nonzero(got == 0))
            assert right > 0
            assert lost > 0, "the writer was meant to lap the reader"
        finally:
            arena.status("go").publish(stop=1)
            finish(writer)
            arena.close()
            arena.unlink()


def lap(handle: ArenaHandle) -> None:
    """Write without end, in blocks that do not divide the ring."""
    arena = Arena.attach(handle)
    ring, go = arena.ring("r"), arena.status("go")
    while not go.read()["stop"]:
        start = ring.written
        ring.write(start, (np.arange(start, start + 37) % 100_003 + 1).astype(np.float32)[:, None])
    arena.close()


class TestRecordRing:
    @given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_it_is_a_bounded_queue(self, steps: list[bytes | None]) -> None:
        """A record takes a place of eight bytes, or as many in a row as it needs."""
        ring, refused = RecordRing.private(4, 8), 0
        model: list[bytes] = []
        for step in steps:
            if step is None:
                assert ring.take() == (model.pop(0) if model else None)
            elif sum(-(-len(record) // 8) or 1 for record in [*model, step]) <= 4:
                assert ring.post(step)
                model.append(step)
            else:
                assert not ring.post(step)
                refused += 1
            assert ring.waiting == bool(model)
            assert ring.refused == refused
        assert ring.damaged == 0

    @pytest.mark.parametrize("part", ["stamp before", "length", "checksum", "stamp after", "data"])
    def test_a_damaged_record_is_passed_over_and_counted(self, part: str) -> None:
        data, head, index = (
            np.zeros((4, 16), np.uint8),
            np.zeros((4, 4), np.int64),
            np.zeros((2, 8), np.int64),
        )
        ring = RecordRing(data, head, index)
        for record in (b"one", b"two", b"three"):
            ring.post(record)
        if part == "data":
            data[1, 2] ^= 1
        else:
            head[1, ["stamp before", "length", "checksum", "stamp after"].index(part)] ^= 1
        assert [ring.take(), ring.take(), ring.take()] == [b"one", b"three", None]
        assert ring.damaged == 1

    def test_a_record_that_arrives_between_two_looks_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data, head, index = np.zeros((4, 16), np.uint8), np.zeros((4, 4), np.int64), np.zeros((2, 8), np.int64)
        ring = RecordRing(data, head, index)
        ring.post(b"record")
        data[0, 0] ^= 1
        look = RecordRing._look

        def look_and_repair(ring: RecordRing, taken: int, posted: int) -> bytes | None:
            found = look(ring, taken, posted)
            data[0, 0] = ord("r")  # the store has come through
            return found

        monkeypatch.setattr(RecordRing, "_look", look_and_repair)
        assert ring.take() == b"record"
        assert ring.damaged == 0

    def test_what_follows_a_damaged_record_of_many_places_is_found(self) -> None:
        data, head, index = np.zeros((8, 4), np.uint8), np.zeros((8, 4), np.int64), np.zeros((2, 8), np.int64)
        ring = RecordRing(data, head, index)
        for record in (b"one", b"it takes four...", b"two"):
            assert ring.post(record)
        head[1, 1] = 3  # a length that could be
        assert [ring.take(), ring.take(), ring.take()] == [b"one", b"two", None]
        assert (ring.damaged, ring.waiting) == (1, False)

    @pytest.mark.parametrize("posted", [-1, 5, 1 << 62, -(1 << 62)])
    def test_counters_that_cannot_be_cost_no_time_and_what_comes_after_is_taken(self, posted: int) -> None:
        data, head, index = np.zeros((4, 16), np.uint8), np.zeros((4, 4), np.int64), np.zeros((2, 8), np.int64)
        ring = RecordRing(data, head, index)
        index[0, 0] = posted  # a process gone mad wrote here
        assert ring.take() is None
        assert ring.damaged == 1
        assert ring.post(b"sane")
        assert ring.take() == b"sane"

    @pytest.mark.parametrize("length", [-1, 17, 1 << 40])
    def test_an_absurd_length_harms_nobody(self, length: int) -> None:
        data, head, index = (
            np.zeros((2, 16), np.uint8),
            np.zeros((2, 4), np.int64),
            np.zeros((2, 8), np.int64),
        )
        ring = RecordRing(data, head, index)
        ring.post(b"record")
        head[0, 1] = length
        assert ring.take() is None
        assert ring.damaged == 1

    @pytest.mark.parametrize("written", [0, 1, 2, 3])
    def test_a_writer_that_dies_in_the_middle_leaves_nothing_and_its_heir_goes_on(self, written: int) -> None:
        data, head, index = (
            np.zeros((2, 16), np.uint8),
            np.zeros((2, 4), np.int64),
            np.zeros((2, 8), np.int64),
        )
        writer, reader = RecordRing(data, head, index), RecordRing(data, head, index)
        writer.post(b"first")
        writer.post(b"second")
        assert reader.take() == b"first"
        head[0, :written] = [3, 99, 0][:written]  # it stamped record 3 over the first, and so far it got
        data[0, :4] = 7
        assert reader.take() == b"second"
        assert reader.take() is None
        assert RecordRing(data, head, index).post(b"third")
        assert reader.take() == b"third"
        assert reader.damaged == 0

    def test_a_stale_record_in_a_place_said_to_be_posted_does_not_pass(self) -> None:
        data, head, index = (
            np.zeros((2, 16), np.uint8),
            np.zeros((2, 4), np.int64),
            np.zeros((2, 8), np.int64),
        )
        ring = RecordRing(data, head, index)
        ring.post(b"first")
        ring.post(b"second")
        assert [ring.take(), ring.take()] == [b"first", b"second"]
        index[0, 0] = 3  # the count arrives before the record does
        assert ring.take() is None
        assert ring.damaged == 1


class TestStatusBlock:
    def test_what_is_not_named_keeps_its_value(self) -> None:
        block = StatusBlock.private({"a": "i8", "b": "f8"})
        block.publish(a=3, b=0.5)
        block.publish(b=0.25)
        assert block.read() == {"a": 3, "b": 0.25}

    def test_a_reader_gets_the_last_good_numbers_while_the_writer_is_in_the_middle(self) -> None:
        fields, stamps = np.zeros(1, [("a", "i8"), ("b", "i8")]), np.zeros(2, np.int64)
        writer, reader = StatusBlock(fields, stamps), StatusBlock(fields, stamps)
        writer.publish(a=1, b=1)
        assert reader.read() == {"a": 1, "b": 1}
        stamps[0] += 1
        fields["a"][0] = 2  # and here it died
        assert reader.read() == {"a": 1, "b": 1}
        StatusBlock(fields, stamps).publish(a=3, b=3)  # its heir
        assert reader.read() == {"a": 3, "b": 3}

    def test_two_numbers_of_another_process_are_never_of_two_times(self) -> None:
        arena = Arena.create(
            {**status_layout("s", {"n": "i8", "minus": "i8"}), **status_layout("go", {"stop": "i8"})}
        )
        writer = SPAWN.Process(target=publish, args=(arena.handle,))
        try:
            writer.start()
            status = arena.status("s")
            wait_until(lambda: status.read()["n"] > 0)
            for _ in range(3000):
                values = status.read()
                assert values["n"] == -values["minus"]
        finally:
            arena.status("go").publish(stop=1)
            finish(writer)
            arena.close()
            arena.unlink()


def publish(handle: ArenaHandle) -> None:
    arena = Arena.attach(handle)
    status, go = arena.status("s"), arena.status("go")
    n = 0
    while not go.read()["stop"]:
        n += 1
        status.publish(n=n, minus=-n)


class TestArena:
    def test_every_array_is_clear_aligned_and_its_own(self) -> None:
        layout = {**ring_layout("r", 33, 3), **record_layout("q", 3, 5), "x": (np.dtype("u1"), (1,))}
        arena = Arena.create(layout)
        try:
            for name, (dtype, shape) in layout.items():
                assert arena[name].dtype == dtype
                assert arena[name].shape == shape
                assert not arena[name].any()
                assert arena[name].ctypes.data % 64 == 0
            for number, name in enumerate(layout):
                arena[name].fill(number + 1)
            for number, name in enumerate(layout):
                assert (arena[name] == number + 1).all()
        finally:
            arena.close()
            arena.unlink()

    def test_a_spawned_process_shares_it_and_nothing_is_left_behind(self) -> None:
        arena = Arena.create({**record_layout("q", 4, 64), **ring_layout("r", 16, 1)})
        name = arena.handle.name
        assert name.startswith("sideman-")
        child = SPAWN.Process(target=answer, args=(arena.handle,))
        try:
            arena.ring("r").write(0, counting(0, 16))
            child.start()
            finish(child)
            assert child.exitcode == 0
            assert arena.records("q").take() == str(counting(0, 16).sum()).encode()
            again = Arena.attach(arena.handle)  # the child's end did not take it away
            again.close()
        finally:
            arena.close()
            arena.unlink()
        with pytest.raises(FileNotFoundError):
            Arena.attach(arena.handle)
        if Path("/dev/shm").is_dir():
            assert not Path("/dev/shm", name).exists()

    def test_a_program_of_its_own_that_attaches_does_not_take_it_away_and_is_quiet(self) -> None:
        arena = Arena.create(ring_layout("r", 16, 1))
        code = (
            "import sys; from realtime.buffers import Arena, ArenaHandle, ring_layout\n"
            "arena = Arena.attach(ArenaHandle(sys.argv[1], ring_layout('r', 16, 1)))\n"
            "ring = arena.ring('r'); assert ring.read(0, 1)[0, 0] == 1"
        )
        try:
            arena.ring("r").write(0, counting(0, 16))
            done = subprocess.run(
                [sys.executable, "-c", code, arena.handle.name], capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            Arena.attach(arena.handle).close()
        finally:
            arena.close()
            arena.unlink()

    def test_processes_that_end_with_views_in_their_hands_are_quiet(self) -> None:
        code = (
            "from multiprocessing import get_context\n"
            "from test_buffers import hold\n"
            "from realtime.buffers import Arena, ring_layout\n"
            "if __name__ == '__main__':\n"
            "    arena = Arena.create(ring_layout('r', 16, 1)); ring = arena.ring('r')\n"
            "    child = get_context('spawn').Process(target=hold, args=(arena.handle,))\n"
            "    child.start(); child.join(); arena.close(); arena.unlink()\n"
            "    assert ring.read(0, 1)[0, 0] == 7 and child.exitcode == 0\n"
        )
        here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": here},
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def answer(handle: ArenaHandle) -> None:
    arena = Arena.attach(handle)
    arena.records("q").post(str(arena.ring("r").read(0, 16).sum()).encode())
    arena.close()


def hold(handle: ArenaHandle) -> None:
    arena = Arena.attach(handle)
    ring, audio = arena.ring("r"), arena["r.audio"]
    ring.write(0, np.full((1, 1), 7, np.float32))
    assert audio[0, 0] == 7


def noise(seed: int, frames: int, channels: int = 2) -> Block:
    return np.random.default_rng(seed).normal(0, 0.1, (frames, channels)).astype(np.float32)


class TestCrossfade:
    def test_unrelated_sound_keeps_its_power(self) -> None:
        powers = [float(np.mean(crossfade(noise(s, 480), noise(s + 1000, 480)) ** 2)) for s in range(100)]
        assert 10 * np.log10(np.mean(powers) / 0.01) == pytest.approx(0, abs=0.15)

    def test_power_is_kept_in_the_middle_too(self) -> None:
        middles = [crossfade(noise(s, 480), noise(s + 1000, 480))[200:280] for s in range(100)]
        assert 10 * np.log10(np.mean(np.square(middles)) / 0.01) == pytest.approx(0, abs=0.3)

    @pytest.mark.parametrize("frames", [1, 2, 441, 480, 960])
    def test_what_continues_itself_comes_out_as_it_went_in(self, frames: int) -> None:
        sound = noise(1, frames)
        assert np.allclose(crossfade(sound, sound), sound, rtol=0, atol=1e-6 * np.abs(sound).max())

    @given(seed=st.integers(0, 99), frames=st.integers(1, 100), alike=st.floats(-1, 1), gain=st.floats(1e-6, 10))
    @settings(max_examples=100, deadline=None)
    def test_it_never_blows_up_whatever_the_correlation(
        self, seed: int, frames: int, alike: float, gain: float
    ) -> None:
        old = noise(seed, frames)
        new = (gain * (alike * old + (1 - abs(alike)) * noise(seed + 1, frames))).astype(np.float32)
        faded = crossfade(old, new)
        assert faded.dtype == np.float32
        assert np.isfinite(faded).all()
        assert (np.abs(faded) <= np.sqrt(2) * np.maximum(np.abs(old), np.abs(new)) + 1e-7).all()

    def test_sound_against_its_opposite_is_a_dip_not_a_burst(self) -> None:
        sound = noise(1, 480)
        faded = crossfade(sound, -sound)
        assert (np.abs(faded) <= np.abs(sound) + 1e-7).all()

    def test_it_starts_with_the_old_and_ends_with_the_new(self) -> None:
        old, new = noise(1, 480), noise(2, 480)
        faded = crossfade(old, new)
        assert np.abs(faded[0] - old[0]).max() < 0.002
        assert np.abs(faded[-1] - new[-1]).max() < 0.002

    def test_no_frames_and_silence(self) -> None:
        none = np.zeros((0, 2), np.float32)
        assert crossfade(none, none).shape == (0, 2)
        sound, silence = noise(1, 480), np.zeros((480, 2), np.float32)
        assert not crossfade(silence, silence).any()
        assert np.abs(crossfade(sound, silence)[-1]).max() < 0.002
        assert np.array_equal(crossfade(silence, sound), crossfade(sound[::-1], silence)[::-1])

    def test_its_inputs_are_left_as_they_were(self) -> None:
        old, new = noise(1, 10), noise(2, 10)
        none = np.zeros((0, 2), np.float32)
        crossfade(old, new)[:] = 0
        crossfade(none, new)[:] = 0
        assert np.array_equal(old, noise(1, 10))
        assert np.array_equal(new, noise(2, 10))

    @pytest.mark.parametrize(("samplerate", "frames"), [(48000, 480), (44100, 441), (96000, 960), (22050, 220)])
    def test_a_join_is_ten_milliseconds(self, samplerate: int, frames: int) -> None:
        assert join_frames(samplerate) == frames


class TestChecksum:
    @given(frame=st.integers(0, 99), channel=st.integers(0, 1), bit=st.integers(0, 31))
    @settings(max_examples=200, deadline=None)
    def test_one_flipped_bit_is_found(self, frame: int, channel: int, bit: int) -> None:
        audio = noise(3, 100)
        flipped = audio.copy()
        flipped.view(np.uint32)[frame, channel] ^= np.uint32(1 << bit)
        assert checksum(flipped) != checksum(audio)

    def test_it_is_that_of_the_frames_wherever_they_lie(self) -> None:
        audio = noise(3, 100, 3)
        assert checksum(audio[10:90, :2]) == checksum(audio[10:90, :2].copy())
        assert checksum(np.zeros((0, 1), np.float32)) == 0


class TestIsFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("frame", [0, 57, 99])
    def test_a_sample_that_is_no_number_is_found(self, value: float, frame: int) -> None:
        audio = noise(3, 100)
        assert is_finite(audio)
        audio[frame, 1] = value
        assert not is_finite(audio)

    def test_the_largest_numbers_are_numbers(self) -> None:
        assert is_finite(np.full((10, 2), 3e38, np.float32))
        assert is_finite(np.zeros((0, 2), np.float32))


class TestStemRings:
    @pytest.mark.parametrize(
        ("widths", "first", "width"),
        [([], (), 2), ([1], (0,), 2), ([2, 2], (0, 2), 4), ([1, 2, 3, 4], (6, 0, 7, 2), 10), ([1, 1], (0, 1), 2)],
    )
    def test_stereo_stems_begin_evenly(self, widths: list[int], first: tuple[int, ...], width: int) -> None:
        places = stem_columns(widths)
        assert (places.first, places.width) == (first, width)

    def test_each_stem_is_read_as_a_ring_of_its_own_and_written_with_the_others(self) -> None:
        layout = {**ring_layout("input", 8, 1), **stems_layout("stem", 8, {"a": 1, "b": 2, "c": 3})}
        arena = Arena.create(layout)
        try:
            stems, columns = arena.stems("stem"), stem_columns([1, 2, 3])
            for start, end in ((0, 6), (6, 8), (8, 11)):
                stems.begin(end)
                for (name, column), width in zip(zip("abc", columns.first, strict=True), (1, 2, 3), strict=True):
                    at = start % 8
                    block = counting(start, end, width) * "abc".index(name)
                    stems.sound[at : at + end - start, column : column + width] = block
                stems.finish(end)
            for name, width in (("a", 1), ("b", 2), ("c", 3)):
                ring = arena.ring(f"stem.{name}")
                assert (ring.written, ring.channels, ring.capacity) == (11, width, 8)
                assert np.array_equal(ring.read(3, 11), counting(3, 11, width) * "abc".index(name))
                assert np.array_equal(np.concatenate(list(ring.runs(5, 11))), ring.read(5, 11))
        finally:
            arena.close()
            arena.unlink()

    @pytest.mark.parametrize("channels", [1, 2, 3])
    def test_a_lane_is_the_same_memory(self, channels: int) -> None:
        stems = StemRings.private(16, {"other": 2, "it": channels})
        sound = noise(1, 10, channels)
        stems.lanes()[1][3:13] = lane(sound)
        stems.finish(16)
        assert np.array_equal(stems.rings["it"].read(3, 13), sound)

    def test_bits_that_are_no_number_pass_a_lane_as_they_are(self) -> None:
        odd = np.array([0x7FA00001, 0xFFC00123, 0x00000001, 0x80000000], np.uint32).view(np.float32).reshape(2, 2)
        stems = StemRings.private(2, {"it": 2})
        stems.lanes()[0][0:2] = lane(odd)
        assert stems.sound.tobytes() == odd.tobytes()


def wait_until(true: object, seconds: float = 20) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came to pass"


def finish(process: BaseProcess) -> None:
    process.join(20)
    if process.is_alive():
        process.kill()
        process.join()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves by writing")
def test_memory_that_cannot_be_had_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("realtime.buffers.secrets.token_hex", lambda count: "refused")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Arena.create(ring_layout("ring", 1000, 1))
    with pytest.raises(FileNotFoundError):
        _Segment.of_another("sideman-refused")
