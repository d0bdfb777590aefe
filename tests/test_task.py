"""Image sets, splits, batches, augmentation and metrics of image classification."""

import pickle
import re
import tracemalloc
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from niwaki.run.config import Config
from niwaki.run.plan import search_of
from niwaki.task import classify
from niwaki.task.augment import Augment, augment_images
from niwaki.task.classify import ImageClassification, classification_metrics, confusion_matrix
from niwaki.task.cut import DataError, dealt, group_cut, stratified_cut
from niwaki.task.embedded import digits
from niwaki.task.folder import image_folder, read_images
from niwaki.task.images import arrays, guess_pixel_range, npz
from niwaki.task.task import derive_seed

CPU = torch.device("cpu")
rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (60, 9, 7), dtype=np.uint8)
COLOUR = rng.integers(0, 256, (60, 9, 7, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3


def set_of(images=GREY, labels=LABELS, **options):
    return arrays(images, labels, images[:9], LABELS[:9], **options)


def test_a_task_goes_to_another_process_without_its_copies_on_devices():
    task = ImageClassification(set_of(np.repeat(GREY, 50, axis=0), np.repeat(LABELS, 50)))
    before = len(pickle.dumps(task))
    images, _ = task.batch(torch.arange(5), CPU)
    assert len(pickle.dumps(task)) < before + 100_000, "labels and parts are kept; the images are 189,000 bytes"
    assert torch.equal(pickle.loads(pickle.dumps(task)).batch(torch.arange(5), CPU)[0], images)


# --- image sets ---


def test_digits_keep_the_last_360_images_in_scikit_learns_order_as_the_test_part():
    from sklearn.datasets import load_digits

    images, theirs = digits(), load_digits()
    assert images.images.shape == (1437, 8, 8)
    assert images.images.dtype == np.uint8
    assert np.array_equal(images.test_images, theirs.images[-360:])
    assert np.array_equal(images.test_labels, theirs.target[-360:])
    assert images.class_names == tuple("0123456789")


def test_a_channels_first_set_is_recognised_and_stored_channels_last():
    first = np.moveaxis(COLOUR, -1, 1)
    assert np.array_equal(set_of(first).images, COLOUR)
    assert np.array_equal(set_of(COLOUR).images, COLOUR)
    assert set_of(first).sha256 == set_of(COLOUR).sha256
    assert set_of(first).image_shape == (3, 9, 7)
    assert set_of(GREY).image_shape == (1, 9, 7)


@pytest.mark.parametrize("shape", [(60, 3, 8, 3), (60, 1, 8, 4), (60, 8, 9, 2), (60, 5, 5, 5)])
def test_a_layout_in_doubt_is_asked_for_and_then_obeyed(shape):
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    with pytest.raises(DataError, match="state layout='NHWC' or layout='NCHW'"):
        set_of(images)
    assert set_of(images, layout="NHWC").images.shape == shape
    assert set_of(images, layout="NCHW").images.shape == (60, shape[2], shape[3], shape[1])


def test_floats_are_kept_as_float32_and_the_readers_array_stays_writable():
    images = GREY / 255.0
    stored = set_of(images).images
    assert stored.dtype == np.float32
    assert np.array_equal(stored, images.astype(np.float32))
    own = GREY.copy()
    assert not set_of(own).images.flags.writeable
    own[0] = 0


def test_the_hash_sees_pixels_labels_and_class_names():
    other, swapped = GREY.copy(), LABELS.copy()
    other[3, 2, 1] ^= 1
    swapped[[0, 1]] = swapped[[1, 0]]
    sets = [set_of(), set_of(other), set_of(labels=swapped), set_of(class_names=("a", "b", "c")), set_of(GREY.astype(np.float32))]
    assert len({images.sha256 for images in sets}) == len(sets)
    assert set_of().sha256 == set_of(GREY.copy()).sha256


def nan_at(number):
    images = GREY.astype(np.float32)
    images[number, 0, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GREY[:0], LABELS[:0], "is empty"),
        (GREY[:, :0], LABELS, "is empty"),
        (GREY[0], LABELS[:9], "state layout|N x H x W"),
        (GREY.reshape(60, 63), LABELS, r"\(60, 63\).*N x H x W"),
        (GREY.astype(np.int64), LABELS, "int64; convert them to uint8"),
        (GREY.astype(str), LABELS, "convert them to uint8"),
        (nan_at(17), LABELS, "NaN or infinity, the first of them number 17"),
        (np.where(GREY > 250, np.inf, GREY), LABELS, "NaN or infinity"),
        (np.full_like(GREY, 7), LABELS, "every pixel of every training image is 7"),
        (GREY, LABELS[:59], "60 images and 59 labels"),
        (GREY, LABELS.astype(float), "float64.*one integer per image"),
        (GREY, LABELS[:, None], r"\(60, 1\).*one integer per image"),
        (GREY, LABELS - 1, "label -1 .* is negative"),
        (GREY, LABELS + 1, "no training image of class 0"),
        (GREY, LABELS + 1000, "label 1002 is out of range"),
        (GREY, np.zeros(60, int), "a single class"),
        (GREY, np.r_[LABELS[:-1], 3], "only one training image of class 3; at least 2"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_reason(images, labels, message):
    with pytest.raises(DataError, match=message):
        arrays(images, labels, GREY[:9], LABELS[:9])


def test_a_test_part_that_does_not_fit_the_training_part_is_refused():
    with pytest.raises(DataError, match="9 x 7 of uint8, test images 9 x 7 x 3"):
        arrays(GREY, LABELS, COLOUR, LABELS)
    with pytest.raises(DataError, match=r"test part.*label 3 is out of range; the 3 classes are 0..2"):
        arrays(GREY, LABELS, GREY[:2], [0, 3])
    with pytest.raises(DataError, match=r"test part.*'b', 'c'|label 3 is out of range.*a, b, c"):
        arrays(GREY, LABELS, GREY[:2], [0, 3], class_names=("a", "b", "c"))
    with pytest.raises(DataError, match="come together"):
        arrays(GREY, LABELS, GREY)
    with pytest.raises(DataError, match=r"only one training image of class 1 \('cat'\)"):
        arrays(GREY[:3], [0, 0, 1], GREY[:2], [0, 1], class_names=("dog", "cat"))


def test_a_set_without_a_test_part_has_a_fifth_of_every_class_cut_off_and_says_so():
    images = arrays(GREY, LABELS)
    assert np.bincount(images.test_labels).tolist() == [4, 4, 4]
    assert "20% of every class cut off as the test part" in images.source
    every = np.concatenate([images.images, images.test_images])
    assert {image.tobytes() for image in every} == {image.tobytes() for image in GREY}
    assert arrays(GREY, LABELS).sha256 == images.sha256 != arrays(GREY, LABELS, test_seed=1).sha256
    with pytest.raises(DataError, match=r"class 2 \(2\).*at least 3 of each class"):
        arrays(GREY[:8], [0, 0, 0, 1, 1, 1, 2, 2])


def test_npz_folders_are_read_and_their_faults_named(tmp_path):
    with pytest.raises(DataError, match=r"missing; a folder with train.npz"):
        npz(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no train.npz; it holds notes.txt"):
        npz(tmp_path)
    np.savez(tmp_path / "train.npz", x=GREY, labels=LABELS)
    with pytest.raises(DataError, match="no array images; it holds x, labels"):
        npz(tmp_path)
    np.savez(tmp_path / "train.npz", images=np.array([GREY, None], dtype=object), labels=LABELS)
    with pytest.raises(DataError, match=r"cannot be read as an .npz file of plain arrays"):
        npz(tmp_path)
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"train.npz cannot be read"):
        npz(tmp_path)
    np.savez(tmp_path / "train.npz", images=GREY, labels=LABELS)
    assert len(npz(tmp_path).test_labels) == 12
    np.savez(tmp_path / "test.npz", images=GREY[:5], labels=LABELS[:5])
    assert np.array_equal(npz(tmp_path).test_images, GREY[:5])


@pytest.mark.parametrize("size", [1, 50, 200, 2000, 3000])
def test_a_truncated_npz_file_is_an_error_and_never_a_crash(tmp_path, size):
    np.savez(tmp_path / "train.npz", images=GREY, labels=LABELS)
    (tmp_path / "train.npz").write_bytes((tmp_path / "train.npz").read_bytes()[:size])
    with pytest.raises(DataError, match=r"train.npz"):
        npz(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_byte_anywhere_in_an_npz_file_is_an_error_or_does_no_harm(tmp_path, save):
    images, labels = GREY[:6, :4, :4], LABELS[:6]
    np.savez(tmp_path / "test.npz", images=images, labels=labels)
    save(tmp_path / "train.npz", images=images, labels=labels)
    whole, refused = (tmp_path / "train.npz").read_bytes(), {}
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "train.npz").write_bytes(damaged)
        try:
            found = npz(tmp_path)
        except DataError as error:
            refused[at] = str(error)
        else:
            assert np.array_equal(found.images, images)
            assert np.array_equal(found.labels, labels)
    assert all("train.npz" in error for error in refused.values())
    assert len(whole) // 3 in refused, "the pixels are checked"


@pytest.mark.parametrize(
    ("values", "dtype", "bounds"),
    [([0, 255], "uint8", (0, 255)), ([3, 200], "uint8", (0, 255)), ([0, 16], "uint8", (0, 16)), ([0, 0.7], "float32", (0, 1)),
     ([-0.1, 0.7], "float32", (-1, 1)), ([0, 254.5], "float32", (0, 255)), ([-3, 2], "float32", None)],
)  # fmt: skip
def test_the_scale_of_arrays_is_told_from_the_pixels_or_not_at_all(values, dtype, bounds):
    assert guess_pixel_range(np.array(values, dtype=dtype)) == bounds


def test_the_scale_is_as_stated_where_it_is_stated(tmp_path):
    write_folder(tmp_path, modes=("L",), suffixes=("png",), sides=((8, 8),), brightest=99)
    assert image_folder(tmp_path).images.max() <= 99
    assert image_folder(tmp_path).pixel_range == (0, 255)
    assert set_of(GREY // 3).pixel_range == (0, 85)
    assert set_of(GREY // 3, pixel_range=(0, 255)).pixel_range == (0, 255)
    assert digits().pixel_range == (0, 16)
    with pytest.raises(DataError, match=r"pixel_range=\(7, 7\) is no scale"):
        set_of(pixel_range=(7, 7))


# --- image folders ---


def write_folder(root, count=5, modes=("L", "RGB"), suffixes=("png", "webp"), sides=((30, 20), (24, 40)), brightest=219):
    for label, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (*sides[i % len(sides)], 3), dtype=np.uint8) + np.uint8(100 * label)
            pixels = np.minimum(pixels, brightest)
            Image.fromarray(pixels).convert(modes[i % len(modes)]).save(root / name / f"{i}.{suffixes[i % len(suffixes)]}", lossless=True)


def test_a_folder_of_mixed_sizes_is_read_at_the_median_side_and_in_colour_if_one_file_has_colour(tmp_path):
    write_folder(tmp_path)
    images = image_folder(tmp_path)
    assert images.class_names == ("ant", "bee")
    assert images.images.shape[1:] == (27, 27, 3)  # the median of 30, 20, 24, 40
    assert len(images.images) == 8
    assert len(images.test_images) == 2
    assert image_folder(tmp_path, size=(8, 16)).images.shape[1:] == (8, 16, 3)
    assert np.bincount(images.labels).tolist() == [4, 4]
    assert images.images[images.labels == 1].mean() > images.images[images.labels == 0].mean() + 80


def test_a_folder_of_equal_grey_images_is_read_pixel_by_pixel(tmp_path):
    write_folder(tmp_path / "train", modes=("L",), suffixes=("png",), sides=((12, 12),))
    write_folder(tmp_path / "test", count=2, modes=("L",), suffixes=("png",), sides=((12, 12),))
    images = image_folder(tmp_path)
    assert images.images.shape == (10, 12, 12)
    assert np.array_equal(images.images[7], np.asarray(Image.open(tmp_path / "train" / "bee" / "2.png")))
    assert np.array_equal(images.test_images[1], np.asarray(Image.open(tmp_path / "test" / "ant" / "1.png")))
    paths = [tmp_path / "test" / "ant" / "1.png", tmp_path / "test" / "bee" / "0.png"]
    assert np.array_equal(read_images(paths, (12, 12), colour=False), images.test_images[[1, 2]])


@pytest.mark.parametrize(
    ("sides", "expected"),
    [(((28, 28),), 28), (((60, 60),), 60), (((60, 50), (70, 47)), 56), (((500, 400),), 224), (((3, 5), (4, 4)), 8)],
)
def test_the_default_size_is_a_square_of_the_median_side(tmp_path, sides, expected):
    write_folder(tmp_path, modes=("L",), sides=sides)
    assert image_folder(tmp_path).images.shape[1:] == (expected, expected)


def test_every_corrupt_file_is_named_at_once(tmp_path):
    write_folder(tmp_path)
    whole = (tmp_path / "ant" / "0.png").read_bytes()
    (tmp_path / "ant" / "0.png").write_bytes(whole[: len(whole) // 2])  # a good header, half the pixels
    (tmp_path / "bee" / "1.webp").write_text("no image at all")
    with pytest.raises(DataError, match=r"(?s)2 of 10 files cannot be read.*(0\.png.*1\.webp|1\.webp.*0\.png)"):
        image_folder(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_files_with_damaged_metadata_are_read_or_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    Image.fromarray(COLOUR[0]).save(tmp_path / "a.jpg", exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    read, refused = 0, []
    for at in range(whole.index(b"Exif"), whole.index(b"a note") + 6):
        for bits in (0x01, 0x10, 0xFF):
            damaged = bytearray(whole)
            damaged[at] ^= bits
            (tmp_path / "a.jpg").write_bytes(damaged)
            try:
                read += len(read_images([tmp_path / "a.jpg"], (9, 7), colour=True))
            except DataError as error:
                refused.append(str(error))
    assert read
    assert refused
    assert all("a.jpg cannot be read as an image" in error for error in refused)


def test_faults_of_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="missing"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no sub-folders"):
        image_folder(tmp_path)
    write_folder(tmp_path / "train", modes=("L",), sides=((8, 8),), suffixes=("png",))
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(DataError, match=r"class folder.*cow"):
        image_folder(tmp_path)
    (tmp_path / "train" / "cow").rmdir()
    write_folder(tmp_path / "test", modes=("L",), sides=((8, 8),), suffixes=("png",))
    (tmp_path / "test" / "bee").rename(tmp_path / "test" / "wasp")
    with pytest.raises(DataError, match="classes that train lacks: wasp; the classes are ant, bee"):
        image_folder(tmp_path)


def test_sixteen_bits_transparency_and_exif_orientation_are_understood(tmp_path):
    deep = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    clear = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    turned = Image.fromarray(np.repeat(np.arange(0, 240, 30, dtype=np.uint8)[None], 4, 0))  # 4 high, 8 wide
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_images([tmp_path / "deep.png"], (8, 8), colour=False)[0], np.round(deep / 257))
    assert (read_images([tmp_path / "clear.png"], (8, 8), colour=True) == 255).all()
    assert np.array_equal(read_images([tmp_path / "turned.png"], (8, 4), colour=False)[0][:, 0], np.arange(0, 240, 30))


def test_a_transparent_shade_of_sixteen_bits_is_white(tmp_path):
    deep = np.array([[1000, 2000], [30000, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png", transparency=1000)
    assert read_images([tmp_path / "deep.png"], (2, 2), colour=False)[0].tolist() == [[255, 8], [117, 255]]  # the others / 257


def test_pixels_without_a_known_scale_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif cannot be read .* on a scale that the file does not tell"):
        read_images([tmp_path / "a.tif"], (4, 4), colour=False)


# --- splits ---


def test_train_and_validation_are_disjoint_stratified_and_seeded():
    images = replace(digits(), groups=None)
    task, other = ImageClassification(images), ImageClassification(images, seed=1)
    train, validation = task.part("train").tolist(), task.part("validation").tolist()
    assert sorted(train + validation) == task.part("train+validation").tolist() == list(range(1437))
    assert task.part("test").tolist() == list(range(1437, 1797))
    counts, cut = np.bincount(images.labels), np.bincount(images.labels[validation])
    assert (np.abs(cut - 0.2 * counts) <= 0.5).all()
    assert validation == ImageClassification(images).part("validation").tolist() != other.part("validation").tolist()
    with pytest.raises(DataError, match="no part 'dev'; the parts are train, validation"):
        task.part("dev")


def test_the_search_split_cuts_the_train_part_alone():
    task = ImageClassification(replace(digits(), groups=None))
    weights, architecture = task.search_split()
    assert sorted(torch.cat([weights, architecture]).tolist()) == task.part("train").tolist()
    assert len(architecture) == pytest.approx(0.2 * len(task.part("train")), abs=5)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 11])
@pytest.mark.parametrize("each", [2, 3, 4, 5])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.99])
def test_both_sides_of_the_search_split_have_two_images_or_the_data_are_refused(classes, each, share):
    labels = np.repeat(np.arange(classes), each)
    images = rng.integers(0, 256, (len(labels), 4, 4), dtype=np.uint8)
    task = ImageClassification(arrays(images, labels, images, labels))
    train = task.part("train")
    if len(train) < 4:
        with pytest.raises(DataError, match=f"at least 4 images in its train part.* it has {len(train)}, as .* of the {len(labels)} "):
            task.search_split(share)
        return
    weights, architecture = task.search_split(share)
    assert sorted(torch.cat([weights, architecture]).tolist()) == train.tolist()
    assert min(len(weights), len(architecture)) >= 2


def test_the_groups_of_the_digits_are_writers_who_copied_one_form():
    images = digits()
    forms = [images.labels[images.groups == writer] for writer in np.unique(images.groups)]
    assert [len(form) for form in forms] == [130, 126, 130, 130, 130, 130, 129, 124, 128, 130, 128, 22]
    assert all(np.mean(form[:20] == np.tile(np.arange(10), 2)) >= 0.9 for form in forms), "which begins with 0..9, twice"
    assert len({tuple(form[:20]) for form in forms}) <= 3, "a few images are missing"


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_divided_between_training_validation_and_search(seed):
    images = digits()
    task = ImageClassification(images, seed=seed)
    parts = [*task.search_split(), task.part("validation")]
    assert sorted(torch.cat(parts).tolist()) == list(range(1437))
    groups = [set(images.groups[part]) for part in parts]
    assert not any(one & other for one, other in combinations(groups, 2))
    assert len(parts[2]) == pytest.approx(0.2 * 1437, abs=65), "half a group"
    assert all(set(images.labels[part]) == set(range(10)) for part in parts)


def test_a_group_with_all_images_of_a_class_is_trained_on():
    labels, groups = np.array([0, 0, 1, 1, 2, 2, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 2, 2])
    for seed in range(10):
        first, second = group_cut(labels, groups, 0.5, np.random.default_rng(seed))
        assert {4, 5} <= set(first), "the only images of class 2"
        assert set(second.tolist()) in ({0, 1, 2, 3}, {6, 7})
    assert len(group_cut(labels[:6], groups[:6], 0.2, np.random.default_rng(0))[1]) == 0
    images = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    with pytest.raises(DataError, match="no group can be kept for validation, as each has all training images of some class"):
        ImageClassification(arrays(images, labels[:6], images, labels[:6], groups=groups[:6])).part("train")


@pytest.mark.parametrize("seed", range(5))
def test_folds_hold_every_image_once_and_divide_no_group(seed):
    task = ImageClassification(digits(), seed=seed)
    folds = task.folds(4)
    held_out = [set(judge_on.tolist()) for _, judge_on in folds]
    assert sorted(index for fold in held_out for index in fold) == list(range(1437))
    for (train_on, _), fold in zip(folds, held_out, strict=True):
        assert set(train_on.tolist()) == set(range(1437)) - fold
        groups = task.images.groups
        assert not set(groups[list(fold)]) & set(groups[train_on])
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 130, "a writer wrote up to 130 digits"


def test_without_groups_folds_are_dealt_class_by_class():
    labels = np.repeat([0, 1, 2], [13, 8, 2])
    fold = dealt(labels, None, 4, np.random.default_rng(0))
    for label in range(3):
        counts = np.bincount(fold[labels == label], minlength=4)
        assert counts.max() - counts.min() <= 1
    assert set(np.bincount(fold)) == {5, 6}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.arange(24) // 3 % 2, "2 groups cannot be dealt to 3 folds (search.folds)"),
        (
            np.where(LABELS[:24] == 1, 0, np.arange(24) // 3),
            "of 3 folds (search.folds) of whole groups one had all images of some class in each of 20 deals, such as 1,",
        ),
    ],
)
def test_groups_that_cannot_be_dealt_to_folds_are_an_error_and_by_default_nobody_deals_them(groups, message):
    images = rng.integers(0, 256, (24, 8, 8), dtype=np.uint8)
    task = ImageClassification(set_of(images, LABELS[:24], groups=groups))
    with pytest.raises(DataError, match=re.escape(message)):
        task.folds(3)
    assert search_of(Config(), task)[1].folds == 1
    with pytest.raises(DataError, match=re.escape(message)):
        search_of(Config.model_validate({"search": {"folds": 3}}), task)


def test_groups_of_different_sizes_are_dealt_otherwise_where_the_most_even_folds_will_not_do():
    groups = np.repeat(np.arange(6), (10, 9, 8, 7, 6, 5))
    labels = np.where(np.isin(groups, (0, 5)), 1, 0)  # which the most even folds have together
    images = rng.integers(0, 256, (len(groups), 8, 8), dtype=np.uint8)
    assert len(set(dealt(labels, groups, 3, np.random.default_rng(0))[labels == 1])) == 1
    folds = ImageClassification(arrays(images, labels, images, labels, groups=groups)).folds(3)
    assert all(set(labels[train_on]) == {0, 1} for train_on, _ in folds)
    assert not any(set(groups[train_on]) & set(groups[judge_on]) for train_on, judge_on in folds)


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_dealt_so_that_every_class_is_in_several_folds(seed):
    groups = np.repeat(np.arange(24), 5)
    labels = np.where(np.isin(groups, (3, 17)), 1, 0)  # a class that only two of the groups know
    images = rng.integers(0, 256, (120, 8, 8), dtype=np.uint8)
    folds = ImageClassification(arrays(images, labels, images, labels, groups=groups), seed=seed).folds(3)
    assert sorted(len(judge_on) for _, judge_on in folds) == [40, 40, 40]
    assert all(set(labels[train_on]) == {0, 1} for train_on, _ in folds)


def test_more_folds_than_images_are_an_error():
    images, labels = rng.integers(0, 256, (4, 8, 8), dtype=np.uint8), np.array([0, 0, 1, 1])
    with pytest.raises(DataError, match=re.escape("4 images cannot be dealt to 5 folds (search.folds)")):
        ImageClassification(arrays(images, labels, images, labels)).folds(5)


def test_a_test_part_is_cut_from_a_grouped_npz_set_by_groups(tmp_path):
    people = np.repeat(["ada", "bo", "cy", "di", "ed"], 12)
    np.savez(tmp_path / "train.npz", images=GREY, labels=LABELS, groups=people)
    images = npz(tmp_path)
    assert (len(images.labels), len(images.test_labels)) == (48, 12)
    assert len(np.unique(images.groups)) == 4
    assert "20% of the groups cut off as the test part" in images.source
    np.savez(tmp_path / "train.npz", images=GREY, labels=LABELS, groups=people[1:])
    with pytest.raises(DataError, match=r"groups have the shape \(59,\).* each of the 60 training images"):
        npz(tmp_path)


def test_a_class_with_two_members_has_one_in_each_part_and_a_lonely_one_stays_in_the_first():
    first, second = stratified_cut(np.array([0, 0, 0, 0, 0, 1, 1, 2]), 0.01, np.random.default_rng(0))
    assert len(second) == 2
    assert 7 in first
    assert {5, 6} & set(first)
    assert {5, 6} & set(second)


# --- batches ---


def test_a_batch_is_the_normalised_image_and_preprocess_makes_the_same_from_stored_images():
    for stored in (COLOUR, GREY, GREY / 255.0, COLOUR[..., :1]):
        task = ImageClassification(set_of(stored))
        train = task.images.images[task.part("train")].astype(np.float64)
        mean, std = train.mean((0, 1, 2)) if stored.ndim == 4 else train.mean(), train.std((0, 1, 2)) if stored.ndim == 4 else train.std()
        expected = (task.images.images[:5] - mean) / std
        expected = np.moveaxis(expected, -1, 1) if stored.ndim == 4 else expected[:, None]
        inputs, labels = task.batch(torch.arange(5), CPU)
        assert inputs.shape[1:] == task.input_shape
        assert np.allclose(inputs, expected, atol=1e-5)
        assert torch.equal(task.preprocess()(torch.tensor(task.images.images[:5])), inputs)
        assert labels.tolist() == [0, 1, 2, 0, 1]
        assert torch.equal(task.batch(task.part("test")[:2], CPU)[0], task.batch(torch.tensor([0, 1]), CPU)[0])


def test_labels_are_those_of_the_batch():
    task = ImageClassification(set_of())
    for part in ("train", "validation", "test"):
        assert torch.equal(task.labels(task.part(part)), task.batch(task.part(part), CPU)[1])


@pytest.mark.parametrize("stored", [COLOUR, GREY, (GREY / 255.0).astype(np.float32)])
def test_mean_and_deviation_are_measured_without_a_copy_of_the_data(stored, monkeypatch):
    images = np.tile(stored, (40, *[1] * (stored.ndim - 1)))
    task = ImageClassification(set_of(images, np.tile(LABELS, 40)))
    train = task.images.images[task.part("train")].reshape(-1, task.input_shape[0]).astype(np.float64)
    monkeypatch.setattr(classify, "VALUES_AT_ONCE", 5000)
    tracemalloc.start()
    mean, std = task.normalisation
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.allclose(mean, train.mean(0), rtol=1e-6)
    assert np.allclose(std, train.std(0), rtol=1e-6)
    assert peak < train.nbytes / 4


def test_a_constant_channel_becomes_zero():
    images = COLOUR.copy()
    images[..., 1] = 9
    assert (ImageClassification(set_of(images)).batch(torch.arange(9), CPU)[0][:, 1] == 0).all()


def test_augmentation_follows_from_the_generator_alone():
    task = ImageClassification(digits(), augment=Augment(shift=0.1, rotate=10, scale=0.1, shear=0.1, flip=True, erase=0.3))
    one, same, other = (task.augmented_batch(torch.arange(64), CPU, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    still = ImageClassification(digits(), augment=Augment()).augmented_batch(torch.arange(64), CPU, torch.Generator())[0]
    assert torch.equal(still, task.batch(torch.arange(64), CPU)[0])


def test_a_shift_moves_whole_pixels_and_lets_the_background_in():
    images = torch.rand(200, 2, 6, 5)
    background = torch.tensor([-1.0, -2.0])
    moved = augment_images(images, Augment(shift=0.2), background, torch.Generator().manual_seed(0))
    padded = background.view(1, 2, 1, 1).expand(200, 2, 8, 7).clone()
    padded[:, :, 1:-1, 1:-1] = images
    windows = torch.stack([padded[:, :, dy : dy + 6, dx : dx + 5] for dy in range(3) for dx in range(3)])
    distance = (windows - moved).abs().amax((2, 3, 4))  # (9, 200)
    assert (distance.min(0).values < 1e-5).all()
    assert distance.argmin(0).unique().numel() == 9  # every one of the nine shifts happens


def test_flips_mirror_half_of_the_images():
    images = torch.rand(400, 1, 4, 5)
    flipped = augment_images(images, Augment(flip=True), torch.zeros(1), torch.Generator().manual_seed(0))
    mirrored, same = ((flipped - other).abs().amax((1, 2, 3)) < 1e-5 for other in (images.flip(3), images))
    assert (mirrored ^ same).all()
    assert 150 < mirrored.sum() < 250


def test_a_rotation_turns_in_pixels_also_where_the_image_is_not_square():
    image = torch.zeros(1, 1, 9, 13)
    image[0, 0, 4, 6 + 3] = 1.0  # three pixels to the right of the centre
    for seed in range(8):
        turned = augment_images(image, Augment(rotate=90), torch.zeros(1), torch.Generator().manual_seed(seed))[0, 0]
        y, x = (turned * torch.arange(9.0)[:, None]).sum() / turned.sum() - 4, (turned * torch.arange(13.0)).sum() / turned.sum() - 6
        assert float((x**2 + y**2).sqrt()) == pytest.approx(3, abs=0.2)


def test_erasing_sets_a_square_to_the_mean():
    images = torch.ones(50, 3, 10, 10)
    erased = augment_images(images, Augment(erase=0.4), torch.zeros(3), torch.Generator().manual_seed(0))
    zeros = (erased == 0).sum((2, 3))
    assert (zeros[:, 0] == zeros[:, 1]).all()
    assert zeros.max() == 16
    assert zeros.min() >= 4  # a corner at least


def test_flips_are_for_colour_images_that_are_not_tiny():
    tiny, large = (rng.integers(0, 256, (6, side, side, 3), dtype=np.uint8) for side in (8, 32))
    labels = [0, 1, 0, 1, 0, 1]
    flips = [ImageClassification(arrays(x, labels, x, labels)).augmentation.flip for x in (tiny, large, large[..., 0])]
    assert flips == [False, True, False]


@pytest.mark.parametrize("wrong", [{"shift": 2}, {"scale": -0.1}, {"rotate": 500}, {"erase": float("nan")}])
def test_an_impossible_augmentation_is_refused(wrong):
    with pytest.raises(DataError, match=f"{next(iter(wrong))}=.* is out of range"):
        Augment(**wrong)


def test_an_impossible_task_is_refused():
    images = set_of()
    for wrong in ({"validation": 0}, {"metric": "auc"}, {"class_weights": "heavy"}, {"augment": "strong"}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            ImageClassification(images, **wrong)


# --- loss and metrics ---


@pytest.mark.parametrize("seed", range(20))
def test_metrics_are_those_of_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    classes = int(draw.integers(2, 7))
    labels, logits = draw.integers(0, draw.integers(1, classes + 1), 40), draw.normal(size=(40, classes))
    logits[:, draw.integers(classes)] -= 9  # a class that is never predicted
    predicted = logits.argmax(1)
    matrix = confusion_matrix(torch.tensor(logits), torch.tensor(labels))
    assert np.array_equal(matrix, sklearn_confusion(labels, predicted, labels=range(classes)))
    figures = classification_metrics(matrix)
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert figures["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)
        assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_balanced_class_weights_follow_the_train_part_and_the_metric():
    labels = np.r_[np.zeros(40, int), np.ones(20, int)]
    logits, targets = torch.randn(16, 2), torch.arange(16) % 2
    log_p = logits.log_softmax(1)[torch.arange(16), targets]
    plain, balanced = (ImageClassification(arrays(GREY, labels), metric=metric) for metric in ("accuracy", "macro_f1"))
    counts = np.bincount(balanced.images.labels[balanced.part("train")])
    weights = torch.tensor(counts.sum() / (2 * counts)).float()[targets]
    assert plain.loss(logits, targets) == pytest.approx(float(-log_p.mean()))
    assert balanced.loss(logits, targets) == pytest.approx(float(-(weights * log_p).sum() / weights.sum()))
    assert ImageClassification(balanced.images, class_weights="balanced").loss(logits, targets) == balanced.loss(logits, targets)
    assert ImageClassification(balanced.images, metric="macro_f1", class_weights=None).loss(logits, targets) == plain.loss(logits, targets)


def test_derived_seeds_differ_in_every_part():
    seeds = {derive_seed(seed, word, epoch) for seed in range(20) for word in ("train", "order") for epoch in range(20)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
