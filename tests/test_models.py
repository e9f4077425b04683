"""Every model that is shipped: it opens, its card is true, and streamed equals whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from realtime.inference import Model
from realtime.onnxfile import check_model

Array = npt.NDArray[Any]

MODELS = Path(__file__).parents[1] / "exported_models"
FOLDERS = sorted(path for path in MODELS.iterdir() if path.is_dir())
ONSET = MODELS / "onset"


def test_there_is_a_model() -> None:
    assert ONSET in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_shipped_model_opens_and_is_whole(folder: Path) -> None:
    model = Model.open(folder, "cpu")
    assert model.card.name == folder.name
    assert sorted(path.name for path in folder.iterdir()) == ["card.toml", "golden.npz", "model.onnx"]
    assert all(metric.command for metric in model.card.metrics)
    assert all(data.licence for data in model.card.data)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_shipped_model_tells_nothing_of_the_machine_that_made_it(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    check_model(content)
    for trace in (b"/home/", b"/root/", b"/Users/", b"site-packages", b".py", b"stack_trace", b"C:\\"):
        assert trace not in content
    model = onnx.load_from_string(content)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_the_index_tells_a_shipped_model_as_its_card_does(folder: Path) -> None:
    card = Model.open(folder, "cpu").card
    row = next(
        line for line in (MODELS / "README.md").read_text().splitlines() if line.startswith(f"| [{folder.name}]")
    )
    assert card.task in row
    assert card.licence in row
    assert f"{round((folder / 'model.onnx').stat().st_size / 1000)} kB" in row
    f1 = {metric.name: metric.value for metric in card.metrics if metric.name.startswith("F1")}
    for value in f1.values():
        assert f"{value:.3f}" in row


def test_the_onset_network_is_small() -> None:
    model = onnx.load(str(ONSET / "model.onnx"))
    assert sum(math.prod(weight.dims) for weight in model.graph.initializer) < 60_000
    assert (ONSET / "model.onnx").stat().st_size < 300_000
    assert model.opset_import[0].version >= 18


def weights() -> dict[str, Array]:
    model = onnx.load(str(ONSET / "model.onnx"))
    return {weight.name: numpy_helper.to_array(weight).astype(np.float64) for weight in model.graph.initializer}


def log_powers(audio: Array, filters: Array, stride: int) -> Array:
    """Log powers ``(windows, bands)`` of a recording whose past is already before it."""
    windows = np.lib.stride_tricks.sliding_window_view(audio, filters.shape[-1])[::stride]
    filtered = windows @ filters[:, 0].T
    bands = filtered.shape[1] // 2
    return np.asarray(np.log((filtered[:, :bands] ** 2 + filtered[:, bands:] ** 2) / 1e-8 + 1) / 10)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def whole(audio: Array) -> Array:
    """Onset probabilities of a recording ``(frames,)`` in plain NumPy: one pass of the filters over all of it."""
    w = weights()
    hops = len(audio) // 512
    low = log_powers(np.concatenate([np.zeros(768), audio]), w["low"], 256).reshape(hops, 2, -1)
    high = log_powers(np.concatenate([np.zeros(128), audio]), w["high"], 128).reshape(hops, 4, -1)
    mean, hidden = np.zeros(low.shape[2] + high.shape[2]), np.zeros(w["gru.weight_hh_l0"].shape[1])
    last: Array = np.zeros(w["squeeze.weight"].shape[1] // 2)
    found = []
    for k in range(hops):
        split = low.shape[2]
        hop = np.concatenate([(low[k] - mean[:split]).T.ravel(), (high[k] - mean[split:]).T.ravel()])
        mean = mean + 0.02 * (np.concatenate([low[k].mean(0), high[k].mean(0)]) - mean)
        rise = np.maximum(hop - last, 0)
        last = hop
        x = np.maximum(w["squeeze.weight"] @ np.concatenate([hop, rise]) + w["squeeze.bias"], 0)
        rx, zx, nx = np.split(w["gru.weight_ih_l0"] @ x + w["gru.bias_ih_l0"], 3)
        rh, zh, nh = np.split(w["gru.weight_hh_l0"] @ hidden + w["gru.bias_hh_l0"], 3)
        candidate = np.tanh(nx + sigmoid(rx + rh) * nh)
        hidden = candidate + sigmoid(zx + zh) * (hidden - candidate)
        found.append(sigmoid(w["output.weight"] @ hidden + w["output.bias"])[0])
    return np.asarray(found, np.float64)


def playing(hops: int) -> Array:
    """Return decaying tones every 12 000 frames and a bed of noise, ``(hops * 512,)`` float32."""
    t = np.arange(hops * 512)
    since = t % 12_000
    tone = np.sin(2 * np.pi * 330 / 48_000 * since) * np.exp(-since / 3000)
    noise = np.random.default_rng(5).uniform(-1, 1, len(t))
    return np.asarray(0.4 * tone + 0.001 * noise, np.float32)


def test_streamed_equals_whole() -> None:
    audio = playing(240)
    state = Model.open(ONSET, "cpu").start()
    streamed = [float(state.step({"audio": hop})["onset"][0, 0]) for hop in audio.reshape(-1, 512, 1)]
    assert np.abs(np.array(streamed) - whole(audio.astype(np.float64))).max() < 1e-4
    assert max(streamed) > 0.8
    assert min(streamed) < 0.05


def test_a_stream_can_be_cut_anywhere_and_taken_up_again() -> None:
    audio = playing(60).reshape(-1, 512, 1)
    model = Model.open(ONSET, "cpu")
    state = model.start()
    in_one = [float(state.step({"audio": hop})["onset"][0, 0]) for hop in audio]
    other = model.start()
    cut = []
    for hop in audio:
        kept = other.snapshot()
        other = model.start()
        other.restore(kept)
        cut.append(float(other.step({"audio": hop})["onset"][0, 0]))
    assert cut == in_one


def test_silence_gives_no_onset_for_ever() -> None:
    state = Model.open(ONSET, "cpu").start()
    silence = np.zeros((512, 1), np.float32)
    assert max(float(state.step({"audio": silence})["onset"][0, 0]) for _ in range(2000)) < 0.2
