"""Accuracy against the number of labelled images per class, on the features of a frozen extractor.

A single-spike classifier (`ssnn_plugin.nn.SpikeClassifier`), logistic regression (scikit-learn) and a ReLU
network of the same shape (torch) learn from the same images, scaled by the range of these alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from ssnn_plugin import metrics
from ssnn_plugin.nn import MinMaxScaling, SpikeClassifier

from . import datasets, records
from .config import Fraction, Strict, parsed, read_toml
from .datasets import Form, Images
from .features import Features, cached, extractors
from .methods import random_seed
from .records import FewLabels, FewLabelsResult, FewLabelsScores

SETTINGS = Path(__file__).with_suffix(".toml")
CLASSIFIERS = "single-spike", "logistic regression", "ReLU network"
Part = tuple[Tensor, Tensor]


class Network(Strict):
    """Of the single-spike classifier, and of the ReLU network beside it."""

    hidden: PositiveInt
    dropout: Fraction
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    spike_price: NonNegativeFloat


class LogisticRegression(Strict):
    """The regularisation is the best of `strengths`, by cross-validation."""

    strengths: Annotated[list[PositiveFloat], Field(min_length=1)]
    folds: Annotated[int, Field(ge=2)]


class Settings(Strict):
    """`per_class`: labelled images of each class; all of them come last."""

    per_class: list[PositiveInt]
    network: Network
    logistic_regression: LogisticRegression

    @model_validator(mode="after")
    def _an_image_a_fold(self) -> Settings:
        folds = self.logistic_regression.folds
        if few := [size for size in self.per_class if size < folds]:
            raise ValueError(f"per_class must be at least logistic_regression.folds = {folds}, got {few}")
        return self


def read(path: Path = SETTINGS) -> Settings:
    """Read and validate the settings of a study.

    Raises:
        SuiteError: names the file, the key, the value and what is allowed.
    """
    return parsed(Settings, read_toml(path), str(path))


def study(
    dataset: str,
    form: Form,
    features: Features,
    settings: Settings,
    seeds: int,
    data_root: Path | None,
    cache: Path,
    report: Callable[[FewLabelsResult], None],
) -> FewLabels:
    """All sizes, seeds and classifiers; a seed splits the data set and draws the labelled images.

    Args:
        form: of the images.
        features: the extractor.
        report: called with each result.

    Returns:
        A record with one result per seed, size and classifier.
    """
    extractor = extractors.build(features.extractor, features.grid, features.size)
    results = []
    for seed in range(seeds):
        parts = {
            split: datasets.load(dataset, split, data_root, cache, seed, form) for split in ("train", "test")
        }
        x = {split: cached(extractor, images, cache) for split, images in parts.items()}
        for per_class in (*settings.per_class, None):
            chosen = draw(parts["train"], per_class, seed)
            train = x["train"][chosen], parts["train"].y[chosen]
            for name, scores in compare(train, (x["test"], parts["test"].y), settings, seed).items():
                result = FewLabelsResult(
                    seed=seed, per_class=per_class, labelled=len(chosen), classifier=name, **dict(scores)
                )
                results.append(result)
                report(result)
    return FewLabels(
        schema=records.SCHEMA, kind="few-labels", dataset=dataset,
        images=form.model_dump(mode="json"), features=features.model_dump(), settings=settings.model_dump(),
        seeds=seeds, versions=records.versions(),
        commit=records.commit(), machine=records.machine("cpu"), results=results,
    )  # fmt: skip


def draw(images: Images, per_class: int | None, seed: int) -> Tensor:
    """Indices of that many images of each class, all of a class that has fewer; None for all images."""
    if per_class is None:
        return torch.arange(len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(random_seed(seed, per_class)))
    shuffled = images.y[order]
    chosen = [order[shuffled == label][:per_class] for label in torch.unique(shuffled)]
    return torch.cat(chosen).sort().values


def compare(train: Part, test: Part, settings: Settings, seed: int) -> dict[str, FewLabelsScores]:
    """Test accuracy of each classifier on features and labels; of the single-spike one, spikes too."""
    classes = int(train[1].max()) + 1
    scaling = MinMaxScaling(train[0].shape[1]).fit(train[0])
    scaled = (scaling(train[0]), train[1]), (scaling(test[0]), test[1])
    found = (
        _single_spike(train, test, classes, settings.network, seed),
        _logistic_regression(*scaled, settings.logistic_regression, seed),
        _relu_network(*scaled, classes, settings.network, seed),
    )
    return dict(zip(CLASSIFIERS, found, strict=True))


def _single_spike(train: Part, test: Part, classes: int, settings: Network, seed: int) -> FewLabelsScores:
    options = {"dropout": settings.dropout, "spike_price": settings.spike_price}
    classifier = SpikeClassifier(nn.Identity(), train[0].shape[1], classes, [settings.hidden], **options)
    training = settings.model_dump(include={"steps", "batch_size", "learning_rate"})
    classifier.fit([train], **training, seed=seed)
    with torch.no_grad():
        times, potential = classifier(test[0], return_potential=True)
        counts = metrics.SpikeCounts(classifier.t_max)
        counts.update(*classifier.spike_times(test[0]))
    spikes = counts.compute()
    rules = {rule: metrics.accuracy(times, test[1], potential=potential, tie=rule) for rule in metrics.RULES}
    return FewLabelsScores(
        accuracy=rules["potential"],
        rules=rules,
        spikes=list(spikes.total),
        spikes_until_decision=list(spikes.until_decision),
    )


def _logistic_regression(train: Part, test: Part, settings: LogisticRegression, seed: int) -> FewLabelsScores:
    from sklearn import linear_model
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = StratifiedKFold(settings.folds, shuffle=True, random_state=seed)
    search = GridSearchCV(linear_model.LogisticRegression(max_iter=200), {"C": settings.strengths}, cv=folds)
    with warnings.catch_warnings():
        # With little regularisation and few images the optimum lies far out; 200 steps are enough to compare.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(train[0].numpy(), train[1].numpy())
    accuracy = search.score(test[0].numpy(), test[1].numpy())
    return FewLabelsScores(accuracy=float(accuracy), C=search.best_params_["C"])


def _relu_network(train: Part, test: Part, classes: int, settings: Network, seed: int) -> FewLabelsScores:
    """The same shape, dropout, steps and optimiser as the single-spike classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = nn.Linear(train[0].shape[1], settings.hidden), nn.ReLU(), nn.Dropout(settings.dropout)
        network = nn.Sequential(*hidden, nn.Linear(settings.hidden, classes))
        optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        samples, size = len(train[1]), settings.batch_size
        epochs = math.ceil(settings.steps / math.ceil(samples / size))
        batches = [b for _ in range(epochs) for b in torch.split(torch.randperm(samples), size)]
        for batch in batches[: settings.steps]:
            loss = nn.functional.cross_entropy(network(train[0][batch]), train[1][batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = network.eval()(test[0]).argmax(1) == test[1]
    return FewLabelsScores(accuracy=right.float().mean().item())
