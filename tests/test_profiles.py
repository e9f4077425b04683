"""What DAWs say over OSC, as tables: every dialect, what it means, what makes no sense, and a whole song of it."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.follower import Follower
from bridge.profiles import DIALECTS, Pattern, ProfileSource, Said, Says, dialect
from bridge.sync import Observation, SessionClock
from realtime.clock import Meter, TempoMap
from realtime.hostclock import SECOND_NS

RATE = 48_000
FOUR, SEVEN = Meter(4, 4), Meter(7, 8)


def f32(value: float) -> float:
    """A number as it comes through 32 bits."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


class Program:
    """A DAW on the other side: what it was sent."""

    def __init__(self, name: str, meter: Meter = FOUR, patterns: tuple[Pattern, ...] = ()) -> None:
        self.sent: list[tuple[str, tuple[Any, ...]]] = []
        self.told: list[str] = []
        self.source = ProfileSource(
            "osc",
            dialect(name, patterns),
            TempoMap.steady(RATE, 120, meter),
            self.send,
            port=7000,
            tell=self.told.append,
        )

    def send(self, address: str, arguments: tuple[Any, ...]) -> None:
        self.sent.append((address, arguments))

    def says(self, address: str, *arguments: Any) -> Observation | None:
        return self.source.take(address, arguments, 5, ("127.0.0.1", 3819))


@pytest.mark.parametrize("name", [name for name in DIALECTS if name != "free"])
def test_every_dialect_says_where_the_song_is_and_whether_it_plays(name: str) -> None:
    found = dialect(name)
    assert found.title
    assert found.seen
    assert all(pattern.address.startswith("/") and pattern.argument >= 0 for pattern in found.patterns)
    assert any(pattern.says is Says.PLAYING for pattern in found.patterns)
    assert {"play", "stop", "continue"} <= set(found.commands)
    source = Program(name)
    for what in found.commands:
        assert source.source.command(what, tempo=Fraction(97), beat=Fraction(16))
    assert all("{" not in str(argument) for _, arguments in source.sent for argument in arguments)


@pytest.mark.parametrize(
    ("name", "meter", "address", "arguments", "expected"),
    [
        ("ardour", FOUR, "/position/bbt", ("001|01|0000",), {"bar": 0, "bar_beat": 0}),
        ("ardour", FOUR, "/position/bbt", ("005|02|0960",), {"bar": 4, "bar_beat": Fraction(3, 2)}),
        ("ardour", SEVEN, "/position/bbt", ("005|05|0480",), {"bar": 4, "bar_beat": Fraction(9, 4)}),
        ("ardour", FOUR, "/position/bbt", ("-02|03|0000",), {"bar": -2, "bar_beat": 2}),
        ("ardour", FOUR, "/transport_play", (1.0,), {"playing": True}),
        ("ardour", FOUR, "/transport_stop", (1.0,), {"playing": False}),
        ("ardour", FOUR, "/transport_stop", (0.0,), None),
        ("ardour", FOUR, "/heartbeat", (1.0,), {}),
        ("ardour", FOUR, "/position/bbt", (" ",), None),
        ("reaper", SEVEN, "/beat/str", ("5.2.50",), {"bar": 4, "bar_beat": Fraction(3, 4)}),
        ("reaper", FOUR, "/tempo/raw", (f32(97.3),), {"tempo": Fraction(973, 10)}),
        ("reaper", FOUR, "/pause", (1.0,), {"playing": False}),
        ("live", FOUR, "/live/song/get/current_song_time", (f32(6.25),), {"beat": Fraction(25, 4)}),
        ("live", FOUR, "/live/song/get/beat", (7,), {"beat": 7}),
        ("live", FOUR, "/live/song/get/is_playing", (True,), {"playing": True}),
        ("live", FOUR, "/live/song/get/tempo", (f32(133.333),), {"tempo": Fraction(133333, 1000)}),
        ("bitwig", SEVEN, "/beat/str", ("3.2.3:50",), {"bar": 2, "bar_beat": 1 + Fraction(5, 8)}),
        ("bitwig", FOUR, "/beat/str", ("3.2.3",), {"bar": 2, "bar_beat": Fraction(3, 2)}),
        ("bitwig", FOUR, "/play", (0,), {"playing": False}),
        (
            "max", FOUR, "/transport", (2, 1, 0.0, 480.0, f32(97.5), 7, 8, 1, 1680.0),
            {"beat": Fraction(7, 2), "tempo": Fraction(195, 2), "meter": SEVEN, "playing": True},
        ),
        ("max", FOUR, "/transport/ticks", (240.0,), {"beat": Fraction(1, 2)}),
    ],
)  # fmt: skip
def test_what_is_said_means(
    name: str, meter: Meter, address: str, arguments: tuple[Any, ...], expected: dict[str, Any] | None
) -> None:
    program = Program(name, meter)
    found = program.says(address, *arguments)
    if expected is None:
        assert found is None
    else:
        assert found == Observation("osc", 5, sender="127.0.0.1:3819", **expected)
    assert program.told == []


