"""The engine's end of the way to an agent's processes; the process is the test."""

from __future__ import annotations

import json
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
from rigs import RATE, question

from realtime.buffers import Arena, checksum
from realtime.clock import TempoMap
from realtime.engine import EngineConfig, PartConfig, engine_layout
from realtime.messages import to_bytes
from realtime.mixer import Strip
from realtime.port import ProcessPort
from realtime.protocols import Origin, StreamSpec
from realtime.scheduler import FINAL, NOT_FINITE
from realtime.seat import ON_DUTY, SLOTS, STATE_ARMED, AgentConfig


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
        assert self.port.post(question(2)) == ""
        record = self.arena.records("a.requests").take()
        assert record is not None
        message = {"span": question(2).span, "attempt": 1, "slot": json.loads(record)["slot"], "fault": fault,
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
    assert bench.port.post(question(2)) == ""
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
    assert bench.port.post(question(2)) == ""
    message = {"span": question(2).span, "attempt": 1, "slot": slot, "fault": "", "compute_seconds": 0.0,
               "origin": Origin("heard"), "frames": 10**9, "lead_in": 0, "checksum": 0}  # fmt: skip
    bench.arena.records("a.replies").post(to_bytes(message))
    reply = bench.port.take(0)
    assert reply is not None
    assert (reply.clip, reply.slot, reply.attempt) == (None, None, -1)
    assert "no question that waits" in reply.fault
    bench.end()


@pytest.mark.parametrize("spoilt", ["", "sum", "nan"])
@pytest.mark.parametrize("step", [0, 1000, 999, 10**9])
def test_a_final_answer_is_looked_at_in_parts_or_at_once_with_one_result(spoilt: str, step: int) -> None:
    bench = Bench()
    bench.arm(0.01)
    asked = question(2)
    assert bench.port.post(asked) == ""
    frames = asked.frames
    record = bench.arena.records("a.requests").take()
    assert record is not None
    slot = json.loads(record)["slot"]
    clip = bench.arena["a.clips"][slot, :frames]
    clip[:] = np.random.default_rng(1).normal(0, 0.1, clip.shape)
    if spoilt == "nan":
        clip[frames - 1, -1] = np.nan
    message = {"span": asked.span, "attempt": FINAL, "slot": slot, "fault": "", "compute_seconds": 0.0,
               "origin": Origin("heard"), "frames": frames, "lead_in": 0,
               "checksum": checksum(clip) ^ (spoilt == "sum")}  # fmt: skip
    bench.arena.records("a.replies").post(to_bytes(message))
    looks = 0
    assert bench.port.examine(0) < 0, "it is read, and then there is all of it to look at"
    while step and bench.port.examine(step) < 0:
        looks += 1
        assert bench.port.ready(), "it waits until it is taken"
    assert looks == (-(-clip.size // (step & ~1)) - 1 if step else 0)
    reply = bench.port.take(0)
    assert reply is not None
    assert reply.look is not None
    assert reply.look() == {"": "", "sum": "the clip's checksum is wrong", "nan": NOT_FINITE}[spoilt]
    assert bench.port.examine(77) == 77, "nothing waits"
    bench.end()


def test_answers_come_in_order_so_the_slots_of_those_that_never_came_are_free_again() -> None:
    bench = Bench()
    bench.arm(0.01)
    for _ in range(5 * SLOTS):
        assert bench.port.post(question(2)) == ""
        bench.arena.records("a.requests").take()  # and forgotten
        bench.reply(0.001)
    bench.end()


def test_the_slots_of_a_dead_process_come_back() -> None:
    bench = Bench()
    bench.arm(0.01)
    while not (note := bench.port.post(question(2))):
        assert bench.arena.records("a.requests").take() is not None
    assert note == "no free clip slot"
    bench.arena["a.seat"][ON_DUTY] = 1
    bench.port.renew()
    assert not bench.port.armed()
    bench.arena.status("a.worker1").publish(state=STATE_ARMED, generation=1, budget_seconds=0.01)
    assert bench.port.ready()
    assert bench.port.post(question(2)) == ""
    bench.end()
