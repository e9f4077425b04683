"""Who is asked when, and whose memory is whose: spans, commit points, plans, clip slots, tempo changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rigs import RATE, ClickAgent, NoiseAgent, Rig

from realtime.buffers import join_frames, lane
from realtime.clock import Meter, TempoChange, TempoMap
from realtime.engine import Command, Engine, EngineConfig, Memory, PartConfig
from realtime.mixer import Strip
from realtime.protocols import Action, Block, Chord, Clip, Origin, Plan, Span, SpanRequest, StreamSpec
from realtime.runner import AgentRunner, InlinePort, RingHeard
from realtime.scheduler import (
    CONTINUATION,
    FINAL,
    LEDGER,
    SPECULATIVE,
    LiveTiming,
    Part,
    Port,
    Reply,
    Turn,
    chart_over,
    next_span,
    span_seed,
)
from realtime.seat import SLOTS, AgentConfig
from realtime.voice import NEVER, Material, Voice

F = Fraction


# Spans, seeds, charts


@pytest.mark.parametrize(
    ("meter", "grid", "offsets"),
    [
        ("4/4", F(0), [(0, F(4))]),
        ("7/8", F(0), [(0, F(7, 2))]),
        ("4/4", F(1), [(0, F(1)), (1, F(1)), (2, F(1)), (3, F(1))]),
        ("7/8", F(1), [(0, F(1)), (1, F(1)), (2, F(1)), (3, F(1, 2))]),
        ("3/4", F(2), [(0, F(2)), (2, F(1))]),
        ("4/4", F(3, 2), [(0, F(3, 2)), (F(3, 2), F(3, 2)), (3, F(1))]),
        ("2/4", F(1, 3), [(F(n, 3), F(1, 3)) for n in range(6)]),
        ("3/4", F(8), [(0, F(3))]),
    ],
)
def test_spans_tile_every_bar_from_its_downbeat(
    meter: str, grid: Fraction, offsets: list[tuple[Any, Fraction]]
) -> None:
    tempo_map, span, found = TempoMap.steady(RATE, 120, Meter.parse(meter)), None, []
    for _ in range(3 * len(offsets)):
        span = next_span(span, grid, tempo_map, -1)
        found.append(span)
    assert found == [Span(bar, F(beat), beats) for bar in (-1, 0, 1) for beat, beats in offsets]


@given(
    meters=st.lists(st.sampled_from(["4/4", "3/4", "7/8", "5/4", "9/32"]), min_size=1, max_size=4),
    grid=st.sampled_from([F(0), F(1), F(1, 2), F(2, 3), F(5, 4), F(3)]),
)
@settings(deadline=None)
def test_spans_tile_the_session_whatever_the_meters(meters: list[str], grid: Fraction) -> None:
    tempo_map = TempoMap.steady(RATE, 97, Meter.parse(meters[0]))
    for index, meter in enumerate(meters[1:]):
        tempo_map = tempo_map.changed(tempo_map.downbeat(2 * index + 2), meter=Meter.parse(meter))
    span, beat = None, F(0)
    for _ in range(60):
        span = next_span(span, grid, tempo_map)
        assert span.beats > 0
        assert tempo_map.downbeat(span.bar) + span.beat == beat
        assert span.beat + span.beats <= tempo_map.bar_beats(span.bar)
        beat += span.beats


def test_a_turn_takes_its_frames_from_exact_beats() -> None:
    tempo_map = TempoMap.steady(44100, "137.3", Meter(7, 8))
    turn = Turn(Span(3, F(1), F(5, 2)))
    turn.settle(tempo_map)
    first = F(3 * 7, 2) + 1
    assert turn.start == tempo_map.frame_at(first)
    assert turn.start + turn.frames == tempo_map.frame_at(first + F(5, 2))
    assert [turn.start + beat for beat in turn.beat_frames] == [tempo_map.frame_at(first + n) for n in range(3)]


def test_seeds_are_the_same_for_ever_and_differ_by_session_agent_and_span() -> None:
    span = Span(-1, F(1, 2), F(1))
    assert span_seed(1, "keys", Span(0, F(0), F(4))) == 970568557729426443
    assert span_seed(1, "keys", span) == 5786929014113842312
    assert span_seed(20261120, "bäss", Span(1000, F(7, 3), F(1))) == 4766897429626218068
    assert span_seed(1, "keys", span) == span_seed(1, "keys", Span(-1, F(1, 2), F(3))), "the length does not count"
    others = [
        (2, "keys", span),
        (1, "bass", span),
        (1, "keys", Span(4, F(1, 2), F(1))),
        (1, "keys", Span(-1, F(0), F(1))),
    ]
    assert len({span_seed(1, "keys", span), *(span_seed(*other) for other in others)}) == 5
    assert 0 <= min(span_seed(*other) for other in others) < 1 << 63


CHART = (
    (Chord("C", F(0), F(2)), Chord("Am", F(2), F(2))),
    (Chord("F", F(0), F(4)),),
)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(0, F(0), F(4)), CHART[0]),
        (Span(1, F(0), F(4)), CHART[1]),
        (Span(4, F(1), F(2)), (Chord("C", F(0), F(1)), Chord("Am", F(1), F(1)))),
        (Span(0, F(3), F(1)), (Chord("Am", F(0), F(1)),)),
        (Span(-1, F(1, 2), F(1)), (Chord("F", F(0), F(1)),)),
        (Span(0, F(4), F(1)), ()),
    ],
)
def test_the_chart_repeats_and_is_cut_to_the_span(span: Span, expected: tuple[Chord, ...]) -> None:
    assert chart_over(CHART, span) == expected
    assert chart_over((), span) == ()


# Commit points


class Silent:
    """A port that takes everything and answers nothing."""

    def __init__(self, budget_frames: int = 0) -> None:
        self._budget_frames = budget_frames

    def armed(self) -> bool:
        return True

    def continues(self) -> bool:
        return False

    def generation(self) -> int:
        return 0

    def renew(self) -> int:
        return 0

    def budget_frames(self) -> int:
        return self._budget_frames

    def post(self, request: SpanRequest) -> str:
        return ""

    def confirm(self, span: Span, origin: Origin | None) -> None:
        pass

    def take(self, now: int) -> Reply | None:
        return None

    def ready(self) -> bool:
        return False

    def examine(self, samples: int) -> int:
        return samples

    def next_due(self) -> int:
        return NEVER

    def release(self, reply: Reply) -> None:
        pass


STEADY = TempoMap.steady(RATE, 120)  # a bar is 96,000 frames, a join 480


def part(budget_frames: int = 0, name: str = "a") -> Part:
    return Part(name, Silent(budget_frames), Voice(1, 480))


def turn(bar: int) -> Turn:
    made = Turn(Span(bar, F(0), F(4)))
    made.settle(STEADY)
    return made


@pytest.mark.parametrize(
    ("budget", "speculative", "final"),
    [
        (4800, 96_000, 192_000 - 480 - 4800),
        (95_519, 96_000, 96_001),
        (95_520, NEVER, 96_000),  # no time left for two: only the final one
        (500_000, NEVER, 96_000),  # longer than a span: at once, and it will be late
        (0, 96_000, 192_000 - 481),  # no time at all is asked for: before the deadline still
    ],
)
def test_requests_go_out_as_late_as_the_budget_allows(budget: int, speculative: int, final: int) -> None:
    seat, timing = part(budget), LiveTiming(256, lambda: 0)
    seat.current = turn(1)
    assert timing.post_frame(seat, turn(2), SPECULATIVE) == speculative
    assert timing.post_frame(seat, turn(2), FINAL) == final


def test_the_first_span_of_all_is_asked_for_at_once() -> None:
    seat, timing = part(4800), LiveTiming(256, lambda: 0)
    assert timing.post_frame(seat, turn(0), FINAL) <= 0
    assert timing.post_frame(seat, turn(0), SPECULATIVE) == NEVER


def test_what_may_be_known_is_what_was_heard_and_never_more_than_lead_allows() -> None:
    seat = part()
    assert LiveTiming(256, lambda: 9000).context_end(seat, turn(1), FINAL, 10_000) == 9000
    assert LiveTiming(2560, lambda: 9000).context_end(seat, turn(1), FINAL, 10_000) == 7440


def test_the_budgets_of_followers_add() -> None:
    leader, middle, last, other = part(100), part(20), part(3), part(50)
    leader.followers, middle.followers = (middle, other), (last,)
    assert leader.notice_frames() == 150
    assert middle.notice_frames() == 23
    middle.followers = (last, part(90))
    assert leader.notice_frames() == 210


# Small bands with any port


class Stage:
    """An engine with ports of any kind, on private memory, without input."""

    def __init__(
        self,
        make_ports: Callable[[list[AgentConfig], RingHeard, StreamSpec], Sequence[Port]],
        names: Sequence[str] = ("a",),
        *,
        tempo_map: TempoMap,
        grid_beats: Fraction = Fraction(),
        follows: dict[str, tuple[str, ...]] | None = None,
        script: Sequence[tuple[int, Command]] = (),
        blocksize: int = 1000,
    ) -> None:
        rate = tempo_map.timelines[0].samplerate
        self.spec = StreamSpec(rate, 1, 2, blocksize, 256)
        agents = [AgentConfig(name, "fake") for name in names]
        seats = tuple(
            PartConfig(agent, Strip(agent.name, 1), grid_beats, (follows or {}).get(agent.name, ()))
            for agent in agents
        )
        config = EngineConfig(self.spec, tempo_map, 1, seats)
        self.memory = Memory.private(config)
        self.ports = make_ports(agents, RingHeard(self.memory.inputs, self.memory.stems), self.spec)
        self.log: list[dict[str, Any]] = []
        self.engine = Engine(config, self.ports, self.memory, log=self.log.append, script=script)
        for port in self.ports:
            if hasattr(port, "now"):
                port.now = lambda: self.engine.mixed

    def run(self, frames: int) -> None:
        while self.engine.mixed < frames:
            count = min(self.spec.blocksize, frames - self.engine.mixed)
            self.engine.hear(np.zeros((count, 1), np.float32))
            self.engine.mix(count)

    def stem(self, name: str) -> Block:
        return self.memory.stems[name].read(0, self.engine.mixed)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["type"] == kind]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("delay", [0, 2000, 4800])
def test_one_that_follows_is_told_the_plan_it_follows_in_whatever_order_they_sit(
    order: tuple[str, str], delay: int
) -> None:
    class Deciding(NoiseAgent):
        def play(self, request: SpanRequest) -> Clip | None:
            self.requests.append(request)
            return self.realise(request, Origin("noise", name=str(request.seed + request.attempt)))

    agents = {"a": Deciding(), "b": Deciding()}
    budgets = {"a": 4800, "b": 1000}

    def ports(configs: list[AgentConfig], heard: RingHeard, spec: StreamSpec) -> list[InlinePort]:
        return [
            InlinePort(
                AgentRunner(agents[config.name], config, spec, heard),
                budgets[config.name],
                lambda request: delay if request.agent == "a" else 0,
            )
            for config in configs
        ]

    stage = Stage(ports, order, tempo_map=STEADY, follows={"b": ("a",)})
    stage.run(4 * RATE)
    decided = {
        (line["bar"], line["attempt"]): line["origin"]["name"]
        for line in stage.lines("reply")
        if line["agent"] == "a"
    }
    finals = [request for request in agents["b"].requests if request.final and request.span.bar > 0]
    assert [request.span.bar for request in finals] == [1, 2]
    for request in finals:
        assert request.plans == (Plan("a", Origin("noise", decided[request.span.bar, FINAL])),)
    posted = {(line["agent"], line["bar"]): line["posted"] for line in stage.lines("request") if line["attempt"] == 1}
    stagger = {name: 480 * place for place, name in enumerate(order)}
    assert posted["b", 1] == 96_000 - 480 - 1000 - stagger["b"]
    assert posted["a", 1] == min(posted["b", 1], 96_000 - 480 - stagger["a"]) - 4800


def test_without_an_answer_yet_there_is_no_plan_and_the_follower_is_asked_all_the_same() -> None:
    agents = {"a": NoiseAgent(), "b": NoiseAgent()}

    def ports(configs: list[AgentConfig], heard: RingHeard, spec: StreamSpec) -> list[InlinePort]:
        never = lambda request: NEVER if request.agent == "a" else 0  # noqa: E731
        return [InlinePort(AgentRunner(agents[c.name], c, spec, heard), 4800, never) for c in configs]

    stage = Stage(ports, ("a", "b"), tempo_map=STEADY, follows={"b": ("a",)})
    stage.run(4 * RATE)
    assert [request.plans for request in agents["b"].requests if request.final] == [(), (), ()]
    assert {line["rung"] for line in stage.lines("span") if line["agent"] == "b"} == {1}


def test_an_agent_that_takes_no_time_is_asked_in_time() -> None:
    rig = Rig({"a": NoiseAgent()}, budget_frames=0)
    rig.run(4 * RATE)
    assert [line["rung"] for line in rig.lines("span")] == [1, 1, 1]


def test_a_last_span_shorter_than_a_join_does_not_silence_the_downbeat_after_it() -> None:
    rig = Rig({"a": NoiseAgent()}, grid_beats=F(399, 100))  # and 240 frames at the end of each bar
    rig.run(6 * RATE)
    assert {line["rung"] for line in rig.lines("span") if line["beat"] == "0"} == {1}


def test_a_rest_is_the_last_word_and_no_late_clip_breaks_it() -> None:
    class Resting(NoiseAgent):
        def play(self, request: SpanRequest) -> Clip | None:
            clip = super().play(request)
            return None if request.final and request.span.bar == 1 else clip

    rig = Rig({"a": Resting()}, delay=lambda request: 100_000 if not request.final and request.span.bar == 1 else 0)
    rig.run(4 * RATE - 480)
    assert [line["rung"] for line in rig.lines("span")] == [1, 0]
    assert rig.lines("join") == []
    assert not rig.stem("a")[96_000:].any()


def test_an_answer_that_comes_in_the_frame_of_the_decision_but_after_it_is_late_and_says_so() -> None:
    """Live, a reply may come between two looks at one frame; a replay looks once, and must tell them apart."""

    class Tardy(Silent):
        def __init__(self) -> None:
            super().__init__(4800)
            self.posted: list[SpanRequest] = []
            self.looks: list[int] = []

        def post(self, request: SpanRequest) -> str:
            self.posted.append(request)
            return ""

        def take(self, now: int) -> Reply | None:
            self.looks.append(now)
            request = next((r for r in self.posted if r.final and r.span.bar == 1), None)
            if request is None or now != 96_000 - 480 or seat.coming is None or seat.coming.span.bar != 2:
                return None
            self.posted.remove(request)
            clip = Clip(np.full((request.frames, 1), 0.5, np.float32), 0, Origin("test"))
            return Reply(request.span, FINAL, clip)

    port = Tardy()
    stage = Stage(lambda *_: [port], tempo_map=STEADY)
    seat = stage.engine.parts[0]
    stage.run(3 * RATE)
    [reply] = stage.lines("reply")
    assert reply["arrived"] > 96_000 - 480
    [join] = stage.lines("join")
    assert join["frame"] == 96_000 + 24_000, "it is joined at the next beat, not lost"


# Clip slots: the hunt for a race


class SlotPort:
    """Lends clip memory as a worker's port does, and checks whose it is.

    What is released is spoilt at once, so that sound read too late shows; with ``copied`` the clips are memory of
    their own, which is what the sound must be equal to.
    """

    def __init__(
        self, seed: int, frames: int, *, copied: bool = False, polled: bool = False, slots: int = SLOTS
    ) -> None:
        self.memory = np.full((slots, frames, 1), np.nan, np.float32)
        self.free = list(range(slots))
        self.lent: set[int] = set()
        self.most_held = 0
        self.refused = 0
        self.now: Callable[[], int] = lambda: 0
        self._due: list[tuple[int, int, Reply]] = []
        self._seed, self._copied, self._polled, self._posts = seed, copied, polled, 0

    def armed(self) -> bool:
        return True

    def continues(self) -> bool:
        return False

    def generation(self) -> int:
        return 0

    def renew(self) -> int:
        return 0

    def budget_frames(self) -> int:
        return 300

    def post(self, request: SpanRequest) -> str:
        if not self.free:
            self.refused += 1
            return "no free clip slot"
        chance = random.Random(self._seed * 1_000_003 + request.seed * 2 + request.attempt)
        slot = self.free.pop(0)
        self.lent.add(slot)
        self._posts += 1
        due = self.now() + self._delay(request, chance)
        self._due.append((due, self._posts, self._reply(request, slot, chance)))
        self._due.sort(key=lambda entry: entry[:2])
        return ""

    def _delay(self, request: SpanRequest, chance: random.Random) -> int:
        """Mostly in time; else around the places where something is decided, a span late, or later."""
        join, now = join_frames(8000), self.now()
        edges = [
            request.start,
            *(request.start + beat for beat in request.beat_frames),
            request.start + request.frames,
        ]
        near = chance.choice(edges) - chance.choice([0, join]) + chance.randint(-1, 1) - now
        late = request.frames + chance.randint(0, 2 * request.frames)
        return max(0, chance.choice([0, 0, 0, 1, chance.randint(0, 600), near, near, near, late]))

    def _reply(self, request: SpanRequest, slot: int, chance: random.Random) -> Reply:
        kind = chance.choice(["clip"] * 6 + ["rest", "fault"])
        if kind != "clip":
            return Reply(request.span, request.attempt, None, "fault" if kind == "fault" else "", 0.0, slot)
        lead_in = chance.choice([0, join_frames(8000)])
        sound = np.random.default_rng(chance.getrandbits(32)).uniform(-1, 1, (lead_in + request.frames, 1))
        audio = self.memory[slot, : len(sound)]
        audio[:] = sound
        clip = Clip(audio.copy() if self._copied else audio, lead_in, Origin("test", str(slot)))
        return Reply(request.span, request.attempt, clip, "", 0.0, slot)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        in_flight = {reply.slot for _, _, reply in self._due}
        self.most_held = max(self.most_held, len(self.lent - in_flight))

    def take(self, now: int) -> Reply | None:
        return self._due.pop(0)[2] if self._due and self._due[0][0] <= now else None

    def ready(self) -> bool:
        return self._polled and bool(self._due) and self._due[0][0] <= self.now()

    def examine(self, samples: int) -> int:
        return samples

    def next_due(self) -> int:
        return self._due[0][0] if self._due and not self._polled else NEVER

    def release(self, reply: Reply) -> None:
        assert reply.slot is not None
        assert reply.slot in self.lent, f"slot {reply.slot} was released twice"
        self.lent.remove(reply.slot)
        self.memory[reply.slot] = np.nan
        self.free.append(reply.slot)


def changes(chance: random.Random, bars: int, last_frame: int, count: int) -> list[tuple[int, Command]]:
    """Make tempo and meter changes, announced at any time for any place, possible or not."""
    script = []
    for _ in range(count):
        change = TempoChange(
            chance.randrange(bars),
            beat=chance.choice([F(0), F(0), F(1), F(3, 2), F(1, 3)]),
            tempo=chance.choice([None, F(chance.randint(200, 400))]),
            meter=chance.choice([None, None, Meter(2, 4), Meter(3, 4), Meter(7, 8), Meter(1, 4)]),
            ramp_beats=chance.choice([0, 0, 0, 3]),
        )
        script.append((chance.randrange(last_frame), Command("tempo", change=change)))
    return sorted(script, key=lambda entry: entry[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("polled", [False, True])
def test_no_clip_slot_is_lost_or_given_back_twice_or_too_early(seed: int, polled: bool) -> None:
    """Hundreds of spans each, answered early, late, around every edge, wrongly or with a rest, tempo changing."""
    frames, grid = 470_000, [F(0), F(2), F(1)][seed % 3]
    script = changes(random.Random(seed), 60, frames, 30)
    sounds = []
    for copied in (True, False):
        port = SlotPort(seed, 20_000, copied=copied, polled=polled, slots=3 * SLOTS)  # so that a leak shows
        make = lambda *_, port=port: [port]  # noqa: E731
        stage = Stage(make, tempo_map=TempoMap.steady(8000, 300, Meter(2, 4)), grid_beats=grid, script=script)
        stage.run(frames)
        assert stage.engine.parts[0].rungs.keys() >= {0, 1, 2, 4}
        assert 2 < port.most_held <= SLOTS
        sounds.append(stage.stem("a"))
    assert np.isfinite(sounds[1]).all(), "a clip was heard after its slot was given back"
    assert np.array_equal(sounds[0], sounds[1])
    assert len(stage.lines("span")) > 100
    assert stage.lines("join") or grid == 1, "late clips were meant to be joined"


def test_answers_that_never_come_use_up_the_slots_and_the_music_goes_on_down_the_ladder() -> None:
    class Hanging(SlotPort):
        def _delay(self, request: SpanRequest, chance: random.Random) -> int:
            return NEVER if request.span.bar >= 3 else 0

        def _reply(self, request: SpanRequest, slot: int, chance: random.Random) -> Reply:
            chance.choice = lambda options: options[0]  # type: ignore[method-assign,assignment]
            return super()._reply(request, slot, chance)

    port = Hanging(1, 20_000)
    stage = Stage(lambda *_: [port], tempo_map=TempoMap.steady(8000, 240, Meter(4, 4)))
    stage.run(20 * 8000)
    spans = stage.lines("span")
    assert [line["rung"] for line in spans] == [1, 1, 1] + [4] * (len(spans) - 3)
    assert spans[4]["cause"] == "late"
    assert spans[-1]["cause"] == "no free clip slot"
    assert np.abs(stage.stem("a")[-8000:]).max() > 0.1


# Tempo changes at any time


def spans_told(rig: Rig, agent: str) -> list[tuple[int, int]]:
    """Return (start, frames) of the ledger's spans, each as it was told last."""
    told: dict[tuple[int, str], tuple[int, int]] = {}
    for line in rig.log:
        if line["type"] in ("span", "retime") and line["agent"] == agent:
            told[line["bar"], line["beat"]] = (line["start"], line["frames"])
    return list(told.values())


