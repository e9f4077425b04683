"""The address table: each address reached with right and with wrong arguments, and explained."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.addresses import KINDS, REQUIRED, Address, Argument, Book, RefusedError, Request, Section, plain
from bridge.desk import StillDesk
from bridge.follower import SyncStatus
from bridge.guard import GuardError, Sender
from bridge.osctable import REPORTS, SECTIONS, TOPICS, book, markdown
from bridge.packets import Value
from realtime.clock import Locate, Meter, TempoChange
from realtime.engine import Command

BOOK = book()
THIRD = struct.unpack(">f", struct.pack(">f", 1 / 3))[0]
PATHS = [address.path for address in BOOK.addresses]


class FakeHost:
    """Serves no one: remembers what it was asked for."""

    def __init__(self) -> None:
        self.book = BOOK
        self.asked: list[tuple[object, ...]] = []

    def subscribe(self, sender: Sender, topic: str, rate_hz: float, lease_seconds: float) -> None:
        self.asked.append(("subscribe", topic, rate_hz, lease_seconds))

    def unsubscribe(self, sender: Sender, topic: str) -> int:
        self.asked.append(("unsubscribe", topic))
        return 3

    def greet(self, sender: Sender, token: str, reply_port: int) -> None:
        if token == "wrong":
            raise GuardError("that is not this session's token")
        self.asked.append(("greet", token, reply_port))

    def counted(self) -> Mapping[str, int]:
        return {"received": 7}


def done(path: str, *arguments: Value, desk: StillDesk | None = None, host: FakeHost | None = None) -> list[object]:
    """Carry out a message; return the commands it sent and the answers, whatever there is."""
    desk = desk or StillDesk()
    found = BOOK.find(path)
    assert found is not None, path
    address, names = found
    answers = address.carry_out(Request(desk, host or FakeHost(), ("127.0.0.1", 9), arguments, names))
    return [*desk.sent, *answers]


def refused(path: str, *arguments: Value) -> str:
    with pytest.raises(RefusedError) as caught:
        done(path, *arguments)
    return str(caught.value)


def tempo(
    bar: int = 1, beat: str = "0", bpm: str | None = None, meter: Meter | None = None, ramp: int = 0
) -> Command:
    change = TempoChange(bar, Fraction(beat), None if bpm is None else Fraction(bpm), meter, ramp)
    return Command("tempo", change=change)


# What each does


@pytest.mark.parametrize(
    ("path", "arguments", "command"),
    [
        ("/sideman/play", (), Command("rest", value=0)),
        ("/sideman/play", (1.0,), Command("rest", value=0)),
        ("/sideman/rest", (True,), Command("rest", value=1)),
        ("/sideman/playing", (True,), Command("rest", value=0)),
        ("/sideman/playing", (0.0,), Command("rest", value=1)),
        ("/sideman/stop", (), Command("stop", name="bar")),
        ("/sideman/stop/now", (1,), Command("stop")),
        ("/sideman/tempo", (120,), tempo(bpm="120")),
        ("/sideman/tempo", (struct.unpack(">f", struct.pack(">f", 97.3))[0],), tempo(bpm="97.3")),
        ("/sideman/tempo", ("240/7",), tempo(bpm="240/7")),
        ("/sideman/tempo", ("92.5", "8", 5.0, "1/2"), tempo(4, "1/2", "92.5", ramp=8)),
        ("/sideman/meter", (7, 8), tempo(meter=Meter(7, 8))),
        ("/sideman/meter", (3.0, "4", 10), tempo(9, meter=Meter(3, 4))),
        ("/sideman/locate", (17,), Command("locate", locate=Locate(1, 16))),
        ("/sideman/locate", (1, 9, True), Command("locate", locate=Locate(8, 0, 0, True))),
        ("/sideman/loop", (5, 4), Command("locate", locate=Locate(1, 4, 4))),
        ("/sideman/agent/bass/action/freeze", (), Command("action", "bass", "freeze", 1.0)),
        ("/sideman/agent/bass/action/density", (1.5,), Command("action", "bass", "density", 1.5)),
        ("/sideman/agent/keys/action/any.thing", (-2,), Command("action", "keys", "any.thing", -2.0)),
        ("/sideman/agent/bass/grid", (0.5,), Command("grid", "bass", "1/2")),
        ("/sideman/agent/bass/grid", (THIRD,), Command("grid", "bass", "1/3")),
        ("/sideman/agent/bass/grid", ("0",), Command("grid", "bass", "0")),
        ("/sideman/agent/bass/quarantine", (), Command("quarantine", "bass")),
        ("/sideman/stem/bass/gain", (-3.5,), Command("gain", "bass", value=-3.5)),
        ("/sideman/stem/bass/gain", ("6",), Command("gain", "bass", value=6.0)),
        ("/sideman/stem/metronome/gain", (-12,), Command("gain", "metronome", value=-12.0)),
        ("/sideman/stem/bass/pan", (-1,), Command("pan", "bass", value=-1.0)),
        ("/sideman/stem/keys/mute", ("on",), Command("mute", "keys", value=1.0)),
        ("/sideman/stem/keys/solo", (False,), Command("solo", "keys", value=0.0)),
        ("/sideman/metronome", (1.0,), Command("metronome", value=1.0)),
    ],
)  # fmt: skip
def test_a_command_is_sent_as_it_was_meant(path: str, arguments: tuple[Value, ...], command: Command) -> None:
    assert done(path, *arguments) == [command]


@pytest.mark.parametrize("path", ["play", "rest", "stop", "stop/now", "agent/bass/quarantine"])
def test_a_button_that_is_let_go_does_nothing(path: str) -> None:
    for up in (0, 0.0, False):
        assert done(f"/sideman/{path}", up) == []


@pytest.mark.parametrize(
    ("path", "arguments", "answers"),
    [
        ("/sideman/position", (), [(0, 1, 1.0, 1, 120.0, 4, 4, True)]),
        ("/sideman/sync", (), [("internal", True, False, None, 0.0, 0)]),
        ("/sideman/agents", (), [
            (1, 2, "bass", "echo", "armed", "plays", 0.0, 0.0, 0, 0, 0),
            (2, 2, "keys", "echo", "armed", "plays", 0.0, 0.0, 0, 0, 0),
        ]),
        ("/sideman/agent/keys/actions", (), [(0, 0)]),
        ("/sideman/session", (), [("untitled", "0", 48000, 128, 1, 2)]),
        ("/sideman/latency", (), [(1024, 0, 0, 0, 48000)]),
        ("/sideman/counters", (), [(1, 1, "received", 7)]),
        ("/sideman/takes", (), [(0, 0)]),
        ("/sideman/hello", ("", 7000), [("untitled", "0", 1)]),
        ("/sideman/subscribe", ("levels", 10), [("levels", 10.0, 10.0)]),
        ("/sideman/unsubscribe", (), [(3,)]),
        ("/sideman/ping", (1, 2.5, "x", True, None, b"blob", (1,), 2**64 - 1), [(1, 2.5, "x", True, None)]),
        ("/sideman/ping", (), [()]),
    ],
)  # fmt: skip
def test_a_question_is_answered(path: str, arguments: tuple[Value, ...], answers: list[object]) -> None:
    assert done(path, *arguments) == answers


def test_faders_are_answered_as_they_were_set() -> None:
    desk = StillDesk()
    for path, value in (("bass/gain", -6), ("bass/mute", 1), ("keys/pan", 0.5), ("keys/solo", 1)):
        done(f"/sideman/stem/{path}", value, desk=desk)
    desk.sent.clear()
    assert done("/sideman/stems", desk=desk) == [
        (1, 3, "bass", 1, -6.0, 0.0, True, False),
        (2, 3, "keys", 1, 0.0, 0.5, False, True),
        (3, 3, "metronome", 1, 0.0, 0.0, False, False),
    ]


def test_a_full_queue_is_said_and_the_fader_stays() -> None:
    desk = StillDesk()
    desk.full = True
    with pytest.raises(RefusedError, match="takes no more commands"):
        done("/sideman/stem/bass/gain", -6, desk=desk)
    assert desk.faders()[0].gain_db == 0


# What is refused


@pytest.mark.parametrize(
    ("path", "arguments", "words"),
    [
        ("/sideman/tempo", (0,), "bpm is 0; it takes quarter notes per minute from 20 to 400"),
        ("/sideman/tempo", (-120.0,), "bpm is -120.0"),
        ("/sideman/tempo", (10_000,), "bpm is 10000"),
        ("/sideman/tempo", (math.nan,), "bpm is nan"),
        ("/sideman/tempo", (math.inf,), "bpm is inf"),
        ("/sideman/tempo", (1e38,), "bpm is 1e+38"),
        ("/sideman/tempo", ("fast",), "bpm is 'fast'"),
        ("/sideman/tempo", ("1e999999999",), "bpm is '1e999999999'"),
        ("/sideman/tempo", ("120/0",), "bpm is '120/0'"),
        ("/sideman/tempo", (b"120",), "bpm is a blob of 3 bytes"),
        ("/sideman/tempo", ((120,),), "bpm is an array of 1"),
        ("/sideman/tempo", (True,), "bpm is True"),
        ("/sideman/tempo", (None,), "bpm is nothing (N)"),
        ("/sideman/tempo", (), "it takes 1 to 4 of bpm, [ramp_beats], [bar], [beat], and 0 came"),
        ("/sideman/tempo", (120, 1.5), "ramp_beats is 1.5; it takes a whole number from 0 to 128"),
        ("/sideman/tempo", (120, 0, -1), "bar is -1; it takes a whole number from 0 to 1,000,000 (bars); bars count"),
        ("/sideman/tempo", (120, 0, 0, 1000), "beat is 1000"),
        ("/sideman/meter", (0, 0), "count is 0; it takes a whole number from 1 to 32"),
        ("/sideman/meter", (4, 5), "meter 4/5"),
        ("/sideman/meter", ("7/8",), "it takes 2 to 3 of count, unit, [bar], and 1 came"),
        ("/sideman/locate", (0,), "song_bar is 0; it takes a whole number from 1"),
        ("/sideman/locate", (1e30,), "song_bar is 1e+30"),
        ("/sideman/loop", (1, -4), "bars is -4"),
        ("/sideman/position", (1,), "it takes no arguments, and 1 came"),
        ("/sideman/stem/bass/gain", (math.nan,), "level is nan; it takes a number from -96 to 24 (dB); silence is"),
        ("/sideman/stem/bass/gain", (1e38,), "level is 1e+38"),
        ("/sideman/stem/bass/gain", (-math.inf,), "level is -inf"),
        ("/sideman/stem/bass/pan", (50,), "pan is 50; it takes a number from -1 to 1; did you give a percentage?"),
        ("/sideman/stem/bass/mute", (0.5,), "on is 0.5; it takes 1 or 0, T or F, on or off"),
        ("/sideman/stem/bass/mute", (math.nan,), "on is nan"),
        ("/sideman/stem/bass/mute", ("perhaps",), "on is 'perhaps'"),
        ("/sideman/stem/bas/gain", (0,), "no stem 'bas' (did you mean bass?); there are bass, keys, metronome"),
        ("/sideman/agent/nobody/grid", (1,), "there is no agent 'nobody'; there are bass, keys"),
        ("/sideman/agent/metronome/grid", (1,), "there is no agent 'metronome'"),
        ("/sideman/agent/bass/grid", (0.01,), "beats is 1/96; it takes 0 for the bar, or 1/8 to 128"),
        ("/sideman/agent/bass/grid", (-1,), "beats is -1"),
        ("/sideman/agent/bass/grid", (math.nan,), "beats is nan"),
        ("/sideman/agent/bass/action/freez", (1,), "bass has no action 'freez' (did you mean freeze?)"),
        ("/sideman/agent/bass/action/density", (3,), "value is 3; density of bass takes 0 to 2"),
        ("/sideman/agent/keys/action/" + "x" * 65, (1,), "at most 64 characters"),
        ("/sideman/agent/keys/action/x", (1e7,), "value is 10000000.0"),
        ("/sideman/play", ("now",), "pressed is 'now'"),
        ("/sideman/subscribe", ("everything",), "topic is 'everything'; it takes one of position, sync, agents"),
        ("/sideman/subscribe", ("levels", 1000), "rate is 1000; it takes a number from 0.1 to 30 (Hz)"),
        ("/sideman/subscribe", ("levels", 10, 1e9), "lease is 1000000000.0; it takes a number from 1 to 600 (s)"),
        ("/sideman/hello", ("wrong",), "not this session's token"),
        ("/sideman/hello", ("", 70_000), "reply_port is 70000"),
        ("/sideman/takes", ("x" * 300,), "name is 'xxx"),
        ("/sideman/takes", ("../x",), "there is no '../x'"),
        ("/sideman/takes", ("a\nb",), "name is 'a\\nb'"),
        ("/sideman/help", ("/sideman/temp",), "there is no address '/sideman/temp' (did you mean /sideman/tempo?)"),
        ("/sideman/audio", (), "no audio over OSC"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(path: str, arguments: tuple[Value, ...], words: str) -> None:
    assert words in refused(path, *arguments)


def outcome(act: Callable[[], object]) -> str:
    """Do something; return the sentence of its refusal, nothing if it is done."""
    try:
        act()
    except RefusedError as error:
        return str(error)
    return ""


VALUES = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.floats(width=32),
    st.text(max_size=300),
    st.binary(max_size=10),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=3).map(tuple),
)


@given(st.sampled_from(PATHS), st.lists(VALUES, max_size=5))
def test_whatever_is_said_is_done_or_refused_in_a_sentence(path: str, arguments: list[Value]) -> None:
    for name, value in (("agent", "bass"), ("stem", "keys"), ("action", "freeze")):
        path = path.replace("{" + name + "}", value)
    desk = StillDesk()
    sentence = outcome(lambda: done(path, *arguments, desk=desk))
    assert not sentence or 10 < len(sentence) < 1000
    assert not (sentence and desk.sent)
    for command in desk.sent:
        assert math.isfinite(command.value)


@given(st.sampled_from(sorted(KINDS)), VALUES, st.booleans())
def test_an_argument_is_in_its_range_or_refused(kind: str, value: Value, narrow: bool) -> None:
    argument = Argument("x", kind, "meaning", least=-3 if narrow else -math.inf, most=5 if narrow else math.inf)
    sentence = outcome(lambda: argument.read(value))
    assert not sentence or sentence.startswith("x is ")
    if sentence:
        return
    found = argument.read(value)
    if narrow and kind in ("number", "whole", "beats"):
        assert -3 <= found <= 5
    if kind == "tempo":
        assert 20 <= found <= 400


@given(st.floats(width=32))
def test_the_shortest_decimal_stands_for_the_same_float(number: float) -> None:
    if math.isnan(number):
        assert math.isnan(plain(number))
    else:
        assert struct.pack(">f", plain(number)) == struct.pack(">f", number)


@given(st.decimals(-999, 999, places=3))
def test_a_decimal_that_was_sent_as_float32_is_read_as_it_was_written(decimal: float) -> None:
    sent = struct.unpack(">f", struct.pack(">f", float(decimal)))[0]
    assert plain(sent) == float(decimal)


def test_a_double_stays_what_it_is() -> None:
    assert plain(0.1234567890123) == 0.1234567890123
    assert plain(1e300) == 1e300


# The book


def test_every_address_is_found_and_explained() -> None:
    for address in BOOK.addresses:
        path = address.path.format(agent="bass", stem="bass", action="x")
        assert BOOK.find(path) is not None
        assert BOOK.named(address.path) is address
        assert BOOK.find(path)[0] is address  # type: ignore[index]
        lines = done("/sideman/help", address.path)
        assert lines[0] == (1, len(lines), address.path)
        assert lines[1] == (2, len(lines), address.meaning)
        assert len(lines) == 2 + len(address.arguments) + len(address.answers)


def test_every_address_says_what_it_needs_to() -> None:
    for address in BOOK.addresses:
        assert address.path.startswith("/sideman/")
        assert address.meaning.endswith(".")
        needed = [argument.optional for argument in address.arguments]
        assert needed == sorted(needed)
        for argument in address.arguments:
            assert argument.kind in KINDS
            assert argument.meaning
            if argument.optional and argument.kind in ("number", "whole", "beats"):
                assert argument.least <= argument.default <= argument.most  # type: ignore[operator]
        if address.many:
            assert address.answers


def test_help_lists_every_address() -> None:
    listed = done("/sideman/help")
    assert [line[2] for line in listed] == PATHS  # type: ignore[index]


def test_the_schema_is_the_table_in_pieces_of_json() -> None:
    pieces = done("/sideman/schema")
    assert [piece[0] for piece in pieces] == list(range(1, len(pieces) + 1))  # type: ignore[index]
    assert all(len(piece[2]) <= 1000 and piece[2].isascii() for piece in pieces)  # type: ignore[index]
    whole = json.loads("".join(piece[2] for piece in pieces))  # type: ignore[index]
    assert [address["path"] for address in whole["addresses"]] == PATHS
    assert {report["topic"] for report in whole["reports"]} == set(TOPICS)
    gain = next(address for address in whole["addresses"] if address["path"].endswith("/gain"))
    assert gain["arguments"][0] == {
        "name": "level", "types": "fidhsTF", "meaning": "0 leaves it as it is", "unit": "dB", "least": -96.0,
        "most": 24.0,
    }  # fmt: skip


def test_the_page_shows_every_address_and_argument() -> None:
    page = markdown()
    for section in SECTIONS:
        assert f"\n## {section.title}\n" in page
        for address in section.addresses:
            assert f"### `{address.path}`" in page
            assert address.meaning in page
            for argument in address.arguments:
                assert f"| {argument.name} | " in page
    for report in REPORTS:
        assert f"### `{report.path}`" in page


def test_others_may_add_addresses_but_not_take_ones_that_are_there() -> None:
    more = Section("More", (Address("/sideman/more", (), "More.", lambda request: [(1,)]),))
    assert book([more]).find("/sideman/more") is not None
    twice = Section("Twice", (Address("/sideman/tempo", (), "Again.", lambda request: None),))
    with pytest.raises(ValueError, match="two addresses of the table have one path"):
        book([twice])


@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_an_unknown_path_is_found_nowhere_and_said(path: str) -> None:
    if BOOK.find(path) is None:
        assert "there is no address" in BOOK.unknown(path)
    assert BOOK.find("/sideman/stem//gain") is None
    assert isinstance(BOOK, Book)


def test_what_is_required_has_no_default() -> None:
    assert Argument("x", "number", "meaning").default is REQUIRED


@pytest.mark.parametrize("path", ["/sideman/tempo", "/sideman/meter", "/sideman/locate", "/sideman/loop"])
def test_time_is_not_moved_while_another_keeps_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, tuple[Value, ...]] = {
        "/sideman/tempo": (90,), "/sideman/meter": (3, 4), "/sideman/locate": (5,), "/sideman/loop": (1, 2),
    }  # fmt: skip
    desk = StillDesk()
    status = SyncStatus("osc reaper", True, False, Fraction(120), 0.001, 1, {})
    monkeypatch.setattr(desk, "sync", lambda: status)
    assert "osc reaper keeps the time" in outcome(lambda: done(path, *arguments[path], desk=desk))
    assert not desk.sent
    monkeypatch.setattr(desk, "sync", lambda: replace(status, leader="internal"))
    done(path, *arguments[path], desk=desk)
    assert len(desk.sent) == 1
