import gzip
import hashlib
import shutil
import threading

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets as torchvision_datasets

from reproductions import datasets
from reproductions.datasets import Images, archives
from reproductions.errors import SuiteError
from reproductions.locks import locked

KINDS = {"mnist": torchvision_datasets.MNIST, "fashion-mnist": torchvision_datasets.FashionMNIST}
SIZES = {"train": 60_000, "t10k": 10_000}


def _idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def arrays():
    """Images of 2 x 2 under the names of the original files."""
    random = np.random.default_rng(0)
    made = {}
    for part, n in SIZES.items():
        made[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (n, 2, 2), np.uint8)
        made[f"{part}-labels-idx1-ubyte"] = random.integers(0, 10, n, np.uint8)
    return made


@pytest.fixture
def root(tmp_path, arrays, monkeypatch):
    """A data root with archives that torchvision takes for the originals; there is no network."""
    root = tmp_path / "root"
    for kind in KINDS.values():
        raw = root / kind.__name__ / "raw"
        raw.mkdir(parents=True)
        for name, array in arrays.items():
            (raw / f"{name}.gz").write_bytes(gzip.compress(_idx(array), 1, mtime=0))
        resources = [(f.name, hashlib.md5(f.read_bytes()).hexdigest()) for f in sorted(raw.iterdir())]
        monkeypatch.setattr(kind, "resources", resources)
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
        contents = {name: hashlib.sha256(_idx(array)).hexdigest() for name, array in arrays.items()}
        monkeypatch.setitem(archives.EXTRACTED, kind.__name__, contents)
    return root


@pytest.fixture
def raw(root, arrays):
    """The folder of MNIST's files in a data root, extracted."""
    raw = root / "MNIST" / "raw"
    for name, array in arrays.items():
        (raw / name).write_bytes(_idx(array))
    return raw