presses = st.lists(
    st.builds(
        lambda press, bar, beat, tempo, meter, ramp: (
            press,
            Command("tempo", change=TempoChange(bar, beat, tempo, Meter.parse(meter) if meter else None, ramp)),
        ),
        st.one_of(
            st.integers(0, 150_000),
            st.builds(lambda beat, d: max(0, 24_000 * beat - d), st.integers(0, 6), st.integers(-2, 1500)),
        ),
        st.integers(0, 6),
        st.sampled_from([F(0), F(0), F(0), F(1), F(3, 2), F(1, 3), F(-1), F(9)]),
        st.one_of(st.none(), st.integers(60, 300).map(F)),
        st.sampled_from(["", "", "3/4", "7/8", "5/4", "2/4"]),
        st.sampled_from([0, 0, 3, -1]),
    ),
    max_size=5,
).map(lambda script: sorted(script, key=lambda entry: entry[0]))
FUZZ = settings(max_examples=12, deadline=None)


@given(
    script=presses,
    delays=st.lists(st.sampled_from([0, 0, 3000, 4321, 30_000, 60_000, 200_000, NEVER]), min_size=7, max_size=7),
    grid=st.sampled_from([F(0), F(0), F(1), F(3, 4)]),
)
@FUZZ
def test_whatever_is_announced_while_it_plays_the_stems_are_the_same_bits_for_any_block(
    script: list[tuple[int, Command]], delays: list[int], grid: Fraction
) -> None:
    def delay(request: SpanRequest) -> int:
        return delays[(request.span.bar * 3 + int(request.span.beat * 4) + request.attempt) % 7]

    stems = []
    for blocksize in (128, 1000):
        rig = Rig({"a": NoiseAgent()}, script=script, delay=delay, grid_beats=grid, blocksize=blocksize)
        rig.run(4 * RATE)
        told = spans_told(rig, "a")
        assert told[0][0] == 0
        assert [start for start, _ in told[1:]] == [start + frames for start, frames in told[:-1]]
        assert rig.engine.mixed == 4 * RATE
        stems.append(rig.stem("a"))
    assert np.array_equal(stems[0], stems[1])


