"""Looks after the agents' processes: admits the band, replaces what has died or hangs, sends home what cannot play.

Each agent has a process on duty and, once that one plays, another that stands by with everything loaded (the design,
section 5). :class:`Watch` decides: it is fed what can be seen of the two and answers with orders; it knows neither
processes nor clocks, so it is tested in virtual time. :class:`Supervisor` sees and obeys, on a thread of its own that
wakes when a process ends, else 25 times a second.

============== ================================================= =================================
what           seen as                                           done
============== ================================================= =================================
ended          its process is gone                               the spare takes over
hangs          at one answer for two spans and half a second     killed, the spare takes over
stopped        idle, and no sign of life for a second            killed, the spare takes over
memory         more of its own than the session allows           killed, the spare takes over
faulty         three answers in a row that cannot be played      killed, the spare takes over
slow           eight spans in a row late                         killed, the spare takes over
three strikes  three of these in a row before a good answer      quarantine
refuses files  the first process says so                         it rests, and the others play
============== ================================================= =================================

Time that the supervisor itself was held up for counts for nothing: what stood still then may only have had no turn.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from realtime.admission import Bar, Candidate, Cost, Decision, Verdict, admit, bars_of
from realtime.buffers import Arena
from realtime.engine import Command
from realtime.scheduler import LEDGER
from realtime.worker import (
    ADMITTED,
    ENDING,
    ON_DUTY,
    STATE_ARMED,
    STATE_FAILED,
    STATE_LOADING,
    STATE_MEASURED,
    WorkerConfig,
)

TICK_SECONDS = 0.04
MEMORY_EVERY = 5
"""Looks from one look at the memory to the next: the system takes its time to tell."""
LONGEST_TICK_SECONDS = 0.1
"""The most that one look adds to how long something has stood still."""
HANG_SPANS, HANG_SECONDS = 2.0, 0.5
STOPPED_SECONDS = 1.0
STANDBY_STOPPED_SECONDS = 2.0
"""One that stands by has less to say."""
LOADING_SECONDS = 60.0
FAULTY_ANSWERS = 3
LATE_SPANS, MOST_LATE_SPANS = 8, 512
"""If the next process is as slow, it is not the process; so each time for slowness takes twice as many late spans."""
RECOVERED_SECONDS = 60.0
"""A process that is in time for so long is not slow."""
STRIKES = 3
SPARE_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Before a spare that has died is replaced; doubled each time."""
ADMISSION_SECONDS = 10.0
"""So long the band waits for its slowest; who is timed later is judged beside those who play."""


# What is decided


@dataclass(frozen=True, slots=True)
class Seen:
    """One process of an agent at one moment.

    Attributes
    ----------
    exitcode
        ``None`` while it runs; negative is the signal that ended it.
    state, heartbeat_ns, busy_since_ns
        From its status block; it is loading as long as it has not said anything.
    memory_bytes
        Memory of its own, 0 where that was not seen.
    """

    exitcode: int | None = None
    state: int = STATE_LOADING
    heartbeat_ns: int = 0
    busy_since_ns: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to do. ``generation`` says to which of the agent's processes.

    ``do`` is ``"kill"``; ``"spawn"`` (to be timed, where ``measure``); ``"seat"`` (call the generation up: the one
    before is surely dead); ``"quarantine"`` (tell the engine); ``"warn"`` (say ``text``).
    """

    do: str
    generation: int = -1
    measure: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Respawn:
    """One replacement: when the failure was found, and when the successor was on duty; monotonic nanoseconds."""

    agent: str
    cause: str
    generation: int
    detected_ns: int
    armed_ns: int

    @property
    def seconds(self) -> float:
        """From detection to duty."""
        return (self.armed_ns - self.detected_ns) / 1e9


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a process is given up; ``planned`` is no failure, ``text`` is what is said of it."""

    cause: str
    text: str
    detected_ns: int
    planned: bool = False


class _Still:
    """How long a value has not changed, in looks that were not held up."""

    def __init__(self) -> None:
        self._value: object = None
        self.seconds = 0.0

    def look(self, value: object, seconds: float) -> float:
        """Return how long ``value`` has been the same, ``seconds`` after the look before."""
        self.seconds = self.seconds + seconds if value == self._value else 0.0
        self._value = value
        return self.seconds


