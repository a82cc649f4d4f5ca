"""Data sets that are folders of image files, on small trees of the same layout."""

import math
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import content, execute

from reproductions import datasets
from reproductions.catalog import validated
from reproductions.datasets import Form, Images, folders
from reproductions.errors import SuiteError
from reproductions.runner import Run

OBJECTS, VIEWS = 4, 5


def _save(path, value, size=(12, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def eth80(tmp_path):
    """Two classes; red tells the class, green the object, blue the view. With segmentations in `maps`."""
    for number, name in enumerate(("apple", "car"), 1):
        for thing in range(1, OBJECTS + 1):
            folder = tmp_path / "ETH-80" / str(number) / str(thing)
            for view in range(VIEWS):
                _save(folder / f"{name}{thing}-000-{view:03}.png", (100 * number, 10 * thing, 10 * view))
                _save(folder / "maps" / f"{name}{thing}-000-{view:03}-map.png", (255, 255, 255))
    return tmp_path


@pytest.fixture
def known(eth80, monkeypatch):
    """The names of the images of the fixture are those that a download must have."""
    names = folders._names(folders.KINDS["eth80"].find(eth80).paths, eth80)
    monkeypatch.setattr(folders, "ETH80_NAMES", folders._hash(names))


@pytest.fixture
def caltech(tmp_path):
    """More than 200 images per class, of several sizes, some of them grey."""
    root = tmp_path / "caltech101" / "101_ObjectCategories"
    for value, (name, count) in enumerate((("Faces", 203), ("Motorbikes", 210))):
        for n in range(1, count + 1):
            grey = n % 10 == 0
            colour = 100 + value if grey else (100 + value,) * 3
            _save(root / name / f"image_{n:04}.png", colour, (20 + n % 3, 10), "L" if grey else "RGB")
    return tmp_path


def _colours(images):
    return images.x.reshape(-1, *images.shape)[:, :, 0, 0].tolist()


def test_eth80_at_random_has_a_fifth_of_each_class_in_the_test_set(eth80):
    train, test = (datasets.load("eth80", split, eth80, seed=1) for split in ("train", "test"))
    assert train.shape == (3, 96, 96)
    assert train.classes == 2
    assert train.x_max == 255
    assert train.y.bincount().tolist() == [16, 16]
    assert test.y.bincount().tolist() == [4, 4]
    for images in (train, test):
        assert [red // 100 - 1 for red, _, _ in _colours(images)] == images.y.tolist()
    all_colours = sorted(_colours(train) + _colours(test))
    expected = [[100 * c, 10 * o, 10 * v] for c in (1, 2) for o in range(1, 5) for v in range(5)]
    assert all_colours == expected


def test_eth80_with_objects_left_out_has_no_object_on_both_sides(eth80):
    name = "eth80-leave-objects-out"
    train, test = (datasets.load(name, split, eth80, seed=3) for split in ("train", "test"))
    assert train.y.bincount().tolist() == test.y.bincount().tolist() == [10, 10]
    objects = [{(red, green) for red, green, _ in _colours(images)} for images in (train, test)]
    assert not objects[0] & objects[1]
    assert len(objects[0]) == len(objects[1]) == 4


@pytest.mark.parametrize("name", ["eth80", "eth80-leave-objects-out"])
def test_another_seed_is_another_split_and_the_same_seed_the_same(eth80, name):
    first, again, other = (datasets.load(name, "test", eth80, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_objects_stay_whole_in_the_validation_part(eth80):
    train = datasets.load("eth80-leave-objects-out", "train", eth80)
    training, validation = datasets.hold_out(train, 7)
    assert validation.y.bincount().tolist() == [5, 5]
    assert training.y.bincount().tolist() == [5, 5]
    assert not set(training.groups.tolist()) & set(validation.groups.tolist())
    nothing, everything = datasets.hold_out(train, 0)[::-1]
    assert len(nothing) == 0
    assert torch.equal(everything.x, train.x)


def test_a_validation_part_that_takes_every_object_is_refused():
    groups = torch.tensor([0, 0, 0])
    images = Images(
        torch.zeros(3, 1, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), 255, 2, (1, 1, 1), groups
    )
    with pytest.raises(SuiteError, match="must leave a group of samples to train on, got 1"):
        datasets.hold_out(images, 1)


def test_caltech_trains_on_200_per_class_in_grey_at_one_size(caltech):
    name = "caltech-face-motorbike"
    train, test = (datasets.load(name, split, caltech) for split in ("train", "test"))
    assert train.shape == (1, 160, 250)
    assert train.groups is None
    assert train.y.bincount().tolist() == [200, 200]
    assert test.y.bincount().tolist() == [3, 10]
    for images in (train, test):
        assert torch.equal(images.x, (100 + images.y)[:, None].expand_as(images.x).to(torch.uint8))


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        ({"size": (4, 6), "grey": False}, (3, 4, 6)),
        ({"size": (4, 6)}, (1, 4, 6)),
        ({"grey": False}, (3, 160, 250)),
    ],
)
def test_size_and_colour_can_be_chosen(caltech, form, shape):
    images = datasets.load("caltech-face-motorbike", "test", caltech, form=Form(**form))
    assert images.shape == shape
    assert images.x.shape == (13, math.prod(shape))


def test_a_config_says_what_form_its_images_have(eth80, tmp_path):
    chosen = validated(
        content(epochs=1) | {"dataset": "eth80", "images": {"size": [4, 6], "grey": True}, "validation": 8},
        "tiny",
    )
    record = execute(Run(chosen, "tiny", results=tmp_path / "results", data_root=eth80))
    assert record.config["images"] == {"size": [4, 6], "grey": True}
    inputs, hidden, outputs = record.test.example.times
    assert (len(inputs), len(hidden), len(outputs)) == (24, 12, 2)


def test_pixels_are_where_they_were(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = folders.read_images([tmp_path / "a.png"], (2, 4), grey=False)
    assert torch.equal(x.reshape(3, 2, 4), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_broken_image_is_named(eth80):
    broken = eth80 / "ETH-80" / "2" / "1" / "car1-000-000.png"
    for damaged in (b"no image", broken.read_bytes()[:40], b""):
        broken.write_bytes(damaged)
        with pytest.raises(SuiteError, match=rf"{broken}: not an image, damaged or cut short"):
            [datasets.load("eth80", split, eth80) for split in ("train", "test")]


def test_an_object_without_images_is_named(eth80):
    empty = eth80 / "ETH-80" / "2" / "1"
    for path in empty.glob("*.png"):
        path.unlink()
    with pytest.raises(SuiteError, match=rf"{empty}: expected image files .*, got none"):
        datasets.load("eth80", "train", eth80)


def test_one_class_is_too_few(tmp_path):
    _save(tmp_path / "ETH-80" / "1" / "1" / "apple1-000-000.png", (0, 0, 0))
    with pytest.raises(SuiteError, match="expected at least two classes, got 1"):
        datasets.load("eth80", "train", tmp_path)


def test_too_few_images_to_train_on_are_counted(caltech):
    folder = caltech / "caltech101" / "101_ObjectCategories" / "Faces"
    for n in range(1, 10):
        (folder / f"image_{n:04}.png").unlink()
    with pytest.raises(SuiteError, match="class 'Faces' must have more than 200 images, got 194"):
        datasets.load("caltech-face-motorbike", "train", caltech)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("eth80", "DIR/ETH-80/<class>/<object>"),
        ("caltech-face-motorbike", "DIR/caltech101/101_ObjectCategories"),
    ],
)
def test_a_missing_folder_is_explained(tmp_path, name, layout):
    with pytest.raises(SuiteError, match=f"is no folder.*{layout}"):
        datasets.load(name, "train", tmp_path)


def test_what_is_downloaded_is_kept(eth80, known, tmp_path, monkeypatch):
    calls = []

    def archive(address, root, filename):
        calls.append(address)
        (eth80 / "ETH-80").rename(f"{root}/ETH-80-master")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", archive)
    cache = tmp_path / "cache"
    first = datasets.load("eth80", "train", None, cache)
    assert torch.equal(datasets.load("eth80", "train", None, cache).x, first.x)
    assert calls == [folders.ETH80_ARCHIVE]
    assert [path.name for path in cache.iterdir()] == ["ETH-80"]


@pytest.mark.parametrize("error", [OSError, zipfile.BadZipFile, tarfile.ReadError, EOFError])
def test_a_download_that_fails_is_explained_and_leaves_nothing(tmp_path, monkeypatch, error):
    def archive(address, root, filename):
        raise error("cut short")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", archive)
    with pytest.raises(SuiteError, match=r"cut short.*\n.*--data-root DIR. ETH-80"):
        datasets.load("eth80", "train", None, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.fixture
def downloads(eth80, known, monkeypatch):
    """ETH-80 comes from the folder of the fixture, as often as it is asked for."""
    made = []

    def archive(url, root, filename):
        shutil.copytree(eth80 / "ETH-80", Path(root) / "ETH-80-master")
        made.append(url)

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", archive)
    return made


def test_a_download_of_other_images_is_refused_and_leaves_nothing(downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ETH80_NAMES", "of others")
    with pytest.raises(SuiteError, match=r"the 3 280 known images in https://.*, got \d+ others"):
        datasets.load("eth80", "train", None, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("damage", ["changed", "missing", "renamed", "not checked"])
def test_a_download_that_was_changed_since_is_downloaded_again(downloads, tmp_path, damage):
    cache = tmp_path / "cache"
    first = datasets.load("eth80", "train", None, cache)
    image = cache / "ETH-80" / "1" / "1" / "apple1-000-000.png"
    if damage == "changed":
        _save(image, (3, 3, 3))
    elif damage == "missing":
        image.unlink()
    elif damage == "renamed":
        image.rename(image.with_name("apple1-000-999.png"))
    else:
        (cache / "ETH-80" / folders.DIGEST).unlink()
    again = datasets.load("eth80", "train", None, cache)
    assert torch.equal(again.x, first.x)
    assert len(downloads) == 2
    datasets.load("eth80", "test", None, cache)
    assert len(downloads) == 2


def test_a_record_has_the_hash_of_its_data(eth80, tmp_path):
    chosen = validated(
        content(epochs=1) | {"dataset": "eth80", "images": {"size": [4, 6], "grey": True}, "validation": 8},
        "tiny",
    )

    def data(name):
        return execute(Run(chosen, name, results=tmp_path / "results", data_root=eth80)).data_sha256

    first = data("first")
    assert len(first) == 64
    assert data("again") == first
    _save(eth80 / "ETH-80" / "1" / "1" / "apple1-000-000.png", (200, 3, 3))
    assert data("changed") != first
