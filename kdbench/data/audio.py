"""Recordings (.wav) in class folders, named `label_speaker_index.wav`, or listed in a table; also in a .zip."""

import io
import math
import re
import wave
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.signal import resample_poly

from kdbench.data.columns import column, read_columns
from kdbench.data.dataset import Dataset
from kdbench.data.files import Files, Split, by_class, by_label, find
from kdbench.data.preprocess import fit
from kdbench.errors import UserError, first_line
from kdbench.records import Count, Positive

NAMED = re.compile(r"(?P<label>[^_/]+)_(?P<speaker>[^/]+)_(?P<index>\d{1,9})\.wav", re.IGNORECASE)

FRAME_S, HOP_S = 0.025, 0.010
FLOOR = 1e-6
"""Added to the power of each band before its logarithm: silence is 60 dB below full scale, not −∞."""


def load(
    path: Path,
    sample_rate: Annotated[int, Field(ge=1000, le=192_000)] = 8000,
    mels: Count = 40,
    seconds: Annotated[Positive, Field(le=600)] = 1.0,
    test_indices: Count = 5,
    test_samples: Count | None = None,
    table: Path | None = None,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Log-mel spectrograms [N, 1, mels, frames] of recordings that are cut or filled up with silence to `seconds`.

    Class folders are read like those of images. In a flat folder of `label_speaker_index.wav`, recordings with an index
    below `test_indices` are the test split. A `table` (CSV) has the columns `file` and `label`, and perhaps `split`
    with `train` or `test`; without it `test_samples` are set aside by class.
    """
    files = find(path, {".wav"})
    if table is not None:
        split = _listed(files, table, test_samples, classes)
    elif all(NAMED.fullmatch(PurePosixPath(name).name) for name in files.names):
        split = _named(files, test_indices, classes)
    else:
        split = by_class(files, test_samples, classes)
    bank = mel_filters(sample_rate, mels)
    x_train, x_test = (_spectrograms(files, names, sample_rate, bank, seconds) for names in (split.train, split.test))
    return Dataset(
        x_train=x_train,
        y_train=split.y_train,
        x_test=x_test,
        y_test=split.y_test,
        classes=split.classes,
        preprocessing=fit(x_train, scale=1.0),
    )


def parse(content: bytes, where: str) -> tuple[NDArray[np.float32], int]:
    """Samples [n] from −1 to 1, the mean of all channels, and the sample rate of a .wav of 8 or 16 bits."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except Exception as error:  # wave raises struct.error, EOFError and others beside its own
        raise UserError(f"{where}: not a readable .wav: {first_line(error, 80)}") from None
    if width not in (1, 2):
        raise UserError(f"{where}: {8 * width} bits a sample: convert it to 16")
    if rate < 1 or not frames:
        raise UserError(f"{where}: {len(frames)} bytes of sound at {rate} Hz: nothing to hear")
    if len(frames) % (channels * width):
        raise UserError(f"{where}: cut off within a sample: fetch it again")
    if width == 1:
        samples = (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / 128
    else:
        samples = np.frombuffer(frames, "<i2").astype(np.float32) / 32768
    mono: NDArray[np.float32] = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono, rate


def mel_filters(sample_rate: int, mels: int) -> NDArray[np.float32]:
    """Triangles [mels, bins] on the mel scale (2595 · log10(1 + f/700)) from 0 Hz to half the sample rate.

    Raises UserError where a triangle falls between two bins of the spectrum.
    """
    bins = np.linspace(0, sample_rate / 2, _fft_size(sample_rate) // 2 + 1)
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank = np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))
    if not bank.any(axis=1).all():
        raise UserError(f"data.options.mels: {mels} are too many at {sample_rate} Hz: choose fewer")
    return bank.astype(np.float32)


def log_mel(samples: NDArray[np.float32], sample_rate: int, bank: NDArray[np.float32]) -> NDArray[np.float32]:
    """The natural logarithm of the power [mels, frames] in frames of 25 ms (Hann), one every 10 ms."""
    frame, hop = round(FRAME_S * sample_rate), round(HOP_S * sample_rate)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::hop]
    window = np.hanning(frame + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, _fft_size(sample_rate))) ** 2 / np.square(window.sum())
    # Not a BLAS product: on matrices as small as these its threads cost many times what they compute.
    result: NDArray[np.float32] = np.log(np.einsum("mb,fb->mf", bank, power.astype(np.float32)) + np.float32(FLOOR))
    return result


def _fft_size(sample_rate: int) -> int:
    """Twice a frame or more, so that low mel triangles, narrower than a bin of a frame, still hold one."""
    return 1 << math.ceil(math.log2(2 * FRAME_S * sample_rate))


def _spectrograms(
    files: Files, names: Sequence[str], sample_rate: int, bank: NDArray[np.float32], seconds: float
) -> NDArray[np.float32]:
    length = round(seconds * sample_rate)
    if length < round(FRAME_S * sample_rate):
        raise UserError(f"data.options.seconds: {seconds:g} is shorter than a frame of {FRAME_S:g}")
    spectrograms = []
    for name, content in zip(names, files.contents(names), strict=True):
        where = f"{files.where}: '{name}'"
        samples, rate = parse(content, where)
        if rate != sample_rate:
            common = math.gcd(rate, sample_rate)
            if max(rate, sample_rate) // common > 100_000:
                raise UserError(
                    f"{where}: {rate} Hz cannot be made {sample_rate} Hz: choose a data.options.sample_rate"
                )
            # Only what is kept: a recording may be hours long.
            samples = samples[: math.ceil((seconds + 1) * rate)]
            samples = resample_poly(samples, sample_rate // common, rate // common).astype(np.float32)
        samples = np.pad(samples[:length], (0, max(0, length - len(samples))))
        spectrograms.append(log_mel(samples, sample_rate, bank))
    return np.stack(spectrograms)[:, None]


def _named(files: Files, test_indices: int, classes: Sequence[str]) -> Split:
    """Files `label_speaker_index.wav`, those with an index below `test_indices` for the test."""
    found = [NAMED.fullmatch(PurePosixPath(name).name) for name in files.names]
    labels = [match["label"] for match in found if match]
    held = np.array([int(match["index"]) < test_indices for match in found if match])
    return by_label(files, files.names, labels, held, None, classes)


def _listed(files: Files, table: Path, test_samples: int | None, classes: Sequence[str]) -> Split:
    """Files and labels of a table's rows."""
    columns = read_columns(table)
    names, labels = column(columns, "file", str(table)), column(columns, "label", str(table))
    known = set(files.names)
    for name in names:
        if name not in known:
            raise UserError(f"{files.where}: no file '{name}', which {table} lists")
    held = None
    if "split" in columns:
        for value in columns["split"]:
            if value not in ("train", "test"):
                raise UserError(f"{table}: split should be 'train' or 'test', not '{value}'")
        held = np.array([value == "test" for value in columns["split"]])
    return by_label(files, names, labels, held, test_samples, classes)
