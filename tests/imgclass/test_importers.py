"""The writer of image sets, the digits importer and the shipped digits."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import sys
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from gridrun.errors import ConfigError, DataError
from imgclass import importers
from imgclass.importers import import_digits, split_stratified, write_images

DATA = Path(__file__).parents[2] / "data"
SHIPPED = {"digits": 8, "digits16": 16}  # data set -> side in pixels
N_IMAGES = {"train": 1438, "test": 359}
# UCI states these counts for its test file, which scikit-learn distributes.
DIGIT_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
STAND_IN_LABELS = np.repeat(np.arange(10), DIGIT_COUNTS)


class ImageSet(NamedTuple):
    """The three data arguments of `write_images`."""

    images: dict[str, npt.NDArray[Any]]
    labels: dict[str, npt.NDArray[Any]]
    class_names: list[str]


def make_set(channels: int = 3) -> ImageSet:
    """Return a valid set: 12 train and 6 test images of 4×5 pixels, 3 classes."""
    rng = np.random.default_rng(0)
    sizes = {"train": 12, "test": 6}
    shapes = {s: (n, channels, 4, 5) for s, n in sizes.items()}
    return ImageSet(
        {s: rng.integers(0, 256, shape, np.uint8) for s, shape in shapes.items()},
        {s: np.arange(n) % 3 for s, n in sizes.items()},
        ["cat", "dög", "eel"],
    )


def write(path: Path, image_set: ImageSet, **options: Any) -> None:
    """Write a set with the texts that every set needs."""
    texts = {"source": "a", "licence": "b", "citation": "ç", "augment": ["flip"]}
    write_images(path, *image_set, **{**texts, **options})


def read(path: Path) -> tuple[ImageSet, dict[str, Any]]:
    """Read a whole file back, without the package."""
    with h5py.File(path) as file:
        image_set = ImageSet(
            {split: file[f"{split}/images"][:] for split in ("train", "test")},
            {split: file[f"{split}/labels"][:] for split in ("train", "test")},
            list(file["class_names"].asstr()[:]),
        )
        return image_set, dict(file.attrs)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_written_set_reads_back(tmp_path: Path, channels: int, compress: bool) -> None:
    """Arrays, names and texts come back as they were given, in their types."""
    path, image_set = tmp_path / "new" / "images.h5", make_set(channels)
    write(path, image_set, compress=compress)
    found, attributes = read(path)
    for split in ("train", "test"):
        assert found.images[split].dtype == np.uint8
        np.testing.assert_array_equal(found.images[split], image_set.images[split])
        np.testing.assert_array_equal(found.labels[split], image_set.labels[split])
    assert found.class_names == image_set.class_names
    assert json.loads(attributes.pop("augment")) == ["flip"]
    assert attributes == {"source": "a", "licence": "b", "citation": "ç"}


def test_compression_is_a_choice(tmp_path: Path) -> None:
    """Sets are contiguous, so that files can be mapped, unless compression is asked."""
    for compress in (False, True):
        write(tmp_path / "images.h5", make_set(), compress=compress)
        with h5py.File(tmp_path / "images.h5") as file:
            images = file["train/images"]
            assert (images.compression == "gzip") is compress
            assert (images.chunks is None) is not compress


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    """No time, place or chance of the writing gets into the file."""
    for name in ("contiguous", "compressed"):
        write(tmp_path / name, make_set(), compress=name == "compressed")
    time.sleep(1.1)  # HDF5 counts time in seconds
    for name in ("contiguous", "compressed"):
        write(tmp_path / "b" / name, make_set(), compress=name == "compressed")
        assert sha256(tmp_path / name) == sha256(tmp_path / "b" / name)


def test_readable_by_whom_the_umask_allows(tmp_path: Path) -> None:
    """A shared data folder stays shared: the file's mode is the usual one."""
    write(tmp_path / "images.h5", make_set())
    (tmp_path / "usual").touch()
    files = [tmp_path / "images.h5", tmp_path / "usual"]
    modes = [stat.S_IMODE(file.stat().st_mode) for file in files]
    assert modes[0] == modes[1]