@given(script=presses, grid=st.sampled_from([F(0), F(1)]), budget=st.sampled_from([0, 1000, 20_000]))
@example([(119_700, Command("tempo", change=TempoChange(1, F(3, 2), F(60))))], F(0), 4800)
@FUZZ
def test_whatever_is_announced_in_time_every_click_stays_on_its_beat(
    script: list[tuple[int, Command]], grid: Fraction, budget: int
) -> None:
    rig = Rig({"a": ClickAgent()}, script=script, grid_beats=grid, budget_frames=budget, blocksize=700)
    rig.run(5 * RATE)
    assert [int(frame) for frame in np.flatnonzero(np.abs(rig.stem("a")[:, 0]) > 0.01)] == rig.beats(5 * RATE)


@pytest.mark.parametrize("blocksize", [7, 128, 8192])
def test_a_change_that_comes_too_late_is_too_late_for_every_block_size(blocksize: int) -> None:
    change = Command("tempo", change=TempoChange(1, tempo=F(60)))
    for press, late in ((28_800 - 256 - 960, 0), (28_800 - 256 - 959, 1)):
        rig = Rig({"a": ClickAgent()}, TempoMap.steady(RATE, 400), script=[(press, change)], blocksize=blocksize)
        rig.run(28_800)
        assert rig.engine.counters["late_changes"] == late


