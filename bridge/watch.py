"""Decides what is to be done about an agent's processes: who is replaced, and who plays no more.

Each agent has a process on duty and, once that one plays, another that stands by with everything loaded (the design,
section 5). A :class:`Watch` is fed what can be seen of the two and answers with orders. It knows neither processes
nor clocks, so it is tested in virtual time; :mod:`bridge.supervise` sees and obeys.

============== ================================================= =================================
what           seen as                                           done
============== ================================================= =================================
ended          its process is gone                               the spare takes over
hangs          at one answer for two spans, half a second at     killed, the spare takes over
               least
stopped        idle, and no sign of life for a second            killed, the spare takes over
memory         more of its own than the session allows           killed, the spare takes over
faulty         three answers in a row that cannot be played      killed, the spare takes over
slow           eight spans in a row late                         killed, the spare takes over
three strikes  three of these in a row before a good answer      quarantine
refuses files  the first process says so                         it rests, and the others play
never born     the system starts no process                      no strike; tried again, ever more rarely
============== ================================================= =================================

Time in which nobody looked counts for nothing: what stood still then may only have had no turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from realtime.seat import STATE_ARMED, STATE_FAILED, STATE_LOADING, STATE_MEASURED

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
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Before a spare that has died is replaced, or one that was never born is tried again; doubled each time."""
SOUND_SECONDS = 60.0
"""A spare that has stood by for so long is not one that dies at once."""


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
    born
        Whether the system did start it.
    """

    exitcode: int | None = None
    state: int = STATE_LOADING
    heartbeat_ns: int = 0
    busy_since_ns: int = 0
    memory_bytes: int = 0
    born: bool = True


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


class _Pause:
    """A pause that is doubled each time, up to a bound."""

    def __init__(self) -> None:
        self._seconds = PAUSE_SECONDS

    def next(self) -> float:
        """Return how long the pause is this time."""
        seconds, self._seconds = self._seconds, min(LONGEST_PAUSE_SECONDS, 2 * self._seconds)
        return seconds


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
        self._row: Mapping[str, int] = {}  # the ledger's at the look before, if it was of this generation
        self._late_spans = LATE_SPANS
        self._in_time_seconds = 0.0
        self._birth_pause, self._birth_in_seconds = _Pause(), 0.0
        self._spare_pause, self._spare_in_seconds = _Pause(), 0.0
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

    def fail(self, now_ns: int, cause: str, text: str) -> list[Order]:
        """Give up the process on duty, for what only others can see; another is timed."""
        if self._failure is not None:
            return []
        self._failure, self._timed = _Failure(cause, text, now_ns), False
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
            return self._bear(seconds)
        if not one.born:
            self._birth_in_seconds = self._birth_pause.next()
            return []
        self._birth_pause = _Pause()
        self.armed = one.exitcode is None and one.state == STATE_ARMED
        self._timed |= _loaded(one) and self._failure is None
        if one.exitcode is not None:
            return self._gone(one, now_ns, ledger, seen)
        if self._failure is not None:
            return []  # it was killed, and is not gone yet
        if self.armed:
            self._serves(now_ns)
        found = self._trouble(one, seconds, self._agreed(ledger))
        if found is None:
            return []
        self._failure = _Failure(*found, now_ns)
        return self._kill(self.duty)

    def _bear(self, seconds: float) -> list[Order]:
        """Try again, in a while, to start one that the system did not start."""
        self._birth_in_seconds -= seconds
        if self._birth_in_seconds > 0:
            return []
        return [Order("spawn", self.duty, measure=not self._timed)]

    def _agreed(self, ledger: Mapping[str, int]) -> Mapping[str, int]:
        """Return what two looks in a row agree on: one may have come while the engine wrote of a new generation."""
        before, self._row = self._row, dict(ledger) if ledger["generation"] == self.duty else {}
        return {name: min(count, before.get(name, 0)) if self._row else 0 for name, count in ledger.items()}

    def _serves(self, now_ns: int) -> None:
        self._ever_armed = True
        if self._respawning is not None:
            failure, self._respawning = self._respawning, None
            self.respawns.append(Respawn(self.name, failure.cause, self.duty, failure.detected_ns, now_ns))

    def _trouble(self, one: Seen, seconds: float, row: Mapping[str, int]) -> tuple[str, str] | None:
        """Return the cause and the words if the process on duty has to go."""
        loading = self._load.look(_loaded(one), seconds)
        quiet = self._beat.look((self.duty, one.heartbeat_ns, one.busy_since_ns), seconds)
        busy = self._work.look((self.duty, one.busy_since_ns), seconds) if one.busy_since_ns else 0.0
        late = self._is_late(row, seconds)
        if loading > LOADING_SECONDS and not _loaded(one):
            return "loading", f"agent {self.name!r} has not loaded within {LOADING_SECONDS:.0f} s"
        if busy > self._hang_seconds:
            return "hang", f"agent {self.name!r} has worked at one answer for {busy:.1f} s"
        patience = STOPPED_SECONDS if one.state == STATE_ARMED else STANDBY_STOPPED_SECONDS
        if _loaded(one) and not one.busy_since_ns and quiet > patience:
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
        self._row = {}
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
        ready = one.state == STATE_MEASURED
        so_far = self._spare_load.look(ready, seconds)
        quiet = self._spare_beat.look((self.standing_by, one.heartbeat_ns), seconds)
        if ready and so_far > SOUND_SECONDS:
            self._spare_pause = _Pause()
        unready = not ready and so_far > LOADING_SECONDS
        stopped = ready and quiet > STANDBY_STOPPED_SECONDS
        too_large = bool(self._memory_bytes) and one.memory_bytes > self._memory_bytes
        if self.standing_by not in self._killed and (unready or stopped or too_large):
            return self._kill(self.standing_by)
        return []

    def _spare_gone(self, one: Seen) -> list[Order]:
        """Try again after a pause that grows; a spare's end is no strike."""
        assert self.standing_by is not None
        self._killed.discard(self.standing_by)
        self.standing_by = None
        self._spare_beat, self._spare_load = _Still(), _Still()
        self._spare_in_seconds = self._spare_pause.next()
        if self._spare_told or not one.born:  # who tried to start it says that
            return []
        self._spare_told = True
        what = "could not be loaded" if one.state == STATE_FAILED else how(one.exitcode)
        text = f"the spare process of agent {self.name!r} {what}; the agent plays on, and another spare is tried"
        return [Order("warn", text=text)]

    def _kill(self, *generations: int) -> list[Order]:
        orders = [Order("kill", number) for number in generations if number not in self._killed]
        self._killed.update(generations)
        return orders


def _loaded(one: Seen) -> bool:
    """Whether a process says that it is; any other word it may have left there is none."""
    return one.state in (STATE_MEASURED, STATE_ARMED)


def how(exitcode: int | None) -> str:
    """Say how a process ended."""
    code = exitcode or 0
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"
