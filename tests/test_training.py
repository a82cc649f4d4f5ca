"""Swapping the neuron trains: cells of the table in docs/training.md, with fewer epochs."""

import importlib.util
import re
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from ssnn_plugin import SilentNetworkWarning, to_event_driven

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "examples" / "train_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _loss(example, host, name):
    return {**example.HOSTS[host], **example.OURS}[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name", "mode"),
    [
        ("snntorch", "SF.mse_count_loss(1/32, 0)", "events"),
        ("snntorch", "ce_temporal_loss()", "events"),
        ("norse", "relative_temporal_loss(3)", "loop"),
    ],
)
def test_swapping_the_neuron_trains(example, host, name, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SilentNetworkWarning)
        assert example.train(host, _loss(example, host, name), mode, epochs=5) >= 0.85


def test_without_the_start_nothing_is_learned_and_that_is_said(example, monkeypatch):
    """torch's default weights and outputs that do not listen when silent."""
    monkeypatch.setattr(example, "to_event_driven", partial(to_event_driven, silent_gradient=False))
    loss = _loss(example, "snntorch", "ce_temporal_loss()")
    with pytest.warns(SilentNetworkWarning, match=re.escape("calibrate(model, trains)")):
        found = example.train("snntorch", loss, "events", epochs=2, start=False)
    assert found < 0.4


def test_the_table_has_a_row_for_every_loss_and_no_cell_below_the_bar(example):
    rows = re.findall(
        r"^\| (\w+) \| `(.+?)` \| ([\d.]+)% \| ([\d.]+)% \|$",
        (ROOT / "docs" / "training.md").read_text(),
        re.M,
    )
    expected = [(host, name) for host in example.HOSTS for name in {**example.HOSTS[host], **example.OURS}]
    assert [(host, name) for host, name, *_ in rows] == expected
    assert min(float(cell) for row in rows for cell in row[2:]) >= 90


def test_digits_are_split_by_a_fixed_order(example):
    images, labels = example.digits()
    assert images.shape == (1797, 64)
    assert images.max() == 1
    assert labels[example.TRAINING :].bincount().min() >= 30
    assert torch.equal(example.digits()[1], labels)