@pytest.mark.parametrize("tempo", [F(0), F(-120), F(1, 10**9), F(10**6)])
def test_a_tempo_that_is_none_is_dropped_and_counted(tempo: Fraction) -> None:
    rig = Rig({"a": ClickAgent()}, script=[(1000, Command("tempo", change=TempoChange(1, tempo=tempo)))])
    rig.run(3 * RATE)
    assert rig.engine.counters["dropped_commands"] == 1
    assert rig.engine.transport.map.bar_frame(1) == 96_000


class FlatAgent(ClickAgent):
    """Plays one level all the time: whatever is not level was done by a join."""

    def play(self, request: SpanRequest) -> Clip | None:
        return self.realise(request, Origin("flat"))

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        lead_in = join_frames(self.spec.samplerate)
        return Clip(np.full((lead_in + request.frames, 1), 0.5, np.float32), lead_in, origin)


def test_a_bar_played_again_that_is_a_frame_longer_has_no_hole_at_its_beats() -> None:
    """At most tempi, bars and beats differ by a frame from rounding: that is nothing to hear."""
    rig = Rig({"a": FlatAgent()}, TempoMap.steady(RATE, 140), delay=lambda r: 0 if r.span.bar == 0 else NEVER)
    rig.run(8 * RATE)
    assert len({line["frames"] for line in rig.lines("span")}) > 1
    assert np.allclose(rig.stem("a"), 0.5, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tempo", ["119.9", "119.5", "118", "110", "60", "120.5", "150"])
@pytest.mark.parametrize("press", [60_000, 100_000, 119_700, 130_000])
def test_no_change_of_tempo_makes_a_step_in_the_sound(tempo: str, press: int) -> None:
    def change(frame: int, beat: Fraction, new: str) -> tuple[int, Command]:
        return frame, Command("tempo", change=TempoChange(1, beat, F(new)))

    script = [change(press, F(3, 2), tempo), change(press + 20_000, F(5, 2), "90")]
    rig = Rig({"a": FlatAgent()}, script=script)
    rig.run(5 * RATE)
    steepest = 0.5 * np.pi / 2 / 480
    assert np.abs(np.diff(rig.stem("a")[:, 0])).max() <= steepest * 1.01


def test_a_change_inside_a_sounding_span_is_told_with_its_new_length() -> None:
    change = Command("tempo", change=TempoChange(1, F(2), F(60)))
    rig = Rig({"a": ClickAgent()}, script=[(100_000, change)])
    rig.run(4 * RATE)
    [line] = rig.lines("retime")
    assert (line["agent"], line["bar"], line["start"], line["frames"]) == ("a", 1, 96_000, 48_000 + 96_000)


# The ladder: what stands in


class Player:
    """A port whose agent's answers are steady tones, each question another pitch; the test says what goes wrong.

    ``wrong`` maps (bar, attempt) to what happens instead of an answer in time: ``"late"`` (by ``delay`` frames),
    ``"never"``, or a function that spoils the reply.
    """

    def __init__(self, wrong: dict[tuple[int, int], Any] | None = None, *, continues: bool = True) -> None:
        self.wrong, self._continues = wrong or {}, continues
        self.now: Callable[[], int] = lambda: 0
        self.requests: list[SpanRequest] = []
        self.confirmed: list[tuple[Span, Origin | None]] = []
        self.due: list[tuple[int, Reply]] = []
        self.number, self.renewed, self.up = 0, 0, True
        self.news = False

    def armed(self) -> bool:
        return self.up

    def continues(self) -> bool:
        return self._continues

    def generation(self) -> int:
        return self.number

    def renew(self) -> int:
        self.renewed += 1
        return self.number

    def budget_frames(self) -> int:
        return 2000

    def post(self, request: SpanRequest) -> str:
        self.requests.append(request)
        wrong = self.wrong.get((request.span.bar, request.attempt), "")
        if wrong == "never":
            return ""
        reply = Reply(request.span, request.attempt, self.clip(request))
        if callable(wrong):
            reply = wrong(reply)
        delay = wrong if isinstance(wrong, int) else 0
        self.due.append((self.now() + delay, reply))
        self.due.sort(key=lambda due: due[0])
        return ""

    @staticmethod
    def clip(request: SpanRequest) -> Clip:
        join = join_frames(8000)
        frames = np.arange(-join, request.frames) / 8000
        hz = 200 + 40 * request.span.bar + 10 * request.attempt
        sound = (0.3 * np.sin(2 * np.pi * hz * frames)).astype(np.float32)[:, None]
        return Clip(sound, join, Origin("test", f"{request.span.bar}/{request.attempt}"))

    def confirm(self, span: Span, origin: Origin | None) -> None:
        self.confirmed.append((span, origin))

    def take(self, now: int) -> Reply | None:
        return self.due.pop(0)[1] if self.due and self.due[0][0] <= now else None

    def ready(self) -> bool:
        return self.news

    def examine(self, samples: int) -> int:
        return samples

    def next_due(self) -> int:
        return self.due[0][0] if self.due else NEVER

    def release(self, reply: Reply) -> None:
        pass


BAR = 8000  # frames of a 2/4 bar at 120 bpm and 8 kHz


def playing(port: Player, bars: int, **options: Any) -> Stage:
    stage = Stage(lambda *_: [port], tempo_map=TempoMap.steady(8000, 120, Meter(2, 4)), **options)
    stage.run(bars * BAR)
    return stage


def told_rungs(stage: Stage) -> list[int]:
    return [line["rung"] for line in stage.lines("span")]


def pitch(stem: Block, bar: int) -> float:
    """Return the frequency of a bar's second half."""
    sound = stem[bar * BAR + BAR // 2 : (bar + 1) * BAR - 200, 0]
    return float(np.argmax(np.abs(np.fft.rfft(sound, 1 << 16))) * 8000 / (1 << 16))


def test_the_continuation_is_asked_for_a_span_ahead_from_what_will_sound() -> None:
    port = Player()
    playing(port, 5)
    asked = [(request.span.bar, request.attempt) for request in port.requests]
    ahead = [request for request in port.requests if request.attempt == CONTINUATION]
    assert [request.span.bar for request in ahead] == [1, 2, 3, 4, 5, 6]
    assert [request.after for request in ahead] == [Origin("test", f"{bar}/1") for bar in range(6)]
    assert all(asked.index((bar, CONTINUATION)) < asked.index((bar, SPECULATIVE)) for bar in range(2, 5))


def test_each_rung_is_taken_when_the_one_above_is_missing() -> None:
    never = {(2, FINAL), (3, FINAL), (3, SPECULATIVE), (4, FINAL), (4, SPECULATIVE), (4, CONTINUATION)}
    stage = playing(Player(dict.fromkeys(never, "never")), 6)
    assert told_rungs(stage)[:6] == [1, 1, 2, 3, 4, 1]
    heard = [round(pitch(stage.stem("a"), bar)) for bar in range(6)]
    assert heard == [210, 250, 280, 340, 340, 410], "bar 5 plays what was last good, the continuation"
    causes = [line["cause"] for line in stage.lines("span")]
    assert causes[:6] == ["", "", "late", "late", "late", ""]


def test_an_agent_that_cannot_carry_on_is_not_asked_to() -> None:
    port = Player({(2, FINAL): "never", (2, SPECULATIVE): "never"}, continues=False)
    assert told_rungs(playing(port, 4))[:4] == [1, 1, 4, 1]
    assert not [request for request in port.requests if request.attempt == CONTINUATION]


def test_what_stands_by_is_looked_at_when_it_is_to_sound_and_then_its_fault_is_told() -> None:
    """Two of three answers mostly never sound; of a worker's, which stand in shared memory, none is read in vain."""
    looked: list[tuple[int, int]] = []

    def seen(fault: str = "") -> Callable[[Reply], Reply]:
        def spoil(reply: Reply) -> Reply:
            def look() -> str:
                looked.append((reply.span.bar, reply.attempt))
                return fault

            return replace(reply, look=look)

        return spoil

    wrong: dict[tuple[int, int], Any] = {(bar, attempt): seen() for bar in range(6) for attempt in range(3)}
    wrong |= {(2, FINAL): "never", (3, FINAL): "never", (3, SPECULATIVE): seen("NaN or so")}
    stage = playing(Player(wrong), 5)
    assert told_rungs(stage)[:5] == [1, 1, 2, 3, 1]
    assert {(bar, attempt) for bar, attempt in looked if attempt != FINAL} == {
        (2, SPECULATIVE), (3, SPECULATIVE), (3, CONTINUATION),
    }  # fmt: skip
    assert len(looked) == len(set(looked)), "once each"
    told = [line["fault"] for line in stage.lines("reply") if (line["bar"], line["attempt"]) == (3, SPECULATIVE)]
    assert told == ["", "NaN or so"], "a replay believes the last word"
    row = dict(zip(LEDGER, stage.engine.parts[0].ledger(), strict=True))
    assert row["faults"] == 1
    assert row["good"] == len([line for line in stage.lines("reply") if line["attempt"] == FINAL]) + 1, (
        "what nobody has looked at says nothing for the agent"
    )


def test_an_agent_whose_sound_is_always_faulty_is_seen_although_nobody_looks_at_what_stands_by() -> None:
    def spoil(reply: Reply) -> Reply:
        return replace(reply, look=lambda: "the clip's checksum is wrong")

    wrong: dict[tuple[int, int], Any] = {(bar, attempt): spoil for bar in range(2, 9) for attempt in range(3)}
    port = Player(wrong)
    stage = playing(port, 5)
    assert told_rungs(stage)[2:5] == [4, 4, 4]
    assert stage.engine.parts[0].ledger()[LEDGER.index("faulty_in_a_row")] >= 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda clip: replace(clip, audio=clip.audio * np.float32(np.nan)), "NaN"),
        (lambda clip: replace(clip, audio=clip.audio[:-1]), "where float32"),
        (lambda clip: replace(clip, audio=np.repeat(clip.audio, 2, axis=1)), "where float32"),
        (lambda clip: replace(clip, audio=clip.audio.astype(np.float64)), "float64"),
        (lambda clip: replace(clip, lead_in=81), "lead-in"),
    ],
)
def test_the_engine_looks_at_what_it_is_given_whoever_made_it(spoil: Callable[[Clip], Clip], words: str) -> None:
    def spoilt(reply: Reply) -> Reply:
        assert reply.clip is not None
        return replace(reply, clip=spoil(reply.clip))

    stage = playing(Player({(2, FINAL): spoilt}), 4)
    assert told_rungs(stage)[:4] == [1, 1, 2, 1]
    assert words in stage.lines("span")[2]["cause"]
    assert stage.engine.parts[0].faults == 1
    assert np.isfinite(stage.stem("a")).all()


