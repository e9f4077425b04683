"""The codec of realtime.messages: round trips, and errors that name the field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.clock import Meter, TempoChange, Timeline
from realtime.messages import decode, encode, field_names, from_bytes, seal, to_bytes
from realtime.protocols import Action, Chord, Clip, Heard, Origin, Piece, Plan, Span, SpanRequest

FRACTIONS = st.fractions(max_denominator=10**12)
INTEGERS = st.integers(-(2**63), 2**64)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
METERS = st.builds(Meter, st.integers(1, 32), st.sampled_from([1, 2, 4, 8, 16, 32]))
SPANS = st.builds(Span, INTEGERS, FRACTIONS, FRACTIONS)
PIECES = st.builds(Piece, TEXT, INTEGERS, INTEGERS, INTEGERS, INTEGERS, INTEGERS, st.booleans(), FLOATS)
ORIGINS = st.builds(Origin, TEXT, TEXT, TEXT, st.lists(PIECES, max_size=4).map(tuple))
TIMELINES = st.builds(Timeline, INTEGERS, FRACTIONS, METERS, FRACTIONS, FRACTIONS, INTEGERS, FRACTIONS)
PLANS = st.builds(Plan, TEXT, ORIGINS)
CHORDS = st.builds(Chord, TEXT, FRACTIONS, FRACTIONS)
ACTIONS = st.builds(Action, INTEGERS, TEXT, TEXT, FLOATS)
CHANGES = st.builds(TempoChange, INTEGERS, FRACTIONS, st.none() | FRACTIONS, st.none() | METERS, st.integers(0, 64))
REQUESTS = st.builds(
    SpanRequest,
    TEXT,
    SPANS,
    INTEGERS,
    INTEGERS,
    st.lists(INTEGERS, max_size=5).map(tuple),
    TIMELINES,
    INTEGERS,
    INTEGERS,
    st.integers(0, 1),
    st.lists(PLANS, max_size=2).map(tuple),
    st.lists(CHORDS, max_size=3).map(tuple),
    st.lists(ACTIONS, max_size=3).map(tuple),
)
REQUEST = SpanRequest(
    "keys",
    Span(3, Fraction(0), Fraction(4)),
    270_000,
    90_000,
    (0, 22_500, 45_000, 67_500),
    Timeline(48_000, Fraction(128), Meter(7, 8), Fraction(1, 3)),
    254_976,
    2**63 + 5,
    plans=(Plan("bass", Origin("corpus", "eif", "ab", (Piece("a.flac", 0, 100, 0, 100, 7),))),),
    actions=(Action(5, "keys", "density", 0.5),),
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(REQUESTS, TIMELINES, SPANS, ORIGINS, PIECES, PLANS, CHORDS, ACTIONS, CHANGES))
def test_every_value_comes_back_equal(value: Any) -> None:
    assert from_bytes(type(value), to_bytes(value)) == value
    assert json.loads(to_bytes(value)) == encode(value)


@settings(max_examples=100, deadline=None)
@given(st.one_of(REQUESTS, ORIGINS, PLANS, ACTIONS))
def test_what_is_sealed_travels_as_it_came(value: Any) -> None:
    text = to_bytes(value)
    sealed = seal(type(value), json.loads(text))
    assert to_bytes(sealed) == text
    assert to_bytes({"a": [1, sealed], "b": None}) == b'{"a":[1,' + text + b'],"b":null}'


def test_a_sealed_origin_stands_in_an_origins_place() -> None:
    origin = Origin("corpus", "eif", "ab", (Piece("ä.flac", 0, 100, 0, 100, 7),))
    sealed = seal(Origin, encode(origin))
    assert from_bytes(Plan, to_bytes(Plan("bass", sealed))) == Plan("bass", origin)
    request = replace(REQUEST, after=sealed, plans=(Plan("bass", sealed),))
    assert from_bytes(SpanRequest, to_bytes(request)) == replace(REQUEST, after=origin, plans=(Plan("bass", origin),))
    with pytest.raises(ValueError, match=r"Action\.frame"):
        to_bytes(Action(sealed, "a", "b"))  # type: ignore[arg-type]
    span = seal(Span, encode(Span(1, Fraction(0), Fraction(1))))
    with pytest.raises(ValueError, match=r"Plan\.origin: found Sealed.*expected a Origin"):
        to_bytes(Plan("bass", span))  # type: ignore[arg-type]


PIECE = {"source": "a", "source_frame": 0, "source_frames": 1, "at": 0, "frames": 1, "unit": 0, "stretched": False}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], r"Origin: found \[\]"),
        ({"kind": "corpus", "name": 1, "digest": "", "pieces": []}, r"Origin\.name: found 1"),
        ({"kind": "corpus", "name": "", "digest": "", "pieces": [{"source": "a"}]}, r"\[0\]\.source_frame: missing"),
        (
            {"kind": "c", "name": "", "digest": "", "pieces": [{**PIECE, "gain": math.inf}]},
            r"pieces\[0\]\.gain: found inf",
        ),
        (
            {"kind": "c", "name": "", "digest": "", "pieces": [{**PIECE, "gain": 1.0, "colour": "blue"}]},
            r"unknown field 'colour'",
        ),
    ],
)
def test_only_what_can_be_opened_is_sealed(data: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        seal(Origin, data)


def test_fields_in_another_order_and_defaults_left_out_are_sealed_too() -> None:
    assert to_bytes(seal(Origin, {"name": "x", "kind": "heard"})) == b'{"name":"x","kind":"heard"}'


def test_half_a_surrogate_pair_does_not_stop_a_line() -> None:
    action = from_bytes(Action, b'{"frame":0,"agent":"a","name":"\\ud800","value":1.0}')
    assert json.loads(to_bytes({"action": action}))["action"]["name"] == "?"


def test_the_form_is_plain_json() -> None:
    encoded = encode(REQUEST)
    assert encoded["span"] == {"bar": 3, "beat": "0", "beats": "4"}
    assert encoded["beat_frames"] == [0, 22_500, 45_000, 67_500]
    assert encoded["timeline"] == {
        "samplerate": 48_000, "tempo": "128", "meter": "7/8", "frame": "1/3", "beat": "0", "bar": 0, "bar_beat": "0",
    }  # fmt: skip
    assert b"\n" not in to_bytes({"text": "two\nlines"})


def test_views_and_sound_stay_behind_and_are_handed_over() -> None:
    class Silence:
        def input(self, start: int, end: int) -> Any:
            return np.zeros((end - start, 1), np.float32)

        def stem(self, agent: str, start: int, end: int) -> Any:
            return np.zeros((end - start, 1), np.float32)

    heard: Heard = Silence()
    request = replace(REQUEST, heard=heard)
    assert "heard" not in encode(request)
    assert decode(SpanRequest, encode(request)).heard is None
    assert decode(SpanRequest, encode(request), heard=heard).heard is heard

    clip = Clip(np.ones((5, 2), np.float32), 1, Origin("silence"))
    assert field_names(Clip) == ("lead_in", "origin")
    back = decode(Clip, encode(clip), audio=clip.audio)
    assert back.audio is clip.audio
    assert (back.lead_in, back.origin) == (1, clip.origin)
    with pytest.raises(ValueError, match=r"Clip\.audio: does not travel; hand it over as decode\(\.\.\., audio="):
        decode(Clip, encode(clip))
    with pytest.raises(ValueError, match="'heard', which does not travel"):
        decode(SpanRequest, {**encode(request), "heard": []})


def test_numpy_numbers_travel_as_plain_ones() -> None:
    piece = Piece("a", np.int64(1), np.int32(2), 3, 4, gain=np.float32(0.5))  # type: ignore[arg-type]
    assert to_bytes(piece) == to_bytes(Piece("a", 1, 2, 3, 4, gain=0.5))
    assert to_bytes({"a": np.float64(0.25), "b": np.bool_(True), "c": np.int16(3)}) == b'{"a":0.25,"b":true,"c":3}'


def test_lines_of_a_take_are_flat_dicts_with_values_inside() -> None:
    line = {"type": "reply", "beat": Fraction(1, 2), "meter": Meter(3, 4), "origin": Origin("heard"), "x": (1, None)}
    assert encode(line) == {
        "type": "reply",
        "beat": "1/2",
        "meter": "3/4",
        "origin": {"kind": "heard", "name": "", "digest": "", "pieces": []},
        "x": [1, None],
    }


def test_defaults_may_be_missing_and_whole_fractions_may_be_numbers() -> None:
    assert decode(Origin, {"kind": "silence"}) == Origin("silence")
    assert decode(Span, {"bar": 1, "beat": 0, "beats": 4}) == Span(1, Fraction(0), Fraction(4))
    assert decode(Action, {"frame": 0, "agent": "a", "name": "b", "value": 1}).value == 1.0


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("start",), "7", r"SpanRequest\.start: found '7', expected an integer"),
        (("start",), 7.0, r"SpanRequest\.start: found 7\.0, expected an integer"),
        (("start",), True, r"SpanRequest\.start: found True, expected an integer"),
        (("agent",), None, r"SpanRequest\.agent: found None, expected text"),
        (("span", "beat"), "1/0", r"SpanRequest\.span\.beat: found '1/0', expected an exact fraction"),
        (("span", "beat"), "0.5", r"SpanRequest\.span\.beat: found '0\.5'"),
        (("span", "beat"), 0.5, r"SpanRequest\.span\.beat: found 0\.5"),
        (("span",), [], r"SpanRequest\.span: found \[\], expected an object with the fields of Span"),
        (("beat_frames",), 3, r"SpanRequest\.beat_frames: found 3, expected a list, each entry an integer"),
        (("beat_frames", 2), None, r"SpanRequest\.beat_frames\[2\]: found None"),
        (("timeline", "meter"), "4/5", r"SpanRequest\.timeline\.meter: meter 4/5: the count is"),
        (("plans", 0, "origin", "pieces", 0, "uint"), 7, r"pieces\[0\]: found unknown field 'uint'.*mean 'unit'\?"),
        (("plans", 0, "origin", "pieces", 0, "stretched"), 0, r"pieces\[0\]\.stretched: found 0, expected true"),
        (("actions", 0, "value"), "1", r"SpanRequest\.actions\[0\]\.value: found '1', expected a finite number"),
        (("actions", 0, "value"), float("inf"), r"value: found inf, expected a finite number"),
        (("actions", 0, "value"), 10**400, r"value: found 1000.*, expected a finite number"),
    ],
)
def test_an_error_names_the_field_what_was_found_and_what_is_expected(
    path: tuple[str | int, ...], value: object, sentence: str
) -> None:
    data: Any = json.loads(to_bytes(REQUEST))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=sentence):
        decode(SpanRequest, data)


def test_a_missing_field_is_named() -> None:
    data: dict[str, Any] = dict(encode(REQUEST))
    del data["timeline"]["tempo"]
    with pytest.raises(ValueError, match=r"SpanRequest\.timeline\.tempo: missing, expected an exact fraction"):
        decode(SpanRequest, data)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nul", b'{"bar":' + b"9" * 5000 + b"}"])
def test_bytes_that_are_not_json_are_one_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="Span: not JSON"):
        from_bytes(Span, data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | FLOATS | TEXT | INTEGERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bar", "beat", "beats"]), inner),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_nothing_but_a_value_or_a_value_error_comes_out(data: bytes) -> None:
    try:
        span = from_bytes(Span, data)
    except ValueError:
        return
    assert isinstance(span.bar, int)
    assert isinstance(span.beats, Fraction)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (Piece("a", 1.5, 2, 3, 4), r"Piece\.source_frame: found 1\.5, expected an integer"),  # type: ignore[arg-type]
        (Piece("a", 1, 2, 3, 4, gain=float("nan")), r"Piece\.gain: found nan, expected a finite number"),
        (Span(1, 0.5, Fraction(1)), r"Span\.beat: found 0\.5, expected an exact fraction"),  # type: ignore[arg-type]
        ({"a": [1, {"b": float("nan")}]}, r"a\[1\]\.b: found nan"),
        ({"a": {1: 2}}, r"a: found 1, expected text as a key"),
        ({"a": object()}, r"a: found <object .*, expected something JSON can carry"),
        (Origin("x", pieces=(Piece("a", 1, 2, 3, 4), "b")), r"Origin\.pieces\[1\]: found 'b', expected a Piece"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_travel_is_named(value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        to_bytes(value)


def test_what_leads_back_to_its_own_class_stays_behind() -> None:
    assert encode(_Node(1, (_Node(2),))) == {"value": 1}
    assert from_bytes(_Node, to_bytes(_Node(1, (_Node(2),)))) == _Node(1)
    with pytest.raises(ValueError, match="'inner', which does not travel"):
        decode(_Node, {"value": 1, "inner": []})


def test_a_class_whose_fields_cannot_travel_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot travel as JSON"):
        decode(_Odd, {})
    with pytest.raises(TypeError, match="no dataclass"):
        decode(int, {})


@dataclass(frozen=True)
class _Node:
    value: int
    inner: tuple[_Node, ...] = ()


@dataclass(frozen=True)
class _Odd:
    either: int | str
