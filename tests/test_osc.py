"""The OSC server: packets in, packets out, in virtual time; and the same through a socket."""

from __future__ import annotations

import math
import socket
import threading
import time
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythonosc.osc_packet import OscPacket

from bridge.desk import Loudness, StillDesk
from bridge.guard import SENDERS, Guard, GuardError, Sender
from bridge.osc import (
    AHEAD_NS,
    COUNTED,
    DATAGRAM_BYTES,
    EARLY_TURNS,
    HELD_OF_ONE,
    QUESTIONS,
    SUBSCRIPTIONS,
    Listener,
    Outgoing,
    Server,
    bundle,
    message,
    open_socket,
)
from bridge.packets import Message, Value, parse, time_tag
from bridge.shelves import Item
from realtime.engine import Command
from tools.osc_mutants import flood, fuzz, path_of, whole_packets

SECOND_NS = 10**9
WALL_NS = 1_800_000_000 * SECOND_NS
HERE, THERE = ("127.0.0.1", 9000), ("192.168.1.7", 9000)
TOKEN = "a-token-of-mine"


class Stage:
    """A server on a desk of its own, in virtual time; what it says is read again."""

    def __init__(self, **options: object) -> None:
        self.desk, self.lines = StillDesk(), list[str]()
        self.server = Server(self.desk, tell=self.lines.append, wall_ns=lambda: WALL_NS + self.desk.now_ns, **options)  # type: ignore[arg-type]

    def sends(self, packet: bytes, sender: Sender = HERE) -> list[Message]:
        return said(self.server.take(packet, sender, self.desk.now_ns))

    def asks(self, address: str, *arguments: object, sender: Sender = HERE) -> list[Message]:
        return self.sends(message(address, *arguments), sender)  # type: ignore[arg-type]

    def passes(self, seconds: float) -> list[Message]:
        self.desk.now_ns += round(seconds * SECOND_NS)
        return said(self.server.tick(self.desk.now_ns))

    def tag(self, seconds: float) -> int:
        return time_tag(WALL_NS + self.desk.now_ns + round(seconds * SECOND_NS))

    @property
    def sent(self) -> list[Command]:
        return list(self.desk.sent)

    def count(self, kind: str) -> int:
        return self.server.counted()[kind]


def said(packets: Sequence[Outgoing]) -> list[Message]:
    return [one for packet, _ in packets for one in parse(packet)]


def error(messages: list[Message]) -> str:
    assert [one.address for one in messages] == ["/sideman/error"]
    return str(messages[0].arguments[1])


# What goes out


def test_what_is_built_is_read_by_us_and_by_python_osc() -> None:
    packet = message("/x", 1, -(2**31), 2**40, 0.5, "tëxt", True, False, None, b"blob", 1e300, math.inf)
    (one,) = parse(packet)
    assert one.tags == "ihhfsiiNbdf"
    assert one.arguments == (1, -(2**31), 2**40, 0.5, "tëxt", True, False, None, b"blob", 1e300, math.inf)
    assert OscPacket(bundle([packet, packet])).messages[1].message.address == "/x"
    assert parse(bundle([packet], 7 << 32))[0].time == 7 << 32


@given(st.text(max_size=50), st.floats(), st.integers(-(2**63), 2**63 - 1))
def test_whatever_is_said_can_be_read(text: str, number: float, whole: int) -> None:
    (one,) = parse(message("/x", text, number, whole))
    assert one.arguments[2] == whole


def test_what_fits_no_type_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="does not fit into 64 bits"):
        message("/x", 2**64)


# Questions and commands


def test_a_command_is_done_and_a_question_answered_to_who_asked() -> None:
    stage = Stage()
    assert stage.asks("/sideman/stem/bass/gain", -6.0) == []
    assert stage.sent == [Command("gain", "bass", value=-6.0)]
    ((packet, sender),) = stage.server.take(message("/sideman/ping", 7), HERE, 0)
    assert sender == HERE
    assert parse(packet) == (Message("/sideman/reply", ("/sideman/ping", 7), "si"),)
    assert stage.count("done") == 2


