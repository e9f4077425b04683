"""The suites ``memory`` and ``start``: what is planted is found, what cannot be said is not said."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import bar_span, request_for

from realtime.clock import TempoMap
from realtime.protocols import StreamSpec

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture(autouse=True)
def tools() -> Any:
    """Let suites be imported as their runner imports them."""
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def run(suite: Any, /, **changes: Any) -> Any:
    """Return half an hour of a session that holds what it held, but for noise."""
    noise = np.random.default_rng(1)
    looks = [(10.0 * k, 50_000 + float(noise.normal(0, 20))) for k in range(180)]
    facts: dict[str, Any] = {
        "where": "nowhere", "seconds": 1800.0, "memory": {"engine": looks},
        "blocks": [(3750.0 * k, 90_000 + float(noise.integers(0, 40))) for k in range(180)],
        "finals": 1800, "late": 0, "compute_seconds": [0.136] * 1800, "control_late": 0.0,
    }  # fmt: skip
    return suite.Run(**facts | changes)


def test_a_process_that_grows_is_found_and_one_that_does_not_passes() -> None:
    memory = importlib.import_module("bench_memory")
    clean = run(memory)
    [row] = memory.growth_rows(clean, False)
    assert row.ok
    assert abs(row.value) < 60
    grows = [(at, held + 300 * at / 1200) for at, held in clean.memory["engine"]]
    early = [(at, held + 20_000 * min(1.0, at / 500)) for at, held in clean.memory["engine"]]
    rows = {row.name: row for row in memory.growth_rows(run(memory, memory={"grows": grows, "early": early}), False)}
    assert rows["growth of grows"].value == pytest.approx(300, abs=70)
    assert rows["growth of grows"].ok is False
    assert rows["growth of early"].ok, "before minute 10 caches fill"
    [short] = memory.growth_rows(run(memory, memory={"late": grows[-6:]}), False)
    assert (short.value, short.ok) == (None, None)
    assert all(row.ok is None for row in memory.growth_rows(clean, True))


def test_blocks_that_the_engine_keeps_are_found() -> None:
    memory = importlib.import_module("bench_memory")
    clean = run(memory)
    assert memory.blocks_row(clean, False).ok
    leaks = [(mixed, held + mixed / 1000) for mixed, held in clean.blocks]
    row = memory.blocks_row(run(memory, blocks=leaks), False)
    assert row.value == pytest.approx(100, abs=10)
    assert row.ok is False
    assert memory.blocks_row(run(memory, blocks=[]), False).value is None


@pytest.mark.parametrize(
    ("late", "compute", "control", "ok"),
    [
        (0, 0.136, 0.0, True),
        (1, 0.136, 0.0, True),
        (4, 0.136, 0.0, False),
        (4, 0.136, 0.01, None),
        (0, 0.150, 0.0, None),
    ],
)
def test_late_finals_are_judged_where_the_model_keeps_its_share(
    late: int, compute: float, control: float, ok: bool | None
) -> None:
    memory = importlib.import_module("bench_memory")
    row = memory.late_row(run(memory, late=late, compute_seconds=[compute] * 100, control_late=control), False)
    assert row.value == pytest.approx(late / 1.8)
    assert row.ok is ok


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells it")
def test_what_a_process_holds_is_seen() -> None:
    memory = importlib.import_module("bench_memory")
    before = memory.anonymous_kb(os.getpid())
    held = np.ones(200 << 20, np.uint8)  # more than the allocator may have kept from before
    assert memory.anonymous_kb(os.getpid()) - before == pytest.approx(200 * 1024, abs=8192)
    assert len(held)
    assert memory.anonymous_kb(1 << 30) is None


def test_the_time_that_answers_took_is_read_from_a_take(tmp_path: Path) -> None:
    memory = importlib.import_module("bench_memory")
    log = tmp_path / "take.jsonl"
    line = '{{"type": "reply", "agent": "{}", "attempt": {}, "fault": "{}", "compute_seconds": {}}}\n'
    log.write_text(
        '{"type": "take"}\n' + line.format("model", 1, "", 0.5) + line.format("model", 0, "", 0.7)
        + line.format("bass", 1, "", 0.1) + line.format("model", 1, "lost", 0.0)
    )  # fmt: skip
    assert memory.final_seconds(log, "model") == [0.5]


def test_the_agent_works_for_as_long_as_told_and_its_tone_goes_on() -> None:
    agents = importlib.import_module("bench_agents")
    spec, tempo_map = StreamSpec(48_000), TempoMap.steady(48_000, "120")
    agent = agents.ModelAgent(str(ROOT / "exported_models" / "onset"), 0.0, 2)
    agent.prepare(spec)
    first, second = (agent.play(request_for(tempo_map, bar_span(tempo_map, bar))) for bar in (0, 1))
    assert first.audio.shape == (480 + 96_000, 2)
    assert np.allclose(first.audio[-480:], second.audio[:480], atol=1e-5), "its join is what comes before"
    assert first.origin.kind == "model"


@pytest.mark.parametrize(
    ("seconds", "control", "waited", "ok"),
    [
        ([0.2, 0.25, 0.9], 0.1, 1.0, True),
        ([0.4] * 3, 0.1, 1.0, False),
        ([0.4] * 3, 0.1, 1.6, None),
        ([0.4] * 3, 0.2, 1.0, None),
    ],
)
def test_a_slow_start_is_the_machines_where_the_control_is_slow_too(
    seconds: list[float], control: float, waited: float, ok: bool | None
) -> None:
    start = importlib.import_module("bench_start")
    controls = [object.__new__(start.Control) for _ in range(3)]
    for one in controls:
        one.seconds, one.waited = control, waited
    row = start.row("engine ready", seconds, 0.3, controls, "")
    assert row.ok is ok
    assert row.value == sorted(seconds)[1]
