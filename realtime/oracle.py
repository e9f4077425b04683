"""The factor oracle: where else the memory has gone through what was just played, and where it can go on.

After Allauzen, Crochemore and Raffinot, "Factor oracle" (SOFSEM 1999), and its use for improvising by Assayag and
Dubnov (Soft Computing 8, 2004); scenario search after Nika, Chemillier and Assayag, "ImproteK" (CIE 2016).

Events are numbered from 0 here; state ``e + 1`` of the oracle stands for event ``e``, state 0 for the start. All
walks are loops over flat integer arrays, and bounded. Nothing here draws chance or remembers what was played.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
ANY = -1
"""In a scenario: a place where any label will do."""
LONGEST_CONTEXT = 64
"""Common pasts are compared so far and no further."""


class FactorOracle:
    """A memory of labelled events that is built event by event, in linear time. One thread.

    Parameters
    ----------
    labels
        Non-negative integers, one an event.
    """

    def __init__(self, labels: Iterable[int] = ()) -> None:
        self._labels = array("q", [ANY])  # by state; the start has none
        self._suffix = array("q", [-1])
        self._lrs = array("q", [0])
        # Reverse suffix links and factor links as linked lists: the first of a state, then the next of the same.
        self._child, self._sibling = array("q", [-1]), array("q", [-1])
        self._link: dict[tuple[int, int], int] = {}
        self._frozen: Ints | None = None
        for label in labels:
            self.add(label)

    def __len__(self) -> int:
        return len(self._labels) - 1

    @property
    def labels(self) -> Ints:
        """Label of each event."""
        if self._frozen is None or len(self._frozen) != len(self):
            self._frozen = np.array(self._labels[1:], np.int64)
        return self._frozen

    @property
    def suffix_links(self) -> Ints:
        """Suffix link of each state 0 to N, as a state; -1 at the start."""
        return np.array(self._suffix, np.int64)

    @property
    def repeated_lengths(self) -> Ints:
        """For each state, how many events of its past it shares with the state its suffix link names (LRS)."""
        return np.array(self._lrs, np.int64)

    def add(self, label: int) -> None:
        """Learn one more event."""
        if label < 0:
            raise ValueError(f"oracle: label {label}; labels are 0 or more, as k-means numbers them")
        link, suffix = self._link, self._suffix
        state = len(self._labels)
        self._labels.append(label)
        link[state - 1, label] = state
        k = suffix[state - 1]
        while k > -1 and (k, label) not in link:
            link[k, label] = state
            k = suffix[k]
        target = 0 if k == -1 else link[k, label]
        suffix.append(target)
        self._lrs.append(self._common_past(state, target))
        self._child.append(-1)
        self._sibling.append(self._child[target])
        self._child[target] = state

    def _common_past(self, state: int, target: int) -> int:
        """Count the equal labels that lead to two states."""
        if target == 0:
            return 0
        if self._suffix[state - 1] == target - 1:
            return self._lrs[state - 1] + 1  # both went on from a pair that is known: nearly always
        labels, length = self._labels, 0
        while target - length > 0 and labels[state - length] == labels[target - length]:
            length += 1
        return length

    def follows(self, labels: Sequence[int]) -> bool:
        """Whether the oracle accepts a sequence: true of every stretch of the memory (and of a few others)."""
        state = 0
        for label in labels:
            found = self._link.get((state, label))
            if found is None:
                return False
            state = found
        return True

    def similar(self, event: int, limit: int = 64) -> Ints:
        """Return at most ``limit`` other events that end a similar past, those nearest in the suffix tree first.

        The ancestors of the event's state, longest common past first, each followed by its other descendants.
        """
        found: list[int] = []
        seen = {event + 1}
        above = event + 1
        while above > 0 and len(found) < limit:
            stack = [above]
            while stack and len(found) < limit:
                at = stack.pop()
                if at not in seen or at == above:
                    if at not in seen:
                        found.append(at - 1)
                        seen.add(at)
                    child = self._child[at]
                    while child > -1 and len(stack) < limit:
                        if child not in seen:
                            stack.append(child)
                        child = self._sibling[child]
            above = self._suffix[above]
        return np.array(found, np.int64)

    def continuations(self, event: int, limit: int = 64) -> tuple[Ints, Ints]:
        """Return the events that may follow ``event``, and how long a past each shares with it.

        The first is the next event itself, whose past is wholly shared (given as :data:`LONGEST_CONTEXT`).
        """
        similar = self.similar(event, limit)
        similar = similar[similar + 1 < len(self)]
        contexts = self.common_past(event, similar)
        if event + 1 < len(self):
            similar = np.concatenate(([event], similar))
            contexts = np.concatenate(([LONGEST_CONTEXT], contexts))
        return similar + 1, contexts

    def common_past(self, event: int, others: Ints) -> Ints:
        """Count, for each of ``others``, the equal labels that lead to it and to ``event`` (both included)."""
        labels = self.labels
        lengths = np.zeros(len(others), np.int64)
        alive = np.arange(len(others))
        for back in range(min(LONGEST_CONTEXT, event + 1)):
            alive = alive[others[alive] >= back]
            alive = alive[labels[others[alive] - back] == labels[event - back]]
            if not len(alive):
                break
            lengths[alive] += 1
        return lengths

    def prefixes(self, scenario: Sequence[int]) -> Ints:
        """Return, for every event, how much of the scenario's beginning can be played through from there.

        ``scenario`` is a sequence of labels, :data:`ANY` where any will do. From the right: what can be played
        from place j on at an event is 0 if its label is not the j-th, else 1 more than from j + 1 at the next.
        """
        labels = self.labels
        lengths = np.zeros(len(labels) + 1, np.int64)
        for label in reversed(scenario):
            lengths[:-1] = lengths[1:] + 1
            if label != ANY:
                lengths[:-1][labels != label] = 0
        return lengths[:-1]