def test_an_answer_to_another_span_or_twice_the_same_is_nobodys() -> None:
    other = lambda reply: replace(reply, span=Span(40, F(0), F(2)))  # noqa: E731
    stage = playing(Player({(2, FINAL): other}), 4)
    assert told_rungs(stage)[:4] == [1, 1, 2, 1]
    [stray] = stage.lines("stray")
    assert (stray["bar"], stray["fault"]) == (40, "an answer that nobody asked for")
    port = Player()
    stage = Stage(lambda *_: [port], tempo_map=TempoMap.steady(8000, 120, Meter(2, 4)))
    stage.run(BAR)
    port.due.append((BAR, Reply(Span(0, F(0), F(2)), FINAL, port.clip(port.requests[0]))))
    stage.run(3 * BAR)
    assert [line["fault"] for line in stage.lines("stray")] == ["its span is over or was answered"]
    assert stage.engine.parts[0].faults == 0, "late twice is no crime"


def test_what_was_asked_of_a_process_that_died_is_asked_again_of_the_next() -> None:
    port = Player({(2, FINAL): "never"})
    stage = Stage(lambda *_: [port], tempo_map=TempoMap.steady(8000, 120, Meter(2, 4)), blocksize=100)
    stage.engine.parts[0].press(Action(0, "a", "jump"))
    stage.run(2 * BAR - 1000)  # between the commit point of bar 2 and its deadline
    assert port.requests[-1].span.bar == 2
    port.wrong, port.number, port.up, port.news = {}, 1, False, True
    stage.run(2 * BAR - 800)
    assert port.renewed == 1
    port.up = True
    stage.run(2 * BAR - 500)
    port.news = False
    stage.run(4 * BAR)
    assert told_rungs(stage)[:3] == [1, 1, 1], "the second asking was answered in time"
    assert [line["requests"] for line in stage.lines("worker")] == [1]
    assert [(r.span.bar, r.attempt) for r in port.requests].count((2, FINAL)) == 2
    assert stage.engine.parts[0].ledger()[LEDGER.index("generation")] == 1


