"""CIFAR-10 in each of the forms in which people have it."""

import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reproductions import datasets
from reproductions.datasets import cifar10
from reproductions.errors import SuiteError
from reproductions.locks import locked

SIZES = {"train": 20, "test": 10}


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(cifar10, "SIZES", SIZES)


def pixels(split, number):
    generator = np.random.default_rng(number + len(split))
    return generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def write_tree(root):
    """Files whose names sort as they were numbered."""
    for split, size in SIZES.items():
        for number in range(size):
            folder = root / "CIFAR-10" / split / cifar10.CLASSES[number % 10]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(split, number)).save(folder / f"{number:02}.webp", lossless=True)


def pack(root):
    for split in SIZES:
        with tarfile.open(root / "CIFAR-10" / f"{split}.tar.gz", "w:gz") as tar:
            tar.add(root / "CIFAR-10" / split, arcname=".")


@pytest.mark.parametrize("packed", [False, True])
def test_image_files_in_folders_and_archives(tmp_path, packed):
    write_tree(tmp_path)
    if packed:
        pack(tmp_path)
    for split, size in SIZES.items():
        images = datasets.load("cifar10", split, tmp_path, tmp_path / "cache")
        order = sorted(range(size), key=lambda n: (n % 10, n))
        assert images.shape == (3, 32, 32)
        assert images.y.tolist() == [n % 10 for n in order]
        expected = np.stack([pixels(split, n).transpose(2, 0, 1) for n in order])
        assert torch.equal(images.x, torch.from_numpy(expected).flatten(1))


def test_an_archive_of_one_split_beside_files_of_the_other(tmp_path):
    write_tree(tmp_path)
    expected = datasets.load("cifar10", "train", tmp_path, tmp_path / "cache").x
    pack(tmp_path)
    (tmp_path / "CIFAR-10" / "test.tar.gz").unlink()
    shutil.rmtree(tmp_path / "CIFAR-10" / "train")
    assert torch.equal(datasets.load("cifar10", "train", tmp_path, tmp_path / "cache").x, expected)
    archive = tmp_path / "CIFAR-10" / "train.tar.gz"
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(SuiteError, match=r"train\.tar\.gz: damaged or cut short"):
        datasets.load("cifar10", "train", tmp_path, tmp_path / "cache")


def test_what_was_decoded_is_kept_while_it_is_intact(tmp_path, monkeypatch):
    write_tree(tmp_path)
    pack(tmp_path)
    cache = tmp_path / "cache"
    first = datasets.load("cifar10", "train", tmp_path, cache)
    reads = []
    read = cifar10._read
    monkeypatch.setattr(cifar10, "_read", lambda *args: reads.append(args) or read(*args))
    assert torch.equal(datasets.load("cifar10", "train", tmp_path, cache).x, first.x)
    assert not reads
    damaged = cache / "CIFAR-10" / "train.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert torch.equal(datasets.load("cifar10", "train", tmp_path, cache).x, first.x)
    assert len(reads) == 2


def test_files_that_stay_as_they_are_are_hashed_once_for_both_splits(tmp_path, monkeypatch):
    write_tree(tmp_path)
    pack(tmp_path)
    cache = tmp_path / "cache"
    for _ in range(2):  # made, and found as it was made
        datasets.load("cifar10", "train", tmp_path, cache)
    read, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    datasets.load("cifar10", "train", tmp_path, cache)
    datasets.load("cifar10", "test", tmp_path, cache)
    assert not read
    archive = tmp_path / "CIFAR-10" / "test.tar.gz"
    archive.write_bytes(archive.read_bytes())
    datasets.load("cifar10", "test", tmp_path, cache)
    assert read.count("test.tar.gz") == 2  # by this test, and as it was written


def test_torchvisions_layout(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / cifar10.BATCHES
    folder.mkdir()
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    row = pixels("train", 0).transpose(2, 0, 1).reshape(1, -1)
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": row, "labels": [3]}))
    images = datasets.load("cifar10", "train", tmp_path, tmp_path / "cache")
    assert torch.equal(images.x, torch.from_numpy(row))
    assert images.y.tolist() == [3]


def test_one_process_downloads_at_a_time(tmp_path, monkeypatch):
    from torchvision import datasets as of_torchvision

    def download(root, train, download):
        with pytest.raises(SuiteError, match="busy"), locked(root / f".{cifar10.BATCHES}.lock", "busy"):
            raise AssertionError("another process came in")
        raise tarfile.ReadError("cut short")

    monkeypatch.setattr(of_torchvision, "CIFAR10", download)
    with pytest.raises(SuiteError, match="ReadError: cut short"):
        datasets.load("cifar10", "train", None, tmp_path / "cache")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "test" / "cat" / "03.webp").unlink(), "expected 10 test images, got 9"),
        (lambda folder: (folder / "train" / "cat").rename(folder / "train" / "lion"), "in 'lion'"),
        (lambda folder: (folder / "train" / "cat" / "03.webp").write_bytes(b"RIFF"), "not an image"),
        (lambda folder: (folder / "train").rename(folder / "training"), "holds no images.*expected as"),
    ],
)
def test_what_is_not_the_data_set_is_refused(tmp_path, damage, message):
    write_tree(tmp_path)
    damage(tmp_path / "CIFAR-10")
    with pytest.raises(SuiteError, match=message):
        datasets.load("cifar10", "train", tmp_path, tmp_path / "cache")


def test_an_archive_cut_short_is_refused(tmp_path):
    write_tree(tmp_path)
    pack(tmp_path)
    archive = tmp_path / "CIFAR-10" / "train.tar.gz"
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(SuiteError, match=r"train\.tar\.gz: damaged or cut short"):
        datasets.load("cifar10", "train", tmp_path, tmp_path / "cache")
