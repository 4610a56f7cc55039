"""The cache of a teacher's answers: written once a view, read back the same, never believed when it is not sound."""

import numpy as np
import pytest

from kdbench.errors import UserError
from kdbench.records import Augment
from kdbench.training.cache import BATCH, Cache, in_half, views_of

SAMPLES = BATCH + 3
LOGITS = np.random.default_rng(0).normal(0, 5, (SAMPLES, 7)).astype(np.float32)


class Teacher:
    """Answers with LOGITS, moved by the number of the view, and counts the samples that it was asked for."""

    def __init__(self):
        self.asked = 0

    def of(self, view):
        def answer(index):
            self.asked += len(index)
            return LOGITS[index] + view

        return answer


def test_a_view_is_answered_once_and_read_back_in_half_precision(tmp_path):
    teacher, said = Teacher(), []
    cache = Cache(tmp_path / "c", "facts", SAMPLES, said.append)
    first = cache.view(0, teacher.of(0))
    assert teacher.asked == SAMPLES
    np.testing.assert_array_equal(first, LOGITS.astype(np.float16))
    np.testing.assert_array_equal(cache.view(1, teacher.of(1)), (LOGITS + 1).astype(np.float16))
    again = Cache(tmp_path / "c", "facts", SAMPLES, said.append)
    np.testing.assert_array_equal(again.view(0, teacher.of(99)), first)
    assert teacher.asked == 2 * SAMPLES
    assert said == []


def test_what_another_process_has_answered_meanwhile_is_found(tmp_path):
    teacher = Teacher()
    ours, theirs = (Cache(tmp_path / "c", "facts", SAMPLES) for _ in range(2))
    for view in range(2):
        first = ours.view(view, teacher.of(view))
        np.testing.assert_array_equal(theirs.view(view, teacher.of(99)), first)
    assert teacher.asked == 2 * SAMPLES


def test_the_logits_stay_in_their_file(tmp_path):
    view = Cache(tmp_path / "c", "facts", SAMPLES).view(0, Teacher().of(0))
    assert isinstance(view, np.memmap)
    assert view.dtype == np.float16
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0


def test_a_stale_cache_is_noticed_and_answered_again(tmp_path):
    teacher, said = Teacher(), []
    Cache(tmp_path / "c", "one teacher", SAMPLES).view(0, teacher.of(0))
    view = Cache(tmp_path / "c", "another teacher", SAMPLES, said.append).view(0, teacher.of(5))
    np.testing.assert_array_equal(view, (LOGITS + 5).astype(np.float16))
    assert len(said) == 1
    assert "another teacher" in said[0]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_view_is_noticed_and_answered_again(tmp_path, damage):
    said = []
    Cache(tmp_path / "c", "facts", SAMPLES).view(0, Teacher().of(0))
    path = tmp_path / "c" / "view-0.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    {
        "flip": lambda: path.write_bytes(content),
        "cut": lambda: path.write_bytes(content[:-100]),
        "remove": path.unlink,
    }[damage]()
    view = Cache(tmp_path / "c", "facts", SAMPLES, said.append).view(0, Teacher().of(0))
    np.testing.assert_array_equal(view, LOGITS.astype(np.float16))
    assert len(said) == 1
    assert "view-0.npy" in said[0]


def test_a_damaged_record_is_noticed(tmp_path):
    said, teacher = [], Teacher()
    Cache(tmp_path / "c", "facts", SAMPLES).view(0, teacher.of(0))
    (tmp_path / "c" / "cache.json").write_text("{")
    Cache(tmp_path / "c", "facts", SAMPLES, said.append).view(0, teacher.of(0))
    assert teacher.asked == 2 * SAMPLES
    assert len(said) == 1


def test_an_interrupted_view_leaves_nothing_that_would_be_believed(tmp_path):
    def interrupted(index):
        if index[0]:
            raise KeyboardInterrupt
        return LOGITS[index]

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path / "c", "facts", SAMPLES).view(0, interrupted)
    assert list((tmp_path / "c").iterdir()) == []
    view = Cache(tmp_path / "c", "facts", SAMPLES).view(0, Teacher().of(0))
    np.testing.assert_array_equal(view, LOGITS.astype(np.float16))


def test_a_teacher_that_answers_nan_is_named_with_the_sample(tmp_path):
    def broken(index):
        return np.where(index[:, None] == BATCH + 1, np.nan, LOGITS[index])

    with pytest.raises(UserError, match=rf"the teacher answers NaN for training sample {BATCH + 1}: mend it"):
        Cache(tmp_path / "c", "facts", SAMPLES).view(0, broken)
    assert list((tmp_path / "c").iterdir()) == []


def test_logits_beyond_half_precision_stay_finite():
    assert np.isfinite(in_half(np.array([[1e6, -1e6, 3.0]]))).all()


def test_how_many_views_there_are():
    assert views_of(Augment()) == views_of(Augment(views=5)) == 1
    assert views_of(Augment(flip=True)) is None
    assert views_of(Augment(flip=True, views=4)) == 4
