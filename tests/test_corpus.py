from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import clicks, tones

from realtime import corpus, soundfiles
from realtime.clock import Meter
from realtime.corpus import Corpus

RATE = 44100


def wav(path: Path, audio: np.ndarray[tuple[int, ...], np.dtype[np.float32]], samplerate: int = RATE) -> Path:
    soundfiles.write(path, audio, samplerate, "FLOAT")
    return path


def melody(
    bars: int = 4, bpm: int = 120, samplerate: int = RATE
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    pitches = [220 * 2 ** (k * 5 % 12 / 12) for k in range(bars * 4)]
    return tones(bars * 4 * 60 * samplerate // bpm, samplerate, pitches)


@pytest.fixture
def built(tmp_path: Path) -> Corpus:
    return corpus.build([wav(tmp_path / "m.wav", melody())], tmp_path / "out", name="song", bpm=120, labels=6)


def test_beat_units_lie_on_the_exact_grid(tmp_path: Path) -> None:
    path = wav(tmp_path / "m.wav", melody(8, 130))
    found = corpus.build([path], tmp_path / "out", bpm="130", meter=Meter(4, 4))
    beat = Fraction(60 * RATE, 130)
    assert found.start.tolist() == [math.floor(beat * k + Fraction(1, 2)) for k in range(32)]
    assert found.position.tolist() == [0, 1, 2, 3] * 8
    assert found.bar.tolist() == [k // 4 for k in range(32)]
    assert (found.start[:-1] + found.frames[:-1] == found.start[1:]).all()
    assert all(found.follows(unit) for unit in range(31))
    assert not found.follows(31)


def test_seven_eighths_end_in_half_a_beat_and_an_upbeat_is_bar_minus_one(tmp_path: Path) -> None:
    path = wav(tmp_path / "m.wav", melody(7))
    found = corpus.build([path], tmp_path / "out", bpm=120, meter=Meter(7, 8), downbeat_seconds="0.5")
    assert found.bar[0] == -1
    assert found.position[:6].tolist() == [3, 0, 1, 2, 3, 0]
    assert found.beats[:6].tolist() == [0.5, 1, 1, 1, 0.5, 1]
    assert found.start[1] == 0.5 * RATE
    assert found.start[5] == (0.5 + 1.75) * RATE


def test_onset_units_start_on_the_click(tmp_path: Path) -> None:
    at = [5000, 20123, 41000, 60007, 90001]
    found = corpus.build([wav(tmp_path / "c.wav", clicks(120000, at))], tmp_path / "out")
    assert found.segmentation == "onset"
    assert found.start.tolist() == at
    assert found.frames.tolist() == [*np.diff(at).tolist(), 30000 - 1]
    assert np.isnan(found.position).all()


def test_onset_units_of_notes_and_their_place_in_the_bar(tmp_path: Path) -> None:
    found = corpus.build([wav(tmp_path / "m.wav", melody(4))], tmp_path / "out", bpm=120, segmentation="onset")
    assert len(found) == 16
    assert np.abs(found.start - np.arange(16) * RATE / 2).max() <= 64
    assert np.allclose(found.position, [0, 1, 2, 3] * 4, atol=0.01)
    assert np.allclose(found.beats, 1, atol=0.01)


def test_long_notes_are_divided_and_a_tone_without_onsets_still_has_units(tmp_path: Path) -> None:
    steady = np.sin(np.arange(5 * RATE) * 0.03)[:, None].astype(np.float32)
    found = corpus.build([wav(tmp_path / "t.wav", steady)], tmp_path / "out")
    assert found.frames.max() <= corpus.LONGEST_SECONDS * RATE
    assert found.frames.sum() >= 4.9 * RATE


def test_labels_name_the_pitch(tmp_path: Path) -> None:
    pitches = [262.0, 330.0, 392.0, 262.0, 330.0, 392.0, 262.0, 330.0]
    path = wav(tmp_path / "m.wav", tones(8 * RATE // 2, RATE, pitches))
    labels = corpus.build([path], tmp_path / "out", bpm=120, labels=3).labels.tolist()
    assert len(set(labels)) == 3
    assert labels[:2] == labels[3:5] == labels[6:8]


def test_a_louder_brighter_take_of_the_same_notes_has_the_same_labels(tmp_path: Path) -> None:
    plain = melody(4)
    bright = plain * 0.2 + np.concatenate((np.zeros((1, 1), np.float32), np.diff(plain, axis=0))) * 0.5
    files = [wav(tmp_path / "a.wav", plain), wav(tmp_path / "b.wav", bright.astype(np.float32))]
    found = corpus.build(files, tmp_path / "out", bpm=120, labels=6)
    assert (found.labels[:16] == found.labels[16:]).mean() >= 0.8


def test_audio_is_untouched_and_others_are_decoded(tmp_path: Path) -> None:
    sound = melody(1)
    paths = [tmp_path / f"{name}" for name in ("a.wav", "a.flac", "b.aiff", "c.ogg")]
    for path in paths:
        soundfiles.write(path, sound, RATE)
    found = corpus.build(paths, tmp_path / "out", bpm=120)
    assert [source.file for source in found.sources] == ["a.wav", "a.flac", "b.flac", "c.flac"]
    assert (tmp_path / "out/audio/a.wav").read_bytes() == paths[0].read_bytes()
    assert (tmp_path / "out/audio/a.flac").read_bytes() == paths[1].read_bytes()
    assert np.array_equal(soundfiles.read(tmp_path / "out/audio/b.flac")[0], soundfiles.read(paths[2])[0])


def test_two_files_of_one_name_and_two_rates(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    paths = [wav(tmp_path / "m.wav", melody(1)), wav(tmp_path / "x/m.wav", melody(1, samplerate=48000), 48000)]
    found = corpus.build(paths, tmp_path / "out", bpm=120)
    assert [source.file for source in found.sources] == ["m.wav", "m_2.wav"]
    assert not found.follows(3)
    assert found.frames[[0, 4]].tolist() == [22050, 24000]


def test_load_gives_back_what_was_built(built: Corpus) -> None:
    loaded = corpus.load(built.folder)
    assert (loaded.name, loaded.digest, loaded.licence) == ("song", built.digest, "unknown")
    assert loaded.tempo == 120
    assert loaded.meter == Meter(4, 4)
    assert np.array_equal(loaded.features, built.features)
    assert isinstance(loaded.features, np.memmap)
    assert loaded.seconds == pytest.approx(8)
    assert loaded.channels == 1


def test_building_again_gives_the_same_bits_and_replaces(tmp_path: Path, built: Corpus) -> None:
    again = corpus.build([tmp_path / "m.wav"], built.folder, name="song", bpm=120, labels=6)
    assert again.digest == built.digest
    inside = corpus.build([built.folder / "audio/m.wav"], built.folder, name="song", bpm=120, labels=6)
    assert inside.digest == built.digest
    assert not (tmp_path / "out.building").exists()


def test_quotes_and_umlauts_survive_the_toml(tmp_path: Path) -> None:
    path = wav(tmp_path / "m.wav", melody(1))
    name = 'Über "x" \\ \x7f \t ☃'
    assert corpus.build([path], tmp_path / "out", name=name, bpm=120, licence="a\nb").name == name
    assert corpus.load(tmp_path / "out").licence == "a\nb"


@pytest.mark.parametrize("samplerate", [44100, 48000, 22050, 47999, 96000])
def test_a_unit_starts_on_its_frame_at_any_rate(tmp_path: Path, samplerate: int) -> None:
    at = [4001, 30017, 66666, 99990]
    found = corpus.build([wav(tmp_path / "c.wav", clicks(120000, at))], tmp_path / "out")
    for start in at:
        audio = found.read(0, start, 480, 3000, samplerate)
        assert audio.shape == (3480, 1)
        assert np.abs(audio[:, 0]).argmax() == 480


def test_reading_is_the_source_itself_at_its_own_rate_and_across_pages(tmp_path: Path) -> None:
    sound = (np.random.default_rng(0).standard_normal((200000, 2)) * 0.1).astype(np.float32)
    found = corpus.build([wav(tmp_path / "n.wav", sound)], tmp_path / "out", bpm=120)
    start = corpus.PAGE_FRAMES - 100
    assert np.array_equal(found.read(0, start, 50, 400, RATE), sound[start - 50 : start + 400])
    assert np.array_equal(found.read(0, 199990, 0, 30, RATE)[:10], sound[199990:])
    assert not found.read(0, 199990, 0, 30, RATE)[10:].any()
    assert not found.read(0, 0, 20, 10, RATE)[:20].any()


def test_a_cut_resampled_read_equals_the_whole_file_resampled(tmp_path: Path) -> None:
    import soxr

    sound = melody(2)
    found = corpus.build([wav(tmp_path / "m.wav", sound)], tmp_path / "out", bpm=120)
    whole = soxr.resample(sound, RATE, 48000, "HQ")
    start = 22050 * 3
    at = start * 160 // 147
    assert np.abs(found.read(0, start, 480, 24000, 48000) - whole[at - 480 : at + 24000]).max() < 2e-5


def test_decoded_pages_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CACHE_BYTES", 3 * corpus.PAGE_FRAMES * 4)
    sound = np.full((corpus.PAGE_FRAMES * 6, 1), 0.1, np.float32)
    found = corpus.build([wav(tmp_path / "n.wav", sound)], tmp_path / "out", bpm=120)
    for page in range(6):
        found.read(0, page * corpus.PAGE_FRAMES, 0, 10, RATE)
    assert len(found._pages) == 3


def test_changed_audio_is_told_when_first_read(built: Corpus) -> None:
    path = built.folder / "audio/m.wav"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    opened = corpus.load(built.folder)
    with pytest.raises(ValueError, match=r"m\.wav has changed since the corpus was built.*build .*out again"):
        opened.read(0, 0, 0, 10, RATE)
    with pytest.raises(ValueError, match="has changed"):
        corpus.load(built.folder).verify()


def test_shorter_missing_or_edited_parts_are_told_at_once(built: Corpus) -> None:
    path = built.folder / "audio/m.wav"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"m\.wav has changed"):
        corpus.load(built.folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"m\.wav is missing"):
        corpus.load(built.folder)
    path.write_bytes(whole)
    labels = np.load(built.folder / "units/labels.npy")
    np.save(built.folder / "units/labels.npy", labels + 1)
    with pytest.raises(ValueError, match=r"labels\.npy has changed"):
        corpus.load(built.folder)


def test_no_corpus_and_a_broken_description(built: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no corpus\.toml"):
        corpus.load(tmp_path)
    text = (built.folder / "corpus.toml").read_text()
    for broken in ("name = ", text.replace("version = 1", "version = 9"), text.replace('"120"', '"x"')):
        (built.folder / "corpus.toml").write_text(broken)
        with pytest.raises(ValueError, match=r"corpus\.toml cannot be read"):
            corpus.load(built.folder)


def test_bad_material_ends_in_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    good = wav(tmp_path / "good.wav", melody(1))
    nan = melody(1)
    nan[777] = np.nan
    bad = {
        "silent": wav(tmp_path / "s.wav", np.zeros((RATE * 2, 1), np.float32)),
        "frame 777 is nan": wav(tmp_path / "nan.wav", nan),
        "must hold a whole beat": wav(tmp_path / "short.wav", melody(1)[:4000]),
        "no such file": tmp_path / "gone.wav",
        "is a folder": tmp_path,
    }
    for reason, path in bad.items():
        with pytest.raises(ValueError, match=reason) as caught:
            corpus.build([good, path], tmp_path / "out", bpm=120)
        assert str(path) in str(caught.value) or path.name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("out*"))
    with pytest.raises(ValueError, match=r"needs 0\.02 s"):
        corpus.build([wav(tmp_path / "tiny.wav", melody(1)[:400])], tmp_path / "out")
    with pytest.raises(ValueError, match=r"no bar starts 3000 s into it"):
        corpus.build([good], tmp_path / "out", bpm=120, downbeat_seconds=3000)


def test_a_hit_shorter_than_a_unit_is_one(tmp_path: Path) -> None:
    hit = wav(tmp_path / "hit.wav", melody(1)[: round(0.043 * RATE)])
    made = corpus.build([hit, wav(tmp_path / "long.wav", melody(2))], tmp_path / "out")
    [frames] = made.frames[made.source == 0]
    assert frames == pytest.approx(0.043 * RATE, abs=10), "from where the hit begins to its end"
    assert np.isfinite(made.points).all()


def test_bad_parameters(tmp_path: Path) -> None:
    path = wav(tmp_path / "m.wav", melody(1))
    with pytest.raises(ValueError, match="no files"):
        corpus.build([], tmp_path / "out")
    with pytest.raises(TypeError, match="did you mean"):
        corpus.build(str(path), tmp_path / "out")
    with pytest.raises(ValueError, match="needs the tempo"):
        corpus.build([path], tmp_path / "out", segmentation="beat")
    with pytest.raises(ValueError, match="labels=0"):
        corpus.build([path], tmp_path / "out", labels=0)
    with pytest.raises(ValueError, match="is no corpus"):
        corpus.build([path], tmp_path)
    assert path.exists()


def test_progress_goes_up_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    corpus.build(
        [wav(tmp_path / "m.wav", melody(1))], tmp_path / "out", progress=lambda share, what: seen.append(share)
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_k_means_finds_separate_groups_the_same_every_time() -> None:
    chance = np.random.default_rng(2)
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    points = (np.repeat(centres, 30, axis=0) + chance.normal(0, 0.5, (90, 2))).astype(np.float32)
    labels, found = corpus.k_means(points, 3)
    assert [len(set(labels[k : k + 30].tolist())) for k in (0, 30, 60)] == [1, 1, 1]
    assert len(set(labels.tolist())) == 3
    assert np.abs(np.sort(found, axis=0) - np.sort(centres, axis=0)).max() < 0.5
    assert np.array_equal(labels, corpus.k_means(points, 3)[0])
    assert len(corpus.k_means(np.ones((5, 2), np.float32), 4)[1]) == 1


def test_weights_must_mean_something() -> None:
    for wrong in ((0.0, 0.0, 0.0), (1.0, -1.0, 0.0)):
        with pytest.raises(ValueError, match="three numbers"):
            corpus.spread_weights(wrong)


# --- corpora that mean harm ---


def resigned(built: Corpus, name: str, content: bytes) -> None:
    """Replace a file of a corpus, and the hash and size that corpus.toml has of it."""
    path, text = built.folder / name, (built.folder / "corpus.toml").read_text()
    before = path.read_bytes()
    text = text.replace(hashlib.sha256(before).hexdigest(), hashlib.sha256(content).hexdigest())
    text = text.replace(f"size_bytes = {len(before)}", f"size_bytes = {len(content)}")
    (built.folder / "corpus.toml").write_text(text)
    path.write_bytes(content)


def saved(array: np.ndarray[Any, Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("source", lambda a: a + 7, "source.npy has 7 to 7 where 0 to 0 must be"),
        ("source", lambda a: a - 1, "source.npy has -1"),
        ("start", lambda a: a - 1, "start.npy has -1"),
        ("start", lambda a: a + 2**62, "start.npy has"),
        ("frames", lambda a: a * 0, "frames.npy has 0"),
        ("frames", lambda a: a + 10**6, "a unit that ends after its recording"),
        ("beats", lambda a: a - 2, "beats.npy has -1"),
        ("position", lambda a: a * np.float32(np.inf), "position.npy has"),
        ("labels", lambda a: a + 99, "labels.npy has"),
        ("features", lambda a: a * np.float32(np.nan), "features.npy has nan"),
        ("scaling", lambda a: a * 0, "a deviation of 0 or less"),
        ("codebook", lambda a: a[:, :3], "it must be float32 of (rows, 25)"),
        ("bar", lambda a: a.astype(np.int64), "it must be int32 of (rows)"),
        ("bar", lambda a: a[:-1], "bar.npy has 15 rows where 16 must be"),
        ("labels", lambda a: a[:0], "it must be int32 of (rows)"),
        ("frames", lambda a: a.astype(">i8"), "no numbers"),
    ],
)
def test_arrays_that_do_not_fit_the_rest_are_refused(
    built: Corpus, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], words: str
) -> None:
    path = f"units/{name}.npy"
    with np.errstate(invalid="ignore"):
        resigned(built, path, saved(change(np.load(built.folder / path))))
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        corpus.load(built.folder)
    assert str(built.folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_array_shorter_than_its_header_says_is_refused(built: Corpus) -> None:
    content = (built.folder / "units/start.npy").read_bytes()
    for wrong in (content[:-8], content + bytes(8), content[:20], b""):
        resigned(built, "units/start.npy", wrong)
        with pytest.raises(ValueError, match=r"start\.npy"):
            corpus.load(built.folder)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('file = "m.wav"', 'file = "../../m.wav"', "the name of a file in audio/, without a folder"),
        ('file = "m.wav"', 'file = ".."', "the name of a file in audio/"),
        ('bpm = "120"', 'bpm = "1e999999999"', "is no exact number"),
        ('bpm = "120"', 'bpm = "1/0"', "is no exact number"),
        ('downbeat_seconds = "0"', 'downbeat_seconds = "0/00"', "is no exact number"),
        ("channels = 1", "channels = 65", "channels = 65; it must be a whole number from 1 to 64"),
        ("size_bytes = ", "size_bytes = -", "it must be a whole number from 1"),
        ("units = ", "units = 9", "rows where"),
        ('kind = "beat"', 'kind = "bar"', '"beat" or "onset"'),
        ("version = 1", "version = 1\n" + "a." * 9000 + "a = 1", "more than 100 dots"),
        ("version = 1", "version = 0x" + "f" * 9000, "a number of more than 40 digits"),
        ("[[sources]]", "[sources]", "an array of 1 to 2048 tables"),
    ],
)
def test_a_description_that_lies_is_refused(built: Corpus, old: str, new: str, words: str) -> None:
    text = (built.folder / "corpus.toml").read_text()
    assert old in text
    (built.folder / "corpus.toml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        corpus.load(built.folder)
    assert "\n" not in str(refused.value)


def test_links_out_of_a_corpus_are_not_followed(built: Corpus, tmp_path: Path) -> None:
    for name in ("audio/m.wav", "units/start.npy", "corpus.toml"):
        path = built.folder / name
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="is a link that leads out of its folder"):
            corpus.load(built.folder)
        path.unlink()
        (tmp_path / "elsewhere").rename(path)
    corpus.load(built.folder)


def test_a_recording_that_is_not_what_is_said_of_it_is_refused(built: Corpus, tmp_path: Path) -> None:
    stereo = wav(tmp_path / "stereo.wav", np.repeat(melody(1)[: 2 * RATE], 2, axis=1))
    resigned(built, "audio/m.wav", stereo.read_bytes())
    with pytest.raises(ValueError, match=r"m\.wav has .* frames of 2 channels .* corpus\.toml says otherwise"):
        corpus.load(built.folder).verify()


def test_the_bridge_reads_of_a_corpus_its_description_alone(built: Corpus, tmp_path: Path) -> None:
    assert corpus.described_channels(built.folder) == 1
    path = built.folder / "corpus.toml"
    path.write_text(path.read_text().replace("channels = 1", "channels = 6"))
    assert corpus.described_channels(built.folder) == 6
    for text in ("", "[[sources]]\nchannels = 10000000000\n", "sources = 3", "a." * 20_000 + "a = 1"):
        path.write_text(text)
        assert corpus.described_channels(built.folder) == 1
    assert corpus.described_channels(tmp_path / "nowhere") == 1


def test_only_so_many_recordings_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "OPEN_FILES", 2)
    files = [wav(tmp_path / f"{n}.wav", melody(1)) for n in range(4)]
    found = corpus.build(files, tmp_path / "out", bpm=120)
    whole = [found.read(source, 0, 0, 100, RATE) for source in range(4)]
    assert len(found._files) == 2
    found._pages.clear()
    assert all(np.array_equal(whole[source], found.read(source, 0, 0, 100, RATE)) for source in range(4))


def test_a_corpus_of_too_many_recordings_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2049 files given; a corpus holds up to 2048"):
        corpus.build([tmp_path / "x.wav"] * 2049, tmp_path / "out")
    with pytest.raises(ValueError, match="the licence has 0 characters"):
        corpus.build([tmp_path / "x.wav"], tmp_path / "out", licence="")
