"""The data set that ships with scikit-learn, so that a first search needs no download."""

import numpy as np

from niwaki.task.images import Images, arrays

# where each writer's copy of one and the same form begins: the labels start anew with 0..9 0..9 0..9
WRITERS = (0, 130, 256, 386, 516, 646, 776, 905, 1029, 1157, 1287, 1415)
TEST_IMAGES = 360  # the last ones in scikit-learn's order were written by other people


def digits() -> Images:
    """1,437 + 360 handwritten digits: uint8 0..16, 8 x 8, ten classes; the last 360 in scikit-learn's order are the test part.

    Groups are the writers: 12 of the training images, of the last one 22 images only.
    """
    from sklearn.datasets import load_digits  # two seconds, which those with data of their own need not wait for

    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    images = images.reshape(-1, 8, 8).astype(np.uint8)
    writers = np.searchsorted(WRITERS, np.arange(len(images) - TEST_IMAGES), side="right")
    return arrays(
        images[:-TEST_IMAGES], labels[:-TEST_IMAGES], images[-TEST_IMAGES:], labels[-TEST_IMAGES:], source="scikit-learn's digits",
        groups=writers,
    )  # fmt: skip