def test_an_error_goes_back_with_the_address_and_into_the_log() -> None:
    stage = Stage()
    (answer,) = stage.asks("/sideman/tempo", 0)
    assert answer.arguments[0] == "/sideman/tempo"
    assert str(answer.arguments[1]).startswith("bpm is 0; it takes quarter notes per minute from 20 to 400")
    assert stage.lines == [f"OSC: 127.0.0.1:9000, /sideman/tempo: {answer.arguments[1]!s}"]
    assert "there is no address '/sideman/temp' (did you mean /sideman/tempo?)" in error(
        stage.asks("/sideman/temp", 0)
    )
    assert "multiples of 4" in error(stage.sends(b"/sideman/tempo"))
    assert stage.count("refused") == stage.count("unknown") == stage.count("malformed") == 1
    assert not stage.sent


def test_a_bad_packet_leaves_the_next_one_alone() -> None:
    stage = Stage()
    hang = b"#bundle\0" + bytes(8) + b"\xff\xff\xff\xfc"
    assert "-4 bytes long" in error(stage.sends(hang))
    assert stage.asks("/sideman/metronome", 1) == []
    assert stage.sent == [Command("metronome", value=1.0)]


def test_the_messages_of_a_bundle_are_done_in_order_and_answered_together() -> None:
    stage = Stage()
    packets = [message("/sideman/metronome", 1), message("/sideman/ping", 1), message("/sideman/tempo", 0)]
    sent = stage.server.take(bundle([*packets, message("/sideman/metronome", 0)]), HERE, 0)
    assert len(sent) == 1
    assert [one.address for one in said(sent)] == ["/sideman/reply", "/sideman/error"]
    assert [command.value for command in stage.sent] == [1, 0]


def test_long_answers_are_cut_into_packets_that_no_network_cuts() -> None:
    sent = Stage().server.take(message("/sideman/schema"), HERE, 0) + Stage().server.take(
        message("/sideman/help"), HERE, 0
    )
    assert len(sent) > 10
    assert all(len(packet) <= DATAGRAM_BYTES for packet, _ in sent)


def test_what_another_sideman_says_is_not_answered() -> None:
    stage = Stage()
    for address in ("/sideman/reply", "/sideman/error", "/sideman/report/position", "/sideman/report/levels/bass"):
        assert stage.asks(address, "/sideman/tempo", "nothing") == []
    assert stage.count("echoes") == 4
    assert not stage.lines


def test_nobody_is_answered_where_nobody_can_be() -> None:
    stage = Stage()
    assert stage.asks("/sideman/ping", sender=("127.0.0.1", 0)) == []
    assert stage.asks("/sideman/tempo", 0, sender=("127.0.0.1", 70_000)) == []


def test_answers_go_to_the_port_that_was_named() -> None:
    stage = Stage()
    assert stage.server.take(message("/sideman/hello", "", 7001), HERE, 0)[0][1] == ("127.0.0.1", 7001)
    assert stage.server.take(message("/sideman/tempo", 0), HERE, 0)[0][1] == ("127.0.0.1", 7001)
    assert stage.server.take(message("/sideman/tempo", 0), ("127.0.0.1", 9001), 0)[0][1] == ("127.0.0.1", 9001)


