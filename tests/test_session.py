"""A session file: every key is read, every mistake is one sentence, and what is written can be read again."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.session import KINDS, AgentTable, Session, override
from realtime.clock import Meter, TempoMap
from realtime.protocols import Chord

FULL = """
[session]
name = "Tuesday"
seed = 7

[stream]
device = "null"
samplerate = 44100
blocksize = 64
inputs = [2, 1]
outputs = 6
lead = 512
latency = 300

[transport]
bpm = "240/7"
meter = "3/4"
count_in_bars = 2
downbeat_seconds = 0.25
chart = ["Dm7 G7", "-", "C"]

[[transport.changes]]
bar = 3
beat = "1/2"
bpm = 96.5
ramp_beats = 4

[[transport.changes]]
bar = 5
meter = "7/8"

[mixer]
monitor = true
monitor_gain_db = -3
monitor_outputs = [5, 6]
ceiling_db = -0.5

[metronome]
on = true
outputs = [3]
gain_db = -18.0

[[agents]]
name = "keys"
kind = "corpus"
corpus = "corpora/keys"
model = "onset"
grid_beats = "1/2"
channels = 2
gain_db = -1.5
pan = -0.25
mute = true
outputs = [1, 2, 3, 4]
budget_seconds = 0.5
options = { continuity = 0.8 }

[[agents]]
name = "shadow"
kind = "echo"
listens = "keys"
follows = ["keys"]
solo = true

