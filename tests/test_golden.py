"""The golden render: what a small band plays today is what it played when the file was made."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

TOLERANCE = 1e-5
"""Bit-identity holds on one machine and build; across them, this."""
MAKE = Path(__file__).resolve().parent / "golden" / "make_golden.py"
REMAKE = "if that is meant, make it again: python tests/golden/make_golden.py"

Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return the script that made the file."""
    spec = importlib.util.spec_from_file_location("make_golden", MAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(script: ModuleType) -> Arrays:
    with np.load(script.GOLDEN, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def rendered(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    made: Arrays = script.render(tmp_path_factory.mktemp("golden"))
    return made


def test_the_agent_chooses_as_it_did(golden: Arrays, rendered: Arrays) -> None:
    assert rendered["units"].tolist() == golden["units"].tolist(), REMAKE


@pytest.mark.parametrize("stem", ["keys", "echo"])
def test_a_stem_sounds_as_it_did(golden: Arrays, rendered: Arrays, script: ModuleType, stem: str) -> None:
    assert rendered[stem].shape == golden[stem].shape == (script.FRAMES, 1)
    difference = np.abs(rendered[stem].astype(np.float64) - golden[stem].astype(np.float64))
    assert difference.max() <= TOLERANCE, f"differs from frame {(difference > TOLERANCE).argmax()} on; {REMAKE}"


def test_the_golden_file_is_worth_comparing_with(golden: Arrays, script: ModuleType) -> None:
    assert script.GOLDEN.stat().st_size < 300_000
    assert len(set(golden["units"].tolist())) >= 4
    for stem in ("keys", "echo"):
        sounding = np.abs(golden[stem]) > 0.001
        assert sounding.mean() > 0.2
