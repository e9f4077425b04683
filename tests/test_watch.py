"""What is decided about an agent's processes, in virtual time: what is seen of them, and what is ordered."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.watch import Order, Seen, Watch
from realtime.scheduler import LEDGER
from realtime.seat import STATE_ARMED, STATE_FAILED, STATE_MEASURED

TICK_NS = 20_000_000
SECOND_NS = 1_000_000_000
MB = 2**20


class Stage:
    """Plays the machine to one watch: processes that load, serve, hang and end as a test says."""

    def __init__(self, span_seconds: float = 0.5, memory_bytes: int = 100 * MB, *, spares: bool = True) -> None:
        self.watch = Watch("bass", span_seconds, memory_bytes, spares=spares)
        self.now_ns = 10 * SECOND_NS
        self.processes: dict[int, Seen] = {}
        self.ledger = dict.fromkeys(LEDGER, 0)
        self.seat = 0
        self.orders: list[Order] = []
        self.warned: list[str] = []
        self.frozen: set[int] = set()  # generations that give no sign of life
        self.may_spawn = True
        self.bears = True  # whether the system starts processes
        self.obey(self.watch.begin())

    def obey(self, orders: list[Order]) -> None:
        for order in orders:
            self.orders.append(order)
            if order.do == "spawn":
                assert order.generation not in self.processes or self.processes[order.generation].exitcode is not None
                self.processes[order.generation] = Seen() if self.bears else Seen(1, born=False)
            elif order.do == "kill":
                self.end(order.generation, -9)
            elif order.do == "seat":
                assert order.generation == self.seat + 1
                assert self.seat not in self.processes, "the one before is surely dead"
                self.seat = order.generation
                if self.state(order.generation) == STATE_MEASURED:
                    self.put(order.generation, state=STATE_ARMED)
                self.ledger |= {"generation": self.seat, "good": 0, "faulty_in_a_row": 0, "late_in_a_row": 0}
            elif order.do == "warn":
                self.warned.append(order.text)
        alive = [number for number, one in self.processes.items() if one.exitcode is None]
        assert len(alive) <= 2, "one on duty and one that stands by"

    def put(self, generation: int, **what: int) -> None:
        one = self.processes[generation]
        fields = {name: getattr(one, name) for name in one.__slots__}
        self.processes[generation] = Seen(**(fields | what))

    def state(self, generation: int) -> int:
        return self.processes[generation].state

    def end(self, generation: int, exitcode: int) -> None:
        self.put(generation, exitcode=exitcode)

    def look(self, seconds: float = 0.0) -> None:
        """Look again and again for so long; once if it is no time."""
        until = self.now_ns + round(seconds * SECOND_NS)
        while True:
            self.now_ns += TICK_NS
            for number, one in self.processes.items():
                if one.exitcode is None and number not in self.frozen and not one.busy_since_ns:
                    self.put(number, heartbeat_ns=self.now_ns)
            seen = dict(self.processes)
            orders = self.watch.look(self.now_ns, seen, self.ledger, may_spawn=self.may_spawn)
            for number, one in seen.items():
                if one.exitcode is not None:
                    del self.processes[number]
            self.obey(orders)
            if self.now_ns >= until:
                return

    def arm(self) -> None:
        """Let the process on duty load, be admitted and serve."""
        self.put(self.watch.duty, state=STATE_MEASURED)
        self.look()
        self.put(self.watch.duty, state=STATE_ARMED)
        self.look()

    def with_spare(self) -> Stage:
        """Bring it to where one serves, has answered, and another stands by."""
        self.arm()
        self.put(self.watch.duty + 1, state=STATE_MEASURED)
        self.ledger["good"] = 5
        self.look()
        self.orders.clear()
        return self

    def did(self) -> list[tuple[str, int]]:
        found = [(order.do, order.generation) for order in self.orders if order.do != "warn"]
        self.orders.clear()
        return found


# Beginning


def test_a_spare_is_loaded_once_the_agent_plays_and_untimed() -> None:
    stage = Stage()
    stage.look(1)
    assert stage.orders == [Order("spawn", 0, measure=True)]
    stage.put(0, state=STATE_MEASURED)
    stage.look(3)
    assert len(stage.orders) == 1, "it is not admitted yet"
    stage.may_spawn = False
    stage.put(0, state=STATE_ARMED)
    stage.look(1)
    assert len(stage.orders) == 1, "another agent's spare is loading"
    stage.may_spawn = True
    stage.look()
    assert stage.orders[1:] == [Order("spawn", 1, measure=False)]


def test_who_refuses_its_files_is_not_tried_again() -> None:
    stage = Stage()
    stage.put(0, state=STATE_FAILED)
    stage.end(0, 0)
    stage.look(5)
    assert stage.did() == [("spawn", 0)]
    assert stage.watch.resting == "failed"
    assert stage.warned == [], "it has said itself what is wrong"


def test_a_file_that_kills_whoever_opens_it_gets_three_tries() -> None:
    stage = Stage()
    for _ in range(3):
        stage.look()
        stage.end(stage.watch.duty, -11)
    stage.look(5)
    assert [order for order in stage.orders if order.do == "spawn"] == [
        Order("spawn", number, measure=True) for number in range(3)
    ]
    assert stage.watch.resting == "quarantined"
    assert stage.did()[-1] == ("quarantine", -1)
    assert "was killed by signal 11; that was the third time" in stage.warned[-1]


def test_what_takes_a_minute_to_load_is_given_up() -> None:
    stage = Stage()
    stage.look(59)
    assert stage.did() == [("spawn", 0)]
    stage.look(2)
    assert stage.did() == [("kill", 0), ("spawn", 1), ("seat", 1)]
    assert "has not loaded within 60 s" in stage.warned[0]


def test_a_change_of_plan_starts_over_and_is_no_strike() -> None:
    stage = Stage()
    stage.put(0, state=STATE_MEASURED)
    stage.look()
    stage.orders.clear()
    stage.obey(stage.watch.start_over(stage.now_ns))
    stage.look()
    assert stage.orders == [Order("kill", 0), Order("spawn", 1, measure=True), Order("seat", 1)]
    assert (stage.watch.strikes, stage.warned) == (0, [])


# Faults


def test_one_that_is_killed_is_replaced_at_once_by_its_spare() -> None:
    stage = Stage().with_spare()
    stage.end(0, -9)
    found_ns = stage.now_ns + TICK_NS
    stage.look()
    assert stage.did() == [("seat", 1)]
    stage.look()
    assert stage.did() == [("spawn", 2)], "and another is loaded to stand by"
    [respawn] = stage.watch.respawns
    assert (respawn.agent, respawn.cause, respawn.generation) == ("bass", "exit", 1)
    assert (respawn.detected_ns, respawn.armed_ns) == (found_ns, found_ns + TICK_NS)
    assert stage.warned == ["the process of agent 'bass' was killed by signal 9; another takes over"]


def test_a_spare_that_still_loads_takes_over_and_goes_on_loading() -> None:
    stage = Stage()
    stage.arm()
    stage.ledger["good"] = 1
    stage.end(0, -9)
    stage.look()
    assert stage.did()[-1] == ("seat", 1)
    stage.look(3)
    assert stage.did() == [], "no spare for one that does not serve"
    assert stage.watch.respawns == []
    stage.put(1, state=STATE_ARMED)
    stage.look()
    assert stage.did() == [("spawn", 2)]
    assert stage.watch.respawns[0].seconds == pytest.approx(3.04, abs=0.03)


def test_without_spares_another_process_is_started() -> None:
    stage = Stage(spares=False)
    stage.arm()
    stage.ledger["good"] = 1
    stage.look(1)
    assert stage.did() == [("spawn", 0)]
    stage.end(0, 1)
    stage.look()
    assert stage.did() == [("spawn", 1), ("seat", 1)]
    assert "ended with code 1; another is loaded" in stage.warned[0]


def test_one_that_dies_with_its_spare_is_replaced_by_a_new_process() -> None:
    stage = Stage().with_spare()
    stage.end(0, -9)
    stage.end(1, -9)
    stage.look()
    assert stage.did() == [("spawn", 1), ("seat", 1)]


@pytest.mark.parametrize(("span_seconds", "patience"), [(0.1, 0.5), (0.5, 1.0), (2.0, 4.0)])
def test_one_that_works_at_an_answer_for_two_spans_hangs(span_seconds: float, patience: float) -> None:
    stage = Stage(span_seconds).with_spare()
    stage.put(0, busy_since_ns=stage.now_ns)
    stage.look(patience - 0.1)
    assert stage.did() == []
    stage.look(0.3)
    assert stage.did()[:2] == [("kill", 0), ("seat", 1)]
    assert "has worked at one answer for" in stage.warned[0]


def test_one_that_is_busy_with_one_answer_after_the_other_does_not_hang() -> None:
    stage = Stage().with_spare()
    for _ in range(20):
        stage.put(0, busy_since_ns=stage.now_ns)
        stage.look(0.9)
    assert stage.did() == []


def test_one_that_is_stopped_is_killed() -> None:
    stage = Stage().with_spare()
    stage.frozen.add(0)
    stage.look(0.9)
    assert stage.did() == []
    stage.look(0.3)
    assert stage.did()[:2] == [("kill", 0), ("seat", 1)]
    assert "no sign of life" in stage.warned[0]


def test_that_the_supervisor_was_held_up_is_not_held_against_anybody() -> None:
    stage = Stage().with_spare()
    stage.put(0, busy_since_ns=stage.now_ns)
    for _ in range(5):
        stage.now_ns += 5 * SECOND_NS
        stage.look()
    assert stage.did() == []


def test_one_that_uses_too_much_memory_is_killed() -> None:
    stage = Stage(memory_bytes=100 * MB).with_spare()
    stage.put(0, memory_bytes=100 * MB)
    stage.look(1)
    assert stage.did() == []
    stage.put(0, memory_bytes=101 * MB)
    stage.look()
    stage.look()
    assert stage.did()[:2] == [("kill", 0), ("seat", 1)]
    assert "uses 101 MB of memory, where 100 MB are allowed" in stage.warned[0]


def test_three_answers_that_cannot_be_played_end_a_process() -> None:
    stage = Stage().with_spare()
    stage.ledger["faulty_in_a_row"] = 2
    stage.look(1)
    assert stage.did() == []
    stage.ledger["faulty_in_a_row"] = 3
    stage.look()
    stage.look()
    stage.look()
    assert stage.did()[:2] == [("kill", 0), ("seat", 1)]
    assert stage.watch.strikes == 0, "it has played before"


def test_what_the_ledger_says_of_another_generation_does_not_count() -> None:
    stage = Stage().with_spare()
    stage.ledger |= {"generation": 7, "faulty_in_a_row": 9, "late_in_a_row": 99}
    stage.look(1)
    assert stage.did() == []


def test_a_row_that_is_seen_once_is_held_against_nobody() -> None:
    """It may have been read while it was written: the figures of one generation, the number of the next."""
    stage = Stage().with_spare()
    for _ in range(5):
        stage.ledger |= {"faulty_in_a_row": 9, "late_in_a_row": 99}
        stage.look()
        stage.ledger |= {"faulty_in_a_row": 0, "late_in_a_row": 0}
        stage.look()
    assert stage.did() == []
    stage.end(0, -9)
    stage.ledger |= {"faulty_in_a_row": 9}
    stage.look()
    stage.ledger |= {"faulty_in_a_row": 9, "generation": 1}
    stage.look()
    stage.ledger |= {"faulty_in_a_row": 0}
    stage.look(1)
    assert ("kill", 1) not in stage.did()


def test_a_slow_death_is_noticed_and_a_slow_machine_is_left_in_peace() -> None:
    stage = Stage().with_spare()
    for late_spans in (8, 16, 32):
        stage.ledger |= {"late_in_a_row": late_spans - 1, "good": 1}
        stage.look(1)
        assert stage.did() == []
        stage.ledger["late_in_a_row"] = late_spans
        for _ in range(4):  # seen, and seen again; gone; another spare
            stage.look()
        assert ("kill", stage.watch.duty - 1) in stage.did()
        stage.put(stage.watch.duty + 1, state=STATE_MEASURED)
    stage.look(61)
    stage.orders.clear()
    stage.ledger |= {"late_in_a_row": 8, "good": 1}
    stage.look()
    stage.look()
    assert [do for do, _ in stage.did()] == ["kill"], "it was in time for a minute, so eight are enough again"


def test_three_strikes_and_the_agent_is_in_quarantine() -> None:
    stage = Stage().with_spare()
    stage.end(0, -9)
    stage.look()
    for strike in (1, 2, 3):
        assert stage.watch.resting == ""
        if stage.state(stage.watch.duty) != STATE_ARMED:
            stage.arm()
        stage.end(stage.watch.duty, -9)
        stage.look()
        assert stage.watch.strikes == strike
    stage.look(1)
    assert stage.watch.resting == "quarantined"
    assert ("quarantine", -1) in stage.did()
    assert not any(one.exitcode is None for one in stage.processes.values()), "its spare goes too"
    assert stage.warned[-1].endswith("so it is left out from now on, and the others play on")
    stage.look(5)
    assert stage.did() == []


def test_a_good_answer_in_between_forgives() -> None:
    stage = Stage().with_spare()
    for _ in range(10):
        stage.end(stage.watch.duty, -9)
        stage.look()
        if stage.state(stage.watch.duty) != STATE_ARMED:
            stage.arm()
        stage.look()
        stage.ledger["good"] = 1
    assert (stage.watch.resting, stage.watch.strikes) == ("", 0)
    assert len(stage.watch.respawns) == 10


def test_a_process_that_was_never_born_is_no_strike() -> None:
    stage = Stage(spares=False)
    stage.arm()
    stage.orders.clear()
    stage.bears = False
    stage.end(0, -9)
    stage.look()
    assert (stage.did(), stage.watch.strikes) == ([("spawn", 1), ("seat", 1)], 1)
    begun_ns = stage.now_ns
    tries: list[float] = []
    for _ in range(9):
        while not stage.did():
            stage.look()
        tries.append((stage.now_ns - begun_ns) / SECOND_NS)
    pauses = [round(after - before) for before, after in pairwise([0, *tries])]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (stage.watch.strikes, stage.watch.resting) == (1, "")
    stage.bears = True
    stage.look(61)
    assert stage.did() == [("spawn", 1)]
    stage.arm()
    assert [respawn.generation for respawn in stage.watch.respawns] == [1]


def test_the_first_process_is_tried_again_too_and_timed() -> None:
    stage = Stage()
    stage.processes[0] = Seen(1, born=False)
    stage.look(2)
    assert stage.orders == [Order("spawn", 0, measure=True)] * 2


def test_one_that_only_says_that_it_has_failed_is_given_up() -> None:
    stage = Stage(spares=False)
    for turn in range(59 * 5):
        stage.put(0, state=STATE_FAILED + turn % 3)  # and what no state is
        stage.look(0.2)
    assert stage.did() == [("spawn", 0)]
    stage.look(2)
    assert stage.did() == [("kill", 0), ("spawn", 1), ("seat", 1)]


def test_figures_that_no_process_can_have_are_a_strike_and_timed_again() -> None:
    stage = Stage()
    for generation in range(3):
        stage.put(generation, state=STATE_MEASURED)
        stage.look()
        stage.obey(stage.watch.fail(stage.now_ns, "figures", "it says nonsense"))
        assert stage.watch.fail(stage.now_ns, "figures", "it says nonsense") == []
        stage.look()
    assert [order for order in stage.orders if order.do == "spawn"] == [
        Order("spawn", number, measure=True) for number in range(3)
    ]
    assert stage.watch.resting == "quarantined"
    assert stage.warned[0].startswith("it says nonsense; another is loaded")


# The one that stands by


def test_spares_that_die_are_replaced_ever_more_rarely_and_told_once() -> None:
    stage = Stage()
    stage.arm()
    births: list[float] = []
    for _ in range(8):
        while 1 not in stage.processes:
            stage.look()
        births.append(stage.now_ns / SECOND_NS)
        stage.put(1, state=STATE_FAILED)
        stage.end(1, 0)
        stage.look()
    pauses = [round(after - before) for before, after in pairwise(births)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60]
    assert len(stage.warned) == 1
    assert "could not be loaded; the agent plays on" in stage.warned[0]
    assert stage.watch.strikes == 0
    assert stage.watch.duty == 0


def test_a_spare_that_dies_as_soon_as_it_stands_by_is_replaced_ever_more_rarely() -> None:
    stage = Stage()
    stage.arm()
    births: list[float] = []
    for stood_seconds in (1, 1, 1, 1, 61, 1):
        while 1 not in stage.processes:
            stage.look()
        births.append(stage.now_ns / SECOND_NS)
        stage.put(1, state=STATE_MEASURED)
        stage.look(stood_seconds)
        stage.end(1, -9)
        stage.look()
    pauses = [round(after - before) for before, after in pairwise(births)]
    assert pauses == [1 + 1, 1 + 2, 1 + 4, 1 + 8, 61 + 1]


def test_a_spare_that_is_never_born_is_tried_again_and_told_by_who_tried() -> None:
    stage = Stage()
    stage.bears = False
    stage.arm()
    stage.look(16)
    assert [order.do for order in stage.orders[1:]] == ["spawn"] * 5
    assert stage.watch.strikes == 0
    assert stage.warned == []


def test_a_spare_is_held_to_the_same_limits() -> None:
    for trouble in ("stopped", "memory", "loading"):
        stage = Stage()
        stage.arm()
        stage.orders.clear()
        if trouble == "stopped":
            stage.put(1, state=STATE_MEASURED)
            stage.frozen.add(1)
            stage.look(2.5)
        elif trouble == "memory":
            stage.put(1, memory_bytes=101 * MB)
            stage.look()
        else:
            stage.look(61)
        assert stage.did()[0] == ("kill", 1), trouble
        assert stage.watch.duty == 0


def test_a_spare_on_its_way_out_is_not_called_up() -> None:
    stage = Stage().with_spare()
    stage.put(1, memory_bytes=101 * MB)
    orders = stage.watch.look(stage.now_ns, dict(stage.processes), stage.ledger)
    assert orders == [Order("kill", 1)]
    stage.end(0, -9)
    orders = stage.watch.look(stage.now_ns, {0: stage.processes[0], 1: stage.processes[1]}, stage.ledger)
    assert orders[:2] == [Order("spawn", 1), Order("seat", 1)]


# Whatever happens


EVENTS = ["die", "spare dies", "hang", "stop", "load", "good", "faulty", "grow", "births"]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 3)), max_size=40))
def test_whatever_happens_one_serves_at_most_and_the_seat_goes_up_by_one(script: list[tuple[str, float]]) -> None:
    """The stage itself asserts: never more than two processes, no seat for a successor before the other is gone."""
    stage = Stage()
    for what, seconds in script:
        duty, spare = stage.watch.duty, stage.watch.duty + 1
        on_duty = stage.processes.get(duty)
        if what == "births":
            stage.bears = not stage.bears
        elif what == "good":
            stage.ledger["good"] += 1
        elif what == "faulty":
            stage.ledger["faulty_in_a_row"] += 1
        elif what == "spare dies" and spare in stage.processes:
            stage.end(spare, -9)
        elif what == "load":
            for number in list(stage.processes):
                stage.put(number, state=STATE_ARMED if number == duty else STATE_MEASURED)
        elif on_duty is not None and on_duty.exitcode is None:
            if what == "die":
                stage.end(duty, -9)
            elif what == "hang":
                stage.put(duty, busy_since_ns=stage.now_ns)
            elif what == "stop":
                stage.frozen.add(duty)
            elif what == "grow":
                stage.put(duty, memory_bytes=500 * MB)
        stage.look(seconds)
    assert stage.seat == stage.watch.duty
    stage.bears = True
    while not stage.watch.resting and stage.watch.duty not in stage.processes:
        stage.look()
        assert stage.watch.strikes < 3
    if stage.watch.resting:
        stage.look()
        assert not any(one.exitcode is None for one in stage.processes.values())
    else:
        assert stage.watch.duty in stage.processes
