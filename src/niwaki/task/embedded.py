"""The data set that ships with scikit-learn, so that a first search needs no download."""

import numpy as np
from sklearn.datasets import load_digits

from niwaki.task.images import Images, arrays

TEST_IMAGES = 360  # the last ones in scikit-learn's order were written by other people


def digits() -> Images:
    """1,437 + 360 handwritten digits: uint8 0..16, 8 x 8, ten classes; the last 360 in scikit-learn's order are the test part."""
    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    images = images.reshape(-1, 8, 8).astype(np.uint8)
    return arrays(
        images[:-TEST_IMAGES], labels[:-TEST_IMAGES], images[-TEST_IMAGES:], labels[-TEST_IMAGES:], source="scikit-learn's digits"
    )