[take]
folder = "nights"
record = false
"""


def agent(name: str, **keys: Any) -> str:
    """Write an echo agent as TOML."""
    lines = [f"[[agents]]\nname = {name!r}"]
    lines += [f"{key} = {value}" for key, value in ({"kind": "'echo'"} | keys).items()]
    return "\n".join(lines) + "\n"


def refusal(text: str) -> str:
    """Return the sentence that refuses a session, and check that it is one."""
    with pytest.raises(ValueError, match=r"^s\.toml") as caught:
        Session.parse(text, "s.toml")
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert type(caught.value) is ValueError
    assert not re.search(r"pydantic|Input should|type=|_Clash", sentence)
    return sentence


# -- what is read --------------------------------------------------------------------------------------------------


def test_every_key_is_read() -> None:
    session = Session.parse(FULL)
    assert (session.session.name, session.session.seed) == ("Tuesday", 7)
    stream = session.stream
    assert (stream.device, stream.samplerate, stream.blocksize) == ("null", 44100, 64)
    assert (stream.inputs, stream.outputs, stream.lead, stream.latency) == ((2, 1), 6, 512, 300)
    transport = session.transport
    assert (transport.bpm, transport.meter) == (Fraction(240, 7), Meter(3, 4))
    assert (transport.count_in_bars, transport.downbeat_seconds) == (2, 0.25)
    first, second = transport.changes
    assert (first.bar, first.beat, first.bpm, first.ramp_beats) == (3, Fraction(1, 2), Fraction(193, 2), 4)
    assert (second.bar, second.bpm, second.meter) == (5, None, Meter(7, 8))
    mixer = session.mixer
    assert (mixer.monitor, mixer.monitor_gain_db, mixer.monitor_outputs, mixer.ceiling_db) == (
        True,
        -3.0,
        (5, 6),
        -0.5,
    )
    assert (session.metronome.on, session.metronome.outputs, session.metronome.gain_db) == (True, (3,), -18.0)
    keys, shadow = session.agents
    assert (keys.name, keys.kind, keys.corpus, keys.model) == ("keys", "corpus", "corpora/keys", "onset")
    assert (keys.grid_beats, keys.channels, keys.gain_db, keys.pan) == (Fraction(1, 2), 2, -1.5, -0.25)
    assert (keys.mute, keys.solo, keys.outputs, keys.budget_seconds) == (True, False, (1, 2, 3, 4), 0.5)
    assert keys.options == {"continuity": 0.8}
    assert (shadow.listens, shadow.follows, shadow.solo) == ("keys", ("keys",), True)
    assert (session.take.folder, session.take.record) == ("nights", False)


def test_an_empty_text_is_a_session_of_defaults() -> None:
    session = Session.parse("")
    assert session.stream.samplerate == 48000
    assert session.transport.bpm == 120
    assert session.agents == ()


def test_the_engine_gets_its_values() -> None:
    session = Session.parse(FULL)
    spec = session.spec(lead=2048)
    assert (spec.samplerate, spec.inputs, spec.outputs, spec.blocksize) == (44100, 2, 6, 64)
    assert (spec.lead, spec.latency) == (512, 300)
    assert Session.parse("").spec(lead=2048).lead == 2048
    assert session.routed(session.metronome.outputs) == (2,)
    assert session.routed() == (0, 1)
    assert Session.parse("[stream]\noutputs = 1").routed() == (0,)
    assert session.downbeat_frame(44100) == 11025
    assert session.count_in_frame(44100) == 2 * 3 * 60 * 44100 * 7 // 240


def test_the_tempo_map_has_the_planned_changes() -> None:
    tempo_map = Session.parse(FULL).tempo_map(44100, 1000)
    by_hand = TempoMap.steady(44100, "240/7", Meter(3, 4), 1000)
    by_hand = by_hand.ramped(Fraction(13, 2), 4, Fraction(193, 2)).changed(Fraction(12), meter=Meter(7, 8))
    assert tempo_map == by_hand
    assert tempo_map.bar_frame(0) == 1000
    assert tempo_map.bar_beats(4) == Fraction(7, 2)


def test_the_meter_is_the_maps() -> None:
    session = Session.parse(FULL)
    tempo_map = session.tempo_map(44100)
    assert [session.meter_at(bar) for bar in (0, 3, 4)] == [Meter(3, 4), Meter(3, 4), Meter(7, 8)]
    assert all(session.meter_at(bar).beats == tempo_map.bar_beats(bar) for bar in range(-2, 9))


def test_the_chart_repeats_and_shares_the_bar() -> None:
    session = Session.parse(FULL)
    half = Fraction(3, 2)
    assert session.chart_for(0) == (Chord("Dm7", Fraction(0), half), Chord("G7", half, half))
    assert session.chart_for(1) == ()
    assert session.chart_for(2) == (Chord("C", Fraction(0), Fraction(3)),)
    assert session.chart_for(5) == (Chord("C", Fraction(0), Fraction(7, 2)),)  # bar 6 is in 7/8
    assert session.chart_for(-1) == ()
    assert Session.parse("").chart_for(3) == ()


def test_the_whole_chart_is_right_where_the_meter_changes() -> None:
    session = Session.parse(FULL)
    chart = session.chart()
    assert len(chart) % 3 == 0
    assert all(chart[bar] == session.chart_for(bar) for bar in range(0, 4000, 7))
    steady = Session.parse('[transport]\nchart = ["A", "B"]').chart()
    assert [[chord.symbol for chord in bar] for bar in steady] == [["A"], ["B"]]


# -- what is written -----------------------------------------------------------------------------------------------


def test_the_template_is_a_session_and_says_the_defaults() -> None:
    text = Session.template()
    session = Session.parse(text)
    assert [a.name for a in session.agents] == ["echo"]
    for table in ("stream", "mixer", "take"):
        assert getattr(session, table) == getattr(Session.parse(""), table)
    for line in text.splitlines():
        assert len(line) <= 118


def test_the_keys_in_the_templates_comments_are_right() -> None:
    lines = Session.template().splitlines()
    opened = [re.sub(r"^# (?=\[\[|\w+ = )", "", line) for line in lines]
    assert sum(a != b for a, b in zip(lines, opened, strict=True)) >= 15
    session = Session.parse("\n".join(opened).replace('kind = "echo"', 'kind = "corpus"'))
    assert session.transport.changes[0].meter == Meter(3, 4)
    player = session.agents[0].model_dump() | {"name": "", "kind": "", "corpus": ""}
    assert player == AgentTable(name="x", kind="echo").model_dump() | {"name": "", "kind": ""}


def test_a_template_takes_agents_and_a_tempo() -> None:
    players = [
        AgentTable(name="keys", kind="corpus", corpus="corpora/keys", grid_beats=Fraction(1, 2), outputs=(1,)),
        AgentTable(name="shadow", kind="echo", follows=("keys",)),
    ]
    text = Session.template(players, bpm="240/7", meter="7/8")
    session = Session.parse(text)
    assert session.agents == tuple(players)
    assert session.transport.bpm == Fraction(240, 7)
    assert session.transport.meter == Meter(7, 8)
    assert "# quarter notes per minute" in text
    assert len(re.findall("^# (listens|gain_db|options) = ", text, re.MULTILINE)) == 3  # the notes stay, once,
    assert not re.search("^# (corpus|grid_beats|outputs) = ", text, re.MULTILINE)  # for what is not said
    assert "echo" not in {a.name for a in session.agents}


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text(FULL, encoding="utf-8")
    session = Session.load(file)
    again = Session.parse(session.toml())
    assert again.agents[0].corpus == str(tmp_path.resolve() / "corpora" / "keys")
    assert again.take.folder == str(tmp_path.resolve() / "nights")
    assert again.agents[0].model == "onset"
    told = again.model_dump()
    told["agents"][0]["corpus"], told["take"]["folder"] = "corpora/keys", "nights"
    assert told == session.model_dump()
    assert again.transport.bpm == Fraction(240, 7)


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_paths_of_lighter_ways_are_written_in_full(tmp_path: Path) -> None:
    ways = "[{ model = 'small/onset' }, { model = 'onset', corpus = 'less' }, { taboo = 4 }, { model = '' }]"
    (tmp_path / "s.toml").write_text(agent("a", kind="'corpus'", corpus="'c'", lighter=ways))
    again = Session.parse(Session.load(tmp_path / "s.toml").toml())
    less = {"model": "onset", "corpus": str(tmp_path / "less")}
    assert again.agents[0].lighter == ({"model": str(tmp_path / "small/onset")}, less, {"taboo": 4}, {"model": ""})


def test_the_command_line_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text(FULL, encoding="utf-8")
    session = override(Session.load(file), bpm="128", meter="4/4", downbeat_seconds=1, seed=3)
    assert (session.transport.bpm, session.transport.meter) == (Fraction(128), Meter(4, 4))
    assert (session.transport.downbeat_seconds, session.session.seed) == (1.0, 3)
    assert session.transport.changes == ()  # they belong to another piece
    assert session.path == file


def test_a_tempo_by_hand_keeps_planned_meters_and_the_other_way_round() -> None:
    session = Session.parse(FULL)
    assert [change.meter for change in override(session, bpm=100).transport.changes] == [Meter(7, 8)]
    assert [change.bpm for change in override(session, meter="4/4").transport.changes] == [Fraction(193, 2)]
    assert override(session).transport == session.transport


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bpm": 500}, "--bpm is 500; it takes quarter notes per minute, 20 to 400"),
        ({"bpm": "fast"}, '--bpm is "fast"; it takes quarter notes'),
        ({"meter": "4:4"}, '--meter is "4:4"; it takes count and unit'),
        ({"seed": -1}, "--seed is -1; it takes a whole number from 0"),
        ({"downbeat_seconds": float("nan")}, "--downbeat is nan; it takes seconds"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        override(Session.parse(""), **options)


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_session_in_a_file_finds_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "corpora" / "keys").mkdir(parents=True)
    file = tmp_path / "session.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FULL.encode())  # some editors put a byte order mark in front
    session = Session.load(file)
    keys, shadow = session.agents
    assert session.corpus_path(keys) == (tmp_path / "corpora" / "keys").resolve()
    assert session.model_path(shadow) is None
    assert session.agent("shadow") is shadow
    with pytest.raises(ValueError, match=r'no agent "kees" \(did you mean "keys"\?\)'):
        session.agent("kees")


def test_a_missing_corpus_or_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text(FULL.replace('"onset"', '"./nowhere"'), encoding="utf-8")
    session = Session.load(file)
    with pytest.raises(ValueError, match=r"agents\.keys\.corpus: .*keys does not exist; it takes a folder"):
        session.corpus_path(session.agents[0])
    with pytest.raises(ValueError, match=r"agents\.keys\.model: there is no folder .*nowhere"):
        session.model_path(session.agents[0])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"[session]\nname = '\xe9'", "is not UTF-8 text (byte 18: 0xe9)"),
        (b"RIFF\xff\xff\xff\xffWAVE", "did you give the audio?"),
        (b"[stream\n", "is not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 8)"),
        (b"[stream]\nsamplerate 48000", "(at line 2, column 12)"),
        (b"[stream]\nlead = 1\nlead = 2\n", "Cannot overwrite a value (at line 3, column 9)"),
        (b"#" * 1_000_001, "is larger than 1 MB"),
        (b"a = " + b"[" * 100_000, "brackets nested too deeply"),
        (b"seed = " + b"1" * 5000, "a number of more than 4300 digits"),
    ],
)
def test_a_file_that_is_no_session_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "session.toml"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Session.load(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "session.toml").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r'sesion.toml does not exist \(did you mean "session.toml"\?\)'):
        Session.load(tmp_path / "sesion.toml")
    with pytest.raises(ValueError, match=r'session does not exist \(did you mean "session.toml"\?\)'):
        Session.load(tmp_path / "session")
    with pytest.raises(
        ValueError, match=r"is a folder \(did you mean .*session.toml\?\); a session is one TOML file"
    ):
        Session.load(tmp_path)
    with pytest.raises(ValueError, match=r"is a folder; a session is one TOML file"):
        Session.load(tmp_path.parent)
    with pytest.raises(ValueError, match="does not exist; a session is a TOML file"):
        Session.load(tmp_path / "no" / "where.toml")


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[stream]\nsamplrate = 1",
            'stream.samplrate is not known (did you mean "samplerate"?); this table takes device',
        ),
        ("[strem]", '[strem] is not known (did you mean "stream"?); the tables are session, stream'),
        ("[[agent]]\nname = 'a'", '[agent] is not known (did you mean "agents"?)'),
        ("[[agents]]\nnme = 'a'", 'agents[1].nme is not known (did you mean "name"?)'),
        ("[[agents]]\nkind = 'echo'", "agents[1].name is missing; it takes 1 to 32 letters"),
        ("[[agents]]\nname = 'a'", "agents.a.kind is missing; it takes a kind of agent"),
        ("[agents]\nname = 'a'", "agents is a table; it takes up to 32 agents written as [[agents]]"),
        ("stream = 3", "stream is 3; it takes a table [stream]"),
        (
            "[stream]\nsamplerate = 48",
            "stream.samplerate is 48; it takes frames per second, a whole number from 8000",
        ),
        ("[stream]\nsamplerate = '48000'", 'stream.samplerate is "48000"; it takes'),
        ("[stream]\nsamplerate = '48000'", "(write it without quotes)"),
        ("[stream]\nsamplerate = 48000.0", "stream.samplerate is 48000.0"),
        ("[stream]\nblocksize = true", "stream.blocksize is true; it takes frames, 1 to 8192"),
        ("[stream]\nblocksize = 0", "stream.blocksize is 0; it takes frames, 1 to 8192"),
        ("[stream]\ninputs = [0]", "stream.inputs is [0]; it takes a list of 1 to 64"),
        ("[stream]\ninputs = [1, 1]", "stream.inputs is [1, 1]"),
        ("[stream]\ninputs = []", "stream.inputs is []; it takes at least one input"),
        ("[stream]\ninputs = 1", "stream.inputs is 1; it takes a list"),
        ("[stream]\noutputs = [1, 2]", "stream.outputs is [1, 2]; it takes how many outputs there are"),
        ("[stream]\noutputs = 65", "stream.outputs is 65"),
        ("[transport]\nbpm = 500", "transport.bpm is 500; it takes quarter notes per minute, 20 to 400"),
        ("[transport]\nbpm = '1e999999999'", 'transport.bpm is "1e999999999"'),
        ("[transport]\nbpm = '1/0'", 'transport.bpm is "1/0"'),
        ("[transport]\nbpm = nan", "transport.bpm is nan"),
        ("[transport]\nbpm = [120]", "transport.bpm is [120]"),
        ("[transport]\nbpm = 1979-05-27", "transport.bpm is 1979-05-27"),
        ("[transport]\nmeter = 4", "transport.meter is 4; it takes count and unit in quotes"),
        ("[transport]\nmeter = '4/3'", 'transport.meter is "4/3"'),
        ("[transport]\ncount_in_bars = 9", "transport.count_in_bars is 9; it takes bars, 0 to 8"),
        ("[transport]\nchart = 'Dm7'", 'transport.chart is "Dm7"; it takes a list'),
        ("[transport]\nchart = ['C', 7]", "transport.chart[2] is 7"),
        ("[transport]\nchart = ['C', 'Hm']", 'transport.chart[2] is "Hm"; chord'),
        ("[transport]\nchart = ['C', '']", 'transport.chart[2] is ""'),
        ("[session]\nseed = -1", "session.seed is -1; it takes a whole number from 0"),
        (
            "[session]\nname = 3",
            "session.name is 3; it takes 1 to 64 characters on one line (did you forget the quotes?)",
        ),
        ("[session]\nname = '../x'", 'session.name is "../x"'),
        ("[mixer]\nceiling_db = 3", "mixer.ceiling_db is 3; it takes the limiter's ceiling in decibels"),
        ("[mixer]\nmonitor = 1", "mixer.monitor is 1; it takes true or false"),
        ("[take]\nfolder = ''", 'take.folder is ""; it takes a folder'),
        (agent("a b"), 'agents[1].name is "a b"; it takes 1 to 32 letters'),
        (agent("../a"), 'agents[1].name is "../a"'),
        (agent("a") + agent("b", pan=50), "agents.b.pan is 50; it takes -1 (left) to 1 (right)"),
        (agent("a", gain_db="-inf"), "agents.a.gain_db is -inf; it takes decibels, -96 to 24"),
        (agent("a", kind="'corpos'"), 'agents.a.kind is "corpos" (did you mean "corpus"?); it takes one of "corpus"'),
        (agent("a", follows="'b'"), 'agents.a.follows is "b"; it takes a list of agents\' names'),
        (agent("a", grid_beats="'1/9'"), 'agents.a.grid_beats is "1/9"'),
        (agent("a", options=3), "agents.a.options is 3; it takes a table"),
        (agent("a", budget_seconds=250), "agents.a.budget_seconds is 250; it takes seconds to answer in"),
    ],
)
def test_a_wrong_key_is_named_with_what_it_takes(text: str, said: str) -> None:
    sentence = refusal(text)
    assert sentence.startswith("s.toml: ")
    assert said in sentence


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (agent("input"), 'agents[1].name is "input"; that is what agents call the player'),
        (agent("Input"), 'agents[1].name is "Input"'),
        (agent("nul"), 'agents[1].name is "nul"; no file may be called so on Windows'),
        (agent("a") + agent("a"), 'agents[2].name is "a", the name of an agent before it; each name is used once'),
        (agent("Keys") + agent("keys"), "before it but for capitals"),
        (agent("a", kind="'corpus'"), "agents.a.corpus is missing; a corpus agent takes the folder"),
        (agent("a", corpus="'x'"), 'agents.a.corpus is "x"; an echo has none'),
        (agent("a", listens="'inpt'"), 'agents.a.listens names "inpt" (did you mean "input"?); it takes "input"'),
        (
            agent("keys") + agent("b", listens="'kees'"),
            'names "kees" (did you mean "keys"?); it takes "input", "keys"',
        ),
        (agent("a", listens="'a'"), 'agents.a.listens names itself "a"'),
        (agent("a", follows="['input']"), 'agents.a.follows names "input"; it takes no other agent'),
        (agent("a", follows="['a']"), 'agents.a.follows names itself "a"'),
        (agent("a", follows="['b', 'b']") + agent("b"), 'agents.a.follows is ["b", "b"]; it takes each name once'),
        (
            agent("a", follows="['b']") + agent("b", follows="['a']"),
            "follows goes round in a ring (a follows b follows a)",
        ),
        (
            agent("a", outputs="[1, 3]"),
            "agents.a.outputs is [1, 3], but stream.outputs is 2; it takes outputs 1 to 2",
        ),
        ("[metronome]\noutputs = [3]", "metronome.outputs is [3], but stream.outputs is 2"),
        ("[mixer]\nmonitor_outputs = [9]", "mixer.monitor_outputs is [9]"),
        (agent("a", lighter="[{}]"), "agents.a.lighter[1] changes nothing; it takes model, corpus or the kind's"),
        (agent("a", lighter="[{ model = 3 }]"), "agents.a.lighter[1].model is 3; it takes a model's folder or its"),
        (
            agent("a", lighter="[{ x = 1 }, { modl = '' }]"),
            'agents.a.lighter[2].modl is not known (did you mean "model"?); it takes model, corpus and the kind',
        ),
        (agent("a", lighter="[{ corpus = 'x' }]"), 'agents.a.lighter[1].corpus is "x"; an echo has none'),
        (agent("a", lighter="[{ options = { x = 1 } }]"), "agents.a.lighter[1].options stands there as a table"),
        (agent("a", lighter="[{ source = 'b' }]"), "agents.a.lighter[1].source cannot be changed in a lighter way"),
        (agent("a", lighter="[{ grid_beats = 1 }]"), "agents.a.lighter[1].grid_beats cannot be changed in a lighter"),
        (agent("a", grid_beats=8), "agents.a.grid_beats is 8, longer than a bar of 4/4 (4 beats)"),
        ("[[transport.changes]]\nbar = 0\nbpm = 90", "transport.changes[1].bar is 0; it takes a bar counted from 1"),
        ("[[transport.changes]]\nbar = 2", "transport.changes[1] changes nothing"),
        (
            "[[transport.changes]]\nbar = 2\nmeter = '3/4'\nbeat = 1",
            "changes[1].beat is 1; a meter changes only on a downbeat",
        ),
        (
            "[[transport.changes]]\nbar = 2\nbpm = 90\nbeat = 4",
            "changes[1].beat is 4, but bar 2 is 4 quarter notes long",
        ),
        ("[[transport.changes]]\nbar = 2\nmeter = '3/4'\nramp_beats = 2", "ramp_beats is 2 without a bpm"),
        (
            "[[transport.changes]]\nbar = 9\nbpm = 90\n[[transport.changes]]\nbar = 3\nbpm = 80",
            "transport.changes[2] is for bar 3, beat 0, but comes after one for bar 9, beat 0",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_named(text: str, said: str) -> None:
    assert said in refusal(text)


def test_a_long_value_is_shortened() -> None:
    assert len(refusal(f"[transport]\nbpm = '{'9' * 100_000}'")) < 400
    assert len(refusal(f"[stream]\ninputs = {list(range(2, 900))}")) < 400
    assert "a number of more than 40 digits" in refusal(f"[session]\nseed = {'9' * 4000}")


def test_every_kind_is_accepted_and_every_agent_may_listen_to_another() -> None:
    kinds = {kind: ({"corpus": "'c'"} if kind == "corpus" else {}) for kind in KINDS}
    text = "".join(agent(kind, kind=f"'{kind}'", **keys) for kind, keys in kinds.items())
    assert [a.kind for a in Session.parse(text).agents] == list(KINDS)
    ring = agent("a", listens="'b'") + agent("b", listens="'a'")
    assert [a.listens for a in Session.parse(ring).agents] == ["b", "a"]  # the past may go round


exact = settings(deadline=None, derandomize=True)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 9), max_size=3),
)
NAMES = [
    "session",
    "stream",
    "transport",
    "agents",
    "name",
    "kind",
    "bpm",
    "meter",
    "chart",
    "changes",
    "bar",
    "inputs",
]
names = st.sampled_from(NAMES) | st.text(max_size=6)
tables = st.recursive(values, lambda inner: st.dictionaries(names, inner, max_size=4) | st.lists(inner, max_size=3))


def without_none(value: Any) -> Any:
    """Leave out what TOML has no word for."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value if inner is not None] if isinstance(value, list) else value


