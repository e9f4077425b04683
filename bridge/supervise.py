"""Looks after the agents' processes: admits the band, has replaced what has died or hangs, ends what cannot play.

A :class:`bridge.watch.Watch` for each agent decides; the :class:`Supervisor` shows it what there is and does what it
says, on a thread of its own that wakes when a process ends, else 25 times a second. It also brings the figures of
those who are timed before :func:`realtime.admission.admit`, and carries the verdicts out.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from bridge.watch import Order, Respawn, Seen, Watch
from realtime.admission import Bar, Candidate, Cost, Decision, Verdict, admit, bars_of
from realtime.buffers import Arena
from realtime.engine import Command
from realtime.scheduler import LEDGER
from realtime.seat import ADMITTED, ENDING, ON_DUTY, STATE_LOADING, STATE_MEASURED
from realtime.worker import WorkerConfig

TICK_SECONDS = 0.04
MEMORY_EVERY = 5
"""Looks from one look at the memory to the next: the system takes its time to tell."""
ADMISSION_SECONDS = 10.0
"""So long the band waits for its slowest; who is timed later is judged beside those who play."""
FIGURES = ("final_seconds", "speculative_seconds", "continuation_seconds", "usual_seconds", "budget_seconds")
LONGEST_FIGURE_SECONDS = 3600.0
"""A process can leave any number in its status block, and what is computed with has to be one that can be."""


class Worker(Protocol):
    """A process, as :mod:`multiprocessing` gives them."""

    @property
    def pid(self) -> int | None: ...
    @property
    def sentinel(self) -> int: ...
    @property
    def exitcode(self) -> int | None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _NeverBorn:
    """Stands for a process that the system did not start; it is seen once, as one that has ended."""

    pid: int | None = None
    sentinel: int = -1
    exitcode: int | None = 1

    def kill(self) -> None:
        """Do nothing."""


class Hands(Protocol):
    """What the supervisor cannot do itself. Called from its thread, but for the first processes."""

    def spawn(self, config: WorkerConfig) -> Worker:
        """Start one of an agent's processes; any error if the system does not."""

    def forget(self, config: WorkerConfig) -> None:
        """Let go of a process that has ended."""

    def call(self, agent: str) -> None:
        """Wake whoever stands by for an agent."""

    def send(self, command: Command) -> bool:
        """Hand a command to the engine; return whether there was room for it."""

    def say(self, text: str, *, bad: bool) -> None:
        """Keep a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Lighter:
    """A lighter way to play: what is different, in words, and all options of the agent."""

    words: str
    options: Mapping[str, Any]


@dataclass(slots=True, eq=False)
class Member:
    """One agent and how it is looked after.

    Attributes
    ----------
    config
        What its processes are started with; generation and measuring are set for each.
    follows
        Agents that are asked before it.
    lighter
        Ways to make it lighter, the first to be tried first.
    cost
        What it was admitted with, ``None`` until it is.
    processes
        Those there are, by generation.
    todo
        Orders that are not carried out yet.
    """

    config: WorkerConfig
    follows: tuple[str, ...] = ()
    lighter: tuple[Lighter, ...] = ()
    cost: Cost | None = None
    processes: dict[int, Worker] = field(default_factory=dict)
    todo: deque[Order] = field(default_factory=deque)

    @property
    def name(self) -> str:
        """The agent."""
        return self.config.agent.name

    def candidate(self, cost: Cost | None) -> Candidate:
        """Return what is to be judged."""
        ways = tuple(way.words for way in self.lighter)
        return Candidate(
            self.name, self.cost or cost, self.config.grid_beats, self.follows, self.config.agent.budget_seconds,
            ways, self.cost is not None,
        )  # fmt: skip

    def go_lighter(self) -> Mapping[str, Any]:
        """Take the next lighter way; return its options."""
        way, self.lighter = self.lighter[0], self.lighter[1:]
        self.config = replace(self.config, agent=replace(self.config.agent, options=dict(way.options)))
        return way.options


class Supervisor:
    """Looks after the processes of a band. :meth:`start` gives it a thread; :meth:`stop` ends that and nothing else.

    Parameters
    ----------
    arena
        The session's memory.
    members
        The band, in the session's order. Not to be touched by others from now on.
    hands
        What starts processes and passes things on.
    respawns
        Takes every replacement that is done, in order.
    spares
        Whether a second process of each agent stands by.
    cores
        Processors there are for the session; 0 asks the system.

    Attributes
    ----------
    nobody
        Why nobody plays, once everybody was refused; empty as long as somebody may.
    """

    def __init__(
        self,
        arena: Arena,
        members: Sequence[Member],
        hands: Hands,
        respawns: list[Respawn],
        *,
        spares: bool = True,
        cores: int = 0,
    ) -> None:
        self._arena, self._members, self._hands = arena, list(members), hands
        self._cores = cores or usable_cores()
        self._bars: tuple[Bar, ...] = bars_of(members[0].config.tempo_map) if members else ()
        self._watches = {
            one.name: Watch(one.name, _longest_span_seconds(one.config), one.config.memory_bytes, spares=spares)
            for one in members
        }
        self._statuses = {
            one.name: [arena.status(f"{one.name}.worker{parity}") for parity in (0, 1)] for one in members
        }
        self._seats = {one.name: arena[f"{one.name}.seat"] for one in members}
        self._respawns = respawns
        self.nobody = ""
        self._judge_ns = 0
        self._looks = 0
        self._unsent: dict[tuple[str, str], Command] = {}  # by what and for whom: the latest is what holds
        self._told: set[str] = set()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    # Any thread

    def states(self) -> dict[str, str]:
        """Say how each agent stands: ``"loading"``, ``"measured"``, ``"armed"``, ``"gone"`` while it is replaced, or
        why it rests: ``"failed"``, ``"refused"``, ``"quarantined"``.
        """
        return {
            one.name: self._watches[one.name].state(self._see(one, self._watches[one.name].duty))
            for one in self._members
        }

    def spares(self) -> dict[str, str]:
        """Say how those who stand by stand: ``"loading"`` or ``"measured"``."""
        standing = {one: self._watches[one.name].standing_by for one in self._members}
        return {
            one.name: self._watches[one.name].state(self._see(one, generation))
            for one, generation in standing.items()
            if generation is not None
        }

    def pids(self) -> dict[str, int]:
        """Return the ids of processes that run: ``"agent NAME"`` on duty, ``"spare NAME"`` standing by."""
        found = {}
        for one in self._members:
            watch = self._watches[one.name]
            for role, generation in (("agent", watch.duty), ("spare", watch.standing_by)):
                process = one.processes.get(-1 if generation is None else generation)
                if process is not None and process.pid is not None and process.exitcode is None:
                    found[f"{role} {one.name}"] = process.pid
        return found

    def start(self) -> None:
        """Start the first process of every agent, and the thread that looks after them."""
        self.begin(time.monotonic_ns())
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def begin(self, now_ns: int) -> None:
        """Start the first process of every agent; :meth:`look` does the rest."""
        if not own_memory_bytes(os.getpid()) and any(one.config.memory_bytes for one in self._members):
            text = "how much memory agents use cannot be seen on this system, so the limits are not watched"
            self._hands.say(text, bad=False)
        self._judge_ns = now_ns + round(ADMISSION_SECONDS * 1e9)
        for one in self._members:
            one.todo.extend(self._watches[one.name].begin())
            with self._going_on(f"agent {one.name!r}"):
                self._obey(one)

    def stop(self) -> None:
        """End the thread: from now on nobody is replaced."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def dismiss(self) -> None:
        """Tell everybody to go home; :meth:`stop` comes first."""
        for one in self._members:
            self._seats[one.name][ENDING] = 1
            self._hands.call(one.name)

    # The supervisor's thread

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wait()
            with self._going_on("the band"):
                self.look(time.monotonic_ns())

    def _wait(self) -> None:
        """Wait until a process ends, or it is time for the next look."""
        processes = [process for one in self._members for process in one.processes.values()]
        with contextlib.suppress(OSError, ValueError):  # what cannot be waited for is looked at all the same
            if living := [process.sentinel for process in processes if process.exitcode is None]:
                connection.wait(living, TICK_SECONDS)
                return
        self._ending.wait(TICK_SECONDS)

    @contextlib.contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Go on whatever goes wrong, and say so once for each that is looked after."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, the others have to be looked after
            if what not in self._told:
                self._told.add(what)
                text = f"looking after {what} went wrong ({type(error).__name__}: {error}); it is tried again"
                self._hands.say(text, bad=True)

    def look(self, now_ns: int) -> None:
        """Look at everybody once, and do what is to be done."""
        rows = self._arena["ledger"].copy().tolist()
        self._looks += 1
        self._send()
        for one, row in zip(self._members, rows, strict=True):
            with self._going_on(f"agent {one.name!r}"):
                self._look_at(one, now_ns, dict(zip(LEDGER, row, strict=True)))
        with self._going_on("who may play"):
            self._admit(now_ns)

    def _look_at(self, one: Member, now_ns: int, ledger: Mapping[str, int]) -> None:
        self._obey(one)  # what went wrong the last time comes first
        watch = self._watches[one.name]
        weigh = self._looks % MEMORY_EVERY == 0
        seen = {generation: self._see(one, generation, weigh=weigh) for generation in list(one.processes)}
        one.todo.extend(watch.look(now_ns, seen, ledger, may_spawn=not self._a_spare_loads()))
        self._respawns += watch.respawns
        watch.respawns.clear()
        for generation, found in seen.items():
            if found.exitcode is not None:
                self._forget(one, generation)
        self._obey(one)

    def _see(self, one: Member, generation: int, *, weigh: bool = False) -> Seen:
        process = one.processes.get(generation)
        if process is None:
            return Seen(exitcode=0)
        if isinstance(process, _NeverBorn):
            return Seen(process.exitcode, born=False)
        exitcode = process.exitcode  # looked at first: what it said before its end is there by then
        status = self._statuses[one.name][generation % 2].read()
        if status["pid"] != process.pid or status["generation"] != generation:
            return Seen(exitcode)
        memory = own_memory_bytes(process.pid) if weigh and exitcode is None and one.config.memory_bytes else 0
        return Seen(exitcode, status["state"], status["heartbeat_ns"], status["busy_since_ns"], memory)

    def _a_spare_loads(self) -> bool:
        """Whether one that will stand by is loading: one at a time, as the music has better uses for the machine."""
        for one in self._members:
            spare = self._watches[one.name].standing_by
            if spare is not None and self._see(one, spare).state == STATE_LOADING:
                return True
        return False

    def _obey(self, one: Member) -> None:
        """Carry out what is to be done; an order that fails is left for the next look, with those after it."""
        while one.todo:
            self._carry_out(one, one.todo[0])
            one.todo.popleft()

    def _carry_out(self, one: Member, order: Order) -> None:
        if order.do == "kill" and order.generation in one.processes:
            one.processes[order.generation].kill()
        elif order.do == "spawn":
            self._spawn(one, order)
        elif order.do == "seat":
            self._seats[one.name][ON_DUTY] = order.generation
            self._hands.call(one.name)
        elif order.do == "quarantine":
            self._send(Command("quarantine", one.name))
        elif order.do == "warn":
            self._hands.say(order.text, bad=True)

    def _send(self, *commands: Command) -> None:
        """Hand commands to the engine; what its queue has no room for is kept until the next look."""
        self._unsent |= {(command.do, command.target): command for command in commands}
        for key, command in list(self._unsent.items()):
            with self._going_on(f"what the engine is told of agent {command.target!r}"):
                if self._hands.send(command):
                    del self._unsent[key]

    def _spawn(self, one: Member, order: Order) -> None:
        config = replace(one.config, generation=order.generation, measure=order.measure)
        if (left := one.processes.get(order.generation)) is not None:  # one that was killed standing by
            left.kill()
            self._forget(one, order.generation)
        unborn = f"the birth of agent {one.name!r}"
        try:
            one.processes[order.generation] = self._hands.spawn(config)
            self._told.discard(unborn)
        except Exception as error:  # noqa: BLE001 - whatever kept it from being born, it is tried again
            one.processes[order.generation] = _NeverBorn()
            if unborn not in self._told:
                self._told.add(unborn)
                why = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
                text = f"a process for agent {one.name!r} could not be started: {why}"
                self._hands.say(f"{text}; it is tried again, ever more rarely", bad=True)

    def _forget(self, one: Member, generation: int) -> None:
        del one.processes[generation]
        self._hands.forget(replace(one.config, generation=generation))

    # Admission

    def _admit(self, now_ns: int) -> None:
        """Judge those who are timed: together with all who are not yet, or without them if they take too long."""
        playing = [one for one in self._members if not self._watches[one.name].resting]
        waiting = [one for one in playing if one.cost is None]
        costs = {one.name: cost for one in waiting if (cost := self._timed(one, now_ns)) is not None}
        if not costs or (len(costs) < len(waiting) and now_ns < self._judge_ns):
            return
        self._judge_ns = now_ns + round(ADMISSION_SECONDS * 1e9)
        band = [one.candidate(costs.get(one.name)) for one in playing]
        for one, verdict in zip(playing, admit(band, self._bars, self._cores), strict=True):
            if one in waiting:
                with self._going_on(f"agent {one.name!r}"):
                    self._act_on(one, verdict, costs.get(one.name), now_ns)
        if all(self._watches[one.name].resting == "refused" for one in self._members):
            self.nobody = "nobody is left to play: this machine is too slow for each agent of the session"

    def _timed(self, one: Member, now_ns: int) -> Cost | None:
        """Return the cost of an agent whose process was timed and stands by; one that says nonsense has failed."""
        watch = self._watches[one.name]
        if self._see(one, watch.duty).state != STATE_MEASURED:
            return None
        status = self._statuses[one.name][watch.duty % 2].read()
        for name in FIGURES:
            if not 0.0 <= status[name] <= LONGEST_FIGURE_SECONDS:  # nor is NaN
                wrong = f"{name} is {status[name]:g}, where 0 to {LONGEST_FIGURE_SECONDS:.0f} can be"
                text = f"agent {one.name!r} was timed wrongly: {wrong}"
                one.todo.extend(watch.fail(now_ns, "figures", text))
                self._obey(one)
                return None
        return Cost(*(status[name] for name in FIGURES[:4]))

    def _act_on(self, one: Member, verdict: Verdict, cost: Cost | None, now_ns: int) -> None:
        watch = self._watches[one.name]
        if verdict.decision is Decision.WAITS:
            return
        if verdict.decision is Decision.ADMITTED:
            one.cost = cost
            self._seats[one.name][ADMITTED] = 1
            self._hands.call(one.name)
            return
        self._hands.say(verdict.sentence, bad=verdict.decision is Decision.REFUSED)
        if verdict.decision is Decision.REFUSED:
            watch.rest("refused")
            return
        if verdict.grid_beats != one.config.grid_beats:
            one.config = replace(one.config, grid_beats=verdict.grid_beats)
            watch.pace(_longest_span_seconds(one.config))
            self._send(Command("grid", one.name, name=str(verdict.grid_beats)))
        if verdict.decision is Decision.LIGHTER:
            way = json.dumps(one.go_lighter(), ensure_ascii=False, default=str)
            self._send(Command("lighter", one.name, name=way))  # so that the take tells who played
        one.todo.extend(watch.start_over(now_ns))
        self._obey(one)


def _longest_span_seconds(config: WorkerConfig) -> float:
    """Return how long a span of an agent may last, by the tempi that are planned."""
    return max(
        float(60 * min(config.grid_beats or timeline.meter.beats, timeline.meter.beats) / timeline.tempo)
        for timeline in config.tempo_map.timelines
    )


def usable_cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def own_memory_bytes(pid: int | None) -> int:
    """Return what a process has to itself, without shared memory and mapped files; 0 where that cannot be seen."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
