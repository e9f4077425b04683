"""The built-in session: a short performance, corpora to answer it with, and the session files that join them.

``player.flac`` is the performance, ``bass.flac``, ``marimba.flac`` and ``drums.flac`` are what the agents re-order;
``corpora.toml`` says on what grid each was played. ``session.toml`` is what ``sideman demo`` renders, ``live.toml``
the same band for a device. The audio is written by ``tools/make_demo.py``; its licence is in ``LICENSE.md``.
"""

from __future__ import annotations