def test_a_process_that_dies_and_is_not_back_in_time_costs_rungs_and_says_why() -> None:
    port = Player(dict.fromkeys([(2, FINAL), (2, SPECULATIVE), (2, CONTINUATION)], "never"))
    stage = Stage(lambda *_: [port], tempo_map=TempoMap.steady(8000, 120, Meter(2, 4)), blocksize=100)
    stage.run(2 * BAR - 1000)
    port.number, port.up, port.news = 1, False, True
    stage.run(4 * BAR)
    assert told_rungs(stage)[2:4] == [4, 4]
    assert [line["cause"] for line in stage.lines("span")][2:4] == ["lost", "loading"]
    assert [span.bar for span, _ in port.confirmed] == [0, 1, 2, 3, 4], "the next one is told what sounded meanwhile"


def test_in_quarantine_the_stem_fades_and_nothing_is_asked_any_more() -> None:
    port = Player()
    stage = playing(port, 3)
    stage.engine.parts[0].quarantine()
    before = len(port.requests)
    stage.run(6 * BAR)
    assert len(port.requests) == before
    assert told_rungs(stage)[-2:] == [5, 5]
    assert stage.lines("span")[-1]["cause"] == "quarantined"
    assert not stage.stem("a")[5 * BAR :].any()


@pytest.mark.parametrize("bpm", [119, 110, 90, 60, 31])
def test_the_last_good_bar_lasts_as_long_as_a_slower_one(bpm: int) -> None:
    never = {(bar, attempt): "never" for bar in range(2, 9) for attempt in range(3)}
    port = Player(never)
    change = Command("tempo", change=TempoChange(2, tempo=F(bpm)))
    stage = Stage(lambda *_: [port], tempo_map=TempoMap.steady(8000, 120, Meter(2, 4)), script=[(0, change)])
    stage.run(8 * BAR)
    sound = stage.stem("a")[:, 0]
    loud = np.convolve(np.abs(sound), np.ones(64) / 64, "valid")
    assert loud[200:].min() > 0.05, "there is a hole"
    assert np.abs(np.diff(sound, 2)).max() < 0.02, "there is a click"