def test_an_error_that_nobody_foresaw_is_told_and_nothing_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setattr(stage.desk, "place", lambda: 1 // 0)
    assert "nobody has foreseen (ZeroDivisionError" in error(stage.asks("/sideman/position"))
    stage.asks("/sideman/subscribe", "position")
    assert stage.passes(1) == []
    assert stage.count("faults") == 2
    assert stage.asks("/sideman/ping")[0].address == "/sideman/reply"


# Who may


def test_another_machine_says_the_token_first() -> None:
    stage = Stage(guard=Guard(TOKEN))
    assert "say /sideman/hello" in error(stage.asks("/sideman/metronome", 1, sender=THERE))
    assert "not this session's token" in error(stage.asks("/sideman/hello", "a-guess-of-mine", sender=THERE))
    assert "say /sideman/hello" in error(
        stage.sends(bundle([message("/sideman/hello", TOKEN), message("/sideman/metronome", 1)]), THERE)
    )
    assert not stage.sent
    assert stage.asks("/sideman/hello", TOKEN, sender=THERE)[0].arguments[:2] == ("/sideman/hello", "untitled")
    assert stage.asks("/sideman/metronome", 1, sender=THERE) == []
    assert stage.sent == [Command("metronome", value=1.0)]
    assert stage.count("strangers") == 2
    stage.passes(601)
    assert "say /sideman/hello" in error(stage.asks("/sideman/metronome", 0, sender=THERE))


def test_foreign_addresses_of_strangers_go_nowhere() -> None:
    heard: list[str] = []

    def foreign(address: str, *_: object) -> bool:
        heard.append(address)
        return True

    stage = Stage(guard=Guard(TOKEN), foreign=foreign)
    stage.asks("/position/bbt", sender=THERE)
    assert heard == []
    stage.asks("/position/bbt")
    assert heard == ["/position/bbt"]


# Too much


def test_what_is_too_much_is_dropped_unread_counted_and_told_once() -> None:
    stage = Stage()
    stage.asks("/sideman/ping")
    for _ in range(2000):
        stage.sends(b"\xff" * 8)
    assert stage.count("too_many") > 1400
    assert stage.count("malformed") + stage.count("too_many") == 2000
    assert [line for line in stage.lines if "sends more than can be taken" in line] == [
        "OSC: 127.0.0.1:9000 sends more than can be taken, so some packets are dropped unread"
    ]
    assert len(stage.lines) == 2
    assert stage.count("silent") > 400  # errors that would only have made more of it
    stage.passes(1)
    assert stage.asks("/sideman/metronome", 1) == []
    assert stage.sent == [Command("metronome", value=1.0)]


def test_questions_are_answered_up_to_a_rate_and_commands_go_on() -> None:
    stage = Stage()
    answers = [one for _ in range(40) for one in stage.asks("/sideman/position")]
    assert sum(one.address == "/sideman/reply" for one in answers) == 20
    assert "more questions a second" in str(answers[-1].arguments[1])
    stage.asks("/sideman/metronome", 1)
    assert len(stage.sent) == 1


def test_a_flood_from_every_port_keeps_memory_flat_and_the_known_one_heard() -> None:
    stage = Stage()
    packets = [b"\xff" * 12, message("/sideman/ping", 1), message("/sideman/metronome", 1), b"/x\0\0"]
    later = bundle([message("/sideman/metronome", 0)], time_tag(WALL_NS + 3600 * SECOND_NS))
    packets += [later, message("/sideman/subscribe", "levels", 30, 600), message("/sideman/takes")]
    stage.asks("/sideman/metronome", 1)

    def rush(first: int, end: int) -> None:
        for number in range(first, end):
            stage.desk.now_ns += 1_000_000
            sender = ("127.0.0.1", 1024 + number % 60_000)
            stage.server.take(packets[number % len(packets)], sender, stage.desk.now_ns)
            if number % 100 == 0:
                assert stage.server.take(message("/sideman/metronome", 0), HERE, stage.desk.now_ns) == []
                stage.server.tick(stage.desk.now_ns)

    tracemalloc.start()
    try:
        rush(0, 6000)
        before = tracemalloc.get_traced_memory()[0]
        rush(6000, 30_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert stage.count("too_many") == 0 or stage.count("done") > 300


def test_a_flood_of_a_hundred_thousand_a_second_is_outlived() -> None:
    result = flood(60_000, per_second=100_000)
    assert result.counted["faults"] == 0
    assert result.passed < 3000
    assert result.of_the_known == 1.0
    assert result.lines <= 6


# Whatever the bytes are


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=120) | st.sampled_from(whole_packets()), max_size=12), st.integers(0, 2**40))
def test_any_packets_are_outlived(packets: list[bytes], step_ns: int) -> None:
    stage = Stage(foreign=lambda *_: False)
    for packet in packets:
        stage.desk.now_ns += step_ns
        for one in stage.sends(packet):
            assert one.address in ("/sideman/reply", "/sideman/error")
        stage.server.read()
        stage.passes(0.1)
    assert stage.count("faults") == 0
    assert stage.count("received") == len(packets)


def test_mutants_are_outlived() -> None:
    result = fuzz(4000, seed=7)
    assert result.uncaught == []
    assert result.unreadable == 0
    assert result.counted["faults"] == 0
    assert result.counted["malformed"] > 1000
    assert result.replies > 1000
    assert result.errors > 1000


def test_every_whole_packet_is_answered_or_done() -> None:
    for packet in whole_packets():
        stage = Stage(foreign=lambda *_: True)
        stage.sends(packet)
        while stage.server.read():
            stage.passes(0)
        told = stage.server.counted()
        first = parse(packet)[:1]
        audio = bool(first) and first[0].address == "/sideman/audio"
        assert told["refused"] <= (2 if audio or len(parse(packet)) > 5 else 0), (packet, stage.lines)
        assert told["malformed"] == told["unknown"] == told["faults"] == 0
    assert path_of(stage.server.book.addresses[0]) == "/sideman/play"


