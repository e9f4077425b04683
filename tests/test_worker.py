"""A worker process on real shared memory, with the engine's end of the way to it; and its successor."""

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
from rigs import RATE, ClickAgent, question

from realtime.buffers import Arena
from realtime.clock import TempoMap
from realtime.engine import EngineConfig, Memory, PartConfig, engine_layout
from realtime.messages import decode, to_bytes
from realtime.mixer import Strip
from realtime.port import ProcessPort
from realtime.protocols import Block, Clip, Origin, Piece, Span, SpanRequest, StreamSpec
from realtime.scheduler import Reply
from realtime.seat import ADMITTED, ENDING, ON_DUTY, SLOTS, STATE_MEASURED, AgentConfig
from realtime.worker import WorkerConfig, run_worker

STEADY = TempoMap.steady(RATE, 120)
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
    assert reply.look is not None
    assert "checksum" in reply.look()
    clips[:] = spoilt
    desk.port.release(reply)
    desk.port.post(ask(2))
    again = desk.reply()
    assert again.slot == reply.slot
    assert again.look is not None
    assert (again.fault, again.look()) == ("", "")
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
