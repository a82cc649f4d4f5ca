"""Accuracy against the number of labelled images per class, on the features of a frozen extractor.

A single-spike classifier (`ssnn_plugin.nn.SpikeClassifier`), logistic regression (scikit-learn) and a ReLU
network
of the same shape (torch) learn from the same images, scaled by the range of these alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssnn_plugin import metrics
from ssnn_plugin.nn import MinMaxScaling, SpikeClassifier

from . import datasets, records
from .datasets import Form, Images
from .features import Features, cached, extractors
from .methods import random_seed

SIZES: tuple[int | None, ...] = (5, 10, 20, 50, 100, None)
HIDDEN, DROPOUT, STEPS, BATCH, LEARNING_RATE, SPIKE_PRICE = 200, 0.3, 1000, 64, 1e-3, 1e-4
# Regularisation of the logistic regression, chosen on folds of the labelled images themselves.
STRENGTHS, FOLDS = (0.1, 1.0, 10.0), 3
CLASSIFIERS = "single-spike", "logistic regression", "ReLU network"


def study(
    dataset: str,
    form: Form,
    features: Features,
    seeds: int,
    data_root: Path | None,
    cache: Path,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """All sizes, seeds and classifiers; a seed splits the data set and draws the labelled images.

    Args:
        form: of the images.
        features: the extractor.
        report: called with each result.

    Returns:
        A record: `results` has one entry per seed, size and classifier.
    """
    extractor = extractors.build(features.extractor, features.grid, features.size)
    results = []
    for seed in range(seeds):
        parts = {
            split: datasets.load(dataset, split, data_root, cache, seed, form) for split in ("train", "test")
        }
        x = {split: cached(extractor, images, cache) for split, images in parts.items()}
        for per_class in SIZES:
            chosen = draw(parts["train"], per_class, seed)
            train = x["train"][chosen], parts["train"].y[chosen]
            for name, outcome in compare(train, (x["test"], parts["test"].y), seed).items():
                results.append(
                    {"seed": seed, "per_class": per_class, "labelled": len(chosen), "classifier": name}
                    | outcome
                )
                report(results[-1])
    return {
        "schema": records.SCHEMA, "kind": "few-labels", "dataset": dataset,
        "images": form.model_dump(), "features": features.model_dump(),
        "seeds": seeds, "hidden": HIDDEN, "steps": STEPS, "versions": records.versions(),
        "commit": records.commit(), "machine": records.machine("cpu"), "results": results,
    }  # fmt: skip


def draw(images: Images, per_class: int | None, seed: int) -> Tensor:
    """Indices of that many images of each class, all of a class that has fewer; None for all images."""
    if per_class is None:
        return torch.arange(len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(random_seed(seed, per_class)))
    shuffled = images.y[order]
    chosen = [order[shuffled == label][:per_class] for label in torch.unique(shuffled)]
    return torch.cat(chosen).sort().values


def compare(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int
) -> dict[str, dict[str, Any]]:
    """Test accuracy of each classifier on features and labels; of the single-spike one, spikes too."""
    classes = int(train[1].max()) + 1
    scaling = MinMaxScaling(train[0].shape[1]).fit(train[0])
    scaled = (scaling(train[0]), train[1]), (scaling(test[0]), test[1])
    return {
        "single-spike": _single_spike(train, test, classes, seed),
        "logistic regression": _logistic_regression(*scaled, seed),
        "ReLU network": _relu_network(*scaled, classes, seed),
    }


def _single_spike(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, seed: int
) -> dict[str, Any]:
    features = train[0].shape[1]
    classifier = SpikeClassifier(
        nn.Identity(), features, classes, [HIDDEN], dropout=DROPOUT, spike_price=SPIKE_PRICE
    ).fit([train], steps=STEPS, batch_size=BATCH, learning_rate=LEARNING_RATE, seed=seed)
    with torch.no_grad():
        times, potential = classifier(test[0], return_potential=True)
        counts = metrics.SpikeCounts(classifier.t_max)
        counts.update(*classifier.spike_times(test[0]))
    spikes = counts.compute()
    return {
        "accuracy": metrics.accuracy(times, test[1], potential=potential, tie="potential"),
        "rules": {
            rule: metrics.accuracy(times, test[1], potential=potential, tie=rule) for rule in metrics.RULES
        },
        "spikes": list(spikes.total),
        "spikes_until_decision": list(spikes.until_decision),
    }


def _logistic_regression(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int
) -> dict[str, Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(LogisticRegression(max_iter=200), {"C": list(STRENGTHS)}, cv=folds)
    with warnings.catch_warnings():
        # With little regularisation and few images the optimum lies far out; 200 steps are enough to compare.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(train[0].numpy(), train[1].numpy())
    return {
        "accuracy": float(search.score(test[0].numpy(), test[1].numpy())),
        "C": search.best_params_["C"],
    }


def _relu_network(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, seed: int
) -> dict[str, Any]:
    """The same shape, dropout, steps and optimiser as the single-spike classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(train[0].shape[1], HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, classes)
        )
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        epochs = math.ceil(STEPS / math.ceil(len(train[1]) / BATCH))
        batches = [b for _ in range(epochs) for b in torch.split(torch.randperm(len(train[1])), BATCH)]
        for batch in batches[:STEPS]:
            loss = nn.functional.cross_entropy(network(train[0][batch]), train[1][batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = network.eval()(test[0]).argmax(1) == test[1]
    return {"accuracy": right.float().mean().item()}
