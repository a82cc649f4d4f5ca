"""A single-spike classifier on your own images, behind a backbone of your own.

The folder has a sub-folder per class (`torchvision.datasets.ImageFolder`), images of any size and mode:

    python examples/image_folder.py FOLDER
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, random_split
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from ssnn_plugin import metrics
from ssnn_plugin.nn import SpikeClassifier


def open_image(path: str) -> Image.Image:
    """An RGB image, whatever the file holds; an error names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise SystemExit(f"{path}: not an image, damaged or cut short: {error}") from error


def load(folder: Path, size: int = 96) -> ImageFolder:
    """The images of a folder as tensors of one size."""
    resize = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
    return ImageFolder(str(folder), resize, loader=open_image)


def backbone(weights: Path | None) -> tuple[torch.nn.Module, int]:
    """ResNet-18 without its last layer, and how many features it returns.

    Without weights it is as it was drawn, and its features are poor: pass those of your network.
    """
    network = models.resnet18(weights=None)
    if weights is not None:
        network.load_state_dict(torch.load(weights, weights_only=True))
    features = network.fc.in_features
    network.fc = torch.nn.Identity()
    return network, features


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, help="state dict of a ResNet-18")
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    images = load(arguments.folder)
    train, test = random_split(images, [0.8, 0.2])
    extractor, features = backbone(arguments.weights)

    classifier = SpikeClassifier(extractor, features, len(images.classes), hidden=[100], dropout=0.2)
    classifier.fit(DataLoader(train, batch_size=50), steps=arguments.steps)

    x, labels = next(iter(DataLoader(test, batch_size=len(test))))
    with torch.no_grad():
        times, potential = classifier(x, return_potential=True)
        counts = metrics.SpikeCounts(classifier.t_max)
        counts.update(*classifier.spike_times(x))
    right = metrics.accuracy(times, labels, potential=potential, tie="potential")
    spikes = counts.compute().until_decision
    print(f"{len(images.classes)} classes, {len(train)} images to learn from, {len(test)} to test")
    print(f"test accuracy {100 * right:.1f}%, ties and silence decided by potential")
    print(
        "spikes until the decision: " + " + ".join(f"{n:.1f}" for n in spikes) + " (input + hidden + output)"
    )


if __name__ == "__main__":
    main()
