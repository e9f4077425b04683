"""A take plays again bit for bit, whatever went wrong while it was made; and one that makes no sense says so."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import RATE, NoiseAgent, Rig

from realtime.clock import Meter, TempoChange, TempoMap
from realtime.engine import Command
from realtime.messages import encode
from realtime.mixer import Monitor
from realtime.protocols import Clip, SpanRequest
from realtime.replay import Script
from realtime.voice import NEVER

REQUEST = {"type": "request", "agent": "a", "bar": 3, "beat": "1/2", "attempt": 1, "posted": 100, "context_end": 90}
REPLY = {
    "type": "reply", "agent": "a", "bar": 3, "beat": "1/2", "attempt": 1, "arrived": 120, "fault": "",
    "origin": {"kind": "noise", "name": "1"},
}  # fmt: skip
COMMAND = {"type": "command", "frame": 7, "command": encode(Command("gain", "a", value=-3.0))}


def lacking(whole: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the line without each of its fields, and what is said then."""
    fields = [key for key in whole if key != "type"]
    return [
        ({key: value for key, value in whole.items() if key != gone}, f"'{whole['type']}' line without '{gone}'")
        for gone in fields
    ]


def test_a_script_is_gathered_from_the_lines_it_knows() -> None:
    script = Script.read([{"type": "take", "version": 1}, REQUEST, REPLY, COMMAND, {"type": "dance"}])
    assert script.requests == {("a", 3, "1/2", 1): REQUEST}
    assert script.replies == {("a", 3, "1/2", 1): REPLY}
    assert script.commands == ((7, Command("gain", "a", value=-3.0)),)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        *lacking(REQUEST),
        *lacking(REPLY),
        *lacking(COMMAND),
        ({"agent": "a"}, "without 'type'"),
        (REQUEST | {"bar": "third"}, "'request' line .*: bar is 'third'"),
        (REQUEST | {"posted": None}, "'request' line .*: posted is None"),
        (REQUEST | {"context_end": 1.5}, "'request' line .*: context_end is 1.5"),
        (REPLY | {"arrived": [1]}, "'reply' line .*: arrived is "),
        (REPLY | {"origin": {"kind": 7}}, "'reply' line .*: Origin.kind: found 7"),
        (REPLY | {"origin": {"kind": "x", "piece": []}}, "'reply' line .*'piece'"),
        (REPLY | {"origin": "noise"}, "'reply' line .*: found 'noise'"),
        (COMMAND | {"command": {"do": "gain", "loud": 1}}, "'command' line .*'loud'"),
        (COMMAND | {"frame": "x"}, "'command' line .*: frame is 'x'"),
    ],
)  # fmt: skip
def test_a_line_that_makes_no_sense_is_told_in_words(line: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as problem:
        Script.read([REQUEST, line])
    assert "\n" not in str(problem.value)


class Moody(NoiseAgent):
    """Fails in some spans, rests in others, and answers the two questions of a span differently."""

    def __init__(self, moods: list[str]) -> None:
        super().__init__()
        self.moods = moods

    def play(self, request: SpanRequest) -> Clip | None:
        mood = self.moods[(2 * request.span.bar + int(request.span.beat) + request.attempt) % len(self.moods)]
        if mood == "fails":
            raise RuntimeError("out of tune")
        if mood == "rests":
            return None
        return super().play(replace(request, seed=request.seed + request.attempt))


tempo_changes = st.builds(
    TempoChange,
    bar=st.integers(0, 5),
    beat=st.sampled_from([Fraction(0), Fraction(0), Fraction(3, 2), Fraction(9, 4)]),
    tempo=st.one_of(st.none(), st.integers(80, 300).map(Fraction)),
    meter=st.sampled_from([None, None, Meter(3, 4), Meter(7, 8)]),
    ramp_beats=st.sampled_from([0, 0, 4]),
)
switch = st.sampled_from([0.0, 1.0])
commands = st.one_of(
    st.builds(lambda change: Command("tempo", change=change), tempo_changes),
    st.builds(lambda stem, db: Command("gain", stem, value=db), st.sampled_from(["a", "b", "c"]), st.floats(-40, 6)),
    st.builds(lambda do, on: Command(do, "b", value=on), st.sampled_from(["mute", "solo"]), switch),
    st.builds(lambda name: Command("action", "a", name=name), st.sampled_from(["density", "jump"])),
    st.just(Command("dance")),
)


@given(
    bpm=st.integers(90, 250),
    grid=st.sampled_from([Fraction(0), Fraction(0), Fraction(2)]),
    delays=st.lists(
        st.sampled_from([0, 0, 1, 3840, 4319, 4320, 4321, 30_000, 90_000, NEVER]), min_size=5, max_size=5
    ),
    moods=st.lists(st.sampled_from(["plays", "plays", "rests", "fails"]), min_size=3, max_size=3),
    script=st.lists(st.tuples(st.integers(0, 3 * RATE), commands), max_size=6),
    blocks=st.tuples(st.sampled_from([64, 300, 2048]), st.sampled_from([100, 1024])),
)
@settings(max_examples=12, deadline=None)
def test_whatever_went_wrong_goes_wrong_again(
    bpm: int,
    grid: Fraction,
    delays: list[int],
    moods: list[str],
    script: list[tuple[int, Command]],
    blocks: tuple[int, int],
) -> None:
    frames, sound = 4 * RATE, np.random.default_rng(7).normal(0, 0.2, (4 * RATE, 1)).astype(np.float32)

    def delay(request: SpanRequest) -> int:
        return delays[(request.span.bar * 3 + int(request.span.beat) + request.attempt) % len(delays)]

    def rig(blocksize: int, **options: Any) -> Rig:
        return Rig(
            {"a": Moody(moods), "b": NoiseAgent()}, TempoMap.steady(RATE, bpm), grid_beats=grid,
            blocksize=blocksize, monitor=Monitor(gain_db=-6.0), **options,
        )  # fmt: skip

    played = rig(blocks[0], delay=delay, script=sorted(script, key=lambda entry: entry[0]))
    mix = played.run(frames, sound)
    lines = json.loads(json.dumps(played.log))  # as a take on disk has them
    again = rig(blocks[1], replay=lines)
    assert np.array_equal(again.run(frames, sound), mix)
    for name in ("a", "b"):
        assert np.array_equal(again.stem(name), played.stem(name))
    for kind in ("span", "join", "retime", "tempo"):
        assert [told(line) for line in again.lines(kind)] == [told(line) for line in played.lines(kind)]


def told(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the ledger without what was measured, or only shows in words."""
    return {key: value for key, value in line.items() if key not in ("margin_frames", "cause", "hops")}


def test_the_stop_is_in_the_take() -> None:
    played = Rig({"a": NoiseAgent()}, script=[(RATE + 77, Command("stop"))])
    mix = played.run(3 * RATE)
    again = Rig({"a": NoiseAgent()}, blocksize=700, replay=played.log)
    assert np.array_equal(again.run(3 * RATE), mix)
    assert again.engine.stopped


def test_a_request_that_was_never_made_is_not_made_again() -> None:
    played = Rig({"a": NoiseAgent()})
    played.run(6 * RATE)
    kept = [line for line in played.log if (line["type"], line.get("bar")) != ("request", 1)]
    agent = NoiseAgent()
    again = Rig({"a": agent}, replay=kept)
    again.run(6 * RATE)
    assert [line["rung"] for line in again.lines("span")] == [1, 4, 1, 1]
    assert agent.requests == [], "nothing is decided anew"