def test_a_meter_comes_with_the_next_place_and_never_half() -> None:
    program = Program("live")
    assert program.says("/live/song/get/signature_numerator", 4) is None
    assert program.says("/live/song/get/signature_denominator", 4) is None
    assert program.says("/live/song/get/signature_numerator", 7) is None
    found = program.says("/live/song/get/tempo", 120.0)
    assert found is not None
    assert found.meter is None
    assert program.says("/live/song/get/signature_denominator", 8) is None
    found = program.says("/live/song/get/current_song_time", 0.0)
    assert found is not None
    assert found.meter == SEVEN


def test_a_meter_in_words_says_what_a_counted_beat_is() -> None:
    program = Program("reaper", patterns=(Pattern("/meter", Says.METER),))
    program.says("/meter", "7 / 8")
    found = program.says("/beat/str", "1.3.00")
    assert found is not None
    assert (found.bar_beat, found.meter) == (Fraction(1), SEVEN)


def test_rough_places_are_heard_while_nothing_finer_is() -> None:
    source = Program("live").source
    assert source.take("/live/song/get/beat", (4,), SECOND_NS) is not None
    assert source.take("/live/song/get/current_song_time", (4.1,), 2 * SECOND_NS) is not None
    assert source.take("/live/song/get/beat", (5,), 3 * SECOND_NS) is None
    assert source.take("/live/song/get/beat", (9,), 5 * SECOND_NS) is not None


def test_addresses_are_the_user_s() -> None:
    program = Program("reaper", patterns=(Pattern("/pos", Says.PLACE, argument=1, parts=((100, 0),)),))
    assert program.says("/beat/str", "2.1.00") is None
    found = program.says("/pos", "x", "2.1.00")
    assert found is not None
    assert found.bar == 1
    free = Program("free", patterns=(Pattern("/clock", Says.BEAT, scale=24), Pattern("/clock", Says.TEMPO, 1)))
    found = free.says("/clock", 36, 97)
    assert found is not None
    assert (found.beat, found.tempo) == (Fraction(3, 2), Fraction(97))
    whole = Program(
        "free",
        patterns=(
            Pattern("/b", Says.BAR, counts_from=0),
            Pattern("/b", Says.BAR_BEAT, 1, counts_from=0, quarters=True),
        ),
    )
    found = whole.says("/b", 0, 2.5)
    assert found is not None
    assert (found.bar, found.bar_beat) == (0, Fraction(5, 2))