# Later


def test_a_bundle_is_done_when_the_engine_comes_to_its_frame() -> None:
    stage = Stage()
    command = message("/sideman/stem/bass/gain", -3)
    assert stage.sends(bundle([command], stage.tag(0.5))) == []
    frame, turn = 24_000, stage.desk.turn_frames
    while not stage.sent:
        stage.passes(1 / 1000)
        assert stage.desk.now_ns < SECOND_NS
    assert stage.sent == [Command("gain", "bass", value=-3.0, frame=frame)], "and the engine keeps it until then"
    assert 2 * turn < frame - stage.desk.mixed() <= EARLY_TURNS * turn
    assert stage.count("held") == 1


def test_what_waits_wakes_the_listener_in_time() -> None:
    stage = Stage()
    stage.sends(bundle([message("/sideman/metronome", 1)], stage.tag(0.1)))
    while not stage.sent:
        seconds = stage.server.wait(stage.desk.now_ns)
        assert 0 < seconds <= 0.25
        stage.passes(seconds)
    assert 0 < 4800 - stage.desk.mixed() <= EARLY_TURNS * stage.desk.turn_frames


def test_what_is_held_is_done_in_the_order_of_time_then_of_arrival() -> None:
    stage = Stage()
    for gain, seconds in ((3, 0.3), (1, 0.1), (2, 0.1), (0, 0.05)):
        stage.sends(bundle([message("/sideman/stem/bass/gain", gain)], stage.tag(seconds)))
    stage.passes(1)
    assert [command.value for command in stage.sent] == [0, 1, 2, 3]


def test_a_time_that_has_passed_is_now_and_one_of_another_age_is_refused() -> None:
    stage = Stage()
    stage.desk.now_ns = 3600 * SECOND_NS
    assert stage.sends(bundle([message("/sideman/metronome", 1)], stage.tag(-2))) == []
    assert len(stage.sent) == 1
    assert stage.count("late") == 1
    assert "its time is 20 s ago" in error(stage.sends(bundle([message("/sideman/metronome", 0)], stage.tag(-20))))
    ahead = AHEAD_NS / SECOND_NS + 1
    assert "61 s ahead" in error(stage.sends(bundle([message("/sideman/metronome", 0)], stage.tag(ahead))))
    assert "Do the clocks agree?" in error(stage.sends(bundle([message("/sideman/metronome", 0)], 2 << 32)))
    assert len(stage.sent) == 1
    assert stage.sends(bundle([message("/sideman/metronome", 0)], 0)) == []  # which some send for "now"
    assert len(stage.sent) == 2


def test_a_copy_of_a_bundle_with_a_time_is_done_once() -> None:
    stage = Stage()
    packet = bundle([message("/sideman/agent/bass/action/freeze", 1)], stage.tag(0.1))
    for _ in range(3):
        stage.sends(packet)
    stage.passes(1)
    stage.sends(packet)
    assert len(stage.sent) == 1
    assert stage.count("copies") == 3
    stage.sends(packet, ("127.0.0.1", 9001))  # another sender says what he likes
    assert len(stage.sent) == 2


def test_only_so_many_wait() -> None:
    stage = Stage()
    for number in range(HELD_OF_ONE):
        assert stage.sends(bundle([message("/sideman/metronome", number % 2)], stage.tag(5 + number / 1000))) == []
    assert "wait for their time already" in error(
        stage.sends(bundle([message("/sideman/metronome", 1)], stage.tag(30)))
    )
    stage.passes(10)
    assert len(stage.sent) == HELD_OF_ONE


def test_an_error_of_what_was_held_goes_back_when_it_is_done() -> None:
    stage = Stage()
    assert stage.sends(bundle([message("/sideman/tempo", math.nan)], stage.tag(0.2))) == []
    assert "bpm is nan" in error(stage.passes(1))


# What a DAW says


