"""Logistic regression as a method of the suite, against scikit-learn's, and what it counts."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from reproductions import methods
from reproductions.catalog import validated


def build(epochs, **training):
    content = {
        "method": "tiny",
        "implementation": "logistic",
        "dataset": "digits",
        "description": "",
        "validation": 0,
        "encoding": {"kind": "direct"},
        "network": {},
        "training": {
            "epochs": epochs,
            "batch_size": 60,
            "optimizer": "sgd",
            "learning_rates": [0.5],
            **training,
        },
    }
    return methods.build(validated(content, "test"), (1, 2, 3), 3, 0, "cpu")


def samples(n=60):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 6, generator=generator), torch.arange(n) % 3


def test_it_finds_what_scikit_learn_finds():
    x, y = samples()
    decay = 0.05
    method = build(400, weight_decay=decay)
    for epoch in range(400):
        method.train_epoch(epoch, x, y, lambda n: None)
    # scikit-learn's C weighs the sum of the losses, and leaves the biases alone.
    expected = LogisticRegression(C=1 / (decay * len(x)), tol=1e-8).fit(x.numpy(), y.numpy())
    found = method.connection.weight.detach().numpy()
    np.testing.assert_allclose(found, expected.coef_, atol=0.02)
    scores = method.predict(x).scores
    assert (scores.argmax(1).numpy() == expected.predict(x.numpy())).mean() > 0.95


def test_nothing_fires_and_every_feature_is_multiplied():
    x, _ = samples(5)
    found = build(1).predict(x)
    assert found.spikes.tolist() == [[0.0]] * 5
    assert found.multiplications == 6 * 3


def test_it_goes_on_from_its_state():
    x, y = samples()
    whole, rest = build(2), build(2)
    whole.train_epoch(0, x, y, lambda n: None)
    rest.load_state_dict(whole.state_dict())
    for method in (whole, rest):
        method.train_epoch(1, x, y, lambda n: None)
    assert torch.equal(whole.predict(x).scores, rest.predict(x).scores)
