"""MIDI ports and the clock through them, on ports that are not there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest

from bridge.midi import MidiClockIn, MidiClockOut, MidiError, Outbox, midi_ports, pick_port
from bridge.midiclock import Dialect
from bridge.sync import Position, SessionClock
from realtime.clock import Meter, Timeline

SECOND_NS = 10**9
RATE = 48000


class FakeDriver:
    """An rtmidi port; which ports there are is the machine's."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.opened: str | None = None
        self.sent: list[bytes] = []
        self.callback: Callable[..., None] | None = None
        self.deleted = self.broken = False
        self.ignored: dict[str, bool] = {}

    def get_ports(self) -> list[str]:
        if self.broken:
            raise OSError("the sequencer is gone")
        return self.names

    def open_port(self, place: int) -> None:
        self.opened = self.names[place]

    def open_virtual_port(self, name: str) -> None:
        if self.broken:
            raise NotImplementedError
        self.opened = name

    def close_port(self) -> None:
        self.opened = None

    def delete(self) -> None:
        self.deleted = True

    def ignore_types(self, **kinds: bool) -> None:
        self.ignored = kinds

    def set_callback(self, callback: Callable[..., None]) -> None:
        self.callback = callback

    def send_message(self, message: Sequence[int]) -> None:
        if self.broken:
            raise OSError("the cable is gone")
        self.sent.append(bytes(message))

    def hear(self, *messages: bytes) -> None:
        assert self.callback is not None
        for message in messages:
            self.callback((list(message), 0.0), None)


class ByHand(Outbox):
    """Sends when told to, in virtual time."""

    def start(self) -> None:
        return


class Rig:
    """A machine with some ports, in virtual time."""

    def __init__(self, *names: str) -> None:
        self.now_ns = SECOND_NS
        self.told: list[str] = []
        self.driver = FakeDriver(list(names))

    def source(self, port: str, **options: Any) -> MidiClockIn:
        return MidiClockIn(
            "midi", port, tell=self.told.append, driver=lambda kind: self.driver, clock=lambda: self.now_ns, **options
        )

    def sender(self, port: str, times: SessionClock) -> MidiClockOut:
        return MidiClockOut(
            "out",
            port,
            times,
            tell=self.told.append,
            driver=lambda kind: self.driver,
            clock=lambda: self.now_ns,
            outbox=ByHand,
        )


def test_a_port_is_meant_by_its_name_or_a_part_that_only_one_has() -> None:
    names = ["Midi Through:0 14:0", "Digitakt:Digitakt MIDI 1 20:0", "Digitone 24:0", "Digitone 24:0 B"]
    assert pick_port(names, "digitakt") == 1
    assert pick_port(names, "Digitone 24:0") == 2
    assert pick_port(names, "Moog") is None
    with pytest.raises(MidiError, match=r"fits more than one.*Digitakt.*Digitone"):
        pick_port(names, "digit")


def test_ticks_are_stamped_when_they_come_and_read_when_asked() -> None:
    rig = Rig("Digitakt 20:0")
    source = rig.source("digitakt")
    source.start()
    assert list(source.poll(rig.now_ns)) == []
    assert rig.driver.opened == "Digitakt 20:0"
    assert rig.driver.ignored["timing"] is False
    times = []
    rig.driver.hear(b"\xfa", b"\x90\x40\x7f", b"\xfe")
    for _ in range(100):
        rig.driver.hear(b"\xf8")
        times.append(rig.now_ns)
        rig.now_ns += 20_833_333
    said = list(source.poll(rig.now_ns))
    assert [each.beat for each in said] == [Fraction(k, 24) for k in range(100)]
    assert [each.time_ns for each in said] == times
    assert said[-1].tempo == 120
    assert said[-1].frame is None
    source.stop()
    source.stop()
    assert rig.driver.deleted


def test_a_port_that_is_not_there_yet_is_waited_for() -> None:
    rig = Rig("Midi Through")
    source = rig.source("digitakt")
    source.start()
    for _ in range(10):
        list(source.poll(rig.now_ns))
        rig.now_ns += SECOND_NS
    assert len(rig.told) == 1
    assert "'Midi Through'" in rig.told[0]
    rig.driver.names.append("Digitakt 20:0")
    list(source.poll(rig.now_ns + SECOND_NS))
    assert rig.driver.opened == "Digitakt 20:0"