def test_agents_of_a_band_are_asked_and_decide_one_after_the_other() -> None:
    ports = [Player() for _ in range(3)]
    stage = Stage(lambda *_: ports, ["a", "b", "c"], tempo_map=TempoMap.steady(8000, 120, Meter(2, 4)))
    stage.run(4 * BAR)
    decided = {line["agent"]: line["decided"] for line in stage.lines("span") if line["bar"] == 3}
    assert [decided["a"] - decided[name] for name in ("a", "b", "c")] == [0, 80, 160]
    for line in stage.lines("span"):
        assert line["start"] == line["bar"] * BAR, "the downbeat is where it was"


def test_the_ledger_counts_what_was_decided_and_how_late() -> None:
    stage = playing(Player({(2, FINAL): "never", (3, FINAL): 3000}), 6)
    row = dict(zip(LEDGER, stage.engine.parts[0].ledger(), strict=True))
    assert (row["final"], row["speculative"], row["late_finals"], row["late_in_a_row"]) == (5, 2, 2, 0)
    assert row["finals"] == 7
    assert row["ready_margin"] == 2000
    assert row["ready_margin_min"] == 2000
    line = stage.lines("span")[3]
    assert line["hops"]["ready"] == [line["deadline"], None], "it had not come when it was decided"
    assert line["hops"]["request"] == [line["deadline"] - 2000] * 2


