"""Image sets: splits, normalisation, augmentation, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gridrun.errors import DataError
from gridrun.training.extras import Extras
from gridrun.training.normalise import Normaliser
from gridrun.training.seeding import RunRandom
from imgclass import datas
from imgclass.metrics import n_correct
from imgclass.trainer import ImageTrainer

CPU = torch.device("cpu")
SHIPPED = Path(__file__).parents[2] / "data"


@pytest.fixture
def opened(
    tmp_path: Path, write_images: Callable[..., Any], image_hyps: Callable[..., Any]
) -> Callable[..., Any]:
    """Function (file options, **keys) that writes an image set and opens it."""

    def write_and_open(options: dict[str, Any] | None = None, **keys: Any) -> Any:
        arrays = write_images(tmp_path / "set" / "images.h5", **(options or {}))
        return arrays, datas.open_data(image_hyps(tmp_path, **keys), CPU)

    return write_and_open


def rows(images: np.ndarray) -> list[bytes]:
    """Each image as bytes."""
    return [np.ascontiguousarray(image).tobytes() for image in images]


# --- splits -----------------------------------------------------------------------


def split_of(n: int, **keys: Any) -> tuple[list[int], list[int]]:
    """Training and validation indices of n samples."""
    given: dict[str, Any] = {"val_p": 0.1, "shuffle": True, "split_seed": 0}
    given |= {"val_loc": "end", "val_set": None}
    given |= {"train_set_size": None, "val_set_size": None, **keys}
    hyps: Any = SimpleNamespace(**given)
    train, val = datas.split_indices(hyps, n)
    return train.tolist(), val.tolist()


@given(
    n=st.integers(2, 300),
    val_p=st.floats(0.001, 0.999),
    shuffle=st.booleans(),
    seed=st.integers(0, 1000),
    val_loc=st.sampled_from(["beginning", "middle", "end"]),
)
def test_splits_are_disjoint_whole_and_of_the_share(
    n: int, val_p: float, shuffle: bool, seed: int, val_loc: str
) -> None:
    """Each sample is in one side, each side in file order, validation is val_p of n."""
    train, val = split_of(
        n, val_p=val_p, shuffle=shuffle, split_seed=seed, val_loc=val_loc
    )
    assert sorted(train + val) == list(range(n))
    assert train == sorted(train)
    assert val == sorted(val)
    assert len(val) == min(max(round(val_p * n), 1), n - 1)
    assert (len(train), len(val)) == datas.split_sizes(n, val_p)


@pytest.mark.parametrize(
    ("val_loc", "expected"),
    [
        ("beginning", range(25)),
        ("middle", range(37, 62)),
        ("end", range(75, 100)),
    ],
)
def test_without_shuffle_validation_is_a_block(val_loc: str, expected: range) -> None:
    """The block lies at val_loc, whatever the seed."""
    for seed in (0, 1):
        _, val = split_of(
            100, val_p=0.25, shuffle=False, val_loc=val_loc, split_seed=seed
        )
        assert val == list(expected)


def test_the_random_split_depends_on_split_seed_alone() -> None:
    """Equal split seeds give equal splits, others others; val_loc has no effect."""
    assert split_of(100) == split_of(100, val_loc="beginning")
    assert split_of(100) != split_of(100, split_seed=1)
    train, val = split_of(100)
    assert val != list(range(val[0], val[0] + 10))
    assert len(train) == 90


def test_the_run_s_seed_does_not_move_the_split(opened: Callable[..., Any]) -> None:
    """Repeats with the same split_seed validate on the same images."""
    _, one = opened(seed=1, split_seed=3)
    _, other = opened(seed=2, split_seed=3)
    assert torch.equal(one.val.places, other.val.places)


def test_opened_splits_hold_the_file_s_images(opened: Callable[..., Any]) -> None:
    """Training and validation together are the training images with their labels."""
    arrays, data = opened()
    stored = dict(
        zip(rows(arrays["train/images"]), arrays["train/labels"], strict=True)
    )
    found = {}
    for split in (data.train, data.val):
        found |= dict(
            zip(
                rows(split.images[split.places].numpy()),
                split.labels.tolist(),
                strict=True,
            )
        )
    assert found == stored
    assert (len(data.train), len(data.val), len(data.test)) == (59, 7, 20)
    assert np.array_equal(data.test.images.numpy(), arrays["test/images"])
    assert np.array_equal(data.test.labels.numpy(), arrays["test/labels"])


def test_batches_are_levels_from_0_to_1(opened: Callable[..., Any]) -> None:
    """A batch has the images asked for, divided by 255, and their labels."""
    _, data = opened()
    indices = torch.tensor([5, 0, 5])
    batch = data.train.batch(indices)
    expected = data.train.images[data.train.places].numpy()[[5, 0, 5]] / 255
    np.testing.assert_allclose(batch.inputs.numpy(), expected, rtol=1e-6)
    assert batch.targets.tolist() == data.train.labels[indices].tolist()
    assert batch.inputs.dtype is torch.float32


def test_inspecting_and_opening_tell_the_same(
    image_set: Path, image_hyps: Callable[..., Any]
) -> None:
    """Sizes and classes found without images are those of the opened set."""
    hyps = image_hyps(image_set)
    info, data = datas.inspect_data(hyps), datas.open_data(hyps, CPU)
    sizes = {split: len(getattr(data, split)) for split in ("train", "val", "test")}
    assert info.n_samples == data.info.n_samples == sizes
    assert info.n_units == 3
    assert data.info.labels["class_names"] == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(("name", "side"), [("digits", 8), ("digits16", 16)])
def test_the_shipped_sets_open(
    image_hyps: Callable[..., Any], name: str, side: int
) -> None:
    """Digits have 1,438 training and 359 test images of ten classes."""
    hyps = image_hyps(SHIPPED, dataset=name, img_shape=[1, side, side])
    data = datas.open_data(hyps, CPU)
    assert len(data.train) + len(data.val) == 1438
    assert (len(data.val), len(data.test), data.info.n_units) == (144, 359, 10)
    assert data.info.labels["augment"] == ["rotate"]


# --- normalisation ----------------------------------------------------------------


def test_statistics_are_those_of_training_images(opened: Callable[..., Any]) -> None:
    """Mean and s.d. per channel are over the training split only, in [0, 1]."""
    _, data = opened({"shape": (3, 6, 6)}, img_shape=[3, 6, 6])
    levels = data.train.images[data.train.places].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(
        data.norm_stats["mean"], levels.mean((0, 2, 3)), rtol=1e-12
    )
    np.testing.assert_allclose(
        data.norm_stats["std"], levels.std((0, 2, 3)), rtol=1e-12
    )


def test_validation_images_do_not_enter_the_statistics(
    opened: Callable[..., Any],
) -> None:
    """Changing the validation block changes no statistic, changing others does."""
    keys = {"shuffle": False, "val_loc": "end"}
    arrays, before = opened(**keys)
    images = arrays["train/images"].copy()
    images[-7:] = 255 - images[-7:]
    _, after = opened({"changes": {"train/images": images}}, **keys)
    assert after.norm_stats == before.norm_stats
    images[-8] = 0
    _, changed = opened({"changes": {"train/images": images}}, **keys)
    assert changed.norm_stats != before.norm_stats


def test_normalise_is_per_channel() -> None:
    """(x - mean) / (s.d. + 1e-7), each channel with its own numbers."""
    x = np.random.default_rng(0).random((2, 3, 4, 4))
    stats = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 0.0]}
    stats = {"normalizer": "per_channel", **stats}
    found = Normaliser.load(stats)(torch.tensor(x)).numpy()
    for channel in range(3):
        expected = (x[:, channel] - stats["mean"][channel]) / (
            stats["std"][channel] + 1e-7
        )
        np.testing.assert_allclose(found[:, channel], expected, rtol=1e-9)


# --- augmentation -----------------------------------------------------------------


def inputs_of(data: Any, training: bool, seed: int = 1) -> torch.Tensor:
    """What a run's model gets of the first images, in one of both modes."""
    library: Any = None
    trainer = ImageTrainer(library, [], data)
    model = torch.nn.Identity().train(training)
    random = RunRandom(seed, CPU)
    run: Any = SimpleNamespace(model=model, random=random, extras=Extras())
    split = data.train if training else data.val
    return trainer.inputs(run, split.batch(torch.arange(7)))


