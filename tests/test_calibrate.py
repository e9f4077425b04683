"""The round trip to the frame: planted in arrays, in virtual time, and (``pytest -m device``) in a loop of JACK."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import missing

from bridge import calibrate
from bridge.calibrate import (
    CalibrationError,
    Opened,
    Probe,
    RoundTrip,
    Train,
    agree,
    chirp,
    find,
    judge,
    measure,
    probe_layout,
    run_probe,
)
from realtime import io, rights
from realtime.buffers import Arena, ArenaHandle, AudioRing, StatusBlock, ring_layout
from realtime.devices import IoConfig
from realtime.iowatch import DeviceSupervisor
from realtime.protocols import Block, StreamSpec
from realtime.stream import FAILED, RUNNING, DeviceStream

RATE = 48_000
TRAIN = Train(RATE)


def looped(train: Train, delay: int, gain: float = 1.0) -> Block:
    """Return what comes in through a loop of so many frames, (frames, 1)."""
    played = train.play(0, train.frames)
    heard = np.zeros_like(played)
    heard[delay:] = gain * played[: len(played) - delay]
    return heard


def noise(level_db: float, like: Block, seed: int = 1) -> Block:
    chance = np.random.default_rng(seed)
    return chance.normal(0, 10 ** (level_db / 20), like.shape).astype(np.float32)


def resampled(audio: Block, ratio: float, shift: float = 0.0) -> Block:
    """Return the sound at frame n taken from ``n * ratio - shift``: another clock, a delay between frames."""
    import soxr

    fine = 16
    upper = soxr.resample(audio[:, 0], 1, fine, quality="VHQ")
    at = (np.arange(len(audio)) * ratio - shift) * fine
    moved: Block = np.interp(at, np.arange(len(upper)), upper, left=0, right=0)[:, None].astype(np.float32)
    return moved


# -- what is played ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000, 192_000])
def test_the_chirp_resembles_itself_in_one_place_only(rate: int) -> None:
    sound = chirp(rate)[:, 0].astype(float)
    alike = np.correlate(sound, sound, "full") if rate <= 8000 else _autocorrelation(sound)
    alike /= alike.max()
    middle = int(alike.argmax())
    assert np.abs(np.delete(alike, middle)).max() < calibrate._FIRST_SHARE
    assert np.abs(alike[: middle - 10]).max() < 0.15
    assert np.abs(sound).max() <= 1.0


def _autocorrelation(sound: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    size = 1 << (2 * len(sound)).bit_length()
    alike: np.ndarray[Any, Any] = np.roll(np.fft.irfft(np.abs(np.fft.rfft(sound, size)) ** 2, size), size // 2)
    return alike


def test_a_train_is_the_same_in_blocks_of_any_size() -> None:
    train = Train(8000, level_db=-6)
    whole = train.play(0, train.frames)
    assert abs(np.abs(whole).max() - 10 ** (-6 / 20)) < 0.01
    for size in (1000, 777):
        blocks = [train.play(at, min(size, train.frames - at)) for at in range(0, train.frames, size)]
        assert np.array_equal(np.concatenate(blocks), whole)
    assert not train.play(-500, 500).any()
    assert not train.play(train.frames, 100).any()


def test_each_chirp_has_time_to_come_back_and_no_two_have_the_same() -> None:
    steps = np.diff(TRAIN.starts)
    assert steps.min() >= len(TRAIN.chirp) + TRAIN.window
    assert len(set(steps)) == len(steps)
    assert TRAIN.frames >= TRAIN.starts[-1] + len(TRAIN.chirp) + TRAIN.window


@pytest.mark.parametrize(("kind", "value"), [("level_db", 1.0), ("level_db", -61.0), ("repeats", 2), ("repeats", 9)])
def test_a_train_that_cannot_be_played_is_refused(kind: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"(are|is) usual"):
        Train(**({"samplerate": RATE, kind: value}))  # type: ignore[arg-type]


# -- what comes back -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, round(0.5 * RATE)))
def test_a_planted_delay_is_found_to_the_frame(delay: int) -> None:
    trip = judge(TRAIN, looped(TRAIN, delay))
    assert (trip.frames, trip.spread_frames, trip.chirps, trip.inverted) == (delay, 0.0, TRAIN.repeats, False)
    assert abs(trip.exact_frames - delay) < 0.02
    assert abs(trip.gain_db) < 0.01


@pytest.mark.parametrize(
    ("gain_db", "noise_db", "sign"),
    [(0, -30, 1), (-40, -120, 1), (-40, -65, -1), (-20, -45, 1), (0, -12, -1), (-40, -55, 1)],
)
def test_it_is_found_softly_under_noise_and_with_the_polarity_turned(gain_db: int, noise_db: int, sign: int) -> None:
    clean = looped(TRAIN, 1234, sign * 10 ** (gain_db / 20))
    trip = judge(TRAIN, np.clip(clean + noise(noise_db, clean), -0.99, 0.99))
    assert trip.frames == 1234
    assert trip.inverted == (sign < 0)
    assert abs(trip.gain_db - gain_db) < 1.5
    assert trip.spread_frames < 0.2


@pytest.mark.parametrize("echo", [[(40, 0.9)], [(480, 1.8)], [(5, -0.4)], [(100, 0.9), (1000, -1.5), (9000, 0.7)]])
def test_the_first_arrival_counts_and_not_the_loudest(echo: list[tuple[int, float]]) -> None:
    heard = looped(TRAIN, 700, 0.5)
    for later, gain in echo:
        heard += looped(TRAIN, 700 + later, 0.5 * gain)
    trip = judge(TRAIN, heard + noise(-60, heard))
    assert trip.frames == 700
    assert trip.chirps == TRAIN.repeats


@pytest.mark.parametrize("shift", [0.25, 0.4, -0.3])
def test_a_delay_between_two_frames_is_shown(shift: float) -> None:
    trip = judge(TRAIN, resampled(looped(TRAIN, 300), 1.0, shift))
    assert abs(trip.exact_frames - 300 - shift) < 0.05
    assert trip.frames == 300


def test_an_input_with_nothing_on_it_does_not_count() -> None:
    heard = np.concatenate([noise(-50, looped(TRAIN, 0)), looped(TRAIN, 480, 0.1)], axis=1)
    trip = judge(TRAIN, heard)
    assert (trip.frames, trip.channel) == (480, 1)


def test_a_chirp_that_was_lost_does_not_count() -> None:
    heard = looped(TRAIN, 480)
    heard[TRAIN.starts[2] : TRAIN.starts[3]] = 0
    late = TRAIN.play(0, TRAIN.frames)[: TRAIN.starts[3]]
    assert judge(TRAIN, heard).chirps == TRAIN.repeats - 1
    heard[TRAIN.starts[2] + 608 : TRAIN.starts[3]] = late[TRAIN.starts[2] : TRAIN.starts[3] - 608]
    assert judge(TRAIN, heard).frames == 480  # one that came a period later


# -- what is answered in words -------------------------------------------------------------------------------------


def refusal(heard: Block, train: Train = TRAIN) -> str:
    with pytest.raises(CalibrationError) as error:
        judge(train, heard)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_silence_is_told() -> None:
    assert "nothing came back: connect the output" in refusal(np.zeros((TRAIN.frames, 2), np.float32))
    assert "hardly anything came back (-80 dBFS)" in refusal(noise(-80, looped(TRAIN, 0)))


def test_noise_is_told() -> None:
    words = refusal(noise(-20, looped(TRAIN, 0)))
    assert "0 of 5 chirps were found in what came back (-20 dBFS)" in words
    assert "--level -6" in words


def test_other_sound_is_noise() -> None:
    time_seconds = np.arange(TRAIN.frames)[:, None] / RATE
    chords = sum(0.1 * np.sin(2 * np.pi * pitch_hz * time_seconds) for pitch_hz in (220, 277.2, 329.6, 1760.3))
    clicks = np.zeros((TRAIN.frames, 1))
    clicks[::4801] = 0.9
    for heard in (np.asarray(chords), clicks):
        assert "chirps were found" in refusal(heard.astype(np.float32))


def test_clipping_is_told() -> None:
    words = refusal(np.clip(looped(TRAIN, 100, 20), -1, 1))
    assert "input 1 of the stream clips" in words
    assert "turn its gain down" in words


def test_what_is_no_sound_is_told() -> None:
    heard = looped(TRAIN, 100)
    heard[7] = np.nan
    assert "no sound (NaN or infinite)" in refusal(heard)


@pytest.mark.parametrize("ppm", [100, -100, 40])
def test_clocks_that_drift_apart_are_told_with_the_figure(ppm: int) -> None:
    words = refusal(resampled(looped(TRAIN, 2000), 1 - 1e-6 * ppm) + noise(-70, looped(TRAIN, 0)))
    assert "input and output run on clocks of their own" in words
    told = int(words.partition("(")[2].partition(" ppm")[0])
    assert abs(told - ppm) <= 10  # a frame in the three seconds of a take is 7 ppm


def test_a_clock_that_is_off_for_both_is_nobodys_business() -> None:
    """Frames are counted, not seconds: a device that runs 100 ppm fast has the same round trip in frames."""
    assert judge(Train(48_000), looped(Train(48_000), 480)).frames == 480
    assert judge(Train(48_005), looped(Train(48_005), 480)).frames == 480


def test_chirps_that_disagree_are_told() -> None:
    heard = np.zeros((TRAIN.frames, 1), np.float32)
    for number, at in enumerate(TRAIN.starts):
        delay = 480 + (0, 130, 40, 900, 4)[number]
        heard[at + delay : at + delay + len(TRAIN.chirp)] = TRAIN.chirp
    assert "the chirps of one take do not agree (480, 610, 520, 1380, 484 frames)" in refusal(heard)


def test_a_round_trip_that_is_too_long_is_not_taken_for_a_short_one() -> None:
    assert "agree" in (words := refusal(looped(TRAIN, 34_000))) or "were found" in words


def test_takes_have_to_agree() -> None:
    one = RoundTrip(480, 480.2, 0.1, -3.0, False, 5, 0)
    both = agree([one, replace(one, exact_frames=480.6, frames=481), one])
    assert (both.frames, both.chirps) == (480, 15)
    assert both.spread_frames == pytest.approx(0.5)
    with pytest.raises(
        CalibrationError, match=r"do not agree \(480.2, 544.0 frames\): the device begins with another"
    ):
        agree([one, replace(one, exact_frames=544.0, frames=544)])


def test_nothing_at_all_is_not_found() -> None:
    assert find(TRAIN.chirp, np.zeros((len(TRAIN.chirp) + 10, 1), np.float32)) is None


# -- the probe and the measuring, in virtual time ------------------------------------------------------------------


class Loop:
    """A device in virtual time: each wait of the bridge's moves it on. What is played comes in so much later."""

    def __init__(self, train: Train, delay: int, *, inputs: int = 1, opens_after: int = 2000) -> None:
        self.spec = StreamSpec(train.samplerate, inputs, 2, blocksize=480)
        self.train, self.delay = train, delay
        self.opens_after, self.dies_at, self.stands_at = opens_after, -1, -1
        self.now = 0.0
        self.openings = 0
        self._steps: Iterator[None] = iter(())

    @contextmanager
    def open(self) -> Iterator[Opened]:
        self.openings += 1
        arena = Arena.create({**io.layout(self.spec), **probe_layout(self.spec, self.train)})
        self._steps = self._run(arena)
        try:
            yield Opened(arena, lambda: "there is no device 'x' with an output; there is: y; it is tried again until")
        finally:
            self._steps = iter(())
            arena.close()
            arena.unlink()

    def _run(self, arena: Arena) -> Iterator[None]:
        device = arena.status("io.status")
        record, status = arena.ring("probe.heard"), arena.status("probe.status")
        probe = Probe(self.train, 2, 1, lambda: bool(device.read()["state"] == RUNNING), record, status)
        played = np.zeros((0, 2), np.float32)
        while not probe.stopped:
            if len(played) >= self.opens_after > 0:
                device.publish(
                    state=RUNNING, epoch=1, has_input=self.spec.inputs > 0, samplerate=RATE, latency_out=99
                )
            if len(played) >= self.dies_at > 0:
                device.publish(state=FAILED)
            if len(played) >= self.stands_at > 0:
                return
            played = np.concatenate([played, probe.mix(480)])
            heard = np.zeros((480, self.spec.inputs), np.float32)
            come = len(played) - 480 - self.delay
            arrived = played[max(0, come) : come + 480, 1] if come > -480 else played[:0, 1]
            heard[480 - len(arrived) :, 0] = arrived
            probe.hear(heard)
            if len(played) % 960 == 0:
                yield

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self._steps, None)