def test_what_is_not_ours_is_handed_on_with_its_time() -> None:
    heard: list[tuple[str, tuple[Value, ...], int, Sender]] = []

    def foreign(address: str, arguments: tuple[Value, ...], time_ns: int, sender: Sender) -> bool:
        heard.append((address, arguments, time_ns, sender))
        return address == "/position/bbt"

    stage = Stage(foreign=foreign)
    stage.passes(5)
    assert stage.asks("/position/bbt", "001|01|0000") == []
    assert stage.asks("/track/1/volume", 0.5) == []
    stage.sends(bundle([message("/position/bbt", "x")], stage.tag(-0.002)))
    stage.sends(bundle([message("/position/bbt", "y")], stage.tag(10**6)))
    now_ns = stage.desk.now_ns
    assert [(one[1][0], one[2]) for one in heard] == [
        ("001|01|0000", now_ns), (0.5, now_ns), ("x", now_ns - 2_000_000), ("y", now_ns),
    ]  # fmt: skip
    assert heard[0][3] == HERE
    assert (stage.count("passed_on"), stage.count("not_ours"), stage.count("off_time")) == (3, 1, 1)
    assert stage.lines == []


def test_what_is_not_ours_is_unknown_where_nobody_follows_a_daw() -> None:
    stage = Stage()
    assert "there is no address '/position/bbt'" in error(stage.asks("/position/bbt", 1))


def test_a_profile_that_fails_is_told_and_counted() -> None:
    stage = Stage(foreign=lambda *_: 1 // 0)
    assert "nobody has foreseen" in error(stage.asks("/position/bbt"))
    assert stage.count("faults") == 1


# Those who are told


def test_a_subscriber_is_told_at_his_rate_until_his_lease_is_over() -> None:
    stage = Stage()
    stage.asks("/sideman/subscribe", "position", 10, 2)
    told = [one for _ in range(500) for one in stage.passes(0.01)]
    assert 19 <= len(told) <= 21
    assert {one.address for one in told} == {"/sideman/report/position"}
    assert told[0].arguments[1] == 1
    assert told[0].arguments[2] == pytest.approx(1.02, abs=0.001)


def test_subscribing_again_renews_and_hurries_nothing() -> None:
    stage = Stage()
    told = 0
    for _ in range(300):
        stage.asks("/sideman/subscribe", "position", 5, 1)
        stage.asks("/sideman/metronome", 1)
        told += len(stage.passes(0.06))
    assert 85 <= told <= 91  # 18 s, five a second


def test_every_topic_is_told() -> None:
    stage = Stage()
    stage.desk.loudness = lambda: [Loudness("bass", 1.0, 0.1), Loudness("output 1", 0.0)]  # type: ignore[method-assign]
    for topic in ("agents", "levels", "stems"):
        stage.asks("/sideman/subscribe", topic)
    told = {one.address: one.arguments for one in stage.passes(0.1)}
    assert told["/sideman/report/levels/bass"] == (0.0, -20.0)
    assert told["/sideman/report/levels/output/1"] == (-120.0, -120.0)
    assert told["/sideman/report/agents/keys"] == ("armed", "plays", 0.0, 0.0, 0, 0, 0)
    assert told["/sideman/report/stems/metronome"] == (0.0, 0.0, False, False)
    assert stage.asks("/sideman/unsubscribe")[0].arguments == ("/sideman/unsubscribe", 3)
    assert stage.passes(1) == []


def test_there_are_only_so_many_subscriptions() -> None:
    stage = Stage()
    for number in range(SUBSCRIPTIONS):
        stage.passes(0.1)
        stage.asks("/sideman/subscribe", "position", 1, 600, sender=("127.0.0.1", 2000 + number))
    answer = stage.asks("/sideman/subscribe", "position", sender=("127.0.0.1", 3000))
    assert f"there are {SUBSCRIPTIONS} subscriptions already" in error(answer)
    assert stage.asks("/sideman/subscribe", "position", sender=("127.0.0.1", 2000))[0].address == "/sideman/reply"


def test_who_has_lost_his_session_is_told_no_more() -> None:
    guard = Guard(TOKEN)
    stage = Stage(guard=guard)
    stage.asks("/sideman/hello", TOKEN, sender=THERE)
    stage.asks("/sideman/subscribe", "position", 1, 600, sender=THERE)
    assert stage.passes(1) != []
    for port in range(1, SENDERS + 1):
        guard.greet(("192.168.1.8", port), TOKEN, 0, stage.desk.now_ns)
    assert stage.passes(1) == []


# Files


class Library(StillDesk):
    """A desk with takes; reading them is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def shelf(self, kind: str, name: str = "") -> list[Item]:
        self.reads += 1
        return [Item(f"{kind} {number}", ("2026-11-20", 1.5, 48000, 2, True)) for number in range(3)]


def test_files_are_read_on_another_thread_and_answered_with_the_next_turn() -> None:
    stage = Stage()
    stage.desk = Library()
    stage.server = Server(stage.desk)
    assert stage.asks("/sideman/takes") == []
    assert stage.desk.reads == 0
    assert stage.server.asked
    assert stage.server.wait(0) <= 0.005
    assert stage.passes(0) == []
    thread = threading.Thread(target=stage.server.read)
    thread.start()
    thread.join(10)
    answers = stage.passes(0.01)
    assert [one.arguments[:4] for one in answers] == [
        ("/sideman/takes", number, 3, f"takes {number - 1}") for number in (1, 2, 3)
    ]
    assert not stage.server.read()


def test_only_so_many_questions_wait_for_files() -> None:
    stage = Stage()
    for _ in range(QUESTIONS):
        assert stage.asks("/sideman/takes") == []
    assert "such questions wait already" in error(stage.asks("/sideman/takes"))
    assert "it takes 0 to 1 of [name], and 2 came" in error(stage.asks("/sideman/models", "a", "b"))
    while stage.server.read():
        pass
    assert len(stage.passes(1)) == QUESTIONS
    assert stage.asks("/sideman/takes") == []


def test_what_is_not_there_is_said() -> None:
    stage = Stage()
    stage.asks("/sideman/takes", "nothing")
    stage.server.read()
    assert "there is no 'nothing' among the takes" in error(stage.passes(0))


# The socket


@pytest.fixture
def player() -> socket.socket:
    """Return a socket of somebody on this machine."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    one.settimeout(20)
    return one


def test_a_listener_answers_over_a_socket_and_ends(player: socket.socket) -> None:
    desk, lines = Library(), list[str]()
    with player, Listener(Server(desk), open_socket("127.0.0.1", 0, ""), lines.append) as listener:
        at = ("127.0.0.1", listener.port)
        for packet in (b"", b"\xff", b"/x" * 5000, message("/sideman/metronome", 1)):
            player.sendto(packet, at)
        answers = [parse(player.recv(9000))[0] for _ in range(3)]
        assert "the packet is empty" in str(answers[0].arguments[1])
        assert "longer than 8192 bytes" in str(answers[2].arguments[1])
        player.sendto(message("/sideman/takes"), at)
        assert len(parse(player.recv(9000))) == 3
        player.sendto(message("/sideman/subscribe", "position", 30, 5), at)
        assert parse(player.recv(9000))[0].address == "/sideman/reply"
        assert parse(player.recv(9000))[0].address == "/sideman/report/position"
        assert list(desk.sent) == [Command("metronome", value=1.0)]
    listener.stop()
    assert listener.failures == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("osc")]


