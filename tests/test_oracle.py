from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.oracle import ANY, LONGEST_CONTEXT, FactorOracle

words = st.lists(st.integers(0, 3), max_size=60)
nonempty = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def naive_oracle(labels: list[int]) -> tuple[list[dict[int, int]], list[int]]:
    """Build the oracle as Allauzen et al. write it down: transitions by state, and suffix links."""
    transitions: list[dict[int, int]] = [{}]
    suffix = [-1]
    for state, label in enumerate(labels, 1):
        transitions.append({})
        transitions[state - 1][label] = state
        k = suffix[state - 1]
        while k > -1 and label not in transitions[k]:
            transitions[k][label] = state
            k = suffix[k]
        suffix.append(0 if k == -1 else transitions[k][label])
    return transitions, suffix


def shared_past(labels: list[int], a: int, b: int) -> int:
    length = 0
    while min(a, b) - length >= 0 and labels[a - length] == labels[b - length]:
        length += 1
    return length


def accepted(transitions: list[dict[int, int]], word: list[int]) -> bool:
    state: int | None = 0
    for label in word:
        state = None if state is None else transitions[state].get(label)
    return state is not None


@given(words, words)
def test_equals_the_naive_oracle(labels: list[int], word: list[int]) -> None:
    oracle = FactorOracle(labels)
    transitions, suffix = naive_oracle(labels)
    assert oracle.suffix_links.tolist() == suffix
    assert oracle.follows(word) == accepted(transitions, word)


@given(nonempty, st.data())
def test_accepts_every_stretch_of_the_memory(labels: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(labels)))
    end = data.draw(st.integers(start, len(labels)))
    assert FactorOracle(labels).follows(labels[start:end])


@given(nonempty)
def test_repeated_length_is_the_past_shared_with_the_suffix_link(labels: list[int]) -> None:
    oracle = FactorOracle(labels)
    for state, (suffix, length) in enumerate(zip(oracle.suffix_links, oracle.repeated_lengths, strict=True)):
        assert length == (shared_past(labels, state - 1, suffix - 1) if suffix > 0 else 0)


@given(nonempty, st.data())
def test_similar_events_are_all_of_the_subtree_when_nothing_limits(labels: list[int], data: st.DataObject) -> None:
    event = data.draw(st.integers(0, len(labels) - 1))
    suffix = naive_oracle(labels)[1]

    def top(state: int) -> int:
        while suffix[state] > 0:
            state = suffix[state]
        return state

    expected = {s - 1 for s in range(1, len(suffix)) if top(s) == top(event + 1)} - {event}
    similar = FactorOracle(labels).similar(event, limit=1000)
    assert set(similar.tolist()) == expected
    assert len(similar) == len(expected)


@given(nonempty, st.data(), st.integers(1, 5))
def test_continuations_are_bounded_and_know_their_past(labels: list[int], data: st.DataObject, limit: int) -> None:
    event = data.draw(st.integers(0, len(labels) - 1))
    units, contexts = FactorOracle(labels).continuations(event, limit)
    assert len(units) <= limit + 1
    assert len(set(units.tolist())) == len(units)
    for unit, context in zip(units.tolist(), contexts.tolist(), strict=True):
        assert 0 <= unit < len(labels)
        if unit == event + 1:
            assert context == LONGEST_CONTEXT
        else:
            assert context == min(LONGEST_CONTEXT, shared_past(labels, event, unit - 1)) > 0


@settings(max_examples=200)
@given(words, st.lists(st.integers(-1, 3), min_size=1, max_size=8))
def test_prefixes_equal_a_plain_search(labels: list[int], scenario: list[int]) -> None:
    def played(event: int) -> int:
        length = 0
        while (
            length < len(scenario)
            and event + length < len(labels)
            and scenario[length] in (ANY, labels[event + length])
        ):
            length += 1
        return length

    assert FactorOracle(labels).prefixes(scenario).tolist() == [played(event) for event in range(len(labels))]


def test_it_can_go_on_learning() -> None:
    labels = [0, 1, 2, 0, 1, 3, 0, 1]
    oracle = FactorOracle(labels[:5])
    assert oracle.prefixes([0, 1]).tolist() == [2, 0, 0, 2, 0]
    for label in labels[5:]:
        oracle.add(label)
    assert oracle.prefixes([0, 1]).tolist() == [2, 0, 0, 2, 0, 0, 2, 0]
    assert oracle.suffix_links.tolist() == FactorOracle(labels).suffix_links.tolist()


def test_a_hundred_thousand_equal_events_need_no_recursion() -> None:
    oracle = FactorOracle(np.zeros(100_000, int).tolist())
    assert oracle.repeated_lengths[-1] == 99_999
    units, contexts = oracle.continuations(50_000)
    assert len(units) == 65
    assert contexts.min() == LONGEST_CONTEXT


def test_negative_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        FactorOracle([0, -1])