@pytest.mark.parametrize(
    ("name", "address", "arguments", "words"),
    [
        ("ardour", "/position/bbt", ("000|01|0000",), "there is no bar 0"),
        ("ardour", "/position/bbt", ("001|00|0000",), "beyond what there can be"),
        ("ardour", "/position/bbt", ("001|01|9999",), "beyond what there can be"),
        ("ardour", "/position/bbt", ("001|01",), "beyond what there can be"),
        ("ardour", "/position/bbt", ("one",), "it takes bar, beat and parts"),
        ("ardour", "/position/bbt", ("9" * 100,), "it takes bar, beat and parts"),
        ("ardour", "/position/bbt", (1.5,), "it takes bar, beat and parts"),
        ("ardour", "/position/bbt", (), "it takes 1 or more arguments"),
        ("reaper", "/tempo/raw", (math.nan,), "it takes a number"),
        ("reaper", "/tempo/raw", (math.inf,), "it takes a number"),
        ("reaper", "/tempo/raw", ("fast",), "it takes a number"),
        ("live", "/live/song/get/signature_numerator", (3.5,), "it takes a whole number"),
        ("bitwig", "/time/signature", ("waltz",), "it takes a meter"),
        ("max", "/transport", (1, 1), "or more arguments"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_in_one_sentence(
    name: str, address: str, arguments: tuple[Any, ...], words: str
) -> None:
    program = Program(name)
    assert program.says(address, *arguments) is None
    assert program.source.refused >= 1
    assert words in program.told[0]
    assert program.told[0].startswith("osc: ")
    for _ in range(8):
        program.says(address, *arguments)
    assert len(program.told) == len(set(program.told)) <= 5


def test_a_meter_of_nothing_is_told_and_ignored() -> None:
    program = Program("live")
    program.says("/live/song/get/signature_numerator", 0)
    program.says("/live/song/get/signature_denominator", 0)
    found = program.says("/live/song/get/current_song_time", 1.0)
    assert found is not None
    assert found.meter is None
    assert "meter 0/0" in program.told[0]


def test_the_program_is_asked_to_speak_and_asked_again_when_it_has_gone() -> None:
    program = Program("ardour")
    source = program.source
    source.start()
    assert program.sent == [("/set_surface", (0, 159, 56, 0, 0, 0, 7000))]
    source("/heartbeat", (1.0,), 2 * SECOND_NS)
    for second in range(1, 7):
        list(source.poll(second * SECOND_NS))
    assert source.asked == 1
    for second in range(7, 18):
        list(source.poll(second * SECOND_NS))
    assert source.asked == 4
    source.stop()
    source.stop()
    assert program.sent[-1] == ("/set_surface", (0, 159, 0, 0, 0, 0, 7000))
    assert len(program.sent) == 5


def test_messages_are_queued_until_somebody_polls() -> None:
    source = Program("ardour").source
    assert not source("/somebody/else", (1,), 1)
    assert source("/position/bbt", ("001|01|0000",), 1, ("127.0.0.1", 9))
    assert source("/position/bbt", ("000|01|0000",), 2, ("127.0.0.1", 9))
    assert [said.bar for said in source.poll(3)] == [0]
    assert list(source.poll(4)) == []
    assert (source.heard, source.refused) == (2, 1)


def test_commands_are_in_the_program_s_own_units() -> None:
    program = Program("ardour")
    assert program.source.command("locate", beat=Fraction(8))
    assert program.sent == [("/locate", (4 * RATE, 0))]
    assert not program.source.command("tempo", tempo=Fraction(97))
    assert not program.source.command("locate")
    reaper = Program("reaper")
    assert reaper.source.command("locate", beat=Fraction(8))
    assert reaper.source.command("tempo", tempo=Fraction(97))
    assert reaper.sent == [("/time", (4.0,)), ("/tempo/raw", (97.0,))]


def test_a_profile_that_is_not_known_and_one_that_says_nothing() -> None:
    with pytest.raises(ValueError, match='profile "logic" is not known; it takes ardour, reaper, live'):
        dialect("logic")
    with pytest.raises(ValueError, match="says nowhere where the song is"):
        dialect("free", (Pattern("/tempo", Says.TEMPO),))


def test_placeholders_are_filled_or_named() -> None:
    assert Said("/x", ("{port}", "a", 2)).filled({"port": 5}) == ("/x", (5, "a", 2))
    with pytest.raises(KeyError):
        Said("/x", ("{tempo}",)).filled({})


addresses = st.sampled_from([pattern.address for found in DIALECTS.values() for pattern in found.patterns])
values = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=20), st.booleans(), st.none(),
    st.binary(max_size=8), st.from_regex(r"\A-?[0-9]{1,4}[.|][0-9]{1,3}[.|][0-9]{1,4}\Z"),
)  # fmt: skip


@given(
    st.sampled_from([name for name in DIALECTS if name != "free"]),
    st.lists(st.tuples(addresses, st.lists(values, max_size=10)), max_size=8),
)
def test_nothing_that_is_said_raises(name: str, messages: list[tuple[str, list[Any]]]) -> None:
    program = Program(name)
    for index, (address, arguments) in enumerate(messages):
        program.source(address, arguments, index)
    clock = SessionClock(RATE)
    clock.observe(SECOND_NS, 0)
    follower = Follower(clock, TempoMap.steady(RATE, 120), ("osc",))
    for said in program.source.poll(1):
        assert said.bar is None or isinstance(said.bar_beat, Fraction)
        follower.take(said)
    follower.step(SECOND_NS)


def test_a_song_that_ardour_plays_is_followed_bar_by_bar() -> None:
    program = Program("ardour", SEVEN)
    song = TempoMap.steady(RATE, 120, SEVEN)
    truth = TempoMap.steady(RATE, 97, SEVEN, downbeat=RATE)
    clock = SessionClock(RATE)
    follower = Follower(clock, song, ("osc",))
    anchors = []
    sender = ("127.0.0.1", 3819)
    for step in range(3000):
        now_ns, frame = SECOND_NS + step * 20_000_000, step * RATE // 50
        clock.observe(now_ns, frame)
        if frame == RATE:
            program.source("/transport_play", (1.0,), now_ns, sender)
        if frame > RATE and step % 5 == 0:
            place = truth.moment(frame // 256 * 256)
            eighth, rest = divmod(place.beat * 2, 1)
            text = f"{place.bar + 1:03d}|{int(eighth) + 1:02d}|{int(rest * 960):04d}"  # 1920 to the quarter
            program.source("/position/bbt", (text,), now_ns, sender)
        for said in program.source.poll(now_ns):
            follower.take(said)
        anchors += [command.anchor for command in follower.step(now_ns) if command.anchor is not None]
    last = anchors[-1]
    assert (last.tempo, last.meter) == (Fraction(97), SEVEN)
    assert abs(last.frame - truth.bar_frame(last.song_bar)) <= 0.005 * RATE
    assert {anchor.meter for anchor in anchors} == {SEVEN}
