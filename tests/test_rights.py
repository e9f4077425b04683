"""The lead follows from rights and load."""

from __future__ import annotations

import pytest

from realtime import rights


@pytest.mark.parametrize(
    ("realtime", "late", "rate", "blocksize", "lead"),
    [
        (True, 0.0001, 48_000, 128, 512),
        (True, 0.0001, 48_000, 64, 256),
        (True, 0.0001, 48_000, 256, 1024),
        (True, 0.004, 48_000, 128, 1024),
        (False, 0.0001, 48_000, 128, 2048),
        (False, 0.0001, 44_100, 128, 2048),
        (True, 0.004, 96_000, 128, 2048),
        (True, 0.004, 48_000, 300, 1200),
    ],
)
def test_lead_follows_rights_and_load(realtime: bool, late: float, rate: int, blocksize: int, lead: int) -> None:
    assert rights.choose_lead(realtime, late, rate, blocksize) == lead
