"""Agents at work: what they hear, what they may know, how they fail; and how they are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from rigs import RATE, ClickAgent, NoiseAgent, Rig, question

from realtime.buffers import AudioRing
from realtime.protocols import HOP_FRAMES, Agent, Block, Clip, Origin, Piece, Span, SpanRequest, StreamSpec
from realtime.runner import AgentRunner, InlinePort, RingHeard, UpTo, build_agent
from realtime.scheduler import Reply
from realtime.seat import AgentConfig
from realtime.voice import NEVER

SPEC = StreamSpec(RATE)


def runner(agent: Agent, heard: AudioRing | None = None, listens: str = "input", **stems: AudioRing) -> AgentRunner:
    ring = heard or AudioRing.private(RATE, 1)
    return AgentRunner(agent, AgentConfig("a", "fake", listens=listens), SPEC, RingHeard(ring, stems))


# What an agent answers


def flawed(flaw: Callable[[Clip], Any]) -> Reply:
    class Flawed(NoiseAgent):
        def play(self, request: SpanRequest) -> Any:
            clip = super().play(request)
            assert clip is not None
            return flaw(clip)

    return runner(Flawed()).play(question())


def with_nan(clip: Clip) -> Clip:
    clip.audio[777] = np.nan
    return clip


HALF_A_FRAME = Origin("x", pieces=(Piece("s", cast(Any, 0.5), 1, 0, 1),))


def raising(clip: Clip) -> Clip:
    raise ZeroDivisionError("a bar of no beats")


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        (raising, "ZeroDivisionError: a bar of no beats"),
        (with_nan, "NaN or infinity"),
        (lambda clip: replace(clip, audio=clip.audio * np.float32(np.inf)), "NaN or infinity"),
        (lambda clip: replace(clip, audio=clip.audio[1:]), "(96479, 1) where float32 (96480, 1)"),
        (lambda clip: replace(clip, audio=clip.audio[:, 0]), "(96480,) where"),
        (lambda clip: replace(clip, audio=np.repeat(clip.audio, 2, axis=1)), "(96480, 2) where float32 (96480, 1)"),
        (lambda clip: replace(clip, audio=clip.audio.astype(np.float64)), "float64"),
        (lambda clip: replace(clip, lead_in=481, audio=np.zeros((96_481, 1), np.float32)), "481 frames; 0 to 480"),
        (lambda clip: replace(clip, lead_in=-1, audio=clip.audio[:95_999]), "lead-in of -1 frames"),
        (lambda clip: replace(clip, lead_in=480.0), "lead-in of 480.0 where a whole number"),
        (lambda clip: clip.audio, "ndarray where a Clip"),
        (lambda clip: replace(clip, origin=None), "None where an Origin"),
        (lambda clip: replace(clip, origin=HALF_A_FRAME), "source_frame: found 0.5"),
    ],
)  # fmt: skip
def test_what_no_engine_could_play_is_a_fault_in_words(flaw: Callable[[Clip], Any], words: str) -> None:
    reply = flawed(flaw)
    assert reply.clip is None
    assert words in reply.fault


def test_a_good_clip_and_a_rest_are_no_faults() -> None:
    good = flawed(lambda clip: replace(clip, lead_in=cast(Any, np.int64(clip.lead_in))))
    assert good.fault == ""
    assert good.clip is not None
    assert good.compute_seconds > 0
    rest = flawed(lambda clip: None)
    assert (rest.fault, rest.clip) == ("", None)


def test_a_fault_is_told_in_bounded_words() -> None:
    def shout(clip: Clip) -> Clip:
        raise ValueError("far too much " * 100_000)

    assert len(flawed(shout).fault) < 2000


def test_a_decision_given_is_realised_and_not_taken_again() -> None:
    agent = NoiseAgent()
    played = runner(agent).play(question())
    asked = len(agent.requests)
    assert played.clip is not None
    again = runner(agent).play(question(), played.clip.origin)
    assert again.clip is not None
    assert np.array_equal(again.clip.audio, played.clip.audio)
    assert len(agent.requests) == asked


# What an agent hears


class Listening(ClickAgent):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Block] = []

    def hear(self, hop: Block, frame: int) -> None:
        super().hear(hop, frame)
        self.heard.append(hop)


def test_every_hop_is_heard_once_in_order_exactly_up_to_the_context() -> None:
    sound = np.random.default_rng(1).normal(0, 1, (20_000, 1)).astype(np.float32)
    ring, agent = AudioRing.private(RATE, 1), Listening()
    ring.write(0, sound)
    worker = runner(agent, ring)
    furthest = 0
    for end in (0, 511, 512, 512, 5000, 4000, 10_240):
        worker.play(question(context_end=end))
        furthest = max(furthest, end)
        assert agent.hops == [HOP_FRAMES * hop for hop in range(furthest // HOP_FRAMES)]
    assert np.array_equal(np.concatenate(agent.heard), sound[:10_240])


def test_one_that_listens_to_another_hears_its_stem() -> None:
    stem = AudioRing.private(RATE, 2)
    stem.write(0, np.full((1024, 2), 0.25, np.float32))
    agent = Listening()
    runner(agent, listens="keys", keys=stem).hear_up_to(1024)
    assert [hop.shape for hop in agent.heard] == [(512, 2), (512, 2)]
    assert all((hop == 0.25).all() for hop in agent.heard)


def test_the_future_is_hidden() -> None:
    ring, stem = AudioRing.private(1000, 1), AudioRing.private(1000, 2)
    ring.write(0, np.ones((500, 1), np.float32))
    stem.write(0, np.ones((500, 2), np.float32))
    known = UpTo(RingHeard(ring, {"keys": stem}), 300)
    for start, end in ((0, 500), (250, 350), (299, 301), (300, 500), (400, 500), (-50, 10)):
        expected = np.array([[1.0 if 0 <= frame < 300 else 0.0] for frame in range(start, end)])
        assert np.array_equal(known.input(start, end), expected)
        assert np.array_equal(known.stem("keys", start, end), np.repeat(expected, 2, axis=1))
    assert ring.read(300, 500).all(), "the ring itself is as it was"


def test_play_is_given_what_was_heard_and_no_more() -> None:
    class Peeking(ClickAgent):
        def play(self, request: SpanRequest) -> Clip | None:
            assert request.heard is not None
            self.seen = request.heard.input(0, 48_000)
            return None

    ring, agent = AudioRing.private(RATE, 1), Peeking()
    ring.write(0, np.ones((RATE, 1), np.float32))
    assert runner(agent, ring).play(question(context_end=1234)).fault == ""
    assert np.count_nonzero(agent.seen) == 1234


def test_an_agent_that_fails_while_it_listens_says_so_once_and_goes_on() -> None:
    class Hurt(Listening):
        def hear(self, hop: Block, frame: int) -> None:
            super().hear(hop, frame)
            if frame == 1024:
                raise OverflowError("too loud")

    agent = Hurt()
    worker = runner(agent)
    worker.hear_up_to(2048)
    assert agent.hops == [0, 512, 1024, 1536]
    assert worker.play(question(context_end=2048)).fault == "while it listened: OverflowError: too loud"
    assert worker.play(question(context_end=4096)).fault == ""
    assert agent.hops == [512 * hop for hop in range(8)], "and no hop is heard twice"


class Forgetful(NoiseAgent):
    def confirm(self, span: Span, origin: Origin | None) -> None:
        if span.bar == 1:
            raise KeyError("no such bar")


def test_an_agent_that_fails_to_take_in_what_sounded_costs_a_rung_and_nothing_raises() -> None:
    rig = Rig({"a": Forgetful()})
    rig.run(10 * RATE)
    spans = rig.lines("span")
    assert [line["rung"] for line in spans] == [1] * len(spans), (
        "the speculative answer told it, the final one is good"
    )
    assert [line["fault"] for line in rig.lines("reply") if line["fault"]] == [
        "while it was told what sounded: KeyError: 'no such bar'"
    ]


# Building agents


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AgentConfig("keys", "ecko"), "agent kind 'ecko' is not known; there are corpus, echo"),
        (AgentConfig("keys", "echo", options={"sauce": "input"}), "agent 'keys'"),
        (AgentConfig("keys", "echo", options={"sauce": "input"}), "sauce"),
        (AgentConfig("keys", "corpus", options={"corpus": "/nowhere/at/all"}), "/nowhere/at/all"),
    ],
)
def test_an_agent_that_cannot_be_built_is_told_in_words(config: AgentConfig, words: str) -> None:
    with pytest.raises(ValueError, match=r"keys|corpus|ecko") as problem:
        build_agent(config)
    assert words in str(problem.value)
    assert "\n" not in str(problem.value)


def test_an_agent_is_built_with_its_options() -> None:
    agent = build_agent(AgentConfig("keys", "echo", channels=2, options={"channels": 2}))
    assert agent.channels == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tabu": 2}, "the kind corpus takes no 'tabu'; its options are: .*; did you mean 'taboo'"),
        ({"taboo": "2"}, "option taboo is '2'; it takes a whole number"),
        ({"taboo": True}, "option taboo is True; it takes a whole number"),
        ({"space_db": "loud"}, "option space_db is 'loud'; it takes a number"),
    ],
)
def test_an_option_that_cannot_be_used_is_told_with_its_agent(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="agent 'keys'.*" + words):
        build_agent(AgentConfig("keys", "corpus", 1, {"corpus": "nowhere", **options}))


# The port for virtual time


def test_an_inline_port_gives_replies_when_they_are_due_and_in_that_order() -> None:
    delays = {1: 500, 2: 100, 3: NEVER}
    port = InlinePort(runner(NoiseAgent()), 4800, lambda request: delays[request.span.bar])
    port.now = lambda: 1000
    assert port.next_due() == NEVER
    for bar in (1, 2, 3):
        assert port.post(question(bar)) == ""
    assert port.next_due() == 1100
    assert port.take(1099) is None
    first, second = port.take(1100), port.take(5000)
    assert first is not None
    assert second is not None
    assert [first.span.bar, second.span.bar] == [2, 1]
    assert port.next_due() == NEVER