@pytest.mark.parametrize("augment", [["flip"], ["crop"], ["rotate"], "auto"])
def test_augmentation_touches_training_only(
    opened: Callable[..., Any], augment: Any
) -> None:
    """Training inputs change by draw, validation's are the stored images normalised."""
    options = {"augment": '["flip", "rotate"]', "shape": (1, 8, 8)}
    _, data = opened(options, augment=augment, img_shape=[1, 8, 8])
    plain = Normaliser.load(data.norm_stats)(data.train.batch(torch.arange(7)).inputs)
    assert not torch.equal(inputs_of(data, True, 1), plain)
    assert not torch.equal(inputs_of(data, True, 1), inputs_of(data, True, 2))
    expected = Normaliser.load(data.norm_stats)(data.val.batch(torch.arange(7)).inputs)
    assert torch.equal(inputs_of(data, False), expected)


@pytest.mark.parametrize("stored", [None, "[]", '["flip"]'])
def test_no_augmentation_leaves_training_inputs(
    opened: Callable[..., Any], stored: str | None
) -> None:
    """With an empty list, whatever the file says, training inputs are plain."""
    _, data = opened({"augment": stored}, augment=[])
    plain = Normaliser.load(data.norm_stats)(data.train.batch(torch.arange(7)).inputs)
    assert torch.equal(inputs_of(data, True), plain)


