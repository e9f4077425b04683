"""The built-in session: a short performance, corpora to answer it with, and the session files that join them.

``player.flac`` is the performance, ``bass.flac``, ``marimba.flac`` and ``drums.flac`` are what the agents re-order;
``corpora.toml`` says on what grid each was played. ``session.toml`` is what ``sideman demo`` renders, ``live.toml``
the same band for a device. The audio is written by ``tools/make_demo.py``; its licence is in ``LICENSE.md``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

from bridge.session import Session
from realtime.clock import Meter

HERE = Path(__file__).resolve().parent
PLAYER = HERE / "player.flac"


def build_corpora(folder: Path, progress: Callable[[float, str], None] = lambda share, what: None) -> None:
    """Build the demo's corpora below ``folder``; those that are there are kept."""
    from realtime.corpus import build

    listed = tomllib.loads((HERE / "corpora.toml").read_text(encoding="utf-8"))["corpora"]
    for index, facts in enumerate(listed):
        if not (folder / facts["name"] / "corpus.toml").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            build(
                [HERE / file for file in facts["files"]],
                folder / facts["name"],
                bpm=facts["bpm"],
                meter=Meter.parse(facts["meter"]),
                downbeat_seconds=facts["downbeat_seconds"],
                licence=facts["licence"],
                progress=lambda share, what, index=index: progress((index + share) / len(listed), what),  # type: ignore[misc]
            )


def demo_session(
    folder: Path, progress: Callable[[float, str], None] = lambda share, what: None, name: str = "session.toml"
) -> tuple[Session, Path]:
    """Return a built-in session whose corpora lie below ``folder`` (built if need be), and the player's recording."""
    build_corpora(folder, progress)
    session = Session.load(HERE / name)
    agents = tuple(
        agent.model_copy(update={"corpus": str((folder / Path(agent.corpus).name).resolve())})
        if agent.corpus
        else agent
        for agent in session.agents
    )
    return session.model_copy(update={"agents": agents}), PLAYER
