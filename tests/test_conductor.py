"""The bridge's side of musical time, in virtual time: a turn at a time, with scripted sources and senders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

import pytest

from bridge.conductor import FAILURES_TOLD, Conductor
from bridge.follower import Follower
from bridge.sync import Observation, Position, SessionClock
from realtime.buffers import Arena, status_layout
from realtime.clock import Meter, TempoMap
from realtime.engine import GRID_FIELDS, Command
from realtime.stream import STREAM_FIELDS

RATE = 48_000
MS = 1_000_000


class Heard:
    """A source that says what it is told to."""

    def __init__(self, name: str, says: Callable[[int], Iterable[Observation]], opens: bool = True) -> None:
        self.name, self._says, self._opens = name, says, opens
        self.started = self.stopped = 0

    def start(self) -> None:
        if not self._opens:
            raise OSError("there is no such port")
        self.started += 1

    def poll(self, now_ns: int) -> Iterable[Observation]:
        return self._says(now_ns)

    def stop(self) -> None:
        self.stopped += 1


class Told:
    """A sender that keeps what it is given."""

    def __init__(self, fails: bool = False) -> None:
        self.name, self.fails = "told", fails
        self.positions: list[Position] = []
        self.stopped = 0

    def start(self) -> None: ...

    def send(self, position: Position, now_ns: int) -> None:
        self.positions.append(position)
        if self.fails:
            raise RuntimeError("a driver's own mistake")

    def stop(self) -> None:
        self.stopped += 1


class Desk:
    """The session's memory, time that is given, and a queue that may be full."""

    def __init__(self) -> None:
        self.arena = Arena.create(
            {**status_layout("stream.status", STREAM_FIELDS), **status_layout("engine.grid", GRID_FIELDS)}
        )
        self.now_ns, self.room = 10**9, True
        self.sent: list[Command] = []
        self.said: list[str] = []
        self.clock = SessionClock(RATE)

    def conductor(self, follows: bool, *outside: Heard | Told) -> Conductor:
        sources = [each for each in outside if isinstance(each, Heard)]
        senders = [each for each in outside if isinstance(each, Told)]
        order = [source.name for source in sources]
        follower = Follower(self.clock, TempoMap.steady(RATE, 120), order) if follows else None
        conductor = Conductor(self.arena, self.clock, follower, sources, senders, self.send, self.said.append)
        conductor._run = lambda: None  # type: ignore[method-assign]  # the test turns
        conductor._thread.run = lambda: None  # type: ignore[method-assign]
        conductor.start()
        return conductor

    def send(self, command: Command) -> bool:
        if self.room:
            self.sent.append(command)
        return self.room

    def pass_time(self, conductor: Conductor, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.now_ns += 10 * MS
            frame = (self.now_ns - 10**9) * RATE // 10**9
            self.arena.status("stream.status").publish(frame=frame, time_ns=self.now_ns, mixed=frame + 1024)
            conductor.turn(self.now_ns)

    def end(self, conductor: Conductor) -> None:
        conductor.stop()
        del conductor._stream, conductor._grid
        self.arena.close()
        self.arena.unlink()


def rolling(bpm: int) -> Callable[[int], Iterable[Observation]]:
    """Return what a source says that rolls from host time 2 s on, exact, every 10 ms."""

    def says(now_ns: int) -> Iterable[Observation]:
        if now_ns >= 2 * 10**9:
            beat = Fraction((now_ns - 2 * 10**9) * bpm, 60 * 10**9)
            yield Observation("daw", now_ns, beat=beat, tempo=Fraction(bpm), meter=Meter(3, 4), playing=True)

    return says


def test_what_a_source_says_becomes_what_the_engine_is_told() -> None:
    desk = Desk()
    conductor = desk.conductor(True, Heard("daw", rolling(90)))
    desk.pass_time(conductor, 6)
    anchors = [command.anchor for command in desk.sent if command.anchor is not None]
    assert (anchors[-1].tempo, anchors[-1].meter) == (Fraction(90), Meter(3, 4))
    lines = [RATE + bar * 2 * RATE for bar in range(-20, 20)]  # bar 1 begins a second after frame 0, a bar lasts 2 s
    assert min(abs(anchors[-1].frame - line) for line in lines) <= 48
    assert {command.do for command in desk.sent} <= {"anchor", "rest"}
    desk.end(conductor)


def test_what_finds_no_room_is_sent_later_and_in_order() -> None:
    desk = Desk()
    conductor = desk.conductor(True, Heard("daw", rolling(90)))
    desk.room = False
    desk.pass_time(conductor, 6)
    assert desk.sent == []
    desk.room = True
    desk.pass_time(conductor, 0.1)
    assert desk.sent
    desk.end(conductor)


def test_a_source_that_cannot_be_opened_or_fails_is_told_of_and_the_others_go_on() -> None:
    desk = Desk()

    def fails(now_ns: int) -> Iterable[Observation]:
        raise RuntimeError("a driver's own mistake")

    shut, broken, well = Heard("shut", rolling(90), opens=False), Heard("broken", fails), Heard("daw", rolling(90))
    conductor = desk.conductor(True, shut, broken, well)
    desk.pass_time(conductor, 6)
    assert desk.said[0] == "shut: there is no such port"
    assert sum("nobody has foreseen" in text for text in desk.said) == FAILURES_TOLD
    assert [command for command in desk.sent if command.anchor is not None]
    conductor.stop()
    assert (shut.stopped, broken.stopped, well.stopped) == (0, 1, 1)
    desk.end(conductor)


@pytest.mark.parametrize("fails", [False, True])
def test_those_who_follow_are_told_where_the_band_is(fails: bool) -> None:
    desk, told, other = Desk(), Told(fails), Told()
    conductor = desk.conductor(False, told, other)
    desk.pass_time(conductor, 0.1)
    assert other.positions == [], "the engine has told nothing yet"
    desk.arena.status("engine.grid").publish(
        frame=96_000, fraction=1 << 31, beat_above=14, beat_below=1, tempo_above=97, tempo_below=1, count=7, unit=8,
        bar=2, song_bar=4, resting=1, mixed=100_000,
    )  # fmt: skip
    desk.pass_time(conductor, 0.1)
    position = other.positions[-1]
    assert (position.tempo, position.meter, position.playing) == (Fraction(97), Meter(7, 8), False)
    assert position.timeline.position(Fraction(14)) == 96_000 + Fraction(1, 2)
    assert position.bar_at(96_001) == 4
    assert len(desk.said) == (FAILURES_TOLD if fails else 0)
    desk.end(conductor)
    assert (told.stopped, other.stopped) == (1, 1)


def test_time_is_what_the_stream_tells() -> None:
    desk = Desk()
    conductor = desk.conductor(False)
    assert conductor.frame_at(desk.now_ns) == 0, "it does not run yet"
    desk.pass_time(conductor, 6)
    assert abs(conductor.frame_at(desk.now_ns) - 6 * RATE) <= 1
    desk.end(conductor)


def test_an_error_of_its_own_does_not_end_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    conductor = desk.conductor(True, Heard("daw", rolling(90)))
    turns = iter([True, True, False])

    def step(now_ns: int) -> list[Command]:
        raise ZeroDivisionError("a mistake of ours")

    assert conductor.follower is not None
    monkeypatch.setattr(conductor.follower, "step", step)
    monkeypatch.setattr(conductor._ended, "wait", lambda seconds: not next(turns))
    Conductor._run(conductor)
    assert conductor.turns == 2
    assert "a mistake of ours" in desk.said[0]
    monkeypatch.undo()
    desk.end(conductor)


def test_of_what_finds_no_room_the_last_word_of_each_kind_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    conductor = desk.conductor(True, Heard("daw", rolling(90)))
    assert conductor.follower is not None
    words = iter(range(1000))
    monkeypatch.setattr(conductor.follower, "step", lambda now_ns: [Command("rest", value=float(next(words)))])
    desk.room = False
    desk.pass_time(conductor, 1)
    desk.room = True
    desk.pass_time(conductor, 0.01)
    assert [command.value for command in desk.sent] == [100]
    desk.end(conductor)
