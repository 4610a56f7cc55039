"""Sentences and recordings: what is in the files is in the arrays, and every mistake in a file is named."""

import io
import json
import sys
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data import audio, preprocess, text
from kdbench.data.columns import parse_csv, parse_jsonl
from kdbench.errors import UserError
from tests.test_sources import load, message, write

# --- text -------------------------------------------------------------------------------------------------------------

LINES = "1 a good film\n0 a bad film\n1 good , good !\n"


def test_words_get_ids_by_their_frequency_in_the_training_sentences(tmp_path):
    train, test = write(tmp_path / "train.txt", LINES), write(tmp_path / "test.txt", "0 Bad or good\n")
    found = load("text", train=train, test=test, length=5)
    # good 3, a 2, film 2, then ! , and bad once each
    assert found.x_train.tolist() == [[3, 2, 4, 0, 0], [3, 7, 4, 0, 0], [2, 6, 2, 5, 0]]
    assert found.x_test.tolist() == [[7, 1, 2, 0, 0]]
    assert (found.y_train.tolist(), found.classes, found.preprocessing) == ([1, 0, 1], ("0", "1"), None)
    assert load("text", train=train, test=test, length=2, vocabulary_size=4).x_train.tolist() == [
        [3, 2],
        [3, 1],
        [2, 1],
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_of_text_give_what_lines_give(tmp_path, suffix):
    labels, sentences = text.parse_lines(LINES, "lines")
    rows = [{"text": sentence, "label": int(label)} for sentence, label in zip(sentences, labels, strict=True)]
    separator = "," if suffix == "csv" else "\t"
    quoted = [f'"{row["text"]}"{separator}{row["label"]}' for row in rows]
    content = "\n".join(map(json.dumps, rows) if suffix == "jsonl" else [f"text{separator}label", *quoted])
    path, lines = write(tmp_path / f"train.{suffix}", content), write(tmp_path / "train.txt", LINES)
    found, expected = load("text", train=path, test=path), load("text", train=lines, test=lines)
    np.testing.assert_array_equal(found.x_train, expected.x_train)
    np.testing.assert_array_equal(found.y_train, expected.y_train)
    assert "no column 'txet': did you mean 'text'?" in message("text", train=path, test=path, text="txet")


def test_parquet_gives_what_csv_gives(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (extra 'data') is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a b", "c"], "label": [1, 0]}), tmp_path / "x.parquet")
    found = load("text", train=tmp_path / "x.parquet", test=tmp_path / "x.parquet", length=3)
    assert found.x_train.tolist() == [[2, 3, 0], [4, 0, 0]]
    assert found.y_train.tolist() == [1, 0]
    write(tmp_path / "x.parquet", b"PAR1")
    path = tmp_path / "x.parquet"
    assert "not a readable Parquet file" in message("text", train=path, test=path)


def test_unlabelled_sentences_learn_from_a_labelled_test_split(tmp_path):
    train = write(tmp_path / "train.csv", "text\nsome words\nother words\n")
    test = write(tmp_path / "test.csv", "text,label\nwords,yes\nmore,no\n")
    assert "no column 'label'" in message("text", train=train, test=test)
    found = load("text", train=train, test=test, labelled=False)
    assert (found.y_train, found.y_test.tolist(), found.classes) == (None, [1, 0], ("no", "yes"))


def test_byte_pairs_know_every_byte(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers (extra 'data') is not installed")
    train, test = write(tmp_path / "train.txt", LINES * 9), write(tmp_path / "test.txt", "0 ünknown 漢 [PAD]\n")
    options = {"train": train, "test": test, "vocabulary": "byte_pairs", "vocabulary_size": 270, "length": 32}
    found = load("text", lowercase=False, **options)
    assert found.x_train.max() < 270
    assert 1 not in found.x_test
    assert (found.x_test[0] > 0).sum() == len(" ünknown 漢 [PAD]".encode())
    np.testing.assert_array_equal(load("text", lowercase=False, **options).x_train, found.x_train)
    assert "too small for byte pairs: 258 or more" in message("text", **(options | {"vocabulary_size": 100}))


def test_byte_pairs_without_their_package_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = write(tmp_path / "train.txt", LINES)
    assert "pip install tokenizers" in message("text", train=path, test=path, vocabulary="byte_pairs")


@given(st.text(max_size=80))
def test_any_text_is_labelled_lines_or_a_user_error(content):
    try:
        labels, sentences = text.parse_lines(content, "any.txt")
        assert len(labels) == len(sentences) > 0
    except UserError as error:
        assert str(error).startswith("any.txt:")


@given(st.text(max_size=80) | st.text(alphabet='ab,"\n\r{}:[]1 \0', max_size=80))
def test_any_text_is_a_table_or_a_user_error(content):
    for parse in (parse_csv, parse_jsonl):
        try:
            columns = parse(content, "any")
            assert len({len(values) for values in columns.values()}) <= 1
        except UserError as error:
            assert str(error).startswith("any:")


def test_sst2_has_its_three_splits(shared_data):
    files = {part: shared_data / "sst2" / f"stsa.binary.{part}" for part in ("train", "dev", "test")}
    test = load("text", train=files["train"], test=files["test"])
    dev = load("text", train=files["train"], test=files["dev"])
    assert (len(test.x_train), len(dev.x_test), len(test.x_test)) == (6920, 872, 1821)
    assert np.bincount(test.y_train).tolist() == [3310, 3610]
    assert test.x_train.max() == 7999
    assert (test.x_train[:, 0] > 0).all()
    assert (test.x_test == 1).sum() < 0.08 * (test.x_test > 0).sum()


# --- audio ------------------------------------------------------------------------------------------------------------


def wav(samples: np.ndarray, rate: int = 8000, bits: int = 16) -> bytes:
    """Samples [n] or [n, channels] from −1 to 1 as a .wav."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        out.setsampwidth(bits // 8)
        out.setframerate(rate)
        scaled = np.rint(samples * 127 + 128).astype(np.uint8) if bits == 8 else (samples * 32767).astype("<i2")
        out.writeframes(scaled.tobytes())
    return file.getvalue()


def tone(hertz: float, rate: int = 8000, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_of_8_and_16_bits_mono_and_stereo(bits, channels):
    sound = tone(440)
    content = wav(sound if channels == 1 else np.stack([sound, 0 * sound], axis=1), bits=bits)
    found, rate = audio.parse(content, "a.wav")
    assert rate == 8000
    np.testing.assert_allclose(found, sound / channels, atol=1 / 100 if bits == 8 else 1e-4)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_a_tone_is_loudest_in_its_mel_band_at_any_rate(tmp_path, rate):
    for number, hertz in enumerate((300, 1000, 3000)):
        for index in (0, 9):
            write(tmp_path / f"{number}_me_{index}.wav", wav(tone(hertz, rate, 0.5), rate))
    found = load("audio", path=tmp_path, mels=24, seconds=0.8)
    assert found.x_train.shape == (3, 1, 24, 78)
    bank = audio.mel_filters(8000, 24)
    for spectrogram, hertz in zip(found.x_train[:, 0], (300, 1000, 3000), strict=True):
        nearest_bin = round(hertz / 4000 * (bank.shape[1] - 1))
        assert spectrogram[:, 20].argmax() == bank[:, nearest_bin].argmax()
        assert spectrogram[:, 70].max() == pytest.approx(np.log(audio.FLOOR), abs=0.1)  # silence at the end


def test_recordings_in_class_folders_and_in_a_table(tmp_path):
    for name, hertz in (("low", 300), ("high", 2000)):
        for number in range(4):
            write(tmp_path / f"{name}/{number}.wav", wav(tone(hertz + number, seconds=0.2)))
    found = load("audio", path=tmp_path, seconds=0.2, test_samples=2)
    assert (found.classes, np.bincount(found.y_test).tolist()) == (("high", "low"), [1, 1])
    rows = [f"{name}/{n}.wav,{name},{'test' if n > 2 else 'train'}" for name in ("low", "high") for n in range(4)]
    table = write(tmp_path / "table.csv", "\n".join(["file,label,split", *rows]))
    listed = load("audio", path=tmp_path, seconds=0.2, table=table)
    assert (listed.y_train.tolist(), listed.y_test.tolist()) == ([1, 1, 1, 0, 0, 0], [1, 0])
    write(table, "file,label\nlow/9.wav,low\n")
    assert "no file 'low/9.wav'" in message("audio", path=tmp_path, table=table)


def test_recordings_that_cannot_be_used_are_named(tmp_path):
    write(tmp_path / "0_me_0.wav", wav(tone(440)))
    write(tmp_path / "0_me_9.wav", wav(tone(440))[:30])
    assert "'0_me_9.wav': not a readable .wav" in message("audio", path=tmp_path)
    assert "data.options.mels: 400 are too many at 8000 Hz" in message("audio", path=tmp_path, mels=400)
    assert "shorter than a frame" in message("audio", path=tmp_path, seconds=0.01)
    write(tmp_path / "0_me_9.wav", wav(np.zeros(0)))
    assert "nothing to hear" in message("audio", path=tmp_path)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_are_a_recording_or_a_user_error(content, cut):
    whole = wav(tone(440, seconds=0.01))
    for form in (content, whole[:cut] + content, whole[:cut] + content + whole[cut + len(content) :]):
        try:
            samples, rate = audio.parse(form, "any.wav")
            assert len(samples)
            assert rate > 0
        except UserError as error:
            assert str(error).startswith("any.wav:")


def test_spoken_digits_have_their_official_split(shared_data):
    found = load("audio", path=shared_data / "fsdd" / "recordings.zip")
    assert (found.x_train.shape, found.x_test.shape) == ((1200, 1, 40, 98), (300, 1, 40, 98))
    assert np.bincount(found.y_test).tolist() == [30] * 10
    assert found.classes == tuple("0123456789")
    # The nearest recording is of the same digit far more often than by chance: labels fit sounds.
    train, test = (preprocess.apply(x, found.preprocessing).reshape(len(x), -1) for x in (found.x_train, found.x_test))
    nearest = (np.square(train).sum(axis=1) - 2 * test @ train.T).argmin(axis=1)
    assert (found.y_train[nearest] == found.y_test).mean() > 0.8
