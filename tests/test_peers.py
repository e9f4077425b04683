"""The peers of other tests work: what they play and record is where it should be. Run with ``pytest -m peers``."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from peers import (
    START,
    TICK,
    Ardour,
    Jack,
    Network,
    OscPeer,
    Take,
    band,
    clicker,
    grid,
    looper,
    messages,
    missing,
    onsets,
    osc,
    sclang,
    scsynth,
    studio,
    wait_for,
)
from peers import pure_data as running_pure_data

TRIES = 3


def need(*peers: str) -> None:
    """Skip a test whose peers are not here, and say which."""
    if reason := missing(*peers):
        pytest.skip(reason)


# -- what needs no peer --------------------------------------------------------------------------------------------


def test_osc_is_written_as_the_standard_says() -> None:
    assert osc("/a", 1, 0.5, "text") == b"/a\0\0,ifs\0\0\0\0\0\0\0\1?\0\0\0text\0\0\0\0"
    assert osc("/abc") == b"/abc\0\0\0\0,\0\0\0"
    assert osc("/b", b"12345") == b"/b\0\0,b\0\0\0\0\0\00512345\0\0\0"


def test_osc_is_read_back_alone_and_in_bundles() -> None:
    one, two = osc("/strip/gain", 3, -0.25), osc("/name", "x", b"blob")
    bundle = b"#bundle\0" + bytes(8) + b"".join(len(each).to_bytes(4, "big") + each for each in (one, two))
    assert messages(one) == [("/strip/gain", (3, -0.25))]
    assert messages(bundle) == [("/strip/gain", (3, -0.25)), ("/name", ("x", b"blob"))]
    assert messages(b"/d\0\0,dhT\0\0\0\0" + bytes(8) + bytes(7) + b"\5") == [("/d", (0.0, 5, True))]


def test_onsets_and_grids_are_counted_in_frames() -> None:
    audio = np.zeros((1000, 2), np.float32)
    audio[[0, 1, 50, 400], [0, 1, 0, 1]] = [0.5, -0.5, 0.5, -0.3]
    assert onsets(audio) == [0, 400]
    assert onsets(audio[:0]) == []
    assert grid(97, Fraction(7, 2), 3) == [0, 103_918, 207_835]


def test_what_is_missing_is_said() -> None:
    said = missing("jack", "ardour", "pd", "scsynth", "sclang", "portaudio")
    assert said == "" or said.startswith("not here: ")


# -- Ardour --------------------------------------------------------------------------------------------------------


def record_clicks(folder: Path, bpm: float, meter: str, seconds: float) -> tuple[Ardour, list[int], list[int], int]:
    """Have Ardour record what a plain client plays to its clock.

    Returns
    -------
    recorded, played
        Frames of the clicks on Ardour's timeline, and as the client placed them after the clock's start.
    """
    with studio(folder, bpm=bpm, meter=meter, tracks={"stem": 1}) as ardour, clicker(ardour.jack) as client:
        jack = ardour.jack
        jack.connect(ardour.CLOCK, "clicker:clock")
        jack.connect("clicker:out", ardour.inputs("stem")[0])
        ardour.record("stem")
        ardour.goto_start()
        time.sleep(0.5)
        late = jack.xruns
        ardour.play()
        time.sleep(seconds)
        late = jack.xruns - late
        ardour.stop()
        said, clicks = client.do("result")
        [take] = ardour.takes("stem")
        [began] = [frame for frame, message in said if message == START]
        first_tick = next(frame for frame, message in said if message == TICK)
        assert first_tick == began
        recorded = [take.start + at for at in onsets(take.audio)]
        return ardour, recorded, [frame - began for frame in clicks], late


@pytest.mark.peers
@pytest.mark.parametrize(("bpm", "meter"), [(120, "4/4"), (97, "7/8")])
def test_ardour_records_a_click_where_it_was_played(tmp_path: Path, bpm: float, meter: str) -> None:
    need("ardour")
    for number in range(TRIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        ardour, recorded, played, late = record_clicks(folder, bpm, meter, 20)
        if not late:
            break
    else:
        pytest.skip(f"the audio server was late {late} times in the last of {TRIES} tries: the machine is too busy")
    wanted = grid(bpm, Fraction(1), len(recorded))
    drift = [at - point for at, point in zip(recorded, wanted, strict=True)]
    apart = {at - sent for at, sent in zip(recorded, played, strict=False)}
    print(f"\n{bpm} bpm: {len(recorded)} clicks recorded {apart} frames from where they were played; ", end="")
    print(f"Ardour's clock is {drift[-1]} frames off its grid after 20 s")
    assert ardour.bpm == bpm
    assert len(recorded) >= 20 * bpm / 60 - 2
    assert recorded == played[: len(recorded)]
    assert recorded[0] == 0
    if bpm == 120:
        assert recorded == wanted
    assert np.abs(drift).max() <= 48  # Ardour's clock at 97 bpm is 24 millionths fast


@pytest.mark.peers
def test_ardour_locates_and_starts_from_there(tmp_path: Path) -> None:
    need("ardour")
    with studio(tmp_path, bpm=120, tracks={"stem": 1}) as ardour, clicker(ardour.jack) as client:
        ardour.jack.connect(ardour.CLOCK, "clicker:clock")
        ardour.locate(192_000)
        wait_for(lambda: ardour.position() == 192_000, 3.0, "Ardour does not locate")
        ardour.play()
        wait_for(lambda: ardour.position() > 240_000, 5.0, "Ardour does not roll")
        ardour.stop()
        said, _ = client.do("result")
        kinds = [message[0] for _, message in said]
        print(f"\n{[message.hex() for _, message in said[:4]]}")
        assert 0xF2 in kinds, "a song position"
        assert 0xFB in kinds, "and continue"
        assert kinds.index(0xF2) < kinds.index(0xFB)
        assert kinds.count(0xF8) > 20
        assert ardour.takes("stem") == []


SESSION = """
[session]
spares = false
[stream]
device = "system"
lead = 2048
[transport]
bpm = {bpm}
meter = "{meter}"
[metronome]
on = true
gain_db = 0.0
outputs = [2]
[[agents]]
name = "echo"
kind = "echo"
outputs = [1]
budget_seconds = 0.1
"""


@pytest.mark.peers
def test_what_sideman_plays_is_recorded_by_ardour_on_sidemans_own_grid(tmp_path: Path) -> None:
    """No clock joins the two yet: each has its own grid, and nothing of it is lost on the way through JACK."""
    need("ardour", "portaudio")
    for number in range(TRIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        takes, late, words = record_band(folder, 97, "7/8", 16)
        if not late:
            break
    else:
        pytest.skip(f"the audio server was late {late} times in the last of {TRIES} tries: the machine is too busy")
    step = Fraction(30 * 48_000, 97)  # an eighth
    for name, least in (("count", 40), ("stem", 30)):
        at = np.array(onsets(takes[name].audio, 0.05, 2000))
        steps = [round(int(frames) / step) for frames in at - at[0]]
        off = [int(frames) - round(count * step) for frames, count in zip(at - at[0], steps, strict=True)]
        print(f"\n{name}: {len(at)} clicks, {sorted(set(off))} frames from a steady grid")
        assert len(at) >= least, words
        assert max(off) - min(off) <= 2, words  # one for the rounding of each grid


def record_band(folder: Path, bpm: float, meter: str, seconds: float) -> tuple[dict[str, Take], int, str]:
    """Have Ardour's click heard by a band that echoes it, and record what comes back and the band's own click."""
    with studio(folder, bpm=bpm, meter=meter, click=True, tracks={"stem": 1, "count": 1}) as ardour:
        jack = ardour.jack
        with band(jack, folder, SESSION.format(bpm=bpm, meter=meter), ardour.network) as played:
            played.patch([ardour.CLICK], [ardour.inputs("stem"), ardour.inputs("count")])
            ardour.record("stem", "count")
            ardour.goto_start()
            time.sleep(0.5)
            late = jack.xruns
            ardour.play()
            time.sleep(seconds)
            late = jack.xruns - late
            ardour.stop()
            played.end()
            return {name: ardour.takes(name)[0] for name in ardour.tracks}, late, played.words


# -- Pure Data and SuperCollider -----------------------------------------------------------------------------------

PATCH = """#N canvas 0 0 450 300 12;
#X obj 20 20 adc~ 1;
#X obj 20 60 *~ 0;
#X obj 20 100 dac~ 1;
#X obj 200 20 netreceive -u -b {port};
#X obj 200 50 oscparse;
#X obj 200 80 list trim;
#X obj 200 110 route gain;
#X obj 300 20 loadbang;
#X msg 300 50 connect 127.0.0.1 {back} \\; pd dsp 1;
#X obj 300 170 netsend -u -b;
#X obj 200 140 oscformat told;
#X obj 300 140 list prepend send;
#X obj 300 155 list trim;
#X connect 0 0 1 0;
#X connect 1 0 2 0;
#X connect 3 0 4 0;
#X connect 4 0 5 0;
#X connect 5 0 6 0;
#X connect 6 0 1 1;
#X connect 6 0 10 0;
#X connect 7 0 8 0;
#X connect 8 0 9 0;
#X connect 10 0 11 0;
#X connect 11 0 12 0;
#X connect 12 0 9 0;
"""


@pytest.mark.peers
def test_pure_data_passes_sound_on_and_hears_and_speaks_osc(tmp_path: Path) -> None:
    need("pd", "network")
    with Network() as network, Jack(tmp_path) as jack:
        peer = OscPeer(network.socket(), 9002)
        patch = tmp_path / "loop.pd"
        patch.write_text(PATCH.format(port=9002, back=peer.port))
        with running_pure_data(patch, jack, tmp_path, network=network), looper(jack) as client:
            jack.connect("looper:out", "pure_data:input_1")
            jack.connect("pure_data:output_1", "looper:in")
            peer.send("/gain", 0.25)
            assert wait_for(lambda: peer.last("/told"), 5.0, "Pure Data does not answer") == (0.25,)
            time.sleep(3.0)
            _, played, heard = client.do("result")
        peer.close()
    out, back = onsets(played[:, None], 0.05), onsets(heard[:, None], 0.05)
    delays = {frame - max(at for at in out if at <= frame) for frame in back[2:]}
    print(f"\nthrough Pure Data after {delays} frames")
    assert len(back) >= 20
    assert len(delays) == 1
    assert abs(np.abs(heard).max() - 0.125) < 1e-6


SCRIPT = """
var back = NetAddr("127.0.0.1", {back}), server = NetAddr("127.0.0.1", {server});
SynthDef(\\tick, {{ Out.ar(0, Impulse.ar(10) * 0.5) }}).asBytes.postln;
server.sendMsg("/d_recv", SynthDef(\\tick, {{ Out.ar(0, Impulse.ar(10) * 0.5) }}).asBytes);
SystemClock.sched(1, {{ server.sendMsg("/s_new", "tick", 1000, 0, 0); back.sendMsg("/beat", 1); 0.5 }});
"""


@pytest.mark.peers
def test_supercollider_plays_exactly_and_speaks_osc(tmp_path: Path) -> None:
    need("scsynth", "sclang")
    with Network() as network, Jack(tmp_path) as jack:
        peer = OscPeer(network.socket(), 57_120)
        script = tmp_path / "tick.scd"
        script.write_text(SCRIPT.format(back=peer.port, server=57_110))
        with scsynth(jack, tmp_path, network), sclang(script, jack, tmp_path, network), looper(jack) as client:
            wait_for(lambda: peer.last("/beat"), 20.0, "SuperCollider's language does not speak")
            jack.connect("SuperCollider:out_1", "looper:in")
            time.sleep(3.0)
            _, _, heard = client.do("result")
            beats = [at_ns for at_ns, (address, _) in peer.heard if address == "/beat"]
        peer.close()
    steps = set(np.diff(onsets(heard[:, None])))
    print(f"\nSuperCollider's impulses are {steps} frames apart, {len(beats)} beats were told")
    assert steps == {4800}
    assert len(beats) >= 4