def measured(loop: Loop, takes: int = 2, tell: Callable[[str], None] = lambda text: None) -> calibrate.Measured:
    return measure(loop.open, loop.train, takes, tell, clock=lambda: loop.now, sleep=loop.sleep)


def test_a_loop_is_measured_in_several_openings() -> None:
    told: list[str] = []
    loop = Loop(Train(8000), 333)
    found = measured(loop, 3, told.append)
    assert (found.round_trip.frames, found.round_trip.chirps, loop.openings) == (333, 15, 3)
    assert found.device["latency_out"] == 99
    assert told[0].startswith("take 1 of 3: 333.00 frames, 5 chirps within 0.00")


def test_a_device_that_does_not_open_is_told_in_its_own_words() -> None:
    loop = Loop(Train(8000), 333, opens_after=0)
    loop.dies_at = 64
    with pytest.raises(CalibrationError, match=r"^there is no device 'x' with an output; there is: y$"):
        measured(loop)


def test_a_device_that_never_runs_a_machine_that_stands_and_one_that_stops_are_told() -> None:
    silent, standing, stopping = (Loop(Train(8000), 333) for _ in range(3))
    silent.opens_after = 0
    with pytest.raises(CalibrationError, match="does not begin to play within 20 s"):
        measured(silent)
    standing.stands_at = 9000
    with pytest.raises(CalibrationError, match="does not go on"):
        measured(standing)
    stopping.dies_at = 9600
    with pytest.raises(CalibrationError, match="the device stopped"):
        measured(stopping)