def test_auto_is_the_file_s_list(opened: Callable[..., Any]) -> None:
    """Auto takes the names stored in the file, none where it stores none."""
    _, stored = opened({"augment": '["rotate", "flip"]'})
    assert stored.info.labels["augment"] == ["rotate", "flip"]
    _, absent = opened()
    assert absent.info.labels["augment"] == []


def test_augmentation_does_not_move_the_statistics(opened: Callable[..., Any]) -> None:
    """Statistics are of the images as stored."""
    _, plain = opened(augment=[])
    _, augmented = opened(augment=["crop", "rotate"])
    assert plain.norm_stats == augmented.norm_stats


# --- what is refused --------------------------------------------------------------

LABELS = np.arange(66) % 3


def labels_with(value: int) -> np.ndarray:
    """Training labels of which the sixth has a value."""
    labels = LABELS.copy()
    labels[5] = value
    return labels


PIXELS = np.zeros((66, 1, 6, 6), np.uint8)
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "no images": ({"train/images": None}, {}, ["/train/images", "missing", "/test"]),
    "no labels": ({"test/labels": None}, {}, ["/test/labels", "missing"]),
    "no names": ({"class_names": None}, {}, ["/class_names", "missing"]),
    "float": (
        {"train/images": PIXELS.astype(float)},
        {},
        ["/train/images", "float64", "(66, 1, 6, 6)", "uint8"],
    ),
    "three dimensions": (
        {"train/images": PIXELS[:, 0]},
        {},
        ["/train/images", "(66, 6, 6)"],
    ),
    "channels last": (
        {"train/images": PIXELS.transpose(0, 2, 3, 1)},
        {},
        ["/train/images", "6 channels", "(N, H, W, C)"],
    ),
    "two channels": (
        {"train/images": PIXELS.repeat(2, 1)},
        {},
        ["/train/images", "2 channels", "1 or 3"],
    ),
    "img_shape": ({}, {"img_shape": [1, 8, 8]}, ["[1, 6, 6]", "[1, 8, 8]"]),
    "other test images": (
        {"test/images": np.zeros((20, 1, 7, 6), np.uint8)},
        {},
        ["/test/images", "[1, 7, 6]", "[1, 6, 6]"],
    ),
    "count": ({"train/labels": LABELS[:60]}, {}, ["/train/images", "66", "60"]),
    "no test images": (
        {"test/images": PIXELS[:0], "test/labels": LABELS[:0]},
        {},
        ["/test/images", "0 images"],
    ),
    "label too large": (
        {"train/labels": labels_with(3)},
        {},
        ["3 at index 5", "0 to 2"],
    ),
    "label negative": ({"train/labels": labels_with(-1)}, {}, ["-1 at index 5"]),
    "label not integer": (
        {"train/labels": LABELS.astype(float)},
        {},
        ["/train/labels", "float64", "integer"],
    ),
    "empty class": (
        {"train/labels": LABELS % 2},
        {},
        ["/train/labels", "no image of class 2"],
    ),
    "jitter of grey images": ({}, {"augment": ["jitter"]}, ["jitter"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_by_name(opened: Callable[..., Any], case: str) -> None:
    """The error names the file, the data set and the values."""
    changes, keys, texts = REFUSED[case]
    with pytest.raises(DataError) as caught:
        opened({"changes": changes}, **keys)
    for text in ["images.h5", *texts]:
        assert text in str(caught.value)


def test_several_problems_come_together(opened: Callable[..., Any]) -> None:
    """A wrong shape and a wrong label are told in one error."""
    changes = {"test/images": PIXELS[:20, :, :5], "train/labels": labels_with(9)}
    with pytest.raises(DataError) as caught:
        opened({"changes": changes})
    assert len(caught.value.problems) == 2


def test_a_class_without_test_images_is_allowed(opened: Callable[..., Any]) -> None:
    """Only training needs every class."""
    _, data = opened({"changes": {"test/labels": np.zeros(20, int)}})
    assert data.info.n_units == 3


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_no_hdf5_is_refused(
    tmp_path: Path, image_hyps: Callable[..., Any], content: bytes
) -> None:
    """Bytes that are no HDF5 are named with the file."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.h5: not a readable HDF5 file"):
        datas.inspect_data(image_hyps(tmp_path))


def test_absent_sets_are_named_with_what_is_there(
    image_set: Path, image_hyps: Callable[..., Any]
) -> None:
    """A wrong root or data set is told, with the nearest name."""
    with pytest.raises(DataError, match=r"data_root: no folder .*nowhere"):
        datas.inspect_data(image_hyps(image_set / "nowhere"))
    with pytest.raises(DataError, match=r"dataset: no 'sat' in .*'set'"):
        datas.inspect_data(image_hyps(image_set, dataset="sat"))


def test_correct_predictions_are_counted() -> None:
    """The largest logit of a row is its class."""
    logits = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]])
    assert n_correct(logits, torch.tensor([1, 0, 0])) == 2
