"""Augmentation: a view of a sample is the same in any batch, and labels are mixed as the images are."""

import numpy as np
import pytest

from kdbench import data
from kdbench.data import augment
from kdbench.data.augment import Draws
from kdbench.errors import UserError
from kdbench.records import Augment, Data

ALL = Augment(shift_px=2, flip=True, mixup_alpha=0.4, cutmix_alpha=1.0, erase_probability=0.5)


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).integers(1, 256, (200, 3, 12, 10)).astype(np.uint8)


def draws(n, *seeds):
    return Draws(np.arange(n), seeds or (0,))


@pytest.mark.parametrize(
    "options",
    [Augment(shift_px=2), Augment(flip=True), Augment(erase_probability=0.5), Augment(mixup_alpha=0.2), ALL],
)
def test_a_view_of_a_sample_is_the_same_in_any_batch_and_order(samples, options):
    index = np.random.default_rng(1).permutation(200)
    whole = augment.view(samples, index, options, (3, 5))
    for part in (index[:7], index[190:][::-1], index[50:51]):
        shown = augment.view(samples, part, options, (3, 5))
        rows = [int(np.flatnonzero(index == i)[0]) for i in part]
        np.testing.assert_array_equal(shown.images, whole.images[rows])
        np.testing.assert_array_equal(shown.partner, whole.partner[rows])
        np.testing.assert_array_equal(shown.share, whole.share[rows])
    for other in ((3, 6), (4, 5)):
        assert not np.array_equal(augment.view(samples, index, options, other).images, whole.images)


def test_without_options_a_view_is_the_samples_themselves(samples):
    shown = augment.view(samples, np.array([4, 2]), Augment(), (0, 0))
    np.testing.assert_array_equal(shown.images, samples[[4, 2]])
    assert shown.images.dtype == np.uint8
    assert shown.share.tolist() == [1, 1]


def test_draws_are_uniform_and_their_streams_independent():
    found = [Draws(np.arange(20_000), (seed,)).uniform(stream) for seed in (0, 1) for stream in (0, 1)]
    for values in found:
        assert values.min() >= 0
        assert values.max() < 1
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        assert np.abs(counts - 1000).max() < 150  # 5 deviations of a binomial count
    correlations = np.corrcoef(found)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.04
    assert abs(np.corrcoef(found[0][1:], found[0][:-1])[0, 1]) < 0.04


def test_shift_moves_each_image_as_a_whole():
    image = np.zeros((64, 1, 5, 5), dtype=np.uint8)
    image[:, 0, 2, 2] = 7
    moved = augment.shift(image, 1, draws(64))
    assert (moved.sum(axis=(1, 2, 3)) == 7).all()
    assert len(np.unique(moved.reshape(64, -1).argmax(axis=1))) == 9
    assert augment.shift(image, 0, draws(64)) is image


def test_shift_keeps_channels_together_and_fills_with_0(samples):
    moved = augment.shift(samples, 3, draws(200))
    for image, original in zip(moved, samples, strict=True):
        padded = np.pad(original, ((0, 0), (3, 3), (3, 3)))
        places = [(y, x) for y in range(7) for x in range(7) if (padded[:, y : y + 12, x : x + 10] == image).all()]
        assert places


def test_flip_mirrors_half_of_the_images(samples):
    flipped = augment.flip(samples, draws(200))
    mirrored = (flipped == samples[..., ::-1]).all(axis=(1, 2, 3))
    same = (flipped == samples).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 70 < mirrored.sum() < 130


def test_erasing_leaves_one_box_of_0(samples):
    erased = augment.erase(samples, 0.5, draws(200))
    gone = (erased == 0).all(axis=1)
    assert ((erased == 0).any(axis=1) == gone).all()
    count = 0
    for mask in gone:
        if mask.any():
            count += 1
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert mask.mean() < 0.45
    assert 70 < count < 130
    kept = ~np.broadcast_to(gone[:, None], samples.shape)
    np.testing.assert_array_equal(erased[kept], samples[kept])
    assert augment.erase(samples, 0.0, draws(200)) is samples


def test_mixup_blends_each_image_with_its_partner(samples):
    index = np.arange(200)
    shown = augment.view(samples, index, Augment(mixup_alpha=1.0), (0, 1))
    share = shown.share[:, None, None, None]
    np.testing.assert_allclose(shown.images, share * samples + (1 - share) * samples[shown.partner], atol=1e-3)
    assert shown.images.dtype == np.float32
    assert np.abs(np.quantile(shown.share, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.12  # Beta(1, 1): uniform


def test_cutmix_pastes_a_box_and_its_share_is_the_area_left(samples):
    shown = augment.view(samples, np.arange(200), Augment(cutmix_alpha=1.0), (0, 1))
    own, other = shown.images == samples, shown.images == samples[shown.partner]
    assert (own | other).all()
    differ = (samples != samples[shown.partner]).all(axis=1)
    left = own.all(axis=1) & differ
    whole = differ.mean(axis=(1, 2)) > 0.95
    np.testing.assert_allclose(left[whole].mean(axis=(1, 2)), shown.share[whole], atol=0.06)


def test_both_together_give_each_sample_one_of_the_two(samples):
    shown = augment.view(samples, np.arange(200), Augment(mixup_alpha=1.0, cutmix_alpha=1.0), (0, 1))
    pasted = ((shown.images == samples) | (shown.images == samples[shown.partner])).all(axis=(1, 2, 3))
    assert 70 < pasted.sum() < 130


def test_labels_are_mixed_by_the_shares_of_the_images(samples):
    labels = np.arange(200) % 5
    index = np.array([3, 150, 8])
    shown = augment.view(samples, index, Augment(mixup_alpha=1.0), (0, 1))
    mixed = augment.mixed_labels(shown, labels, index, 5)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-6)
    for row, sample, partner, share in zip(mixed, index, shown.partner, shown.share, strict=True):
        expected = np.zeros(5)
        expected[labels[sample]] += share
        expected[labels[partner]] += 1 - share
        np.testing.assert_allclose(row, expected, rtol=1e-6)
    several = np.random.default_rng(0).integers(0, 2, (200, 4))
    rows = augment.mixed_labels(shown, several, index, 4)
    share = shown.share[:, None]
    np.testing.assert_allclose(rows, share * several[index] + (1 - share) * several[shown.partner], rtol=1e-6)


def test_only_images_are_varied(tmp_path):
    x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "rows.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    options = {"path": str(tmp_path / "rows.npz")}
    data.load(Data(source="arrays", options=options, augment=Augment(views=2)))
    with pytest.raises(UserError, match=r"data.augment: varies images .* not samples of shape \(3,\)"):
        data.load(Data(source="arrays", options=options, augment=Augment(flip=True)))
