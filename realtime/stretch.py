"""Fitting a sound to a length without moving its attack. The one file that wraps python-stretch (Signalsmith).

Found by experiment with python-stretch 0.3.1: the library takes and gives ``(channels, frames)``, makes up for its
own latency, returns ``frames / factor`` rounded, and is the same bit for bit for the same seed. A click that is
stretched smears over +-60 ms: so the attack is never stretched. The last 40 ms or so lose up to 12 dB unless more
sound follows: so the end is mirrored (what really follows may be the next attack, whose smear would come early).
"""

from __future__ import annotations

import numpy as np

from realtime.buffers import crossfade
from realtime.protocols import Block

MIN_RATIO, MAX_RATIO = 0.5, 2.0
ATTACK_SECONDS = 0.025
MIRROR_SECONDS = 0.080
GUARD_SECONDS = 0.002
"""So much of the end is replaced by its mirror too: a resampled sound rings before the next attack."""
FADE_SECONDS = 0.005
_SEED = 1


def fit(audio: Block, frames: int, attack_frames: int, samplerate: int) -> Block:
    """Return ``audio`` in exactly ``frames``: its attack as it is, the rest stretched.

    Parameters
    ----------
    audio
        ``(n, channels)``, its attack at frame 0.
    frames
        Length wanted. A ratio ``frames / n`` outside 0.5 to 2 is not stretched but cut, or filled up with
        silence after a fade.
    attack_frames
        So many frames from the start are returned sample for sample; after them the stretched remainder is
        faded in over 5 ms.
    samplerate
        Frames per second; sets the block of the stretcher and the fades.
    """
    if len(audio) == frames:
        return audio.copy()
    fade = round(FADE_SECONDS * samplerate)
    if not MIN_RATIO * len(audio) <= frames <= MAX_RATIO * len(audio):
        return _cut_or_pad(audio, frames, fade)
    attack = min(attack_frames, len(audio) // 2, frames // 2)
    fade = min(fade, len(audio) - attack, frames - attack)
    end = max(len(audio) - round(GUARD_SECONDS * samplerate), attack + 1)
    mirror = min(round(MIRROR_SECONDS * samplerate), end - attack)
    rest = np.concatenate((audio[attack:end], audio[end - mirror : end][::-1]))
    factor = (len(audio) - attack) / (frames - attack)
    stretched = _stretch(rest, factor, samplerate)
    bridge = audio[attack : attack + fade]
    stretched = stretched[_best_lag(bridge, stretched[: 2 * fade]) :][: frames - attack]
    out = np.zeros((frames, audio.shape[1]), np.float32)
    out[:attack] = audio[:attack]
    out[attack : attack + len(stretched)] = stretched
    out[attack : attack + fade] = crossfade(bridge, out[attack : attack + fade])
    return out


def _best_lag(bridge: Block, stretched: Block) -> int:
    """Return how many frames of ``stretched`` to leave out so that it is in phase with ``bridge``: 5 ms at most."""
    lags = len(stretched) - len(bridge) + 1
    if lags < 2:
        return 0
    windows = np.lib.stride_tricks.sliding_window_view(stretched, len(bridge), axis=0)  # (lags, channels, fade)
    products = (windows * bridge.T).sum(axis=(1, 2))
    levels = np.sqrt((windows * windows).sum(axis=(1, 2))) + 1e-9
    return int((products / levels).argmax())


def _stretch(audio: Block, factor: float, samplerate: int) -> Block:
    """Play ``audio`` ``factor`` times as fast, at the same pitch."""
    from python_stretch import Signalsmith

    stretcher = Signalsmith.Stretch(_SEED)
    stretcher.preset(audio.shape[1], samplerate)
    stretcher.setTimeFactor(factor)
    return np.asarray(stretcher.process(np.ascontiguousarray(audio.T)), np.float32).T


def _cut_or_pad(audio: Block, frames: int, fade: int) -> Block:
    """Cut or fill up, with a fade at the end of what sounds."""
    out = np.zeros((frames, audio.shape[1]), np.float32)
    kept = min(len(audio), frames)
    out[:kept] = audio[:kept]
    fade = min(fade, kept)
    out[kept - fade : kept] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    return out
