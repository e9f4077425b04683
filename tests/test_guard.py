"""Who may speak, and how much: buckets, tokens, and tables that do not grow."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.guard import (
    ALL_BURST,
    ANSWERS_BURST,
    FOREIGN_BURST,
    IDLE_NS,
    QUESTIONS_BURST,
    SECOND_NS,
    SENDER_BURST,
    SENDER_RATE,
    SENDERS,
    SESSION_SECONDS,
    SHARE_BURST,
    STRANGERS_BURST,
    Guard,
    GuardError,
    Notices,
    TokenBucket,
    check_entrance,
    is_local,
    make_token,
)

HERE, THERE = ("127.0.0.1", 9000), ("192.168.1.7", 9000)
TOKEN = "a-token-of-mine"


# Buckets


def test_a_bucket_lets_its_burst_through_and_then_its_rate() -> None:
    bucket = TokenBucket(10.0, 3)
    assert [bucket.take(0) for _ in range(5)] == [True, True, True, False, False]
    assert [bucket.take(100_000_000 * n) for n in range(1, 4)] == [True, True, True]
    assert [bucket.take(10 * SECOND_NS) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.integers(0, 10**10), max_size=200))
def test_a_bucket_never_lets_more_through_than_it_may(times: list[int]) -> None:
    bucket = TokenBucket(5.0, 2)
    taken = [time_ns for time_ns in sorted(times) if bucket.take(time_ns)]
    for first, last in ((taken[i], taken[j]) for i in range(len(taken)) for j in range(i, len(taken))):
        count = sum(first <= time_ns <= last for time_ns in taken)
        assert count <= 2 + 5 * (last - first) / SECOND_NS + 1e-6


def test_a_clock_that_goes_back_refills_nothing() -> None:
    bucket = TokenBucket(1.0, 1)
    assert bucket.take(10 * SECOND_NS)
    assert not bucket.take(0)
    assert not bucket.take(SECOND_NS // 2)


# How much


def test_one_who_is_known_may_send_his_burst_and_then_his_rate() -> None:
    guard = Guard()
    guard.meet(HERE, 0)
    assert sum(guard.passes(HERE, 0) for _ in range(2 * SENDER_BURST)) == SENDER_BURST
    assert sum(guard.passes(HERE, SECOND_NS // 10) for _ in range(500)) == round(SENDER_RATE / 10)


def test_strangers_share_what_they_may_send() -> None:
    guard = Guard()
    assert sum(guard.passes(("127.0.0.1", port), 0) for port in range(1, 20_000)) == STRANGERS_BURST
    guard = Guard()
    assert sum(guard.passes(HERE, 0) for _ in range(1000)) == SHARE_BURST
    far = Guard(TOKEN)
    assert sum(far.passes((f"10.0.{n // 250}.{n % 250}", 5), 0) for n in range(5000)) == FOREIGN_BURST


def test_a_stranger_of_another_machine_is_one_whatever_his_port() -> None:
    guard = Guard(TOKEN)
    assert sum(guard.passes(("10.0.0.1", port), 0) for port in range(1, 5000)) == SHARE_BURST


def test_all_together_may_send_no_more_than_all_may() -> None:
    guard = Guard()
    for port in range(1, SENDERS + 1):
        guard.meet(("127.0.0.1", port), 0)
    passed = sum(guard.passes(("127.0.0.1", 1 + n % SENDERS), 0) for n in range(SENDERS * SENDER_BURST))
    assert passed == ALL_BURST


def test_a_flood_of_strangers_does_not_crowd_out_one_who_is_known() -> None:
    guard, heard = Guard(), 0
    guard.meet(HERE, 0)
    for n in range(200_000):  # two seconds of 100,000 a second
        now_ns = n * 10_000
        if guard.passes(("127.0.0.1", 10_000 + n % 50_000), now_ns):
            guard.meet(("127.0.0.1", 10_000 + n % 50_000), now_ns)
        if n % 1000 == 0:
            heard += guard.passes(HERE, now_ns)
            guard.meet(HERE, now_ns)
    assert heard == 200


def test_a_million_senders_take_no_memory() -> None:
    guard = Guard(TOKEN)
    tracemalloc.start()
    try:
        for n in range(5000):
            speak(guard, n)
        before = tracemalloc.get_traced_memory()[0]
        for n in range(5000, 60_000):
            speak(guard, n)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(guard) <= 2 * SENDERS
    assert grown < 20_000


def speak(guard: Guard, number: int) -> None:
    """Be one of many, of this machine and of others, whom nobody has seen; now and then one says the token."""
    now_ns = number * 1_000_000
    host = "127.0.0.1" if number % 2 else f"10.{number % 256}.{number // 256 % 256}.1"
    sender = (host, 1024 + number % 60_000)
    if guard.passes(sender, now_ns) and guard.trusts(sender, now_ns):
        guard.meet(sender, now_ns)
    if number % 50 == 0:
        guard.greet(("10.1.1.1", 1024 + number % 60_000), TOKEN, 0, now_ns)
    guard.may_answer(sender, now_ns)


def test_errors_and_questions_are_answered_up_to_a_rate() -> None:
    guard = Guard()
    guard.meet(HERE, 0)
    assert sum(guard.may_answer(HERE, 0) for _ in range(1000)) == ANSWERS_BURST
    assert sum(guard.may_ask(HERE, 0) for _ in range(1000)) == QUESTIONS_BURST
    assert sum(guard.may_answer(("127.0.0.1", port), 0) for port in range(1, 1000)) == ANSWERS_BURST


# Who


def test_this_machine_is_trusted_and_another_has_to_say_the_token() -> None:
    guard = Guard(TOKEN)
    assert guard.trusts(HERE, 0)
    assert not guard.trusts(THERE, 0)
    with pytest.raises(GuardError, match="not this session's token"):
        guard.greet(THERE, "another-one", 0, 0)
    assert not guard.trusts(THERE, 0)
    guard.greet(THERE, TOKEN, 0, 0)
    assert guard.trusts(THERE, 0)
    assert not guard.trusts(("192.168.1.7", 9001), 0)  # each sender for himself


def test_without_a_token_no_other_machine_gets_in() -> None:
    for said in ("", "None", TOKEN):
        with pytest.raises(GuardError):
            Guard().greet(THERE, said, 0, 0)


def test_a_session_is_over_after_a_long_silence() -> None:
    guard, end_ns = Guard(TOKEN), SESSION_SECONDS * SECOND_NS
    guard.greet(THERE, TOKEN, 0, 0)
    guard.meet(THERE, end_ns)
    assert guard.trusts(THERE, 2 * end_ns)
    assert not guard.trusts(THERE, 2 * end_ns + 1)
    assert len(guard) == 0


def test_the_table_of_those_who_said_the_token_is_bounded() -> None:
    guard = Guard(TOKEN)
    for port in range(1, 1000):
        guard.greet(("10.0.0.1", port), TOKEN, 0, port)
    assert len(guard) == SENDERS
    assert guard.trusts(("10.0.0.1", 999), 1000)
    assert not guard.trusts(("10.0.0.1", 1), 1000)


def test_one_of_this_machine_who_is_silent_loses_his_place_to_another() -> None:
    guard = Guard()
    for port in range(1, SENDERS + 1):
        guard.meet(("127.0.0.1", port), 0)
    guard.meet(HERE, IDLE_NS)
    with pytest.raises(GuardError, match="are known already"):
        guard.greet(HERE, "", 7000, IDLE_NS)
    guard.meet(("127.0.0.1", 1), IDLE_NS)
    guard.greet(HERE, "", 7000, IDLE_NS + 1)
    assert guard.way_back(HERE) == ("127.0.0.1", 7000)
    assert len(guard) == SENDERS


def test_answers_go_where_the_sender_said_but_never_to_another_host() -> None:
    guard = Guard(TOKEN)
    assert guard.way_back(THERE) == THERE
    guard.greet(THERE, TOKEN, 7001, 0)
    assert guard.way_back(THERE) == ("192.168.1.7", 7001)
    guard.greet(("::1", 5, 0, 0), "", 7002, 0)  # type: ignore[arg-type]
    assert guard.way_back(("::1", 5, 0, 0)) == ("::1", 7002, 0, 0)  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("192.168.1.1", False),
        ("1.127.0.1", False),
        ("", False),
    ],
)
def test_this_machine_is_told_from_others(host: str, local: bool) -> None:
    assert is_local(host) is local


# The entrance


@pytest.mark.parametrize(
    ("bind", "token"), [("127.0.0.1", ""), ("::1", ""), ("0.0.0.0", TOKEN), ("127.0.0.1", TOKEN)]
)
def test_what_may_be_listened_on(bind: str, token: str) -> None:
    check_entrance(bind, token)


@pytest.mark.parametrize(
    ("bind", "token", "words"),
    [
        ("0.0.0.0", "", "open to other machines, and there is no token"),
        ("192.168.1.2", "", "and there is no token"),
        ("0.0.0.0", "short", "5 characters; it takes 8 to 128"),
        ("0.0.0.0", "äöüäöüäöü", "printable ASCII"),
        ("0.0.0.0", "x" * 200, "200 characters"),
        ("localhost", "", "no address of an interface"),
        ("", "", "no address of an interface"),
        ("256.0.0.1", TOKEN, "no address of an interface"),
    ],
)
def test_what_may_not_is_said(bind: str, token: str, words: str) -> None:
    with pytest.raises(GuardError, match=words):
        check_entrance(bind, token)


def test_a_new_token_may_be_one() -> None:
    check_entrance("0.0.0.0", make_token())
    assert make_token() != make_token()


# The log


def test_a_kind_is_told_once_a_second_with_how_many_were_left_out() -> None:
    lines: list[str] = []
    notices = Notices(lines.append)
    for n in range(25):
        notices.say("bad", f"bad {n}", n * SECOND_NS // 10)
    notices.say("other", "other", 0)
    assert lines == ["bad 0", "bad 10 (and 9 more of the kind)", "bad 20 (and 9 more of the kind)", "other"]
