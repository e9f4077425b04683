"""Agents at work: what they hear, what they may know, how they fail; and a worker process on real shared memory."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rigs import RATE, ClickAgent, NoiseAgent, Rig

from realtime.buffers import Arena, AudioRing
from realtime.clock import TempoMap
from realtime.engine import EngineConfig, Memory, PartConfig, engine_layout
from realtime.messages import decode, to_bytes
from realtime.mixer import Strip
from realtime.protocols import HOP_FRAMES, Agent, Block, Clip, Origin, Piece, Span, SpanRequest, StreamSpec
from realtime.scheduler import Reply
from realtime.voice import NEVER
from realtime.worker import (
    ADMITTED,
    ENDING,
    ON_DUTY,
    SLOTS,
    STATE_ARMED,
    STATE_BYTES,
    STATE_MEASURED,
    AgentConfig,
    AgentRunner,
    InlinePort,
    ProcessPort,
    RingHeard,
    StateCell,
    UpTo,
    WorkerConfig,
    build_agent,
    run_worker,
)

SPEC = StreamSpec(RATE)
STEADY = TempoMap.steady(RATE, 120)


def question(bar: int = 1, *, rate: int = RATE, attempt: int = 1, context_end: int | None = None) -> SpanRequest:
    tempo_map = TempoMap.steady(rate, 120)
    start = tempo_map.bar_frame(bar)
    return SpanRequest(
        agent="a", span=Span(bar, Fraction(0), Fraction(4)), start=start, frames=2 * rate,
        beat_frames=tuple(range(0, 2 * rate, rate // 2)), timeline=tempo_map.timelines[0],
        context_end=start - 1000 if context_end is None else context_end, seed=bar + 1, attempt=attempt,
    )  # fmt: skip


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


# A worker process

SPAWN = get_context("spawn")
SLOW = 8000  # a rate at which nothing takes long
posix = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")


def wait_for(look: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)
    return found


@dataclass
class Desk:
    """A worker process, the engine's end of the way to it, and the memory between."""

    arena: Arena
    port: ProcessPort
    process: BaseProcess
    wake: Semaphore
    call: Semaphore
    log: list[dict[str, object]]

    def reply(self) -> Reply:
        found = wait_for(lambda: self.port.take(time.monotonic_ns()))
        assert isinstance(found, Reply)
        return found

    def close(self) -> None:
        self.arena["a.seat"][ENDING] = 1
        self.wake.release()
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.arena.close()
        self.arena.unlink()


def employ(agent: AgentConfig) -> Desk:
    spec = StreamSpec(SLOW, 1, 2)
    config = EngineConfig(
        spec,
        TempoMap.steady(SLOW, 120),
        1,
        (PartConfig(agent, Strip("a", agent.channels)),),
        longest_span_seconds=2.5,
    )
    arena = Arena.create(engine_layout(config))
    memory = Memory.shared(arena, config)
    memory.inputs.write(0, player())
    wake, call = SPAWN.Semaphore(0), SPAWN.Semaphore(0)
    log: list[dict[str, object]] = []
    port = ProcessPort(agent, arena, wake, SLOW, log.append)
    arena["a.seat"][ADMITTED] = 1
    worker = WorkerConfig(agent, spec, ("a",), config.tempo_map, Fraction(0))
    process = SPAWN.Process(target=run_worker, args=(arena.handle, worker, wake, call))
    process.start()
    return Desk(arena, port, process, wake, call, log)