def _listing(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def test_digits_are_split_once_and_for_all():
    train, test = datasets.load("digits", "train"), datasets.load("digits", "test")
    original = load_digits()
    assert (len(train), len(test)) == (1437, 360)
    assert train.x.dtype == test.x.dtype == torch.uint8
    assert (train.x.min(), train.x.max(), train.x_max, train.classes) == (0, 16, 16, 10)
    together = np.column_stack([torch.cat([train.x, test.x]), torch.cat([train.y, test.y])])
    rows = np.column_stack([original.data, original.target]).astype(int)
    assert sorted(map(tuple, together)) == sorted(map(tuple, rows))
    np.testing.assert_allclose(test.y.bincount(), 0.2 * np.bincount(original.target), atol=1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    again = datasets.load("digits", "test")
    assert torch.equal(again.x, test.x)
    assert torch.equal(again.y, test.y)


def _numbered(n):
    return Images(torch.arange(n)[:, None], torch.arange(n), 255, 10, (1, 1, 1))


def test_hold_out_is_fixed_disjoint_complete_and_in_file_order():
    training, validation = datasets.hold_out(_numbered(50), 12)
    torch.manual_seed(3)
    again, _ = datasets.hold_out(_numbered(50), 12)
    assert len(validation) == 12
    assert torch.equal(torch.cat([training.y, validation.y]).sort().values, torch.arange(50))
    assert torch.equal(training.y, training.y.sort().values)
    assert torch.equal(training.y, again.y)
    assert torch.equal(training.x[:, 0], training.y)
    assert not torch.equal(validation.y, torch.arange(38, 50))


def test_hold_out_of_nothing_keeps_everything():
    training, validation = datasets.hold_out(_numbered(5), 0)
    assert (training.y.tolist(), len(validation)) == ([0, 1, 2, 3, 4], 0)


@pytest.mark.parametrize("validation", [5, 6])
def test_hold_out_leaves_something_to_train_on(validation):
    with pytest.raises(
        SuiteError, match=f"validation must be below the 5 training samples, got {validation}"
    ):
        datasets.hold_out(_numbered(5), validation)


@pytest.mark.parametrize("mode", [0o755, 0o555])
@pytest.mark.parametrize("name", KINDS)
def test_archives_are_extracted_into_the_cache_not_the_data_root(root, arrays, tmp_path, name, mode):
    folders = [root, root / KINDS[name].__name__, root / KINDS[name].__name__ / "raw"]
    for folder in folders:
        folder.chmod(mode)
    before = _listing(root)
    loaded = {"train": "train", "t10k": "test"}
    for part, split in loaded.items():
        images = datasets.load(name, split, root, tmp_path / "cache")
        assert (images.x_max, images.classes) == (255, 10)
        assert np.array_equal(images.x, arrays[f"{part}-images-idx3-ubyte"].reshape(-1, 4))
        assert np.array_equal(images.y, arrays[f"{part}-labels-idx1-ubyte"])
    assert _listing(root) == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [KINDS[name].__name__]
    for folder in folders:
        folder.chmod(0o755)


def test_the_second_load_reads_the_cache(root, tmp_path):
    first = datasets.load("mnist", "test", root, tmp_path / "cache")
    shutil.rmtree(root)
    assert torch.equal(datasets.load("mnist", "test", None, tmp_path / "cache").x, first.x)


def test_extracted_files_in_the_data_root_are_read_in_place(raw, root, tmp_path):
    for archive in raw.glob("*.gz"):
        archive.unlink()
    before = _listing(root)
    assert len(datasets.load("mnist", "train", root, tmp_path / "cache")) == 60_000
    assert _listing(root) == before
    assert not (tmp_path / "cache").exists()


def test_a_missing_archive_is_named_with_the_layout(root, tmp_path):
    missing = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    missing.unlink()
    with pytest.raises(SuiteError) as error:
        datasets.load("mnist", "train", root, tmp_path / "cache")
    assert f"{missing} is missing" in str(error.value)
    assert "--data-root" in str(error.value)
    for name, _ in KINDS["mnist"].resources:
        assert f"    MNIST/raw/{name}" in str(error.value)


def test_without_network_and_data_root_the_layout_is_explained(root, tmp_path):
    with pytest.raises(
        SuiteError, match=r"(?s)FashionMNIST is not .*downloading.*--data-root DIR.*raw/train"
    ):
        datasets.load("fashion-mnist", "train", None, tmp_path / "cache")


def test_a_truncated_archive_is_named_with_its_md5_and_nothing_is_cached(root, tmp_path):
    archive = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    expected = hashlib.md5(archive.read_bytes()).hexdigest()
    archive.write_bytes(archive.read_bytes()[:1000])
    found = hashlib.md5(archive.read_bytes()).hexdigest()
    with pytest.raises(SuiteError, match=f"{archive}: damaged .*its md5 is {found}, expected {expected}"):
        datasets.load("mnist", "train", root, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("length", [0, 3, 6, 8, 16, 1000])
def test_truncated_extracted_files_are_named(raw, root, tmp_path, name, length):
    (raw / name).write_bytes((raw / name).read_bytes()[:length])
    with pytest.raises(SuiteError, match=f"{raw / name}: not the original file, damaged or cut short"):
        datasets.load("mnist", "train", root, tmp_path / "cache")


DAMAGES = {
    "all labels 3": lambda arrays: {LABELS: np.full_like(arrays[LABELS], 3)},
    "permuted images": lambda arrays: {IMAGES: np.roll(arrays[IMAGES], 1, axis=0)},
    "too few": lambda arrays: {name: arrays[name][:99] for name in (IMAGES, LABELS)},
}
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_extracted_files_of_another_content_are_refused_by_name(raw, root, arrays, tmp_path, damage):
    for name, array in damage(arrays).items():
        (raw / name).write_bytes(_idx(array))
    with pytest.raises(SuiteError, match=f"{raw}/t10k-.*: not the original file"):
        datasets.load("mnist", "test", root, tmp_path / "cache")


@pytest.mark.parametrize("damage", [*DAMAGES.values(), lambda _: {LABELS: None}], ids=[*DAMAGES, "empty"])
def test_a_cache_of_another_content_is_extracted_again(root, arrays, tmp_path, damage):
    cache = tmp_path / "cache"
    first = datasets.load("mnist", "test", root, cache)
    for name, array in damage(arrays).items():
        (cache / "MNIST" / "raw" / name).write_bytes(b"" if array is None else _idx(array))
    again = datasets.load("mnist", "test", root, cache)
    assert torch.equal(again.x, first.x)
    assert torch.equal(again.y, first.y)
    assert [path.name for path in cache.iterdir()] == ["MNIST"]


def test_what_a_killed_process_left_in_the_cache_is_swept(root, tmp_path):
    left = tmp_path / "cache" / ".MNIST-abcdefgh" / "MNIST"
    left.mkdir(parents=True)
    (tmp_path / "cache" / ".MNIST.lock").touch()
    datasets.load("mnist", "test", root, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["MNIST"]


def test_a_second_process_waits_for_the_first(root, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    loaded = []
    with locked(cache / ".MNIST.lock"):
        second = threading.Thread(target=lambda: loaded.append(datasets.load("mnist", "test", root, cache)))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert not (cache / "MNIST").exists()
    second.join(60)
    assert len(loaded[0]) == 10_000


def test_the_hashes_of_the_originals_are_kept_for_every_file():
    for kind in KINDS.values():
        names = {name.removesuffix(".gz") for name, _ in kind.resources}
        assert set(archives.EXTRACTED[kind.__name__]) == names


def test_a_cache_that_cannot_be_written_is_named(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SuiteError, match=f"{tmp_path / 'file' / 'cache'}.*SSNN_CACHE"):
        datasets.load("mnist", "test", root, tmp_path / "file" / "cache")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SSNN_CACHE", str(tmp_path))
    assert datasets.default_cache() == tmp_path / "data"
    monkeypatch.delenv("SSNN_CACHE")
    assert datasets.default_cache().parts[-2:] == ("ssnn_plugin", "data")


def test_an_unknown_data_set_is_refused():
    with pytest.raises(SuiteError, match=r"one of digits, mnist, .*caltech-face-motorbike, got 'cifar'"):
        datasets.load("cifar", "train")


@pytest.mark.parametrize("form", [{"size": (4, 6)}, {"grey": True}])
def test_only_image_folders_can_be_had_in_another_form(form):
    with pytest.raises(SuiteError, match=r"can be chosen for eth80, .*caltech-face-motorbike, got 'digits'"):
        datasets.load("digits", "train", form=datasets.Form(**form))