def test_a_listener_outlives_a_server_that_fails(player: socket.socket) -> None:
    server, lines = Server(StillDesk()), list[str]()
    take, failed = server.take, threading.Event()

    def fail(packet: bytes, sender: Sender, now_ns: int) -> list[Outgoing]:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("boom")
        return take(packet, sender, now_ns)

    server.take = fail  # type: ignore[method-assign]
    with player, Listener(server, open_socket("127.0.0.1", 0, ""), lines.append) as listener:
        at = ("127.0.0.1", listener.port)
        player.sendto(message("/sideman/ping"), at)
        assert failed.wait(20)
        player.sendto(message("/sideman/ping", 5), at)
        assert parse(player.recv(9000))[0].arguments == ("/sideman/ping", 5)
    assert listener.failures == 1
    assert "boom" in lines[0]


def test_a_packet_that_cannot_be_sent_is_counted(player: socket.socket) -> None:
    with player, Listener(Server(StillDesk()), open_socket("127.0.0.1", 0, "")) as listener:
        listener.send([(b"x" * 70_000, player.getsockname()), (message("/live/test"), player.getsockname())])
        assert parse(player.recv(9000))[0].address == "/live/test"
    assert listener.failures == 1


def test_a_port_that_is_taken_is_said(player: socket.socket) -> None:
    with (
        player,
        pytest.raises(OSError, match=r"OSC cannot listen on 127\.0\.0\.1, port .* is another sideman running"),
    ):
        open_socket("127.0.0.1", player.getsockname()[1], "")


def test_no_other_interface_is_opened_without_a_token() -> None:
    with pytest.raises(GuardError, match="there is no token"):
        open_socket("0.0.0.0", 0, "")


def test_everything_that_is_counted_is_told_from_the_start() -> None:
    assert set(Server(StillDesk()).counted()) == set(COUNTED)
    began = time.monotonic_ns()
    assert Server(StillDesk()).wait(began) == 0.25