def test_a_number_of_takes_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="11 takes: 1 to 10"):
        measured(Loop(Train(8000), 1), 11)


def test_the_probe_plays_on_one_output_only() -> None:
    record, status = AudioRing.private(100, 1), StatusBlock.private(calibrate.PROBE_FIELDS)
    probe = Probe(Train(8000), 4, 2, lambda: True, record, status)
    sound = np.concatenate([probe.mix(500) for _ in range(20)])
    assert sound[:, 2].any()
    assert not sound[:, [0, 1, 3]].any()
    assert status.read()["start"] == round(0.3 * 8000)


# -- in a loop of JACK ---------------------------------------------------------------------------------------------

EVERY = 6000
Server = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Start an audio server of this test's own, and keep whoever plays on it joined to their own input."""
    if reason := missing("portaudio"):
        pytest.skip(reason)
    name = f"sideman-calibrate-{os.getpid()}"
    monkeypatch.setenv("JACK_DEFAULT_SERVER", name)
    monkeypatch.setenv("JACK_NO_AUDIO_RESERVATION", "1")
    started: list[subprocess.Popen[bytes]] = []
    ready, ending = threading.Event(), threading.Event()

    def start(rate: int, period: int) -> subprocess.Popen[bytes]:
        realtime = ["-R", "-P", "70"] if rights.realtime_rights() else ["-r"]
        command = ["jackd", "-n", name, *realtime, "-d", "dummy", "-r", str(rate), "-p", str(period)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        patching.start()
        assert ready.wait(15), "the audio server does not answer"
        return started[-1]

    patching = threading.Thread(target=_join_ports, args=(ready, ending), daemon=True)
    yield start
    ending.set()
    if patching.is_alive():
        patching.join()
    for process in started:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _join_ports(ready: threading.Event, ending: threading.Event) -> None:
    """Connect the first output to the first input of PortAudio's client, each time it appears."""
    import jack

    jack.set_error_function(lambda text: None)
    jack.set_info_function(lambda text: None)
    client = None
    while client is None and not ending.wait(0.05):
        with suppress(jack.JackError):
            client = jack.Client("patchbay", no_start_server=True)
    ready.set()
    while client is not None and not ending.wait(0.02):
        with suppress(jack.JackError):  # a port may have gone again
            outs = client.get_ports("PortAudio.*out_0", is_output=True)
            ins = client.get_ports("PortAudio.*in_0", is_input=True)
            if len(outs) == len(ins) == 1 and ins[0] not in client.get_all_connections(outs[0]):
                client.connect(outs[0], ins[0])
    if client is not None:
        client.close()


@contextmanager
def opening(spec: StreamSpec, train: Train, target: Callable[..., None], *args: Any) -> Iterator[Opened]:
    """Open the device around a process that takes the engine's place, as the bridge does."""
    layout = {
        **io.layout(spec),
        **probe_layout(spec, train),
        **ring_layout("clicks", 8 * spec.samplerate, spec.inputs),
    }
    arena = Arena.create(layout)
    supervisor = DeviceSupervisor(arena, IoConfig(spec, "system"))
    engine = multiprocessing.get_context("spawn").Process(
        target=target, args=(arena.handle, spec, *args), daemon=True
    )
    try:
        supervisor.start()
        engine.start()
        yield Opened(arena, lambda: supervisor.sentence)
    finally:
        engine.kill()
        engine.join()
        supervisor.stop()
        arena.close()
        arena.unlink()


class Clicks:
    """Plays a click every ``EVERY`` frames, on the beat, and keeps what it hears."""

    def __init__(self, outputs: int, record: AudioRing) -> None:
        self.heard = self.mixed = 0
        self.played = -1
        self.stopped = False
        self._outputs, self._record = outputs, record

    def hear(self, block: Block) -> None:
        self._record.write(self.heard, block)
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        block = np.zeros((frames, self._outputs), np.float32)
        block[-self.mixed % EVERY :: EVERY] = 0.5
        self.mixed += frames
        return block


def _play_clicks(handle: ArenaHandle, spec: StreamSpec) -> None:
    arena = Arena.attach(handle)
    rights.use_realtime(rights.ENGINE_PRIORITY)
    DeviceStream(spec, arena).run(Clicks(spec.outputs, arena.ring("clicks")))


def clicks_heard_late(spec: StreamSpec, train: Train) -> list[int]:
    """Return by how many frames each click of some seconds is heard after its beat, modulo their distance."""
    with opening(spec, train, _play_clicks) as opened:
        record = opened.arena.ring("clicks")
        until = time.monotonic() + 20
        while record.written < 5 * spec.samplerate:
            assert time.monotonic() < until, opened.said()
            time.sleep(0.02)
        audio = record.read(2 * spec.samplerate, 5 * spec.samplerate)[:, 0]
    loud = np.flatnonzero(np.abs(audio) > 0.2)
    return [int(at) % EVERY for at in loud + 2 * spec.samplerate]


@pytest.mark.device
@pytest.mark.parametrize(("blocksize", "period"), [(128, 128), (128, 1024), (256, 64)])
def test_a_loop_of_jack_is_measured_to_the_frame(server: Server, blocksize: int, period: int) -> None:
    server(RATE, period)
    spec = StreamSpec(RATE, 1, 2, blocksize, lead=2048)
    told: list[str] = []
    found = measure(lambda: opening(spec, TRAIN, run_probe, TRAIN, 0), TRAIN, 2, told.append).round_trip
    by_impulse = clicks_heard_late(spec, TRAIN)
    on_the_beat = clicks_heard_late(replace(spec, latency=found.frames), TRAIN)
    print(
        f"\nblocks of {blocksize}, period {period}: {found.exact_frames:.3f} frames by {found.chirps} chirps within "
        f"{found.spread_frames:.3f}, {sorted(set(by_impulse))} by impulse; with latency = {found.frames} a click is "
        f"heard {sorted(set(on_the_beat))} frames after its beat; {told}"
    )
    assert len(by_impulse) >= 20
    assert set(by_impulse) == {found.frames}
    assert set(on_the_beat) == {0}


@pytest.mark.device
def test_a_loop_at_another_rate_is_measured_in_the_sessions_frames(server: Server) -> None:
    server(44_100, 128)
    spec = StreamSpec(RATE, 1, 2, 128, lead=2048)
    found = measure(lambda: opening(spec, TRAIN, run_probe, TRAIN, 0), TRAIN, 2).round_trip
    print(f"\n{found}")
    assert abs(found.exact_frames * 44_100 / RATE % 128 - 64) > 62, "whole periods of the server's"
    assert found.spread_frames < 1.0