def test_a_port_that_goes_is_taken_up_when_it_is_back() -> None:
    rig = Rig("Digitakt 20:0")
    source = rig.source("Digitakt")
    source.start()
    for names in (["Digitakt 20:0"], [], [], ["Digitakt 28:0"]):
        rig.driver.names = names
        list(source.poll(rig.now_ns))
        rig.now_ns += 3 * SECOND_NS
    assert rig.driver.opened == "Digitakt 28:0"
    assert [("gone" in text, "is '" in text) for text in rig.told] == [(False, True), (True, False), (False, True)]


def test_a_driver_that_fails_while_it_runs_raises_nothing() -> None:
    rig = Rig("Digitakt")
    source = rig.source("Digitakt")
    source.start()
    rig.driver.broken = True
    for _ in range(5):
        assert list(source.poll(rig.now_ns)) == []
        rig.now_ns += 3 * SECOND_NS
    assert len(rig.told) == 1
    assert "sequencer is gone" in rig.told[0]


def test_a_port_may_be_made_for_others_to_connect_to() -> None:
    rig = Rig()
    source = rig.source("clock", virtual=True)
    source.start()
    list(source.poll(rig.now_ns))
    assert rig.driver.opened == "clock"
    other = Rig()
    other.driver.broken = True
    with pytest.raises(MidiError, match="cannot be made here"):
        other.source("clock", virtual=True).start()


def test_a_dialect_goes_by_the_name_of_the_port() -> None:
    rig = Rig()
    assert rig.source("ardour:MIDI Clock out").reader.dialect is Dialect.ARDOUR
    assert rig.source("ardour", dialect="standard").reader.dialect is Dialect.STANDARD


def test_without_the_package_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rtmidi", None)
    with pytest.raises(MidiError, match="python-rtmidi"):
        midi_ports("input")


def test_without_midi_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: str) -> None:
        raise OSError("no sequencer")

    monkeypatch.setitem(sys.modules, "rtmidi", type("rtmidi", (), {"MidiIn": refuse, "MidiOut": refuse}))
    with pytest.raises(MidiError, match="no sequencer"):
        midi_ports("output")


def test_messages_leave_when_they_are_due() -> None:
    sent: list[bytes] = []
    outbox = Outbox(sent.append)
    outbox.add([(100, b"\xfa"), (100, b"\xf8"), (10_000_000, b"\xf8")])
    assert outbox.due(99) == 100
    assert sent == []
    assert outbox.due(100) == 10_000_000
    assert sent == [b"\xfa", b"\xf8"]
    assert outbox.due(12_000_000) == 0
    assert len(sent) == 3
    assert outbox.late == 1


def test_the_thread_sends_and_ends() -> None:
    left = threading.Event()
    sent: list[bytes] = []

    def send(message: bytes) -> None:
        sent.append(message)
        if len(sent) == 2:
            left.set()

    outbox = Outbox(send, clock=lambda: 1000)
    outbox.add([(1000, b"\xf8")])
    outbox.start()
    outbox.add([(999, b"\xfa"), (10**12, b"\xfc")])
    assert left.wait(10)
    outbox.stop()
    assert sent == [b"\xf8", b"\xfa"]


def test_the_band_is_sent_at_the_times_its_frames_are_heard() -> None:
    rig = Rig("Synth")
    times = SessionClock(RATE)
    times.observe(SECOND_NS, 1)
    sender = rig.sender("Synth", times)
    sender.start()
    position = Position(Timeline(RATE, Fraction(120), Meter(), Fraction(24_000)))
    left: list[tuple[int, bytes]] = []
    for _ in range(100):
        sender.send(position, rig.now_ns)
        before = len(rig.driver.sent)
        while (due := sender.outbox.due(rig.now_ns)) and due <= rig.now_ns + 20_000_000:
            rig.now_ns = due
        left += [(rig.now_ns, message) for message in rig.driver.sent[before:]]
        rig.now_ns += 20_000_000
    sender.stop()
    messages = [message for _, message in left]
    assert messages.count(b"\xfa") == 1
    assert messages.count(b"\xf8") > 90
    assert sender.outbox.failed == 0


def test_a_cable_that_is_pulled_is_counted() -> None:
    rig = Rig("Synth")
    times = SessionClock(RATE)
    times.observe(SECOND_NS, 1)
    sender = rig.sender("Synth", times)
    sender.start()
    sender.send(Position(Timeline(RATE, Fraction(120))), rig.now_ns)
    rig.driver.broken = True
    sender.outbox.due(rig.now_ns + SECOND_NS)
    assert sender.outbox.failed > 2