def verdict(text: str) -> str:
    """Return the sentence that refuses a session, or nothing; any other exception fails the test."""
    try:
        Session.parse(text)
    except ValueError as error:
        return str(error) if type(error) is ValueError else f"{error!r}\n"
    return "the session is fine"


@exact
@given(st.dictionaries(names, tables, max_size=5))
def test_any_tables_are_a_session_or_one_sentence(content: dict[str, Any]) -> None:
    said = verdict(tomlkit.dumps(without_none(content)))
    assert said.startswith("the session")
    assert "\n" not in said


@exact
@given(st.binary(max_size=200) | st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode))
def test_any_text_is_a_session_or_one_sentence(data: bytes) -> None:
    said = verdict(data.decode("utf-8", "replace"))
    assert said.startswith("the session")
    assert "\n" not in said


@pytest.mark.parametrize(
    "text",
    ['["a\\nb"]', '[stream]\n"a\\nb" = 1', agent("a", kind='"x\\ny"'), agent("a", listens='"x\\ny"'), agent("a\\nb")],
)
def test_a_line_break_in_a_key_or_a_value_is_escaped(text: str) -> None:
    assert "\\n" in refusal(text)


# -- manners -------------------------------------------------------------------------------------------------------


def test_a_session_cannot_be_changed() -> None:
    session = Session.parse(FULL)
    with pytest.raises(ValueError, match="frozen"):
        session.stream.samplerate = 1