class Watch:
    """Decides for one agent. One thread; never waits.

    Parameters
    ----------
    name
        The agent.
    span_seconds
        Its longest span.
    memory_bytes
        What one of its processes may use; 0 for no limit.
    spares
        Whether a second process stands by.

    Attributes
    ----------
    duty
        Generation on duty.
    standing_by
        Generation of the spare, ``None`` if there is none.
    resting
        Why the agent plays no more: ``"failed"``, ``"refused"``, ``"quarantined"``; empty while it does.
    armed
        Whether the process on duty serves.
    respawns
        Those that are done.
    """

    def __init__(self, name: str, span_seconds: float, memory_bytes: int = 0, *, spares: bool = True) -> None:
        self.name, self._memory_bytes, self._spares = name, memory_bytes, spares
        self.pace(span_seconds)
        self.duty = 0
        self.standing_by: int | None = None
        self.resting = ""
        self.armed = False
        self.respawns: list[Respawn] = []
        self.strikes = 0
        self._ever_armed = False
        self._timed = False
        self._failure: _Failure | None = None  # of the process on duty, which is on its way out
        self._respawning: _Failure | None = None
        self._killed: set[int] = set()
        self._beat, self._work, self._load = _Still(), _Still(), _Still()
        self._spare_beat, self._spare_load = _Still(), _Still()
        self._late_spans = LATE_SPANS
        self._in_time_seconds = 0.0
        self._pause_seconds = SPARE_PAUSE_SECONDS
        self._spare_in_seconds = 0.0
        self._spare_told = False
        self._before_ns: int | None = None

    def pace(self, span_seconds: float) -> None:
        """Settle how long a span may last."""
        self._hang_seconds = max(HANG_SECONDS, HANG_SPANS * span_seconds)

    def begin(self) -> list[Order]:
        """Start the first process."""
        return [Order("spawn", 0, measure=True)]

    def look(
        self, now_ns: int, seen: Mapping[int, Seen], ledger: Mapping[str, int], *, may_spawn: bool = True
    ) -> list[Order]:
        """Look once at what there is and return what is to be done, in order.

        Parameters
        ----------
        now_ns
            Monotonic time.
        seen
            The agent's processes by generation; one that has ended is shown once, with its exit code.
        ledger
            Its row as the engine last wrote it.
        may_spawn
            Whether a spare may be started now.
        """
        before_ns = now_ns if self._before_ns is None else self._before_ns
        seconds = min(LONGEST_TICK_SECONDS, max(0.0, (now_ns - before_ns) / 1e9))
        self._before_ns = now_ns
        if self.resting:
            return self._kill(*(number for number, one in seen.items() if one.exitcode is None))
        orders = self._look_at_duty(now_ns, seconds, seen, ledger)
        if not self.resting:
            orders += self._look_at_spare(seconds, seen, may_spawn)
        return orders

    def rest(self, why: str) -> None:
        """Let the agent play no more; its processes are ended with the next look."""
        self.resting, self.armed = why, False

    def start_over(self, now_ns: int) -> list[Order]:
        """End the process on duty for another that is built differently and timed."""
        self._failure = _Failure("changed", "", now_ns, planned=True)
        return self._kill(self.duty)

    def state(self, seen: Seen | None) -> str:
        """Say in a word how the agent stands."""
        if self.resting:
            return self.resting
        if seen is None or seen.exitcode is not None:
            return "gone"
        words = {STATE_LOADING: "loading", STATE_MEASURED: "measured", STATE_ARMED: "armed"}
        return words.get(seen.state, "failed")

    # The process on duty

    def _look_at_duty(
        self, now_ns: int, seconds: float, seen: Mapping[int, Seen], ledger: Mapping[str, int]
    ) -> list[Order]:
        one = seen.get(self.duty)
        if one is None:
            return []
        self.armed = one.exitcode is None and one.state == STATE_ARMED
        self._timed |= one.state in (STATE_MEASURED, STATE_ARMED)
        if one.exitcode is not None:
            return self._gone(one, now_ns, ledger, seen)
        if self._failure is not None:
            return []  # it was killed, and is not gone yet
        if self.armed:
            self._serves(now_ns)
        row = ledger if ledger["generation"] == self.duty else dict.fromkeys(ledger, 0)
        found = self._trouble(one, seconds, row)
        if found is None:
            return []
        self._failure = _Failure(*found, now_ns)
        return self._kill(self.duty)

    def _serves(self, now_ns: int) -> None:
        self._ever_armed = True
        if self._respawning is not None:
            failure, self._respawning = self._respawning, None
            self.respawns.append(Respawn(self.name, failure.cause, self.duty, failure.detected_ns, now_ns))

    def _trouble(self, one: Seen, seconds: float, row: Mapping[str, int]) -> tuple[str, str] | None:
        """Return the cause and the words if the process on duty has to go."""
        loading = self._load.look((self.duty, one.state), seconds) if one.state == STATE_LOADING else 0.0
        quiet = self._beat.look((self.duty, one.heartbeat_ns, one.busy_since_ns), seconds)
        busy = self._work.look((self.duty, one.busy_since_ns), seconds) if one.busy_since_ns else 0.0
        late = self._is_late(row, seconds)
        if loading > LOADING_SECONDS:
            return "loading", f"agent {self.name!r} has not loaded within {LOADING_SECONDS:.0f} s"
        if busy > self._hang_seconds:
            return "hang", f"agent {self.name!r} has worked at one answer for {busy:.1f} s"
        patience = STOPPED_SECONDS if one.state == STATE_ARMED else STANDBY_STOPPED_SECONDS
        if one.state in (STATE_ARMED, STATE_MEASURED) and not one.busy_since_ns and quiet > patience:
            return "stopped", f"agent {self.name!r} has shown no sign of life for {quiet:.1f} s"
        if self._memory_bytes and one.memory_bytes > self._memory_bytes:
            used = f"uses {_mb(one.memory_bytes)} of memory, where {_mb(self._memory_bytes)} are allowed"
            return "memory", f"agent {self.name!r} {used}"
        if row["faulty_in_a_row"] >= FAULTY_ANSWERS:
            return "faulty", f"agent {self.name!r} gave {row['faulty_in_a_row']} answers that cannot be played"
        if late:
            return "slow", f"agent {self.name!r} was late {row['late_in_a_row']} times in a row"
        return None

    def _is_late(self, row: Mapping[str, int], seconds: float) -> bool:
        self._in_time_seconds = 0.0 if row["late_in_a_row"] else self._in_time_seconds + seconds
        if self._in_time_seconds > RECOVERED_SECONDS:
            self._late_spans = LATE_SPANS
        if row["late_in_a_row"] < self._late_spans:
            return False
        self._late_spans = min(MOST_LATE_SPANS, 2 * self._late_spans)
        return True

    def _gone(self, one: Seen, now_ns: int, ledger: Mapping[str, int], seen: Mapping[int, Seen]) -> list[Order]:
        """Answer the end of the process on duty."""
        refuses = one.state == STATE_FAILED and self._failure is None
        if refuses and not self._ever_armed:
            self.rest("failed")  # it has said itself what is wrong with its files
            return []
        text = f"the process of agent {self.name!r} {'could not be loaded' if refuses else how(one.exitcode)}"
        failure = self._failure or _Failure("exit", text, now_ns)
        self._failure, self.armed = None, False
        if failure.planned:
            self._timed = False
            return self._call_up(seen)
        played = ledger["generation"] == self.duty and ledger["good"] > 0
        self.strikes = 0 if played else self.strikes + 1
        if self.strikes >= STRIKES:
            return self._quarantine(failure)
        self._respawning = self._respawning or failure
        who = self._who_follows(seen)
        return [*self._call_up(seen), Order("warn", text=f"{failure.text}; {who}")]

    def _call_up(self, seen: Mapping[int, Seen]) -> list[Order]:
        """Put the next generation on duty: the one that stands by, else one that is started now."""
        self._killed.discard(self.duty)
        self.duty += 1
        spare = seen.get(self.duty)
        ready = self.standing_by == self.duty and spare is not None and spare.exitcode is None
        ready = ready and self.duty not in self._killed
        self.standing_by = None
        self._killed.discard(self.duty)
        self._beat, self._work, self._load = _Still(), _Still(), _Still()
        self._spare_beat, self._spare_load = _Still(), _Still()
        seat = Order("seat", self.duty)
        return [seat] if ready else [Order("spawn", self.duty, measure=not self._timed), seat]

    def _who_follows(self, seen: Mapping[int, Seen]) -> str:
        spare = seen.get(self.duty + 1)
        if self.standing_by is not None and spare is not None and spare.state == STATE_MEASURED:
            return "another takes over"
        return "another is loaded, and its stem goes down the ladder until then"

    def _quarantine(self, failure: _Failure) -> list[Order]:
        self.rest("quarantined")
        text = (
            f"{failure.text}; that was the third time without a bar played in between, so it is left out from now "
            "on, and the others play on"
        )
        return [Order("quarantine"), Order("warn", text=text)]

    # The one that stands by

    def _look_at_spare(self, seconds: float, seen: Mapping[int, Seen], may_spawn: bool) -> list[Order]:
        self._spare_in_seconds = max(0.0, self._spare_in_seconds - seconds)
        if self.standing_by is None:
            if not (self._spares and self.armed and may_spawn and not self._spare_in_seconds):
                return []
            self.standing_by = self.duty + 1
            return [Order("spawn", self.standing_by)]
        one = seen.get(self.standing_by)
        if one is None:
            return []
        if one.exitcode is not None:
            return self._spare_gone(one)
        loading = self._spare_load.look((self.standing_by, one.state), seconds) if one.state == STATE_LOADING else 0.0
        quiet = self._spare_beat.look((self.standing_by, one.heartbeat_ns), seconds)
        if one.state == STATE_MEASURED:
            self._pause_seconds = SPARE_PAUSE_SECONDS
        stopped = one.state == STATE_MEASURED and quiet > STANDBY_STOPPED_SECONDS
        too_large = bool(self._memory_bytes) and one.memory_bytes > self._memory_bytes
        if self.standing_by not in self._killed and (loading > LOADING_SECONDS or stopped or too_large):
            return self._kill(self.standing_by)
        return []

    def _spare_gone(self, one: Seen) -> list[Order]:
        """Try again after a pause that grows; a spare's end is no strike."""
        assert self.standing_by is not None
        self._killed.discard(self.standing_by)
        self.standing_by = None
        self._spare_beat, self._spare_load = _Still(), _Still()
        self._spare_in_seconds = self._pause_seconds
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * self._pause_seconds)
        if self._spare_told:
            return []
        self._spare_told = True
        what = "could not be loaded" if one.state == STATE_FAILED else how(one.exitcode)
        text = f"the spare process of agent {self.name!r} {what}; the agent plays on, and another spare is tried"
        return [Order("warn", text=text)]

    def _kill(self, *generations: int) -> list[Order]:
        orders = [Order("kill", number) for number in generations if number not in self._killed]
        self._killed.update(generations)
        return orders