def player() -> Block:
    return np.random.default_rng(5).normal(0, 0.1, (8 * SLOW, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    made = employ(AgentConfig("a", "echo", channels=2, options={"channels": 2}))
    try:
        wait_for(made.port.armed)
        yield made
    finally:
        made.close()


def opened(reply: Reply) -> Origin:
    """Return where a reply's sound comes from; it travels sealed."""
    assert reply.clip is not None, reply.fault
    return decode(Origin, json.loads(cast(Any, reply.clip.origin).text))


def ask(bar: int, attempt: int = 1) -> SpanRequest:
    return question(bar, rate=SLOW, attempt=attempt, context_end=STEADY.bar_frame(bar) * SLOW // RATE)


def test_a_worker_that_has_loaded_is_armed_with_a_budget_it_measured(desk: Desk) -> None:
    assert desk.port.take(7) is None
    [line] = [line for line in desk.log if line["type"] == "armed"]
    assert line["frame"] == 7, "it is told with the next look at the queue"
    assert line["agent"] == "a"
    assert isinstance(line["warm_up_runs"], int)
    assert 1 <= line["warm_up_runs"] <= 200
    assert desk.port.budget_frames() == line["budget_frames"]
    assert 0.005 * SLOW <= desk.port.budget_frames() < 10 * SLOW
    assert desk.arena.status("a.worker0").read()["pid"] == desk.process.pid


def test_it_answers_with_the_sound_that_was_asked_for(desk: Desk) -> None:
    assert desk.port.post(ask(2)) == ""
    reply = desk.reply()
    assert (reply.span, reply.attempt, reply.fault) == (ask(2).span, 1, "")
    assert reply.clip is not None
    assert reply.clip.lead_in == 80
    assert np.array_equal(reply.clip.audio, np.repeat(player()[2 * SLOW - 80 : 4 * SLOW], 2, axis=1))
    assert opened(reply) == Origin("heard", "input", pieces=(Piece("input", 2 * SLOW, 2 * SLOW, 0, 2 * SLOW),))
    assert 0 < reply.compute_seconds < 10
    desk.port.release(reply)


def test_it_lives_by_its_heart_and_its_count(desk: Desk) -> None:
    before = desk.arena.status("a.worker0").read()
    wait_for(lambda: desk.arena.status("a.worker0").read()["heartbeat_ns"] > before["heartbeat_ns"])
    desk.port.post(ask(2))
    desk.port.release(desk.reply())
    wait_for(lambda: desk.arena.status("a.worker0").read()["spans"] == before["spans"] + 1)


def test_what_happened_is_confirmed_without_an_answer(desk: Desk) -> None:
    desk.port.confirm(ask(2).span, Origin("heard"))
    desk.port.confirm(ask(3).span, None)
    desk.port.post(ask(3))
    reply = desk.reply()
    assert reply.span.bar == 3
    assert desk.port.take(0) is None
    desk.port.release(reply)


def test_a_rest_travels(desk: Desk) -> None:
    desk.port.post(ask(0))  # nothing was heard before the first bar
    reply = desk.reply()
    assert (reply.clip, reply.fault) == (None, "")
    desk.port.release(reply)


def test_a_clip_spoilt_on_its_way_is_a_fault_and_its_slot_comes_back(desk: Desk) -> None:
    desk.port.post(ask(2))
    wait_for(desk.port.ready)
    clips = desk.arena["a.clips"]
    spoilt = clips.copy()
    clips[:, 100] += 1
    reply = desk.reply()
    assert reply.clip is None
    assert "checksum" in reply.fault
    clips[:] = spoilt
    desk.port.release(reply)
    desk.port.post(ask(2))
    again = desk.reply()
    assert again.slot == reply.slot
    assert again.fault == ""
    desk.port.release(again)


def test_slots_are_lent_once_and_when_none_is_free_nothing_is_sent(desk: Desk) -> None:
    for _ in range(SLOTS):
        assert desk.port.post(ask(2)) == ""
    assert desk.port.post(ask(2)) == "no free clip slot"
    replies = [desk.reply() for _ in range(SLOTS)]
    assert len({reply.slot for reply in replies}) == SLOTS
    assert desk.port.take(0) is None
    desk.port.release(replies[0])
    assert desk.port.post(ask(2)) == ""
    replies[0] = desk.reply()
    for reply in replies:
        desk.port.release(reply)


def test_a_span_longer_than_the_memory_for_it_is_not_sent(desk: Desk) -> None:
    assert "longer" in desk.port.post(replace(ask(2), frames=3 * SLOW))


@posix
def test_a_speculative_request_overtaken_by_the_final_one_is_not_worked_on(desk: Desk) -> None:
    assert desk.process.pid is not None
    os.kill(desk.process.pid, signal.SIGSTOP)
    try:
        os.waitpid(desk.process.pid, os.WUNTRACED)
        desk.port.post(ask(2, attempt=0))
        desk.port.post(ask(3, attempt=0))
        desk.port.post(ask(2))
    finally:
        os.kill(desk.process.pid, signal.SIGCONT)
    replies = [desk.reply() for _ in range(3)]
    told = [(reply.span.bar, reply.attempt, reply.fault) for reply in replies]
    assert told == [(2, 0, "superseded"), (3, 0, "superseded"), (2, 1, "")], "neither keeps a final one waiting"
    for reply in replies:
        desk.port.release(reply)


@posix
def test_a_damaged_record_is_passed_over(desk: Desk) -> None:
    assert desk.process.pid is not None
    requests, data, index = (
        desk.arena.records("a.requests"),
        desk.arena["a.requests.data"],
        desk.arena["a.requests.index"],
    )
    os.kill(desk.process.pid, signal.SIGSTOP)
    try:
        os.waitpid(desk.process.pid, os.WUNTRACED)
        place = int(index[0, 0]) % requests.count
        requests.post(to_bytes({"nonsense": True}))
        data[place, 3] ^= 1
        desk.port.post(ask(2))
    finally:
        os.kill(desk.process.pid, signal.SIGCONT)
    reply = desk.reply()
    assert reply.fault == ""
    desk.port.release(reply)


def test_an_order_to_stop_ends_the_process_and_leaves_nothing_behind() -> None:
    desk = employ(AgentConfig("a", "echo"))
    name = desk.arena.handle.name
    wait_for(desk.port.armed)
    desk.close()
    assert desk.process.exitcode == 0
    assert not Path("/dev/shm", name).exists()


def test_a_worker_that_cannot_load_says_why_to_the_bridge_and_is_never_armed(tmp_path: Path) -> None:
    desk = employ(AgentConfig("a", "corpus", options={"corpus": str(tmp_path / "missing")}))
    try:
        desk.process.join(30)
        assert desk.process.exitcode == 0
        record = desk.arena.records("a.text").take()
        assert record is not None
        assert "agent 'a'" in record.decode()
        assert "missing" in record.decode()
        assert "Traceback" not in record.decode()
        assert not desk.port.armed()
        assert not desk.port.ready()
        assert desk.port.take(0) is None
    finally:
        desk.close()


class Bench:
    """A port whose worker is the test: it arms and answers when it likes."""

    def __init__(self, budget_seconds: float = 0.0) -> None:
        agent = AgentConfig("a", "echo", 1, {}, budget_seconds=budget_seconds)
        config = EngineConfig(StreamSpec(RATE), TempoMap.steady(RATE, 120), 1, (PartConfig(agent, Strip("a", 1)),))
        self.arena = Arena.create(engine_layout(config))
        self.log: list[dict[str, object]] = []
        self.frame = 0
        self.port = ProcessPort(agent, self.arena, get_context("spawn").Semaphore(0), RATE, self.log.append)

    def arm(self, seconds: float) -> None:
        self.arena.status("a.worker0").publish(state=STATE_ARMED, budget_seconds=seconds)

    def reply(self, seconds: float, fault: str = "") -> None:
        assert self.port.post(ask(2)) == ""
        record = self.arena.records("a.requests").take()
        assert record is not None
        message = {"span": ask(2).span, "attempt": 1, "slot": json.loads(record)["slot"], "fault": fault,
                   "compute_seconds": seconds, "origin": None}  # fmt: skip
        self.arena.records("a.replies").post(to_bytes(message))
        self.frame += 1
        reply = self.port.take(self.frame)
        assert reply is not None
        self.port.release(reply)

    def end(self) -> None:
        del self.port
        self.arena.close()
        self.arena.unlink()


def test_an_agent_that_is_armed_now_is_news_once() -> None:
    bench = Bench()
    assert not bench.port.ready()
    bench.arm(0.1)
    assert bench.port.ready(), "the engine has to see the budget before the commit point it settles"
    assert not bench.port.ready()
    assert bench.port.budget_frames() == round(0.105 * RATE)
    bench.end()


def test_the_budget_follows_what_answers_take_but_not_a_single_stall() -> None:
    bench = Bench()
    bench.arm(0.05)
    start = bench.port.budget_frames()
    for _ in range(5):
        bench.reply(0.01)
    assert bench.port.budget_frames() == start
    bench.reply(2.0)
    assert bench.port.budget_frames() == start, "one stall is the machine's"
    bench.reply(0.2)
    assert bench.port.budget_frames() == round((1.5 * 0.2 + 0.005) * RATE)
    for _ in range(200):
        bench.reply(0.0, "superseded")
    assert bench.port.budget_frames() > start, "what was given up says nothing"
    for _ in range(200):
        bench.reply(0.01)
    assert bench.port.budget_frames() == round((1.5 * 0.01 + 0.005) * RATE), "what was seen replaces the warm-up"
    bench.end()


def test_a_budget_the_session_gives_is_not_measured() -> None:
    bench = Bench(budget_seconds=0.3)
    bench.arm(0.05)
    for _ in range(3):
        bench.reply(1.0)
    assert bench.port.budget_frames() == round(0.3 * RATE)
    bench.end()


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


# Generations: one process stands by while another serves


class Counting(ClickAgent):
    """Remembers how many spans were confirmed, and says so in its origins; slow if the chart says so."""

    def __init__(self, slow: bool = False) -> None:
        super().__init__()
        self.bars: set[int] = set()
        self._slow = slow

    def play(self, request: SpanRequest) -> Clip | None:
        end = time.monotonic() + 20
        while self._slow and request.attempt == 0 and request.span.bar > 5 and time.monotonic() < end:
            pass
        return self.realise(request, Origin("click", f"{len(self.bars)} confirmed"))

    def confirm(self, span: Span, origin: Origin | None) -> None:
        self.bars.add(span.bar)

    def snapshot(self) -> bytes:
        return json.dumps(sorted(self.bars)).encode()

    def restore(self, state: bytes) -> None:
        self.bars = set(json.loads(state))


def origin_of(reply: Reply) -> str:
    return opened(reply).name


@posix
def test_the_next_process_takes_up_the_state_and_the_queues_of_one_that_was_killed() -> None:
    desk = employ(AgentConfig("a", "test_worker:Counting"))
    seat = desk.arena["a.seat"]
    config = WorkerConfig(
        AgentConfig("a", "test_worker:Counting"), StreamSpec(SLOW, 1, 2), ("a",), TempoMap.steady(SLOW, 120),
        Fraction(0), generation=1, measure=False,
    )  # fmt: skip
    spare = SPAWN.Process(target=run_worker, args=(desk.arena.handle, config, desk.wake, desk.call))
    try:
        wait_for(desk.port.armed)
        spare.start()
        wait_for(lambda: desk.arena.status("a.worker1").read()["state"] == STATE_MEASURED)
        for bar in range(3):
            desk.port.confirm(ask(bar).span, None)
        desk.port.post(ask(2))
        assert origin_of(desk.reply()) == "3 confirmed"
        wait_for(lambda: desk.arena.status("a.worker0").read()["snapshot_bytes"] == 17)  # [0, 1, 2]
        desk.process.kill()
        desk.process.join()
        assert desk.port.post(ask(3)) == "", "the engine does not know yet"
        desk.port.confirm(ask(3).span, None)
        seat[ON_DUTY] = 1
        desk.call.release()
        assert desk.port.ready()
        assert desk.port.generation() == 1
        desk.port.renew()
        assert not desk.port.armed() or spare.is_alive()
        wait_for(desk.port.armed)
        desk.port.post(ask(4))
        reply = desk.reply()
        assert reply.span.bar == 4, "what was asked of the dead one is not answered"
        assert origin_of(reply) == "4 confirmed", "what it was told meanwhile is not lost"
        assert desk.port.take(0) is None
    finally:
        seat[ENDING] = 1
        spare.join(20)
        desk.close()
    assert spare.exitcode == 0


@posix
def test_a_speculative_answer_that_is_being_worked_on_is_cut_short_by_the_final_question() -> None:
    desk = employ(AgentConfig("a", "test_worker:Counting", options={"slow": True}))
    try:
        wait_for(desk.port.armed)
        desk.port.post(ask(6, attempt=0))
        wait_for(lambda: desk.arena.status("a.worker0").read()["busy_since_ns"])
        time.sleep(0.05)
        desk.port.post(ask(6))
        replies = [desk.reply(), desk.reply()]
        assert [(reply.attempt, reply.fault) for reply in replies] == [(0, "superseded"), (1, "")]
        assert replies[0].compute_seconds < 10
    finally:
        desk.close()


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"span": 3},
        {"span": {"bar": 0, "beat": "0", "beats": "1/0"}, "attempt": 1, "slot": 0, "fault": "", "compute_seconds": 0},
        {
            "span": {"bar": 2, "beat": "0", "beats": "4"},
            "attempt": 1,
            "slot": None,
            "fault": "",
            "compute_seconds": 0,
        },
        [1, 2],
        "words",
    ],
)
def test_rubbish_in_the_queue_of_replies_is_passed_over_and_written_down(message: Any) -> None:
    bench = Bench()
    bench.arm(0.01)
    assert bench.port.ready()
    assert bench.port.post(ask(2)) == ""
    bench.arena.records("a.replies").post(json.dumps(message).encode())
    bench.arena.records("a.replies").post(b"\xff\xfe{")
    bench.arena.records("a.replies").post(b"[" * 50_000)
    for _ in range(3):
        reply = bench.port.take(7)
        assert reply is not None
        assert (reply.clip, reply.slot, reply.attempt) == (None, None, -1)
        assert "makes no sense" in reply.fault
    assert bench.port.take(7) is None
    assert not bench.port.ready()
    bench.end()