def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails before the rename costs neither the old file nor litter."""
    path = tmp_path / "images.h5"
    write(path, make_set(1))
    before = sha256(path)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DataError, match=r"images\.h5: could not be written.*No space"):
        write(path, make_set(3))
    assert [sha256(p) for p in tmp_path.iterdir()] == [before]


def test_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is on the disk before the rename, the name after it."""
    events: list[str] = []
    sync = os.fsync
    path = tmp_path / "images.h5"

    def record(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(f"{'folder' if is_folder else 'file'} {path.exists()}")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", record)
    write(path, make_set())
    assert events == ["file False", "folder True"]


def spoil(what: str) -> ImageSet:
    """Return the valid set with one thing wrong."""
    image_set = make_set()
    images, labels, names = image_set
    if what == "float":
        images["train"] = images["train"] / 255
    elif what == "3-d":
        images["test"] = images["test"][:, 0]
    elif what == "NHWC":
        for split in images:
            images[split] = np.ascontiguousarray(images[split].transpose(0, 2, 3, 1))
    elif what == "2 channels":
        for split in images:
            images[split] = images[split][:, :2]
    elif what == "sizes differ":
        images["test"] = images["test"][..., 1:]
    elif what == "no images":
        images["test"], labels["test"] = images["test"][:0], labels["test"][:0]
    elif what == "lengths differ":
        labels["train"] = labels["train"][:-1]
    elif what == "label too high":
        labels["test"][4] = 3
    elif what == "label negative":
        labels["train"][7] = -1
    elif what == "float labels":
        labels["train"] = labels["train"].astype(float)
    elif what == "class without images":
        labels["train"][labels["train"] == 1] = 0
    elif what == "no test":
        del images["test"]
    elif what == "name twice":
        names[2] = "cat"
    elif what == "name empty":
        names[0] = ""
    return image_set


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("float", ["train/images", "uint8", "float64"]),
        ("3-d", ["test/images", "(N, C, H, W)", "(6, 4, 5)"]),
        ("NHWC", ["train/images", "(12, 4, 5, 3)", "transpose(0, 3, 1, 2)"]),
        ("2 channels", ["train/images", "1 or 3 channels", "(12, 2, 4, 5)"]),
        ("sizes differ", ["(3, 4, 5)", "(3, 4, 4)"]),
        ("no images", ["test/images", "no images"]),
        ("lengths differ", ["train", "(12, 3, 4, 5)", "(11,)"]),
        ("label too high", ["test/labels", "0 ... 2", "3 at index 4"]),
        ("label negative", ["train/labels", "-1 at index 7"]),
        ("float labels", ["train/labels", "integers", "float64"]),
        ("class without images", ["train/labels", "class 1 ('dög')"]),
        ("no test", ["images", "found train"]),
        ("name twice", ["class_names", "'cat'"]),
        ("name empty", ["class_names", "empty"]),
    ],
)
def test_bad_sets_are_refused(tmp_path: Path, what: str, words: list[str]) -> None:
    """A set that training could not use is an error, and nothing is written."""
    with pytest.raises(DataError) as caught:
        write(tmp_path / "images.h5", spoil(what))
    assert all(word in str(caught.value) for word in ["images.h5", *words])
    assert list(tmp_path.iterdir()) == []


def test_problems_are_reported_together(tmp_path: Path) -> None:
    """One message holds all that is wrong."""
    image_set = make_set()
    image_set.labels["train"][0] = 9
    image_set.labels["test"][0] = 8
    image_set.class_names[1] = ""
    with pytest.raises(DataError) as caught:
        write(tmp_path / "images.h5", image_set)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(("augment", "channels"), [(["jitter"], 1), (["wobble"], 3)])
def test_augmentations_must_fit_the_images(
    tmp_path: Path, augment: list[str], channels: int
) -> None:
    """A file cannot promise an augmentation that its images cannot have."""
    with pytest.raises(DataError, match=f"augment.*'{augment[0]}'"):
        write(tmp_path / "images.h5", make_set(channels), augment=augment)


def test_images_in_both_splits_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Test images that are also in train give a warning with their number."""
    image_set = make_set()
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "images.h5", image_set)
        assert caplog.text == ""
        image_set.images["test"][:2] = image_set.images["train"][5:7]
        write(tmp_path / "images.h5", image_set)
    assert "2 test images are also in train" in caplog.text


def test_split_is_a_partition_in_proportion() -> None:
    """Every sample is in one part, and each class within one of its share."""
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [50, 33, 7]))
    for n_test in (0, 1, 20, 45, 90):
        train, test = split_stratified(labels, n_test, seed=3)
        assert len(test) == n_test
        assert sorted([*train, *test]) == list(range(90))
        counts = np.bincount(labels[test], minlength=3)
        assert np.abs(counts - n_test * np.array([50, 33, 7]) / 90).max() < 1


def test_split_depends_on_its_seed_alone() -> None:
    """The same seed gives the same split whatever NumPy's global state is."""
    labels = np.arange(60) % 4
    first = split_stratified(labels, 20, seed=3)[1]
    np.random.default_rng(8).random(5)
    np.testing.assert_array_equal(first, split_stratified(labels, 20, seed=3)[1])
    assert not np.array_equal(first, split_stratified(labels, 20, seed=4)[1])