def how(exitcode: int | None) -> str:
    """Say how a process ended."""
    code = exitcode or 0
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"


# What is seen and done


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
    """Stands for a process that the system did not start."""

    pid: int | None = None
    sentinel: int = -1
    exitcode: int | None = 1

    def kill(self) -> None:
        """Do nothing."""


class Hands(Protocol):
    """What the supervisor cannot do itself. Called from its thread, but for the first processes."""

    def spawn(self, config: WorkerConfig) -> Worker:
        """Start one of an agent's processes; ``OSError`` if the system does not."""

    def forget(self, config: WorkerConfig) -> None:
        """Let go of a process that has ended."""

    def call(self, agent: str) -> None:
        """Wake whoever stands by for an agent."""

    def send(self, command: Command) -> bool:
        """Hand a command to the engine."""

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
    """

    config: WorkerConfig
    follows: tuple[str, ...] = ()
    lighter: tuple[Lighter, ...] = ()
    cost: Cost | None = None
    processes: dict[int, Worker] = field(default_factory=dict)

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
            self._obey(one, self._watches[one.name].begin())

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
            living = [
                process.sentinel
                for one in self._members
                for process in one.processes.values()
                if process.exitcode is None
            ]
            if living:
                connection.wait(living, TICK_SECONDS)
            else:
                self._ending.wait(TICK_SECONDS)
            self.look(time.monotonic_ns())

    def look(self, now_ns: int) -> None:
        """Look at everybody once, and do what is to be done."""
        rows = self._arena["ledger"]
        self._looks += 1
        for index, one in enumerate(self._members):
            watch = self._watches[one.name]
            weigh = self._looks % MEMORY_EVERY == 0
            seen = {generation: self._see(one, generation, weigh=weigh) for generation in list(one.processes)}
            ledger = dict(zip(LEDGER, (int(value) for value in rows[index]), strict=True))
            orders = watch.look(now_ns, seen, ledger, may_spawn=not self._a_spare_loads())
            for generation, found in seen.items():
                if found.exitcode is not None:
                    self._forget(one, generation)
            self._obey(one, orders)
            self._respawns += watch.respawns
            watch.respawns.clear()
        self._admit(now_ns)

    def _see(self, one: Member, generation: int, *, weigh: bool = False) -> Seen:
        process = one.processes.get(generation)
        if process is None:
            return Seen(exitcode=0)
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

    def _obey(self, one: Member, orders: Sequence[Order]) -> None:
        for order in orders:
            if order.do == "kill" and order.generation in one.processes:
                one.processes[order.generation].kill()
            elif order.do == "spawn":
                self._spawn(one, order)
            elif order.do == "seat":
                self._seats[one.name][ON_DUTY] = order.generation
                self._hands.call(one.name)
            elif order.do == "quarantine":
                self._hands.send(Command("quarantine", one.name))
            elif order.do == "warn":
                self._hands.say(order.text, bad=True)

    def _spawn(self, one: Member, order: Order) -> None:
        config = replace(one.config, generation=order.generation, measure=order.measure)
        if (left := one.processes.get(order.generation)) is not None:  # one that was killed standing by
            left.kill()
            self._forget(one, order.generation)
        try:
            one.processes[order.generation] = self._hands.spawn(config)
        except OSError as error:
            one.processes[order.generation] = _NeverBorn()
            self._hands.say(f"a process for agent {one.name!r} could not be started: {error.strerror}", bad=True)

    def _forget(self, one: Member, generation: int) -> None:
        del one.processes[generation]
        self._hands.forget(replace(one.config, generation=generation))

    # Admission

    def _admit(self, now_ns: int) -> None:
        """Judge those who are timed: together with all who are not yet, or without them if they take too long."""
        playing = [one for one in self._members if not self._watches[one.name].resting]
        waiting = [one for one in playing if one.cost is None]
        costs = {one.name: cost for one in waiting if (cost := self._timed(one)) is not None}
        if not costs or (len(costs) < len(waiting) and now_ns < self._judge_ns):
            return
        self._judge_ns = now_ns + round(ADMISSION_SECONDS * 1e9)
        band = [one.candidate(costs.get(one.name)) for one in playing]
        for one, verdict in zip(playing, admit(band, self._bars, self._cores), strict=True):
            if one in waiting:
                self._act_on(one, verdict, costs.get(one.name), now_ns)
        if all(self._watches[one.name].resting == "refused" for one in self._members):
            self.nobody = "nobody is left to play: this machine is too slow for each agent of the session"

    def _timed(self, one: Member) -> Cost | None:
        """Return what an agent's process that was timed and stands by has found."""
        duty = self._watches[one.name].duty
        if self._see(one, duty).state != STATE_MEASURED:
            return None
        status = self._statuses[one.name][duty % 2].read()
        usual = status.get("usual_seconds", 0.0)
        return Cost(status["final_seconds"], status["speculative_seconds"], status["continuation_seconds"], usual)

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
            self._hands.send(Command("grid", one.name, name=str(verdict.grid_beats)))
        if verdict.decision is Decision.LIGHTER:
            way = json.dumps(one.go_lighter(), ensure_ascii=False, default=str)
            self._hands.send(Command("lighter", one.name, name=way))  # so that the take tells who played
        self._obey(one, watch.start_over(now_ns))


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
