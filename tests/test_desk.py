"""A session as its entrances see it: on shared memory laid out as for a live one, but without its processes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.app import Status, engine_config
from bridge.desk import ActionFacts, Fader, LiveDesk, StillDesk, decibels
from bridge.session import Session
from bridge.shelves import ShelfError
from bridge.sync import Position
from realtime import io
from realtime.buffers import Arena
from realtime.clock import Meter, Timeline
from realtime.engine import Command, engine_layout
from realtime.scheduler import LEDGER

RATE = 48000
SESSION = """
[session]
name = "evening"
[stream]
device = "null"
samplerate = 48000
blocksize = 64
latency = 77
[mixer]
monitor = true
monitor_gain_db = -20
[metronome]
gain_db = -9
[[agents]]
name = "bass"
kind = "echo"
gain_db = -3
pan = 0.5
[[agents]]
name = "keys"
kind = "echo"
mute = true
"""


class Stub:
    """What a desk needs of a live session: its memory and its queue."""

    def __init__(self, session: Session) -> None:
        self.config = engine_config(session, session.spec(1024), live=True)
        self.arena = Arena.create({**engine_layout(self.config), **io.layout(self.config.spec)})
        self.names = [part.agent.name for part in self.config.parts]
        self.sent: list[Command] = []
        self.room = True

    def send(self, command: Command) -> bool:
        if self.room:
            self.sent.append(command)
        return self.room

    def status(self) -> Status:
        row = dict.fromkeys(LEDGER, 0) | {"sounding": 1, "ready_margin": 480, "budget_frames": 4800, "generation": -1}
        states = {"bass": "armed", "keys": "quarantined"}
        return Status(0, 0, 0, False, dict.fromkeys(self.names, row), {}, states, {}, {})


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Stub]:
    """Return a session that never started."""
    (tmp_path / "band.toml").write_text(SESSION)
    stub = Stub(Session.load(tmp_path / "band.toml"))
    yield stub
    stub.arena.close()
    stub.arena.unlink()


def desk_of(live: Stub, **options: Any) -> LiveDesk:
    session = Session.parse(SESSION)
    return LiveDesk(live, session, **options)  # type: ignore[arg-type]


def test_faders_are_those_of_the_session_until_they_are_moved(live: Stub) -> None:
    desk = desk_of(live)
    assert desk.faders() == [
        Fader("bass", 1, -3.0, 0.5),
        Fader("keys", 1, mute=True),
        Fader("monitor", 1, -20.0),
        Fader("metronome", 1, -9.0),
    ]
    for command in (
        Command("gain", "bass", value=2.5), Command("mute", "keys", value=0.0), Command("pan", "monitor", value=-1),
        Command("solo", "bass", value=1), Command("gain", "nobody", value=1), Command("action", "bass", "x", 5.0),
    ):  # fmt: skip
        assert desk.send(command)
    assert desk.faders()[:3] == [
        Fader("bass", 1, 2.5, 0.5, solo=True), Fader("keys", 1), Fader("monitor", 1, -20.0, -1),
    ]  # fmt: skip
    assert len(live.sent) == 6
    live.room = False
    assert not desk.send(Command("gain", "bass", value=-50))
    assert desk.faders()[0].gain_db == 2.5


def test_the_place_is_what_the_engine_told(live: Stub) -> None:
    desk = desk_of(live)
    live.arena["place"][:] = (96_000, -1, 3, 0)
    live.arena.status("stream.status").publish(frame=95_000, time_ns=10**9, mixed=96_064)
    place = desk.place()
    assert (place.frame, place.bar, place.beat, place.song_bar, place.tempo) == (96_000, -1, 3.0, None, None)
    assert place.playing
    assert not place.stopped
    assert desk.mixed() == 96_064
    assert desk.frame_at(10**9 + 500_000_000) == 95_000 + RATE // 2
    assert desk.turn_frames == live.config.spec.turn_frames
    desk.send(Command("rest", value=1))
    live.arena["place"][3] = 1
    assert not desk.place().playing
    assert desk.place().stopped


def test_where_the_song_is_known_the_place_is_what_leaves_for_the_loudspeaker(live: Stub) -> None:
    line = Timeline(RATE, Fraction(120), Meter(7, 8), Fraction(0), Fraction(14), 4, Fraction(14))
    desk = desk_of(live, frame_at=lambda time_ns: 36_000, position=lambda: Position(line, playing=False))
    place = desk.place()
    assert (place.frame, place.song_bar, place.beat) == (36_000, 4, 1.5)
    assert (place.tempo, place.meter, place.playing) == (Fraction(120), Meter(7, 8), False)


def test_agents_are_said_in_words(live: Stub) -> None:
    bass, keys = desk_of(live).agents()
    assert (bass.name, bass.kind, bass.state, bass.now) == ("bass", "echo", "armed", "plays")
    assert (bass.margin_seconds, bass.budget_seconds, bass.generation) == (0.01, 0.1, 0)
    assert keys.now == "quarantine"


def test_actions_are_those_that_a_kind_declares(live: Stub) -> None:
    assert desk_of(live).actions("bass") is None
    declared = (ActionFacts("freeze"),)
    assert desk_of(live, actions={"echo": declared}).actions("keys") == declared


def test_loudness_is_read_from_the_rings(live: Stub) -> None:
    desk = desk_of(live)
    frames = 4800
    live.arena.ring("input").write(0, np.full((frames, 1), 0.5, np.float32))
    stems = live.arena.stems("stem")
    stems.begin(frames)
    stems.finish(frames)
    live.arena.ring("mix").write(0, np.full((frames, 2), 0.25, np.float32))
    found = {one.name: one for one in desk.loudness()}
    assert list(found) == ["bass", "keys", "input", "output 1", "output 2"]
    assert found["input"].peak == 0.5
    assert found["output 2"].rms == pytest.approx(0.25)
    assert found["bass"].peak == 0


def test_the_setup_and_what_was_counted_are_told(live: Stub) -> None:
    live.arena.status("io.status").publish(latency_in=64, latency_out=128, xruns=2)
    live.arena.status("stream.status").publish(underruns=3)
    setup = desk_of(live, version="9", audio_port=5005).setup()
    assert (setup.name, setup.version, setup.samplerate, setup.blocksize) == ("evening", "9", RATE, 64)
    assert (setup.lead_frames, setup.latency_frames, setup.device_out_frames, setup.audio_port) == (
        1024,
        77,
        128,
        5005,
    )
    counted = desk_of(live).counted()
    assert (counted["xruns"], counted["underruns"], counted["late_frames"]) == (2, 3, 0)


def test_a_shelf_is_that_of_the_session(live: Stub) -> None:
    assert [item.name for item in desk_of(live).shelf("models")] == ["onset"]
    with pytest.raises(ShelfError):
        desk_of(live).shelf("takes", "../etc")


def test_a_level_in_decibels() -> None:
    assert [decibels(level) for level in (1.0, 0.1, 0.0, 1e-9, float("nan"), float("inf"), -1.0)] == [
        0, -20, -120, -120, -120, -120, -120,
    ]  # fmt: skip


def test_the_still_desk_keeps_what_it_is_sent_and_no_more_than_it_may() -> None:
    desk = StillDesk(["bass"])
    for number in range(desk.KEPT + 5):
        desk.send(Command("gain", "bass", value=number))
    assert len(desk.sent) == desk.KEPT
    desk.send(Command("rest", value=1))
    assert not desk.place().playing
    assert desk.shelf("takes") == []
