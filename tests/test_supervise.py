"""Supervision: the band's processes only pretended, then real ones that are killed, stopped and go wrong."""

from __future__ import annotations

import json
import mmap
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.app import Live
from bridge.recorder import TakeReader
from bridge.session import Session
from bridge.supervise import Lighter, Member, Supervisor, own_memory_bytes, usable_cores
from realtime.buffers import Arena, Layout
from realtime.clock import TempoMap
from realtime.engine import Command
from realtime.protocols import StreamSpec
from realtime.scheduler import LEDGER
from realtime.seat import ADMITTED, ON_DUTY, STATE_MEASURED, AgentConfig, worker_layout
from realtime.worker import WorkerConfig

SECOND_NS = 1_000_000_000
RATE = 16000
MB = 2**20


# The machine


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux shows it")
def test_a_process_s_own_memory_is_seen() -> None:
    before = own_memory_bytes(os.getpid())
    with mmap.mmap(-1, 256 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # none that was had before
        np.frombuffer(held, np.uint8)[::4096] = 1
        assert own_memory_bytes(os.getpid()) > before + 200 * MB
    assert own_memory_bytes(None) == 0


def test_there_is_a_core_to_play_on() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


# The band, with processes that are only pretended


class Pretended:
    """A process as the supervisor sees it."""

    def __init__(self, pid: int) -> None:
        self.pid, self.sentinel, self.exitcode = pid, -1, None

    pid: int | None
    exitcode: int | None

    def kill(self) -> None:
        self.exitcode = -9


class Band:
    """A supervisor, the memory it reads, and hands that only pretend."""

    def __init__(self, agents: dict[str, float], **lighter: tuple[Lighter, ...]) -> None:
        """``agents`` gives what an answer costs in seconds, by the bar of two seconds."""
        spec, tempo_map = StreamSpec(RATE), TempoMap.steady(RATE, 120)
        configs = {name: AgentConfig(name, "echo", options={"steps": 8}) for name in agents}
        layout: Layout = {"ledger": (np.dtype("i8"), (len(agents), len(LEDGER)))}
        for config in configs.values():
            layout |= worker_layout(config, spec, 1000)
        self.arena = Arena.create(layout)
        self.costs = dict(agents)
        self.spawned: list[WorkerConfig] = []
        self.sent: list[Command] = []
        self.said: list[str] = []
        self.called: list[str] = []
        self.processes: dict[tuple[str, int], Pretended] = {}
        self.fails = False
        self.full = False  # the engine's queue
        self.wrong: dict[str, Exception] = {}  # what going on about an agent raises
        members = [
            Member(WorkerConfig(config, spec, (), tempo_map, Fraction(1)), lighter=lighter.get(name, ()))
            for name, config in configs.items()
        ]
        self.supervisor = Supervisor(self.arena, members, self, [], spares=False, cores=2)
        self.now_ns = time.monotonic_ns()
        self.supervisor.begin(self.now_ns)

    def __enter__(self) -> Band:
        return self

    def __exit__(self, *_: object) -> None:
        self.arena.close()
        self.arena.unlink()

    def spawn(self, config: WorkerConfig) -> Pretended:
        if self.fails:
            raise OSError(11, "Resource temporarily unavailable")
        self.spawned.append(config)
        process = Pretended(1_000_000 + len(self.spawned))
        self.processes[config.agent.name, config.generation] = process
        return process

    def forget(self, config: WorkerConfig) -> None:
        self.processes.pop((config.agent.name, config.generation), None)

    def call(self, agent: str) -> None:
        if agent in self.wrong:
            raise self.wrong[agent]
        self.called.append(agent)

    def send(self, command: Command) -> bool:
        if not self.full:
            self.sent.append(command)
        return not self.full

    def say(self, text: str, *, bad: bool) -> None:
        self.said.append(text)

    def look(self, seconds: float = 0.02) -> None:
        self.now_ns += round(seconds * SECOND_NS)
        self.supervisor.look(self.now_ns)

    def time(self, *agents: str, **figures: float) -> None:
        """Let the latest process of each of these be timed; ``figures`` are what it says that is not so."""
        for name in agents:
            config = [config for config in self.spawned if config.agent.name == name][-1]
            told = {"final_seconds": self.costs[name], "speculative_seconds": self.costs[name]} | figures
            self.arena.status(f"{name}.worker{config.generation % 2}").publish(
                state=STATE_MEASURED, generation=config.generation, heartbeat_ns=self.now_ns,
                pid=self.processes[name, config.generation].pid or 0, **told,
            )  # fmt: skip
        self.look()

    def admitted(self, name: str) -> bool:
        return bool(self.arena[f"{name}.seat"][ADMITTED])


def test_the_band_is_judged_when_everybody_is_timed() -> None:
    with Band({"bass": 0.02, "keys": 0.03}) as band:
        band.time("bass")
        assert not band.admitted("bass")
        band.time("keys")
        assert band.admitted("bass")
        assert band.admitted("keys")
        assert band.called == ["bass", "keys"]
        assert band.said == []


def test_nobody_waits_for_ever_for_one_that_loads_long() -> None:
    with Band({"bass": 0.02, "keys": 0.03, "horn": 0.5}) as band:
        band.time("bass")
        band.look(11)
        assert band.admitted("bass")
        band.time("keys", "horn")
        assert band.admitted("keys")
        assert not band.admitted("horn"), "beside those who play there is no room for it by the beat"
        assert band.sent == [Command("grid", "horn", name="0")]


def test_a_coarser_grid_is_timed_in_a_new_process() -> None:
    with Band({"bass": 0.3}) as band:
        band.time("bass")
        assert band.sent == [Command("grid", "bass", name="2")]
        assert "it is tried by 2 beats" in band.said[0]
        band.look()
        again = band.spawned[-1]
        assert (again.generation, again.measure, again.grid_beats) == (1, True, Fraction(2))
        assert band.arena["bass.seat"][ON_DUTY] == 1
        assert not band.admitted("bass")
        band.time("bass")
        assert band.admitted("bass")
        assert len(band.spawned) == 2


def test_lighter_ways_are_tried_one_after_the_other_before_it_is_refused() -> None:
    ways = (Lighter("steps = 4", {"steps": 4}), Lighter("steps = 2", {"steps": 2}))
    with Band({"bass": 1.5}, bass=ways) as band:
        for steps in (4, 2):
            band.time("bass")
            assert f"it is tried with steps = {steps}" in band.said[-1]
            assert band.sent[-1] == Command("lighter", "bass", name=f'{{"steps": {steps}}}')
            band.look()
            assert band.spawned[-1].agent.options == {"steps": steps}
            assert band.spawned[-1].measure
        band.time("bass")
        assert "it rests" in band.said[-1]
        assert band.supervisor.states() == {"bass": "refused"}
        assert band.supervisor.nobody
        band.look()
        band.look()
        assert band.processes == {}


def test_a_system_that_starts_no_process_for_a_while_is_told_once_and_asked_again() -> None:
    with Band({"bass": 0.02, "keys": 0.02}) as band:
        band.time("bass", "keys")
        band.fails = True
        band.processes["bass", 0].exitcode = -9
        for _ in range(200):
            band.arena.status("keys.worker0").publish(heartbeat_ns=band.now_ns)
            band.look(0.04)
        assert band.supervisor.states() == {"bass": "gone", "keys": "measured"}
        assert band.sent == []
        [told] = [text for text in band.said if "could not be started" in text]
        assert told == (
            "a process for agent 'bass' could not be started: Resource temporarily unavailable; it is tried again, "
            "ever more rarely"
        )
        band.fails = False
        for _ in range(220):
            band.look(0.04)
        assert band.processes["bass", 1].exitcode is None
        assert band.supervisor.states()["bass"] == "loading"


@pytest.mark.parametrize("figure", [np.nan, np.inf, -np.inf, 1e300, -1.0, 3601.0])
@pytest.mark.parametrize("name", ["final_seconds", "speculative_seconds", "usual_seconds", "budget_seconds"])
def test_figures_that_cannot_be_are_a_measurement_that_failed(name: str, figure: float) -> None:
    with Band({"bass": 0.02, "keys": 0.03}) as band:
        band.time("keys")
        for _ in range(3):
            band.time("bass", **{name: figure})
            band.look()
        band.look()
        assert band.admitted("keys")
        assert not band.admitted("bass")
        assert band.supervisor.states()["bass"] == "quarantined"
        [*_, told] = band.said
        assert told.startswith(f"agent 'bass' was timed wrongly: {name} is {figure:g}, where 0 to 3600 can be; ")


def test_a_figure_that_was_wrong_once_is_timed_again() -> None:
    with Band({"bass": 0.02}) as band:
        band.time("bass", usual_seconds=np.nan)
        band.look()
        assert band.spawned[-1].measure
        band.time("bass")
        assert band.admitted("bass")


def test_what_the_engine_has_no_room_for_is_kept_for_it() -> None:
    with Band({"bass": 0.3, "keys": 0.02}) as band:
        band.full = True
        band.time("bass", "keys")
        for _ in range(3):
            band.look()
            band.processes["keys", max(g for name, g in band.processes if name == "keys")].exitcode = -9
            band.look()
        assert band.sent == []
        band.full = False
        band.look()
        assert band.sent == [Command("grid", "bass", name="2"), Command("quarantine", "keys")]
        band.look()
        assert len(band.sent) == 2, "once"


def test_only_the_latest_of_a_kind_is_kept_for_the_engine() -> None:
    with Band({"bass": 0.3}) as band:
        band.full = True
        band.time("bass")
        band.look()
        band.costs["bass"] = 0.6
        band.time("bass")
        band.full = False
        band.look()
        assert band.sent == [Command("grid", "bass", name="0")]


def test_what_goes_wrong_with_one_is_told_once_and_the_others_are_looked_after() -> None:
    with Band({"bass": 0.02, "keys": 0.02}) as band:
        band.time("bass", "keys")
        band.wrong["bass"] = RuntimeError("out of wake-ups")
        for name in ("bass", "keys"):
            band.processes[name, 0].exitcode = -9
        for _ in range(3):
            band.look()
        assert band.processes["keys", 1].exitcode is None
        assert band.supervisor.states()["keys"] == "loading"
        told = [text for text in band.said if "out of wake-ups" in text]
        assert told == ["looking after agent 'bass' went wrong (RuntimeError: out of wake-ups); it is tried again"]
        band.wrong.clear()
        called = len(band.called)
        band.look()
        assert band.called[called:] == ["bass"], "what was to be done is done then"
        assert band.arena["bass.seat"][ON_DUTY] == 1


def test_the_thread_goes_on_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    with Band({"bass": 0.02}) as band:
        looked: list[int] = []

        def look(now_ns: int) -> None:
            looked.append(now_ns)
            raise RuntimeError("surely not")

        monkeypatch.setattr(band.supervisor, "look", look)
        band.supervisor.start()
        until = time.monotonic() + 30
        while len(looked) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        band.supervisor.stop()
        assert len(looked) >= 3
        assert sum("surely not" in text for text in band.said) == 1


# With processes

HEAD = f"""
[stream]
samplerate = {RATE}
device = "null"
[transport]
bpm = 240
"""


class Played:
    """A band of :class:`fakes.Misbehaves` on no device, one agent for each entry, asked beat by beat.

    At 240 BPM a beat is a quarter of a second. The budget is given unless it is 0, so that a loaded machine is not
    found to be too slow.
    """

    def __init__(
        self, folder: Path | None, agents: dict[str, dict[str, object]], budget_seconds: float = 0.1
    ) -> None:
        head = f'kind = "echo"\ngrid_beats = 1\nbudget_seconds = {budget_seconds}\nmemory_mb = 256\n'
        entries = [f'[[agents]]\nname = "{name}"\n{head}' for name in agents]
        self.told: list[str] = []
        self.warned: list[str] = []
        self.live = Live(
            Session.parse(HEAD + "".join(entries)), folder, self.told.append, warn=self.warned.append, lead=1024
        )
        parts = tuple(
            replace(part, agent=replace(part.agent, kind="fakes:Misbehaves", options=options))
            for part, options in zip(self.live.config.parts, agents.values(), strict=True)
        )
        self.live.config = replace(self.live.config, parts=parts)

    def until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert self.live.poll(), self.warned
            assert time.monotonic() < end, (self.live.status(), self.warned, self.live.respawns)
            time.sleep(0.02)

    def row(self, agent: str) -> dict[str, int]:
        return self.live.status().ledger[agent]

    def plays(self, agent: str, generation: int = 0, good: int = 1) -> bool:
        """Return whether this generation, or a later one on a machine with too much to do, has answered so often."""
        row = self.row(agent)
        return row["generation"] >= generation and row["good"] >= good

    def stands_by(self, agent: str) -> bool:
        """Return whether a spare is loaded."""
        return self.live.spares().get(agent) == "measured"


def lines(take: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (take / "take.jsonl").read_text().splitlines()]
    return [line for line in found if line["type"] == kind]


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_a_killed_and_a_stopped_process_are_replaced_with_their_state(tmp_path: Path) -> None:
    played = Played(tmp_path / "take", {"killed": {}, "stopped": {}, "steady": {}})
    with played.live as live:
        played.until(lambda: all(played.plays(name, 0, 6) for name in live.names))
        patience = time.monotonic() + 8  # on a machine with other things to do spares have little of it
        played.until(lambda: all(map(played.stands_by, live.names)) or time.monotonic() > patience)
        pids = live.pids()
        os.kill(pids["agent killed"], signal.SIGKILL)
        os.kill(pids["agent stopped"], signal.SIGSTOP)
        played.until(lambda: played.plays("killed", 1, 4) and played.plays("stopped", 1, 4))
        again = live.pids()
        assert again["agent killed"] != pids["agent killed"]
        assert again["agent stopped"] != pids["agent stopped"]
    for name in live.names:
        rungs = [line["rung"] for line in lines(tmp_path / "take", "span") if line["agent"] == name]
        first = next(index for index, rung in enumerate(rungs) if rung in (1, 2))
        assert set(rungs[first:]) <= {0, 1, 2, 3, 4}, "nobody heard it"
    causes = [(respawn.agent, respawn.cause) for respawn in live.respawns]
    assert ("killed", "exit") in causes
    assert {("stopped", "stopped"), ("stopped", "hang")} & set(causes), "stopped between two answers, or in one"
    assert any(text.startswith("the process of agent 'killed' was killed by signal 9; ") for text in played.warned)
    replies = [line for line in lines(tmp_path / "take", "reply") if line["agent"] == "killed" and line["origin"]]
    counts = [int(line["origin"]["name"]) for line in replies]
    assert counts == sorted(counts), "the successor goes on where the other was"
    assert counts[-1] >= 8
    events = [(line["agent"], line["event"]) for line in lines(tmp_path / "take", "worker")]
    assert ("killed", "lost") in events


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is seen on Linux only")
def test_whoever_goes_wrong_is_replaced_and_whoever_does_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.supervise.usable_cores", lambda: 64)
    modes = ("raise", "nan", "short", "hang", "exit", "grow", "late")
    played = Played(None, {mode: {"mode": mode, "after": 4} for mode in modes} | {"steady": {}})
    with played.live as live:
        played.until(lambda: all(played.plays(mode, 1, 3) for mode in modes))
        assert live.status().states["steady"] == "armed"
    first = {respawn.agent: respawn.cause for respawn in reversed(live.respawns)}
    causes = {mode: {"faulty"} for mode in modes} | {"hang": {"hang"}, "exit": {"exit"}, "late": {"slow"}}
    causes["grow"] = {"faulty", "memory"}  # where the system itself refuses the memory it is a fault
    for mode in modes:
        assert first[mode] in causes[mode] | {"slow", "hang"}, "or what a machine with too much to do looks like"


def test_three_strikes_with_processes() -> None:
    played = Played(None, {"bad": {"mode": "exit", "for_good": True}, "steady": {}})
    with played.live as live:
        played.until(lambda: live.status().states["bad"] == "quarantined")
        bar = live.status().bar
        played.until(lambda: live.status().bar > bar + 1)
        assert "agent bad" not in live.pids()
        assert "spare bad" not in live.pids()
        assert live.status().states["steady"] == "armed"
    assert "third time" in played.warned[-1]


def test_who_does_not_fit_is_degraded_or_refused_in_words_and_the_others_play() -> None:
    played = Played(None, {"coarse": {"seconds": 0.2}, "refused": {"seconds": 0.7}, "steady": {}}, 0)
    with played.live as live:
        played.until(lambda: live.status().states["refused"] == "refused" and played.plays("steady"))
        played.until(lambda: any("'coarse'" in text for text in played.told + played.warned))
        played.until(lambda: "agent refused" not in live.pids())
    [refused] = [text for text in played.warned if "'refused'" in text]
    assert refused.startswith("agent 'refused' takes ")
    assert "it rests" in refused


def test_a_band_that_this_machine_cannot_play_at_all_does_not_begin() -> None:
    played = Played(None, {"slow": {"seconds": 0.7}}, 0)
    with played.live as live:
        end = time.monotonic() + 60
        while live.poll():
            assert time.monotonic() < end
            time.sleep(0.02)
    assert played.warned[0].startswith("agent 'slow' takes ")
    assert played.warned[1].startswith("nobody is left to play")


@pytest.mark.skipif(os.name == "nt", reason="stops as POSIX does")
def test_an_engine_that_stands_still_is_told_and_ended(tmp_path: Path) -> None:
    played = Played(tmp_path / "take", {"steady": {}})
    with played.live as live:
        played.until(lambda: played.plays("steady"))
        os.kill(live.pids()["engine"], signal.SIGSTOP)
        played.until(lambda: bool(played.warned))
        os.kill(live.pids()["engine"], signal.SIGCONT)
        played.until(lambda: "the engine goes on" in played.told)
        os.kill(live.pids()["engine"], signal.SIGSTOP)
    assert played.warned[0].startswith("the engine has stood still for 2 s")
    kept = TakeReader(tmp_path / "take")
    assert kept.frames > RATE // 2