def test_digits_without_scikit_learn_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The missing package is named, with the way to mend it."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        import_digits(tmp_path / "images.h5")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> npt.NDArray[np.float64]:
    """Put a scikit-learn in place whose digits are noise; return its levels."""
    levels = np.random.default_rng(0).integers(0, 17, (1797, 8, 8)).astype(float)
    datasets = types.ModuleType("sklearn.datasets")
    digits = types.SimpleNamespace(images=levels, target=STAND_IN_LABELS)
    monkeypatch.setattr(datasets, "load_digits", lambda: digits, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", datasets)
    return levels


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_digits_are_scaled_and_split(
    tmp_path: Path, stand_in: npt.NDArray[np.float64], scale: int
) -> None:
    """Each level is stored ×15 in a square of pixels, each image in one split."""
    import_digits(tmp_path / "images.h5", scale=scale)
    with h5py.File(tmp_path / "images.h5") as file:
        assert file["train/images"].compression == "gzip"
    found, attributes = read(tmp_path / "images.h5")
    assert attributes["augment"] == '["rotate"]'
    assert found.class_names == list("0123456789")
    assert {s: len(images) for s, images in found.images.items()} == N_IMAGES
    expected = []
    for levels, label in zip(stand_in, STAND_IN_LABELS, strict=True):
        image = np.zeros((1, 8 * scale, 8 * scale), np.uint8)
        for row in range(8 * scale):
            for column in range(8 * scale):
                level = levels[row // scale, column // scale]
                image[0, row, column] = 15 * int(level)
        expected.append((image.tobytes(), label))
    written = [
        (image.tobytes(), label)
        for split in ("train", "test")
        for image, label in zip(found.images[split], found.labels[split], strict=True)
    ]
    assert sorted(written) == sorted(expected)


def test_digits_scale_must_be_positive(tmp_path: Path) -> None:
    """A scale of 0 is refused."""
    with pytest.raises(ConfigError, match="scale: 0"):
        import_digits(tmp_path / "images.h5", scale=0)


@pytest.mark.parametrize(("name", "side"), SHIPPED.items())
def test_shipped_digits(name: str, side: int) -> None:
    """The files in data/ hold all the digits, stratified, at the stated levels."""
    found, attributes = read(DATA / name / "images.h5")
    counts = {s: np.bincount(labels) for s, labels in found.labels.items()}
    for split, n in N_IMAGES.items():
        assert found.images[split].shape == (n, 1, side, side)
        assert found.images[split].dtype == np.uint8
        assert found.labels[split].shape == (n,)
        assert set(np.unique(found.images[split])) == {15 * k for k in range(17)}
        shares = np.array(DIGIT_COUNTS) * n / 1797
        assert np.abs(counts[split] - shares).max() < 1
    assert (counts["train"] + counts["test"]).tolist() == DIGIT_COUNTS
    assert found.class_names == list("0123456789")
    assert attributes["augment"] == '["rotate"]'
    assert "CC BY 4.0" in attributes["licence"]
    assert "10.24432/C50P49" in attributes["citation"]
    assert "UCI" in attributes["source"]
    assert (DATA / name / "images.h5").stat().st_size < 110_000
    assert importers.image_problems(*found) == []
    assert importers.count_shared_images(*found.images.values()) == 0


def test_digits_look_like_digits() -> None:
    """Labels belong to their images: class means tell 85 % of the test set apart."""
    found, _ = read(DATA / "digits" / "images.h5")
    train, test = (found.images[s].reshape(-1, 64) / 255 for s in ("train", "test"))
    means = np.stack([train[found.labels["train"] == k].mean(0) for k in range(10)])
    distances = ((test[:, None] - means) ** 2).sum(2)
    assert (distances.argmin(1) == found.labels["test"]).mean() > 0.85


def test_digits16_are_digits_doubled() -> None:
    """Each pixel of digits is a square of four in digits16, in the same order."""
    small, large = (read(DATA / name / "images.h5")[0] for name in SHIPPED)
    for split in ("train", "test"):
        np.testing.assert_array_equal(small.labels[split], large.labels[split])
        for row in (0, 1):
            for column in (0, 1):
                np.testing.assert_array_equal(
                    large.images[split][:, :, row::2, column::2], small.images[split]
                )


def test_checksums_of_shipped_files() -> None:
    """Every listed file is there with its checksum, in the list and the README."""
    lines = (DATA / "SHA256SUMS").read_text().splitlines()
    listed = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for name, checksum in listed.items():
        assert sha256(DATA / name) == checksum
    for name in SHIPPED:
        assert listed[f"{name}/images.h5"] in readme
