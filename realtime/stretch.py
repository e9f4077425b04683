"""Fitting a sound to a length without moving its attack. The one file that wraps python-stretch (Signalsmith).

Found by experiment with python-stretch 0.3.1: the library takes and gives ``(channels, frames)``, makes up for its
own latency, returns ``frames / factor`` rounded, is the same bit for bit for the same seed, and lets the last 40 ms
or so fade unless more sound follows (so :func:`fit` takes what follows in the source). A click that is stretched
smears over +-60 ms: hence the attack is never stretched.
"""

from __future__ import annotations

import numpy as np

from realtime.buffers import crossfade
from realtime.protocols import Block

MIN_RATIO, MAX_RATIO = 0.5, 2.0
ATTACK_SECONDS = 0.025
TAIL_SECONDS = 0.080
"""Sound after the end that :func:`fit` can use."""
FADE_SECONDS = 0.005
_SEED = 1


def fit(audio: Block, frames: int, attack_frames: int, samplerate: int, tail: Block | None = None) -> Block:
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
    tail
        What follows ``audio`` in its source, ``(any, channels)``: keeps the end from fading.
    """
    if len(audio) == frames:
        return audio.copy()
    fade = round(FADE_SECONDS * samplerate)
    if not MIN_RATIO * len(audio) <= frames <= MAX_RATIO * len(audio):
        return _cut_or_pad(audio, frames, fade)
    attack = min(attack_frames, len(audio) // 2, frames // 2)
    fade = min(fade, len(audio) - attack, frames - attack)
    rest = audio[attack:] if tail is None else np.concatenate((audio[attack:], tail))
    factor = (len(audio) - attack) / (frames - attack)
    stretched = _stretch(rest, factor, samplerate)[: frames - attack]
    out = np.zeros((frames, audio.shape[1]), np.float32)
    out[:attack] = audio[:attack]
    out[attack : attack + len(stretched)] = stretched
    out[attack : attack + fade] = crossfade(audio[attack : attack + fade], out[attack : attack + fade])
    return out


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
