"""Who looks after the device process, over fake processes in virtual time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from realtime import io
from realtime.buffers import Arena
from realtime.devices import IoConfig
from realtime.iowatch import DeviceSupervisor
from realtime.protocols import StreamSpec
from realtime.stream import RUNNING, SECOND_NS, STARTING

MS = 1_000_000
SPEC = StreamSpec(48_000, inputs=1, outputs=1, blocksize=128, lead=1024, latency=300)


class FakeChild:
    def __init__(self, pid: int = 0) -> None:
        self.pid: int | None = pid
        self.exitcode: int | None = None
        self.killed = False

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.killed = True
        self.exitcode = -9 if self.exitcode is None else self.exitcode

    def join(self, timeout: float | None = None) -> None:
        pass


class Watch:
    """A supervisor over fake processes in virtual time, looked after every 20 ms."""

    def __init__(self, arena: Arena) -> None:
        self.now_ns = 3 * SECOND_NS
        self.children: list[FakeChild] = []
        self.told: list[str] = []
        self.status = arena.status("io.status")
        self.texts = arena.records("io.text")
        self.control = arena.status("io.control")
        self.opened = arena.records("io.opened")
        self.asked: list[IoConfig] = []
        self.refuses = False
        self.supervisor = DeviceSupervisor(arena, IoConfig(SPEC), self.told.append, self.spawn, lambda: self.now_ns)

    def spawn(self, config: IoConfig) -> FakeChild:
        self.asked.append(config)
        if self.refuses:
            raise BlockingIOError("Resource temporarily unavailable")
        self.children.append(FakeChild(100 + len(self.children)))
        return self.children[-1]

    def run(self, milliseconds: int, beat: Callable[[], None] | None = None) -> None:
        for _ in range(milliseconds // 20):
            self.now_ns += 20 * MS
            if beat is not None:
                beat()
            self.supervisor.poll()

    def beat(self, state: int = RUNNING) -> None:
        self.status.publish(state=state, heartbeat_ns=self.now_ns)


@pytest.fixture
def watch() -> Iterator[Watch]:
    arena = Arena.create(io.layout(SPEC))
    yield Watch(arena)
    arena.close()
    arena.unlink()


def test_a_process_that_beats_is_left_alone(watch: Watch) -> None:
    watch.run(5_000, watch.beat)
    assert len(watch.children) == 1
    assert (watch.supervisor.restarts, watch.supervisor.pid) == (0, 100)


def test_a_process_that_hangs_is_killed_and_replaced(watch: Watch) -> None:
    watch.run(1_000, watch.beat)
    watch.run(360)
    assert watch.children[0].killed
    watch.run(40)
    assert len(watch.children) == 2
    assert watch.supervisor.restarts == 1
    assert "does not answer" in watch.told[-1]


def test_opening_may_take_longer_than_a_turn(watch: Watch) -> None:
    watch.run(14_000)
    assert not watch.children[0].killed
    watch.beat(STARTING)
    watch.run(4_000)
    assert not watch.children[0].killed
    watch.run(2_000)
    assert watch.children[0].killed


def test_a_process_that_ended_is_replaced_at_once_and_one_that_never_spoke_later(watch: Watch) -> None:
    watch.run(1_000, watch.beat)
    watch.children[0].exitcode = 0
    watch.run(60)
    assert len(watch.children) == 2
    watch.children[1].exitcode = 1
    watch.run(500)
    assert len(watch.children) == 2
    watch.run(600)
    assert len(watch.children) == 3
    assert "ended with code 1" in watch.told[-1]


def test_sentences_are_told_once(watch: Watch) -> None:
    for text in (b"first", b"first", b"second"):
        watch.texts.post(text)
    watch.run(40, watch.beat)
    assert watch.told == ["first", "second"]
    assert watch.supervisor.sentence == "second"


def test_stop_asks_then_kills(watch: Watch) -> None:
    watch.run(100, watch.beat)
    watch.supervisor.stop()
    assert watch.control.read()["stop"] == 1
    assert watch.children[0].killed


def test_the_device_that_was_opened_is_the_one_that_is_waited_for(watch: Watch) -> None:
    """The default of the moment, or a part of a name, is settled by the first opening."""
    watch.run(100, watch.beat)
    assert (watch.asked[0].device, watch.asked[0].input_device) == ("", "")
    watch.opened.post(json.dumps({"device": "Scarlett 2i2, ALSA", "input_device": "Webcam, ALSA"}).encode())
    watch.run(100, watch.beat)
    watch.children[0].exitcode = 0
    watch.run(60)
    assert (watch.asked[1].device, watch.asked[1].input_device) == ("Scarlett 2i2, ALSA", "Webcam, ALSA")
    watch.opened.post(json.dumps({"device": "Scarlett 2i2, ALSA", "input_device": ""}).encode())
    watch.run(100, watch.beat)
    watch.children[1].exitcode = 0
    watch.run(60)
    assert watch.asked[2].input_device == "Webcam, ALSA", "what was there once is waited for"


def test_a_system_that_starts_no_process_is_asked_again(watch: Watch) -> None:
    watch.run(1_000, watch.beat)
    watch.refuses = True
    watch.children[0].exitcode = 1
    watch.run(2_500)
    assert len(watch.children) == 1
    assert 3 <= len(watch.asked) <= 5
    assert [text for text in watch.told if "cannot be started" in text and "unavailable" in text] == watch.told[-1:]
    watch.refuses = False
    watch.run(1_500)
    assert len(watch.children) == 2