@pytest.mark.parametrize("slot", [-1, 3, 10_000])
def test_a_reply_about_another_slot_than_its_own_touches_no_clip(slot: int) -> None:
    bench = Bench()
    bench.arm(0.01)
    assert bench.port.post(ask(2)) == ""
    message = {"span": ask(2).span, "attempt": 1, "slot": slot, "fault": "", "compute_seconds": 0.0,
               "origin": Origin("heard"), "frames": 10**9, "lead_in": 0, "checksum": 0}  # fmt: skip
    bench.arena.records("a.replies").post(to_bytes(message))
    reply = bench.port.take(0)
    assert reply is not None
    assert (reply.clip, reply.slot, reply.attempt) == (None, None, -1)
    assert "no question that waits" in reply.fault
    bench.end()


def test_answers_come_in_order_so_the_slots_of_those_that_never_came_are_free_again() -> None:
    bench = Bench()
    bench.arm(0.01)
    for _ in range(5 * SLOTS):
        assert bench.port.post(ask(2)) == ""
        bench.arena.records("a.requests").take()  # and forgotten
        bench.reply(0.001)
    bench.end()


def test_the_slots_of_a_dead_process_come_back() -> None:
    bench = Bench()
    bench.arm(0.01)
    while not (note := bench.port.post(ask(2))):
        assert bench.arena.records("a.requests").take() is not None
    assert note == "no free clip slot"
    bench.arena["a.seat"][ON_DUTY] = 1
    bench.port.renew()
    assert not bench.port.armed()
    bench.arena.status("a.worker1").publish(state=STATE_ARMED, generation=1, budget_seconds=0.01)
    assert bench.port.ready()
    assert bench.port.post(ask(2)) == ""
    bench.end()


def test_the_newest_whole_state_is_found() -> None:
    bench = Bench()
    cell = StateCell(bench.arena, "a")
    assert cell.read() is None
    assert cell.write(b"first")
    assert cell.write(b"second")
    assert cell.read() == b"second"
    bench.arena["a.state.data"][0, 2] ^= 1  # the second was written there: it is as good as half written
    assert cell.read() == b"first"
    assert not cell.write(bytes(STATE_BYTES + 1))
    assert cell.read() == b"first"
    del cell
    bench.end()