def test_reading_this_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, bridge.session; print(*sorted({'numpy', 'tomlkit', 'soundfile', 'difflib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- sessions that mean harm ---

FOREIGN_AGENT = '[[agents]]\nname = "a"\nkind = "echo"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a." * 20_000 + "a = 1", "is not valid TOML: more than 100 dots"),
        ("x = " + "[" * 90_000, "is not valid TOML: brackets nested too deeply"),
        (FOREIGN_AGENT + "options = { a = " + "[" * 90 + "]" * 90 + " }", "it takes a table of plain values"),
        (FOREIGN_AGENT + "options = { a = nan }", "it takes a table of plain values"),
        (FOREIGN_AGENT + "options = { a = 0x" + "f" * 5000 + " }", "it takes a table of plain values"),
        (FOREIGN_AGENT + "options = { a = 1979-05-27 }", "it takes a table of plain values"),
        ('[transport]\nchart = ["C"]\n[[transport.changes]]\nbar = 1000000\nmeter = "3/4"',
         "bar is 1000000, and there is a chart; beside one a meter changes up to bar 10000"),
        ("".join(f"[[transport.changes]]\nbar = {bar}000\nbpm = 99\nramp_beats = 1024\n" for bar in range(1, 6)),
         "ramp over 5120 beats together; 4096 are allowed"),
        (FOREIGN_AGENT * 20_000, "it takes up to 32 agents"),
    ],
)  # fmt: skip
def test_a_session_that_would_take_for_ever_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        Session.parse(text)
    assert "\n" not in str(refused.value)


def test_a_chart_beside_changing_meters_is_that_of_each_bar() -> None:
    changes = '[[transport.changes]]\nbar = 3\nmeter = "3/4"\n[[transport.changes]]\nbar = 6\nmeter = "6/8"\n'
    session = Session.parse(f'[transport]\nchart = ["C", "D E", "-"]\n{changes}')
    chart = session.chart()
    assert len(chart) > 4096
    assert chart[:40] == tuple(session.chart_for(bar) for bar in range(40))
    assert chart[-1] == session.chart_for(len(chart) - 1)


def test_options_are_plain_values_a_few_deep() -> None:
    options = '{ a = 1, b = 0.5, c = "x", d = true, e = [1, [2, 3]], f = { g = [1] } }'
    session = Session.parse(f"{FOREIGN_AGENT}options = {options}")
    assert session.agents[0].options == {"a": 1, "b": 0.5, "c": "x", "d": True, "e": [1, [2, 3]], "f": {"g": [1]}}
    assert Session.parse(session.toml()).agents == session.agents
