import math

import pytest
import torch

from ssnn_plugin.functional import single_targets
from ssnn_plugin.functional.target import VARIANTS
from ssnn_plugin.losses import REDUCTIONS, SingleTargetLoss

INF = math.inf
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("variant", "of_label"),
    [("one-sided", [5.0, 10.0, 10.0, 10.0]), ("fixed", [10.0] * 4), ("own", [5.0, 12.0, 10.0, 10.0])],
)
def test_targets_by_hand(variant, of_label, dtype):
    """The label fires before its target, after it, after the window, and not at all."""
    times = torch.tensor([[3.0, label, INF] for label in (5.0, 12.0, 17.0, INF)], dtype=dtype)
    targets = single_targets(times, torch.tensor([1, 1, 1, 1]), 10, 16, variant=variant)
    assert targets.tolist() == [[16.0, wanted, 16.0] for wanted in of_label]
    assert targets.dtype == dtype


@pytest.mark.parametrize(
    ("variant", "label_errors"),
    [("one-sided", [0, -2, -6, -6]), ("fixed", [5, -2, -6, -6]), ("own", [0, 0, -6, -6])],
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradient_by_hand(variant, label_errors, reduction):
    times = torch.tensor([[3.0, t, INF] for t in (5.0, 12.0, 17.0, INF)], dtype=torch.float64)
    times.requires_grad_()
    loss = SingleTargetLoss(10, 16, variant, reduction)(times, torch.tensor([1, 1, 1, 1]))
    errors = torch.tensor([[13, error, 0] for error in label_errors], dtype=torch.float64) / 16
    per_sample = 0.5 * errors.square().sum(1)
    expected = {"none": per_sample, "sum": per_sample.sum(), "mean": per_sample.mean()}[reduction]
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    torch.testing.assert_close(times.grad, -errors / 16 / (4 if reduction == "mean" else 1))


@each_variant
def test_gradient_is_that_of_finite_differences(variant):
    times = torch.tensor([[3.0, 5.0, 9.0], [7.0, 12.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = SingleTargetLoss(10, 16, variant)
    assert torch.autograd.gradcheck(lambda t: loss(t, torch.tensor([1, 1])), times)


@each_variant
def test_outputs_may_have_places(variant):
    times = torch.rand(4, 3, 2, 5, generator=torch.Generator().manual_seed(0)) * 20
    labels = torch.arange(4 * 10).reshape(4, 2, 5) % 3
    loss = SingleTargetLoss(10, 16, variant, "none")
    flat = loss(times.permute(0, 2, 3, 1).reshape(-1, 3), labels.flatten())
    torch.testing.assert_close(loss(times, labels), flat.reshape(4, 2, 5))


@each_variant
def test_targets_have_no_gradient_and_leave_the_times_alone(variant):
    times = torch.tensor([[3.0, 5.0]], requires_grad=True)
    assert not single_targets(times, torch.tensor([0]), 4, 16, variant=variant).requires_grad
    assert times.tolist() == [[3.0, 5.0]]


def test_an_empty_batch_has_no_loss():
    assert SingleTargetLoss(4, 16, reduction="sum")(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 16), "t_target must be at least 0 and below t_max = 16, got -1"),
        ((16, 16), "t_target must be at least 0 and below t_max = 16, got 16"),
        ((math.nan, 16), "t_target must be at least 0 and below t_max = 16, got nan"),
        ((1, 0), "t_max must be finite and greater than 0, got 0"),
        ((1, 16, "late"), "variant must be one of 'one-sided', 'fixed', 'own', got 'late'"),
        ((1, 16, "own", "max"), "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SingleTargetLoss(*arguments)


@pytest.mark.parametrize(
    ("times", "labels", "options", "message"),
    [
        (torch.zeros(2, 3), [0, 3], {}, r"labels must lie in 0 \.\.\. 2, got 3"),
        (torch.zeros(2, 3), [0], {}, r"labels must have shape \[2\], got \[1\]"),
        (torch.full((1, 3), -1.0), [0], {}, "a negative time"),
        (
            torch.zeros(1, 3),
            [0],
            {"t_target": 20},
            "t_target must be at least 0 and below t_max = 16, got 20",
        ),
        (torch.zeros(1, 3), [0], {"variant": "none"}, "variant must be one of .*, got 'none'"),
    ],
)
def test_bad_batches_are_named(times, labels, options, message):
    with pytest.raises(ValueError, match=message):
        single_targets(times, torch.tensor(labels), **{"t_target": 4, "t_max": 16, **options})


def test_repr_of_the_loss():
    expected = "SingleTargetLoss(t_target=10, t_max=16, variant='own', reduction='mean')"
    assert repr(SingleTargetLoss(10, 16, "own")) == expected
