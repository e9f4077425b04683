"""Ableton Link: what is made of a session's state, and two processes of it (marker ``peers``)."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from bridge.link import LinkError, LinkIn, LinkOut, LinkPeer, LinkState, SongCount, shared_tempo
from bridge.sync import Position
from realtime.clock import Meter, Timeline

SECOND_NS = 10**9
FOUR = Fraction(4)


class FakeSession:
    """What several instances on one network have in common: a tempo, a line, start and stop."""

    def __init__(self) -> None:
        self.tempo, self.origin_us, self.beat = 120.0, 0, 0.0
        self.playing, self.since_us, self.peers, self.commits = False, 0, 1, 0


class FakeState:
    """A captured state: changed for oneself until it is committed."""

    def __init__(self, session: FakeSession) -> None:
        self.__dict__.update(session.__dict__)

    def beat_at(self, micros: float) -> float:
        return self.beat + (micros - self.origin_us) * self.tempo / 60e6

    def beatAtTime(self, micros: int, quantum: float) -> float:  # noqa: N802 - Link's names
        return self.beat_at(micros)

    def isPlaying(self) -> bool:  # noqa: N802
        return self.playing

    def timeForIsPlaying(self) -> int:  # noqa: N802
        return self.since_us

    def setTempo(self, tempo: float, micros: int) -> None:  # noqa: N802
        self.beat, self.origin_us = self.beat_at(micros), micros
        self._tempo = round(60e6 / tempo)
        self.tempo = 60e6 / self._tempo

    def forceBeatAtTime(self, beat: float, micros: int, quantum: float) -> None:  # noqa: N802
        self.beat, self.origin_us = beat, micros

    def setIsPlaying(self, playing: bool, micros: int) -> None:  # noqa: N802
        self.playing, self.since_us = playing, micros


class FakeLink:
    enabled = startStopSyncEnabled = False  # noqa: N815 - Link's names

    def __init__(self, session: FakeSession, tempo: float) -> None:
        self.session = session
        self.now_us = 5_000_000
        session.tempo = tempo

    def clock(self) -> FakeLink:
        return self

    def micros(self) -> int:
        return self.now_us

    def numPeers(self) -> int:  # noqa: N802
        return self.session.peers

    def captureAppSessionState(self) -> Captured:  # noqa: N802
        return Captured(FakeState(self.session))

    def commitAppSessionState(self, captured: Captured) -> None:  # noqa: N802
        state = captured.state
        session = self.session
        session.tempo, session.beat, session.origin_us = state.tempo, state.beat, state.origin_us
        session.playing, session.since_us = state.playing, state.since_us
        session.commits += 1


class Captured:
    """Link's state as its package shows it."""

    def __init__(self, state: FakeState) -> None:
        self.state = state

    def tempo(self) -> float:
        return self.state.tempo

    def __getattr__(self, name: str) -> object:
        return getattr(self.state, name)


class Rig:
    """A peer on a fake network, in virtual time; Link's clock is another than the host's."""

    def __init__(self, tempo: str = "120") -> None:
        self.session = FakeSession()
        self.link: FakeLink | None = None
        self.now_ns = 10**15
        self.peer = LinkPeer(Fraction(tempo), make=self._make, clock=lambda: self.now_ns)

    def _make(self, tempo: float) -> FakeLink:
        self.link = FakeLink(self.session, tempo)
        return self.link

    def wait(self, seconds: float) -> int:
        assert self.link is not None
        self.now_ns += round(seconds * 1e9)
        self.link.now_us += round(seconds * 1e6)
        return self.now_ns


@pytest.mark.parametrize("bpm", ["20", "61.27", "97", "97.25", "120", "132.9", "174", "400"])
def test_a_tempo_that_link_rounds_is_read_as_it_was_meant(bpm: str) -> None:
    micros = round(Fraction(60_000_000) / Fraction(bpm))
    assert shared_tempo(60e6 / micros) == Fraction(bpm)


