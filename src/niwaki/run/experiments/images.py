"""The images that several experiments learn from: parts of Fashion-MNIST and of the digits, by the seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split

from niwaki.run.experiments.data import shared_data
from niwaki.task.images import Images, arrays
from niwaki.task.task import derive_seed


def fashion_mnist(count: int, seed: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """(images, labels, test images, test labels) of Fashion-MNIST: `count` training images, drawn with the seed, and the whole test part."""
    train, test = (np.load(shared_data("fashion_mnist", f"{part}.npz")) for part in ("train", "test"))
    images, labels = train["images"], train["labels"].astype(np.int64)
    kept = np.random.default_rng(derive_seed(seed, "images")).permutation(len(images))[:count]
    return images[kept], labels[kept], test["images"], test["labels"].astype(np.int64)


def digits_of_seed(seed: int) -> Images:
    """scikit-learn's digits, a fifth of them as the seed's own test part, every class as often as in all."""
    images, labels = datasets.load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 8, 8).astype(np.float32), labels, test_size=0.2, random_state=seed, stratify=labels)
    return arrays(parts[0], parts[2], parts[1], parts[3], source="digits")