@pytest.mark.parametrize("grid", ["1.33", "0.333", "0.3333", "3.99", "1/8", "5/7"])
def test_whatever_the_grid_no_span_is_a_crumb_and_what_is_missed_is_filled(grid: str) -> None:
    tempo_map = TempoMap.steady(8000, 120, Meter(4, 4))
    span, lengths = None, []
    for _ in range(40):
        span = next_span(span, F(grid), tempo_map)
        lengths.append(span.beats)
    assert min(lengths) >= F(1, 8)
    never = {(bar, attempt): "never" for bar in range(2, 9) for attempt in range(3)}
    stage = Stage(lambda *_: [Player(never)], tempo_map=tempo_map, grid_beats=F(grid))
    stage.run(100_000)
    loud = np.convolve(np.abs(stage.stem("a")[:, 0]), np.ones(64) / 64, "valid")
    assert loud[200:].min() > 0.05, "there is a hole"


@given(length=st.integers(1, 400), missing=st.integers(1, 1200), lead=st.integers(0, 80), begin=st.integers(0, 80))
@settings(deadline=None, max_examples=200)
def test_a_piece_of_any_length_lasts_as_long_as_it_must_or_ends_softly(
    length: int, missing: int, lead: int, begin: int
) -> None:
    join = 80
    voice = Voice(1, join)
    seat = Part("a", Silent(), voice)
    audio = np.ones((lead + length, 1), np.float32)
    material = Material(audio, 1000 - lead, 1000 + length)
    voice.join(1000, material)
    seat._hold(material, 1000, 1000 + join, 1000 + length + missing)
    out = np.zeros((3000, 1), np.float32)
    voice.render(0, lane(out), 0, len(out))
    held = out[1000 : 1000 + length + missing, 0]
    assert np.isfinite(held).all()
    if min(length, length + lead - join) >= join:
        assert held[join:].min() > 0.5, "there is a hole"


def test_a_stall_of_the_engine_says_nothing_of_the_agent() -> None:
    class Behind(LiveTiming):
        def playhead(self) -> int:
            return 10**9

    port = Player({(bar, attempt): "never" for bar in range(9) for attempt in range(3)})
    seat = playing(port, 1).engine
    late = seat.parts[0]
    seat._timing = Behind(256, lambda: seat.heard)
    before = late.ledger()[LEDGER.index("late_in_a_row")]
    while seat.mixed < 8 * BAR:
        seat.mix(1000)
    assert late.ledger()[LEDGER.index("late_in_a_row")] == before


def test_more_pressed_than_a_question_holds_costs_the_presses_and_not_the_agent() -> None:
    class Narrow(Player):
        def post(self, request: SpanRequest) -> str:
            return "a question longer than its place" if len(request.actions) > 2 else super().post(request)

    stage = Stage(lambda *_: [Narrow()], tempo_map=TempoMap.steady(8000, 120, Meter(2, 4)))
    for _ in range(5):
        stage.engine.parts[0].press(Action(0, "a", "jump"))
    stage.run(5 * BAR)
    assert set(told_rungs(stage)) == {1}
    assert [line["why"] for line in stage.lines("dropped")] == ["more was pressed than fits"]
