"""The memory of an agent's seat."""

from __future__ import annotations

from rigs import RATE

from realtime.buffers import Arena
from realtime.protocols import StreamSpec
from realtime.seat import STATE_BYTES, AgentConfig, StateCell, worker_layout


def test_the_newest_whole_state_is_found() -> None:
    arena = Arena.create(worker_layout(AgentConfig("a", "echo"), StreamSpec(RATE), RATE))
    cell = StateCell(arena, "a")
    assert cell.read() is None
    assert cell.write(b"first")
    assert cell.write(b"second")
    assert cell.read() == b"second"
    arena["a.state.data"][0, 2] ^= 1  # the second was written there: it is as good as half written
    assert cell.read() == b"first"
    assert not cell.write(bytes(STATE_BYTES + 1))
    assert cell.read() == b"first"
    del cell
    arena.close()
    arena.unlink()
