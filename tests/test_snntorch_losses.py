"""Our temporal losses, accuracy and encoder in snnTorch's form."""

import math

import pytest
import torch
from snntorch import functional as SF
from snntorch_runs import LABELS, SPIKES, STEPS, trains

from ssnn_plugin import decode
from ssnn_plugin.snntorch import (
    accuracy_temporal,
    ce_temporal_loss,
    latency,
    mse_temporal_loss,
    relative_temporal_loss,
)

INF = math.inf


@pytest.mark.parametrize("factor", [2, 10])
def test_losses_mean_the_same_in_windows_of_any_length(factor):
    short, long = trains([[1.0, 3.0, INF]]), trains([[1.0 * factor, 3.0 * factor, INF]], STEPS * factor)
    label = torch.tensor([1])
    pairs = [
        (ce_temporal_loss(0.2), ce_temporal_loss(0.2)),
        (
            mse_temporal_loss(on_target=1, off_target=None),
            mse_temporal_loss(on_target=factor, off_target=None),
        ),
        (relative_temporal_loss(2), relative_temporal_loss(2 * factor)),
    ]
    for of_short, of_long in pairs:
        loss = of_short(short, label)
        assert loss > 0
        torch.testing.assert_close(of_long(long, label), loss)


def test_cross_entropy_by_hand():
    """Logits are -t in windows over the temperature, and a silent class counts as one step after the last."""
    spk, labels = trains([[1.0, 3.0, INF]]), torch.tensor([1])
    logits = [-t / STEPS / 0.5 for t in (1, 3, STEPS)]
    terms = [math.exp(logit) for logit in logits]
    expected = -math.log(terms[1] / sum(terms))
    assert ce_temporal_loss(temperature=0.5)(spk, labels).item() == pytest.approx(expected, rel=1e-6)
    ignored = ce_temporal_loss(temperature=0.5, silent="ignore")
    expected = -math.log(terms[1] / sum(terms[:2]))
    assert ignored(spk, labels).item() == pytest.approx(expected, rel=1e-6)
    # The label is never left out.
    assert ignored(spk, torch.tensor([2])).item() == pytest.approx(-math.log(terms[2] / sum(terms)), rel=1e-6)
    several = trains([[1.0, 3.0, INF], [2.0, 0.0, 1.0]])
    labels = torch.tensor([1, 0])
    weight = torch.tensor([1.0, 3.0, 1.0])
    each = ce_temporal_loss(reduction="none")(several, labels)
    assert ce_temporal_loss(reduction="sum")(several, labels).item() == pytest.approx(each.sum().item())
    weighed = ce_temporal_loss(weight=weight)(several, labels)
    torch.testing.assert_close(weighed, (3 * each[0] + each[1]) / 4)