def test_a_tempo_that_is_not_rounded_is_taken_as_it_is() -> None:
    assert shared_tempo(97.12345) == Fraction("97.12345")


def state(beat: float, *, playing: bool = False, start: float = 0.0, ns: int = 0, tempo: float = 120.0) -> LinkState:
    return LinkState(ns, tempo, beat, playing, start, 1)


def test_the_song_begins_at_the_bar_line_after_the_start() -> None:
    count = SongCount()
    assert count.song_beat(state(41.25), FOUR) == (Fraction(165, 4), False)
    beat, located = count.song_beat(state(42.25, playing=True, start=42.0, ns=SECOND_NS // 2), FOUR)
    assert (beat, located) == (Fraction(-7, 4), True)
    beat, located = count.song_beat(state(44.25, playing=True, start=42.0, ns=3 * SECOND_NS // 2), FOUR)
    assert (beat, located) == (Fraction(1, 4), False)


def test_a_start_on_the_bar_line_is_beat_0() -> None:
    for start in (43.9999, 44.0, 44.0001):
        count = SongCount()
        count.song_beat(state(43.0), FOUR)
        beat, _ = count.song_beat(state(44.0, playing=True, start=start, ns=SECOND_NS // 2), FOUR)
        assert beat == 0


def test_a_bar_may_be_seven_eighths() -> None:
    count = SongCount()
    beat, _ = count.song_beat(state(15.0, playing=True, start=14.5), Fraction(7, 2))
    assert beat == Fraction(15) - Fraction(35, 2)


def test_meeting_a_session_keeps_the_bars_and_takes_the_phase() -> None:
    """Its own count leaps from 20.5 to 1003.0: half a beat of phase is new, the bar stays."""
    count = SongCount()
    count.song_beat(state(0.0), FOUR)
    count.song_beat(state(0.0, playing=True, start=0.0), FOUR)
    count.song_beat(state(20.0, playing=True, ns=10 * SECOND_NS), FOUR)
    beat, _ = count.song_beat(state(1000.5, playing=True, ns=10 * SECOND_NS + SECOND_NS // 4), FOUR)
    assert beat == Fraction(41, 2)
    beat, _ = count.song_beat(state(1001.0, playing=True, ns=10 * SECOND_NS + SECOND_NS // 2), FOUR)
    assert beat == 21


def test_a_change_of_tempo_is_no_leap() -> None:
    count = SongCount()
    count.song_beat(state(0.0, playing=True), FOUR)
    count.song_beat(state(8.0, playing=True, ns=4 * SECOND_NS), FOUR)
    beat, located = count.song_beat(state(8.15, playing=True, ns=4 * SECOND_NS + 50_000_000, tempo=180.0), FOUR)
    assert (beat, located) == (Fraction(163, 20), False)


def test_what_is_observed_is_the_session_at_the_hosts_time() -> None:
    rig = Rig("97")
    source = LinkIn("link", rig.peer, Meter(4, 4))
    source.start()
    assert rig.link is not None
    assert rig.link.enabled
    assert rig.link.startStopSyncEnabled
    rig.session.tempo = 60e6 / round(60e6 / 97)
    [said] = source.poll(rig.wait(1.0))
    assert said.tempo == 97
    assert said.meter is None  # Link knows none; the song does
    assert (said.playing, said.time_ns) == (False, rig.now_ns)
    assert said.beat == pytest.approx(Fraction(97, 10), abs=1e-4)
    rig.session.playing, rig.session.since_us = True, rig.link.now_us
    [said] = source.poll(rig.wait(0.1))
    assert (said.playing, said.located) == (True, True)
    assert source.peers == 1


def test_alone_there_is_nobody_to_follow() -> None:
    rig = Rig()
    source = LinkIn("link", rig.peer, Meter(4, 4))
    assert list(source.poll(rig.now_ns)) == []
    source.start()
    rig.session.peers = 0
    assert list(source.poll(rig.wait(1.0))) == []


def test_start_and_stop_may_be_nobodys_business() -> None:
    rig = Rig()
    rig.peer.start_stop = False
    source = LinkIn("link", rig.peer, Meter(4, 4))
    source.start()
    [said] = source.poll(rig.wait(1.0))
    assert said.playing is None


class Times:
    """The session's frames run at 48 kHz from a host time."""

    def __init__(self, origin_ns: int) -> None:
        self.origin_ns = origin_ns

    def frame_at(self, host_ns: int) -> int:
        return (host_ns - self.origin_ns) * 48000 // SECOND_NS

    def time_ns_at(self, frame: int) -> int:
        return self.origin_ns + frame * SECOND_NS // 48000


def test_who_leads_puts_tempo_phase_and_play_right_and_then_is_quiet() -> None:
    rig = Rig("100")
    sender = LinkOut("link", rig.peer, Times(rig.now_ns))
    sender.start()
    position = Position(Timeline(48000, Fraction(97), Meter(4, 4), Fraction(24_000)))
    for _ in range(100):
        sender.send(position, rig.wait(0.05))
    assert rig.session.commits == sender.changes == 1
    assert rig.session.playing
    captured = FakeState(rig.session)
    assert rig.link is not None
    ought = position.beat_at(Times(10**15).frame_at(rig.now_ns))
    off = (captured.beat_at(rig.link.now_us) - float(ought)) * 60 / 97
    assert abs(off) < 0.001
    assert captured.tempo == pytest.approx(97, abs=1e-4)
    sender.send(replace(position, playing=False), rig.wait(0.05))
    assert not rig.session.playing


def test_a_clock_that_drifts_is_put_right_within_a_millisecond() -> None:
    """The device runs 100 ppm off Link's clock: never more than a millisecond off, a correction every few seconds."""
    rig = Rig("120")
    times = Times(rig.now_ns)
    sender = LinkOut("link", rig.peer, times)
    sender.start()
    position = Position(Timeline(48000, Fraction(120)))
    worst = 0.0
    for _ in range(1200):
        rig.wait(0.05)
        times.origin_ns += 5_000
        sender.send(position, rig.now_ns)
        assert rig.link is not None
        ought = float(position.beat_at(times.frame_at(rig.now_ns)))
        worst = max(worst, abs(FakeState(rig.session).beat_at(rig.link.now_us) - ought) * 0.5)
    assert worst < 0.001
    assert 5 <= sender.changes <= 40


def test_a_session_is_left_with_the_last_who_uses_it() -> None:
    rig = Rig()
    rig.peer.start()
    rig.peer.start()
    rig.peer.stop()
    assert rig.peer.running
    rig.peer.stop()
    rig.peer.stop()
    assert not rig.peer.running
    assert rig.link is not None
    assert not rig.link.enabled


def test_without_the_package_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "link", None)
    with pytest.raises(LinkError, match="LinkPython-extern"):
        LinkPeer(Fraction(120)).start()


def test_without_a_network_there_is_one_sentence() -> None:
    def make(tempo: float) -> object:
        raise RuntimeError("no interface")

    peer = LinkPeer(Fraction(120), make=make)
    with pytest.raises(LinkError, match="no interface"):
        peer.start()
    assert not peer.running


# -- two processes -------------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_two_processes_agree(tmp_path: Path) -> None:
    """In a network of their own, where the system allows one: equal tempo, one phase, start and stop in common."""
    if importlib.util.find_spec("link") is None:
        pytest.skip("the package LinkPython-extern is not installed")
    alone = shutil.which("unshare")
    if alone is None or subprocess.run([alone, "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network of its own can be made here (unshare -n): Link would meet whoever is on this one")
    script = 'ip link set lo up 2>/dev/null; exec "$0" -m tools.clocks link --seconds 6 --json "$1"'
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [alone, "-n", "sh", "-c", script, sys.executable, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["tempo_equal"]
    assert figures["playing_equal"]
    assert figures["phase_p99_ms"] < max(1.0, 3 * figures["control_p99_ms"])
