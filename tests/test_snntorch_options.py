"""Options of snnTorch's neurons and losses that a single-spike neuron has as well."""

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from torch import nn

from ssnn_plugin import decode
from ssnn_plugin.snntorch import SingleSpike, ce_temporal_loss, mse_temporal_loss

STEPS = 10
LABELS = torch.tensor([1, 2, 0, 1])
WEIGHT = torch.tensor([0.5, 2.0, 0.25])


def _trains():
    times = torch.randint(0, STEPS, (4, 3), generator=torch.Generator().manual_seed(0)).double()
    return decode.times_to_spikes(times, STEPS)


@pytest.mark.parametrize("loss", [ce_temporal_loss, mse_temporal_loss])
def test_losses_tell_their_reduction_and_weight_as_the_hosts_do(loss):
    assert (loss().weight, loss().reduction) == (None, "mean")
    weighted = loss(reduction="sum", weight=WEIGHT)
    assert weighted.weight is WEIGHT
    assert weighted.reduction == "sum"


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_weight_of_classes_counts_the_errors_of_a_sample(reduction):
    each = mse_temporal_loss(on_target=2, off_target=8, reduction="none")(_trains(), LABELS)
    expected = each * WEIGHT[LABELS].unsqueeze(1)
    if reduction != "none":
        expected = getattr(expected, reduction)()
    loss = mse_temporal_loss(on_target=2, off_target=8, reduction=reduction, weight=WEIGHT)
    torch.testing.assert_close(loss(_trains(), LABELS), expected)


def test_a_weight_counts_every_place_of_a_trailing_shape():
    times = torch.randint(0, STEPS, (2, 3, 4), generator=torch.Generator().manual_seed(1)).float()
    labels = torch.randint(0, 3, (2, 4), generator=torch.Generator().manual_seed(2))
    spk = decode.times_to_spikes(times, STEPS)
    each = mse_temporal_loss(reduction="none")(spk, labels)
    weighted = mse_temporal_loss(reduction="none", weight=WEIGHT)(spk, labels)
    for b in range(2):
        for place in range(4):
            factor = WEIGHT[labels[b, place]]
            torch.testing.assert_close(weighted[b, :, place], factor * each[b, :, place])


def test_the_mean_is_that_of_the_host_for_samples_of_one_class():
    spk, labels = _trains().float(), torch.ones(3, dtype=torch.int64)
    options = {"on_target": 2, "off_target": 8, "weight": WEIGHT}
    for reduction in ("mean", "none"):
        expected = SF.mse_temporal_loss(reduction=reduction, **options)(spk[:, :3], labels)
        found = mse_temporal_loss(reduction=reduction, **options)(spk[:, :3], labels)
        torch.testing.assert_close(found, expected)


def test_the_weighted_cross_entropy_is_torchs():
    times = decode.spikes_to_times(_trains())
    loss = ce_temporal_loss(temperature=0.5, weight=WEIGHT.double())(_trains(), LABELS)
    logits = -times / (0.5 * STEPS)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, LABELS, WEIGHT.double()))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2), r"weight must have shape \[3\], one factor a class, got \[2\]"),
        (torch.ones(3, 1), r"\[3, 1\]"),
    ],
)
def test_a_weight_of_another_shape_is_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        mse_temporal_loss(weight=weight)(_trains(), LABELS)


def test_target_times_have_no_class_to_weigh():
    with pytest.raises(ValueError, match="weight must be None with target_is_time=True"):
        mse_temporal_loss(target_is_time=True, weight=WEIGHT)


@pytest.mark.host_defect
def test_the_weight_of_the_host_is_spread_over_classes_instead_of_samples():
    """No thread upstream that we know of: weight[targets] of [batch] meets errors of [batch, classes]."""
    loss = SF.mse_temporal_loss(on_target=2, off_target=8, weight=WEIGHT)
    with pytest.raises(RuntimeError, match="size of tensor"):
        loss(_trains().float(), LABELS)


def test_a_neuron_without_reset_may_be_asked_for_by_name():
    neuron = SingleSpike(beta=0.9, reset_mechanism="none")
    assert neuron.reset_mechanism == "none"
    currents = torch.rand(STEPS, 4, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        torch.stack([module(current)[0] for current in currents])
        for module in (
            SingleSpike(0.9, reset_mechanism="none", init_hidden=True, output=True),
            snn.Leaky(0.9, reset_mechanism="none", init_hidden=True, output=True),
        )
    )
    first = decode.spikes_to_times(theirs)
    assert first.isfinite().any()
    assert torch.equal(decode.spikes_to_times(ours), first)


@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_another_reset_is_refused_early_and_late(mechanism):
    message = f"reset_mechanism must be 'none', got '{mechanism}': the neuron fires once"
    with pytest.raises(ValueError, match=message):
        SingleSpike(reset_mechanism=mechanism)
    neuron = SingleSpike()
    with pytest.raises(ValueError, match=message):
        neuron.reset_mechanism = mechanism
    neuron.reset_mechanism = "none"
    assert neuron.reset_mechanism_val == 2


def test_fire_is_that_of_the_host_for_neurons_that_have_not_fired():
    mem, factor = torch.tensor([0.5, 1.0, 1.5]), torch.tensor(2.0)
    options = {"threshold": 1.0, "graded_spikes_factor": factor}
    assert SingleSpike(**options).fire(mem).tolist() == snn.Leaky(0.9, **options).fire(mem).tolist()
    leaf = mem.clone().requires_grad_()
    SingleSpike().fire(leaf).sum().backward()
    assert leaf.grad.tolist() == [0.0, 0.0, 1.0]