def test_ties_share_the_error():
    spk = trains([[2.0, 2.0]])
    loss = ce_temporal_loss()(spk, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert spk.grad[2, 0, 0] == -spk.grad[2, 0, 1] != 0
    assert spk.grad.count_nonzero() == 2


def test_mse_targets_by_default_are_the_first_step_and_the_last():
    """What snnTorch's signature says, and its release does not do."""
    perfect = [[0.0, 5.0, 5.0], [5.0, 5.0, 0.0]]
    labels = torch.tensor([0, 2])
    assert mse_temporal_loss()(trains(perfect), labels) == 0
    assert SF.mse_temporal_loss(on_target=0, off_target=STEPS - 1)(trains(perfect), labels) == 0
    wrong = mse_temporal_loss(reduction="none")(trains([[1.0, 5.0, INF], [2.0, 5.0, 0.0]]), labels)
    torch.testing.assert_close(wrong * STEPS**2, torch.tensor([[1.0, 0, 1], [9, 0, 0]]))
    assert mse_temporal_loss(off_target=None)(trains([[0.0, INF]]), torch.tensor([0])) == 0
    assert mse_temporal_loss(on_target=-2, off_target=-1)(trains([[4.0, 5.0]]), torch.tensor([0])) == 0
    ours, theirs = (mse(on_target=1, off_target=4) for mse in (mse_temporal_loss, SF.mse_temporal_loss))
    torch.testing.assert_close(
        ours(trains([[2.0, 3.0]]), LABELS[:1]), theirs(trains([[2.0, 3.0]]), LABELS[:1])
    )
    with pytest.raises(ValueError, match=r"off_target must lie in 0 \.\.\. t_max = 6, got 7"):
        mse_temporal_loss(off_target=7)(trains(perfect), labels)


def test_mse_options():
    spk, labels = trains([[1.0, 3.0, INF]]), torch.tensor([0])
    tolerant = mse_temporal_loss(on_target=3, off_target=5, tolerance=2, reduction="sum")
    assert tolerant(spk, labels) == 0
    assert mse_temporal_loss(on_target=3, off_target=5, tolerance=1, reduction="sum")(
        spk, labels
    ).item() == pytest.approx((4 + 4) / STEPS**2)
    ignored = mse_temporal_loss(off_target=2, silent="ignore", reduction="none")(spk, labels) * STEPS**2
    torch.testing.assert_close(ignored, torch.tensor([[1.0, 1, 0]]))
    times = torch.tensor([[1, 3, 5]])
    assert mse_temporal_loss(target_is_time=True)(spk, times).item() == pytest.approx(1 / 3 / STEPS**2)
    assert mse_temporal_loss(target_is_time=True)(spk, torch.tensor([[1, 3, INF]])) == 0
    assert times.tolist() == [[1, 3, 5]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_long_windows_in_half_precision(dtype):
    """bfloat16 has no 301, and float16 no 2051: times are float32 or better, also those that are targets."""
    spk = trains([[301.0, 2051.0]], 2100, dtype)
    criterion = mse_temporal_loss(target_is_time=True, reduction="none")
    assert criterion(spk, torch.tensor([[301.0, 2051.0]])).tolist() == [[0, 0]]
    expected = torch.tensor([[1.0, 4.0]], dtype=torch.float64) / 2100**2
    found = criterion(spk, torch.tensor([[300.0, 2053.0]]))
    torch.testing.assert_close(found, expected, check_dtype=False)


@pytest.mark.parametrize("criterion", [ce_temporal_loss(), mse_temporal_loss()], ids=["ce", "mse"])
def test_losses_of_outputs_with_trailing_shapes(criterion):
    """[T, B, C, H, W]: every place is a sample of its own."""
    draw = torch.Generator().manual_seed(0)
    times = torch.randint(0, STEPS + 2, (2, 3, 2, 4), generator=draw).float()
    spk = decode.times_to_spikes(times, STEPS).requires_grad_()
    labels = torch.randint(0, 3, (2, 2, 4), generator=draw)
    flat = spk.detach().permute(0, 1, 3, 4, 2).reshape(STEPS, 16, 3).requires_grad_()
    loss, expected = criterion(spk, labels), criterion(flat, labels.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(spk.grad, flat.grad.reshape(STEPS, 2, 2, 4, 3).permute(0, 1, 4, 2, 3))
    assert spk.grad.count_nonzero() <= times.numel()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ce_temporal_loss(reduction="men"),
        lambda: ce_temporal_loss(temperature=0),
        lambda: ce_temporal_loss(silent="t-max"),
        lambda: mse_temporal_loss(reduction="men")(SPIKES, LABELS),
        lambda: mse_temporal_loss(silent="t-max")(SPIKES, LABELS),
        lambda: relative_temporal_loss(gamma=7)(SPIKES, LABELS),
    ],
)
def test_arguments_of_losses_are_checked(make):
    with pytest.raises(ValueError, match=r"(reduction|temperature|silent|gamma) must be .*, got"):
        make()


def test_accuracy_by_rule():
    times = [[1.0, 3.0, INF], [2.0, 2.0, 4.0], [INF, INF, INF], [INF, INF, INF]]
    labels = torch.tensor([0, 0, 0, 1])
    mem = torch.tensor([[1.1, 1.2, 0.9], [1.5, 1.2, 1.9], [0.2, 0.9, 0.1], [0.2, 0.9, 0.1]])
    spk = trains(times)
    found = {tie: accuracy_temporal(spk, labels, tie=tie) for tie in ("unique", "first_index", "lenient")}
    assert found == {"unique": 0.25, "first_index": 0.5, "lenient": 0.5}
    assert accuracy_temporal(spk, labels) == 0.25
    assert accuracy_temporal(spk, labels, mem) == 0.75
    assert accuracy_temporal(spk, labels, mem.expand(STEPS, -1, -1)) == 0.75
    assert accuracy_temporal(spk, labels, mem, tie="unique") == 0.25


def test_latency_of_a_value_is_its_own():
    data = torch.tensor([[1.0, 0.51, 0.0], [0.25, 0.999, 0.01]])
    spk = latency(data, 100)
    assert spk.shape == (100, 2, 3)
    assert decode.spikes_to_times(spk).tolist() == [[0, 49, INF], [75, 0, 99]]
    assert torch.equal(latency(data[1:], 100), spk[:, 1:])
    assert torch.equal(latency((data * 255).byte(), 100, x_max=255).sum(0), (data > 0).float())


def test_mse_targets_outside_the_window_and_floating_labels_are_named():
    spikes, loss = torch.zeros(100, 1, 2), mse_temporal_loss(target_is_time=True)
    for wrong in (100.0, -101.0, math.nan):
        with pytest.raises(ValueError, match=r"targets must lie in -100 \.\.\. 99 or be inf"):
            loss(spikes, torch.tensor([[wrong, 3.0]]))
    assert loss(spikes, torch.tensor([[math.inf, math.inf]])) == 0
    with pytest.raises(TypeError, match="targets must be labels, or times with target_is_time=True"):
        mse_temporal_loss()(spikes, torch.tensor([[0.0, 1.0]]))


def test_relative_loss_and_accuracy_of_any_trailing_shape():
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(12, 4, 3, 2, 5, generator=generator) < 0.1).float()
    labels = torch.randint(0, 3, (4, 2, 5), generator=generator)
    flat = spikes.movedim(2, -1).flatten(1, 3), labels.flatten()
    loss = relative_temporal_loss(gamma=3)
    torch.testing.assert_close(loss(spikes, labels), loss(*flat))
    assert accuracy_temporal(spikes, labels, tie="lenient") == accuracy_temporal(*flat, tie="lenient")


def test_potentials_may_be_recorded_one_by_one():
    spk, mem, labels = trains([[1.0, 3.0, INF]]), torch.rand(STEPS, 1, 3), torch.tensor([2])
    for loss in (relative_temporal_loss(2), mse_temporal_loss(), ce_temporal_loss()):
        assert loss(spk, labels, list(mem)) == loss(spk, labels, tuple(mem)) == loss(spk, labels, mem)
    assert accuracy_temporal(spk, labels, list(mem)) == accuracy_temporal(spk, labels, mem)
