"""scikit-learn's 1,797 handwritten digits, 8×8, values 0 to 16 (UCI Optical Recognition of Handwritten Digits)."""

import numpy as np

from kdbench.data.dataset import Dataset, stratified_split
from kdbench.data.preprocess import fit
from kdbench.errors import UserError


def load(test_samples: int = 450) -> Dataset:
    """The digits with a stratified test split of `test_samples`; images are uint8 [N, 1, 8, 8]."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UserError("data.source 'digits' needs scikit-learn: pip install scikit-learn") from None

    values, labels = load_digits(return_X_y=True)
    images = values.astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = labels.astype(np.int64)
    if not 0 < test_samples < len(labels):
        raise UserError(f"data.options.test_samples: should be between 1 and {len(labels) - 1}, not {test_samples}")
    train, test = stratified_split(labels, test_samples)
    return Dataset(
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
        classes=tuple(str(digit) for digit in range(10)),
        preprocessing=fit(images[train], scale=1 / 16),
    )
