import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssnn_plugin import IF, functional, losses, nn

INF = math.inf
T_MAX = 16


def naive_targets(times, label, gamma, t_max):
    """Section 1.3 of the specification for one sample, t_max standing in for silence."""
    t = [min(value, t_max) for value in times]
    tau = min(t)
    targets = [min(tau + gamma, t_max) if value - tau < gamma else value for value in t]
    targets[label] = tau if tau < t_max else t_max - gamma
    return targets


bins = st.integers(0, T_MAX - 1).map(float) | st.just(INF)


@st.composite
def batches(draw):
    classes = draw(st.integers(1, 5))
    times = draw(st.lists(st.lists(bins, min_size=classes, max_size=classes), min_size=1, max_size=4))
    times.append([INF] * classes)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=len(times), max_size=len(times)))
    return times, labels, draw(st.sampled_from([0.5, 1.0, 3.0, 7.0, float(T_MAX)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("times", "label", "expected"),
    [
        ([10.0, 12.0, 13.0, 40.0], 1, [13.0, 10.0, 13.0, 40.0]),
        ([INF, INF, INF], 2, [256.0, 256.0, 253.0]),
        ([10.0, 13.0, INF], 0, [10.0, 13.0, 256.0]),
        ([254.0, 255.0, INF], 1, [256.0, 254.0, 256.0]),
    ],
)
def test_targets_by_hand(times, label, expected, dtype):
    targets = functional.relative_targets(torch.tensor([times], dtype=dtype), torch.tensor([label]), 3, 256)
    assert targets.tolist() == [expected]
    assert targets.dtype == dtype


@settings(deadline=None)
@given(batches())
def test_targets_are_those_of_the_naive_loop(batch):
    times, labels, gamma = batch
    targets = functional.relative_targets(torch.tensor(times), torch.tensor(labels), gamma, T_MAX)
    assert targets.tolist() == [
        naive_targets(row, label, gamma, T_MAX) for row, label in zip(times, labels, strict=True)
    ]


@settings(deadline=None)
@given(batches(), st.sampled_from(losses.REDUCTIONS))
def test_loss_and_gradient_are_those_of_the_naive_loop(batch, reduction):
    times, labels, gamma = batch
    targets = [naive_targets(row, label, gamma, T_MAX) for row, label in zip(times, labels, strict=True)]
    errors = [
        [(target - min(t, T_MAX)) / T_MAX for t, target in zip(row, wanted, strict=True)]
        for row, wanted in zip(times, targets, strict=True)
    ]
    per_sample = [sum(error**2 for error in row) / 2 for row in errors]
    expected = {"none": per_sample, "sum": sum(per_sample), "mean": sum(per_sample) / len(times)}[reduction]
    factor = 1 / len(times) if reduction == "mean" else 1.0

    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    loss = losses.RelativeTargetLoss(gamma, T_MAX, reduction)(t, torch.tensor(labels))
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(t.grad, -torch.tensor(errors, dtype=torch.float64) / T_MAX * factor)


def test_silent_neurons_get_a_gradient():
    times = torch.full((1, 3), INF, requires_grad=True)
    losses.RelativeTargetLoss(3, 256)(times, torch.tensor([1])).backward()
    assert times.grad.tolist() == [[0.0, 3 / 256**2, 0.0]]


def test_a_label_that_wins_by_gamma_has_no_error():
    times = torch.tensor([[5.0, 8.0, INF]], requires_grad=True)
    loss = losses.RelativeTargetLoss(3, 256)(times, torch.tensor([0]))
    loss.backward()
    assert loss == 0
    assert not times.grad.any()


def test_a_time_after_the_window_is_silence():
    late, silent = torch.tensor([[300.0, 5.0], [256.0, 300.0]]), torch.tensor([[INF, 5.0], [INF, INF]])
    loss, labels = losses.RelativeTargetLoss(3, 256, "none"), torch.tensor([1, 0])
    assert loss(late, labels).tolist() == loss(silent, labels).tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_dtypes(dtype):
    loss = losses.RelativeTargetLoss(3, 256, "none")
    assert loss(torch.tensor([[4.0, 9.0]]), torch.tensor([1], dtype=dtype)).dtype == torch.float32


def test_empty_batch():
    loss = losses.RelativeTargetLoss(3, 256, "sum")
    assert loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == 0


@pytest.mark.parametrize(
    ("times", "labels", "error", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, r"labels must lie in 0 \.\.\. 2, got 3"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), ValueError, r"labels must lie in 0 \.\.\. 2, got -1"),
        (torch.zeros(2, 3), torch.tensor([0]), ValueError, r"labels must have shape \[2\], got \[1\]"),
        (torch.zeros(2, 3), torch.eye(2, 3), ValueError, r"labels must have shape \[2\], got \[2, 3\]"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "labels must hold whole numbers, got torch.float32"),
        (torch.zeros(2, 3), torch.tensor([True, False]), TypeError, "labels must .* got torch.bool"),
        (torch.zeros(2, 3), torch.zeros(2, device="meta").long(), ValueError, "labels are on meta"),
        (torch.zeros(3), torch.tensor([0]), ValueError, r"times must have shape .*, got \[3\]"),
        (torch.zeros(2, 3).half(), torch.tensor([0, 1]), TypeError, "times must be float32 .* torch.float16"),
        (torch.full((1, 3), math.nan), torch.tensor([0]), ValueError, "times must hold spike .* NaN"),
        (torch.full((1, 3), -1.0), torch.tensor([0]), ValueError, r"a negative time \(-1\.0\)"),
    ],
)
def test_bad_batches_are_named(times, labels, error, message):
    with pytest.raises(error, match=message):
        losses.RelativeTargetLoss(3, 256)(times, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 256), "gamma must be finite and greater than 0, got 0"),
        ((3, 0), "t_max must be finite and greater than 0, got 0"),
        ((3, math.nan), "t_max must be finite and greater than 0, got nan"),
        ((3, 256, "max"), "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    ],
)
def test_bad_constructor_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.RelativeTargetLoss(*arguments)


def test_gamma_must_fit_the_window():
    with pytest.raises(ValueError, match="gamma must be at most t_max = 8, got 9"):
        functional.relative_targets(torch.zeros(1, 2), torch.tensor([0]), 9, 8)


def test_repr_of_the_loss():
    expected = "RelativeTargetLoss(gamma=3, t_max=256, reduction='sum', reference='earliest')"
    assert repr(losses.RelativeTargetLoss(3, 256, "sum")) == expected


def _layer(**options):
    layer = nn.SpikeLinear(2, 2, IF(100.0, delay=1), t_max=256, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[60.0, 50.0], [60.0, 50.0]]))
    return layer, torch.optim.SGD(layer.parameters(), lr=256.0**2), losses.RelativeTargetLoss(3, 256)


def _step(layer, optimizer, criterion, times, label):
    optimizer.zero_grad()
    loss = criterion(layer(torch.tensor([times])), torch.tensor([label]))
    loss.backward()
    optimizer.step()
    return loss.item()


def test_training_pushes_a_rival_back_until_the_label_wins():
    layer, optimizer, criterion = _layer()
    assert _step(layer, optimizer, criterion, [3.0, 7.0], 0) > 0
    assert layer.weight.tolist() == [[60.0, 50.0], [57.0, 47.0]]
    _step(layer, optimizer, criterion, [3.0, 7.0], 0)
    assert _step(layer, optimizer, criterion, [3.0, 7.0], 0) == 0
    assert layer(torch.tensor([[3.0, 7.0]])).tolist() == [[8.0, INF]]
    assert layer.weight[0].tolist() == [60.0, 50.0]


@pytest.mark.parametrize(("silent_gradient", "expected"), [(True, [63.0, 50.0]), (False, [60.0, 50.0])])
def test_training_wakes_a_silent_label_if_asked_to(silent_gradient, expected):
    layer, optimizer, criterion = _layer(silent_gradient=silent_gradient)
    _step(layer, optimizer, criterion, [3.0, INF], 0)
    assert layer.weight.tolist() == [expected, [60.0, 50.0]]


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1.0), ("mean", 1 / 3)])
@pytest.mark.parametrize("features", [(4,), (2, 3, 3)])
def test_normalize_error_gives_each_sample_unit_norm(features, reduction, factor):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(3, *features, dtype=torch.float64, generator=generator).requires_grad_()
    error = torch.randn(3, *features, dtype=torch.float64, generator=generator)
    error[1] = 0
    passed = functional.normalize_error(times, reduction=reduction)
    assert torch.equal(passed, times)
    passed.backward(error)
    rows = error.flatten(1).tolist()
    norms = [math.sqrt(sum(e * e for e in row)) or 1.0 for row in rows]
    expected = [[e / norm * factor for e in row] for row, norm in zip(rows, norms, strict=True)]
    torch.testing.assert_close(times.grad.flatten(1), torch.tensor(expected, dtype=torch.float64))
    assert not times.grad[1].any()


def test_normalize_error_takes_an_empty_batch():
    times = torch.zeros(0, 3, requires_grad=True)
    functional.normalize_error(times).sum().backward()
    assert times.grad.shape == (0, 3)


@pytest.mark.parametrize(
    ("times", "reduction", "message"),
    [
        (torch.zeros(1, 2), "max", "reduction must be one of 'mean', 'sum', got 'max'"),
        (torch.zeros(2), "mean", r"times must have shape \[batch, \*features\], got \[2\]"),
    ],
)
def test_normalize_error_names_what_is_wrong(times, reduction, message):
    with pytest.raises(ValueError, match=message):
        functional.normalize_error(times, reduction=reduction)


def test_fill_silent_replaces_silence_and_passes_the_gradient():
    times = torch.tensor([[3.0, INF], [INF, 0.0]], requires_grad=True)
    filled = functional.fill_silent(times, 256)
    assert filled.tolist() == [[3.0, 256.0], [256.0, 0.0]]
    error = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    filled.backward(error)
    assert torch.equal(times.grad, error)


def test_fill_silent_refuses_an_infinite_stand_in():
    with pytest.raises(ValueError, match="t_max must be finite and greater than 0, got inf"):
        functional.fill_silent(torch.zeros(1), INF)


def test_a_gap_wider_than_the_window_is_refused_at_once():
    with pytest.raises(ValueError, match="gamma must be at most t_max = 8, got 9"):
        losses.RelativeTargetLoss(gamma=9, t_max=8)


def naive_targets_around_the_mean(times, label, gamma, t_max, one_sided):
    """Sections 5.1 and 5.2 of the specification for one sample."""
    classes, fired = len(times), [t for t in times if t < t_max]
    latest = t_max - gamma / classes
    mean = min(sum(fired) / len(fired), latest) if fired else latest
    early, late = max(mean - gamma * (classes - 1) / classes, 0), mean + gamma / classes
    if not one_sided:
        return [early if j == label else late for j in range(classes)]
    t = [min(value, t_max) for value in times]
    return [min(t[j], early) if j == label else max(t[j], late) for j in range(classes)]


@pytest.mark.parametrize(
    ("reference", "times", "label", "expected"),
    [
        ("mean", [10.0, 12.0, 13.0, 41.0], 1, [20.0, 12.0, 20.0, 41.0]),
        ("mean_two_sided", [10.0, 12.0, 13.0, 41.0], 1, [20.0, 16.0, 20.0, 20.0]),
        ("mean", [10.0, 30.0, INF, INF], 1, [21.0, 17.0, 256.0, 256.0]),
        ("mean", [INF, INF, INF, INF], 2, [256.0, 256.0, 252.0, 256.0]),
        ("mean_two_sided", [255.0, 255.5, INF, INF], 3, [256.0, 256.0, 256.0, 252.0]),
        ("mean", [0.0, 2.0, INF, INF], 1, [2.0, 0.0, 256.0, 256.0]),
    ],
)
def test_targets_around_the_mean_by_hand(reference, times, label, expected):
    batch = torch.tensor([times]), torch.tensor([label])
    assert functional.relative_targets(*batch, 4, 256, reference=reference).tolist() == [expected]


@settings(deadline=None)
@given(batches(), st.booleans())
def test_targets_around_the_mean_are_those_of_the_naive_loop(batch, one_sided):
    times, labels, gamma = batch
    reference = "mean" if one_sided else "mean_two_sided"
    targets = functional.relative_targets(
        torch.tensor(times, dtype=torch.float64), torch.tensor(labels), gamma, T_MAX, reference=reference
    )
    expected = [
        naive_targets_around_the_mean(row, label, gamma, T_MAX, one_sided)
        for row, label in zip(times, labels, strict=True)
    ]
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64))


def test_a_label_far_ahead_of_the_mean_has_no_error_on_one_side_only():
    times, label = torch.tensor([[1.0, 20.0, 21.0]]), torch.tensor([0])
    assert losses.RelativeTargetLoss(3, 256, reference="mean")(times, label) == 0
    assert losses.RelativeTargetLoss(3, 256, reference="mean_two_sided")(times, label) > 0


def test_targets_take_trailing_dimensions_for_every_reference():
    times = torch.tensor([[[1.0, 7.0], [4.0, INF], [INF, 2.0]]])
    labels = torch.tensor([[2, 0]])
    for reference in ("earliest", "mean", "mean_two_sided"):
        together = functional.relative_targets(times, labels, 3, T_MAX, reference=reference)
        for n in range(2):
            alone = functional.relative_targets(times[..., n], labels[:, n], 3, T_MAX, reference=reference)
            assert torch.equal(together[..., n], alone)


def test_an_unknown_reference_is_named():
    message = "reference must be one of 'earliest', 'mean', 'mean_two_sided', got 'median'"
    with pytest.raises(ValueError, match=message):
        losses.RelativeTargetLoss(3, 256, reference="median")
    with pytest.raises(ValueError, match=message):
        functional.relative_targets(torch.zeros(1, 2), torch.tensor([0]), 3, 256, reference="median")


def naive_exponential_cross_entropy(times, label, t_max, tau):
    z = [math.exp(min(t, t_max) / tau) for t in times]
    return -math.log(math.exp(-z[label]) / sum(math.exp(-value) for value in z))


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_exponential_cross_entropy_is_that_of_the_naive_loop(reduction):
    times = [[0.5, 1.0, INF], [INF, 0.0, 2.5], [INF, INF, INF], [9.0, 1.0, 1.0]]
    labels = [0, 2, 1, 1]
    naive = [naive_exponential_cross_entropy(row, y, 4.0, 2.0) for row, y in zip(times, labels, strict=True)]
    expected = {"none": naive, "sum": sum(naive), "mean": sum(naive) / 4}[reduction]
    loss = losses.ExponentialCrossEntropyLoss(4.0, tau=2.0, reduction=reduction)
    found = loss(torch.tensor(times, dtype=torch.float64), torch.tensor(labels))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_exponential_cross_entropy_gradients():
    times = torch.tensor([[0.5, 1.0, 0.2], [3.0, 0.1, 2.5]], dtype=torch.float64, requires_grad=True)
    loss, labels = losses.ExponentialCrossEntropyLoss(4.0, tau=1.5), torch.tensor([1, 0])
    assert torch.autograd.gradcheck(lambda t: loss(t, labels), times)


def test_a_silent_label_hears_the_exponential_cross_entropy():
    times = torch.tensor([[INF, INF]], requires_grad=True)
    losses.ExponentialCrossEntropyLoss(2.0)(times, torch.tensor([0])).backward()
    slope = 0.5 * math.exp(2.0)
    torch.testing.assert_close(times.grad, torch.tensor([[slope, -slope]]))


def test_exponential_cross_entropy_is_finite_at_the_widest_window():
    times = torch.tensor([[INF, 0.0], [80.0, 79.0]], requires_grad=True)
    loss = losses.ExponentialCrossEntropyLoss(80.0)(times, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert times.grad.isfinite().all()


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_early_label_loss_by_hand(reduction):
    times = torch.tensor([[0.0, math.log(9.0)], [INF, 1.0], [INF, 0.0]], dtype=torch.float64)
    naive = [0.1 * 2.0, 0.1 * (math.e**2 - 1), 0.0]
    expected = {"none": naive, "sum": sum(naive), "mean": sum(naive) / 3}[reduction]
    loss = losses.EarlyLabelLoss(4.0, 0.1, beta=4.0, tau=0.5, reduction=reduction)
    torch.testing.assert_close(
        loss(times, torch.tensor([1, 0, 1])), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize(("silent", "slope"), [("t_max", math.exp(4.0) / 2), ("ignore", 0.0)])
def test_whether_a_silent_label_pays_for_being_late(silent, slope):
    times = torch.tensor([[INF, 1.0], [1.0, INF]], requires_grad=True)
    loss = losses.EarlyLabelLoss(8.0, 1.0, beta=2.0, silent=silent, reduction="sum")
    loss(times, torch.tensor([0, 0])).backward()
    torch.testing.assert_close(times.grad, torch.tensor([[slope, 0.0], [math.exp(0.5) / 2, 0.0]]))


def test_the_losses_of_exponentials_take_trailing_dimensions():
    times, labels = torch.tensor([[[1.0, 7.0], [INF, 2.0]]]), torch.tensor([[0, 0]])
    for loss in (
        losses.ExponentialCrossEntropyLoss(8.0, reduction="none"),
        losses.EarlyLabelLoss(8.0, reduction="none"),
    ):
        alone = [loss(times[..., n], labels[:, n]) for n in range(2)]
        assert torch.equal(loss(times, labels), torch.stack(alone, dim=-1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: losses.ExponentialCrossEntropyLoss(256.0), r"t_max must be at most 80 time .* 1\.0, .* 256"),
        (lambda: losses.ExponentialCrossEntropyLoss(4.0, tau=0), "tau must be finite and greater than 0"),
        (lambda: losses.ExponentialCrossEntropyLoss(4.0, reduction="max"), "reduction must be one of"),
        (lambda: losses.EarlyLabelLoss(200.0, beta=2.0), r"t_max must be at most 80 time constants of 2\.0"),
        (lambda: losses.EarlyLabelLoss(4.0, alpha=-1.0), "alpha must be finite and greater than 0, got -1"),
        (lambda: losses.EarlyLabelLoss(4.0, silent="drop"), "silent must be one of 't_max', 'ignore'"),
    ],
)
def test_bad_arguments_of_the_losses_of_exponentials(build, message):
    with pytest.raises(ValueError, match=message):
        build()


OF_LABELS = [losses.ExponentialCrossEntropyLoss, losses.EarlyLabelLoss, losses.TemporalCrossEntropyLoss]


@pytest.mark.parametrize("kind", [*OF_LABELS, losses.TargetTimeLoss])
@pytest.mark.parametrize(
    ("times", "labels", "error", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, r"labels must lie in 0 \.\.\. 2, got 3"),
        (torch.zeros(2, 3), torch.tensor([0]), ValueError, r"labels must have shape \[2\], got \[1\]"),
        (torch.zeros(3), torch.tensor([0]), ValueError, r"times must have shape \[batch, classes, \*\]"),
        (torch.zeros(2, 3).half(), torch.tensor([0, 1]), TypeError, "times must be float32"),
        (torch.full((1, 3), math.nan), torch.tensor([0]), ValueError, "times must hold spike .* NaN"),
        (torch.full((1, 3), -1.0), torch.tensor([0]), ValueError, "times must hold spike .* negative"),
    ],
)
def test_bad_batches_of_all_losses_are_named(kind, times, labels, error, message):
    with pytest.raises(error, match=message):
        kind(4.0)(times, labels)


@pytest.mark.parametrize("kind", OF_LABELS)
def test_labels_are_whole_numbers(kind):
    with pytest.raises(TypeError, match="labels must hold whole numbers"):
        kind(4.0)(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize("kind", [losses.TemporalCrossEntropyLoss, losses.TargetTimeLoss])
def test_a_class_has_one_factor(kind):
    loss = kind(8.0, weight=torch.ones(2))
    with pytest.raises(ValueError, match=r"weight must have shape \[3\], one factor a class, got \[2\]"):
        loss(torch.tensor([[1.0, 2.0, INF]]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        ({}, torch.zeros(1, 2), r"targets must have shape \[1, 3\], got \[1, 2\]"),
        ({}, torch.full((1, 3), -1.0), "targets must hold spike times"),
        ({}, torch.full((1, 3), math.nan), "targets must hold spike times"),
        ({"weight": torch.ones(3)}, torch.zeros(1, 3), "weight must be None for target times"),
    ],
)
def test_bad_target_times_are_named(options, targets, message):
    with pytest.raises(ValueError, match=message):
        losses.TargetTimeLoss(8.0, **options)(torch.tensor([[1.0, 2.0, INF]]), targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_target": 9}, r"on_target must lie in 0 \.\.\. t_max = 8, got 9"),
        ({"off_target": math.nan}, r"off_target must lie in 0 \.\.\. t_max = 8, got nan"),
        ({"tolerance": -1}, "tolerance must be finite and at least 0, got -1"),
        ({"silent": "drop"}, "silent must be one of 't_max', 'ignore'"),
    ],
)
def test_bad_arguments_of_a_loss_on_target_times(options, message):
    with pytest.raises(ValueError, match=message):
        losses.TargetTimeLoss(8, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize_error_gives_unit_norm_over_the_whole_range(dtype):
    tiny, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    for size in (tiny / 8, tiny, 1e-24, 1e-20, 1e-3, 1.0, 1e18, 1e20, 1e30, largest / 8):
        times = torch.zeros(1, 2, dtype=dtype, requires_grad=True)
        functional.normalize_error(times).backward(torch.tensor([[3.0, 4.0]], dtype=dtype) * size)
        torch.testing.assert_close(times.grad, torch.tensor([[0.6, 0.8]], dtype=dtype), rtol=1e-6, atol=0)
    smallest = tiny * torch.finfo(dtype).eps
    for error in ([[smallest, 0.0]], [[0.0, -3 * smallest]], [[largest, 0.0]]):
        times = torch.zeros(1, 2, dtype=dtype, requires_grad=True)
        functional.normalize_error(times).backward(torch.tensor(error, dtype=dtype))
        torch.testing.assert_close(times.grad, torch.tensor(error, dtype=dtype).sign(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize_error_is_the_plain_formula(dtype):
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** (torch.rand(200, 1, generator=generator, dtype=dtype) * 20 - 10)
    error = torch.randn(200, 37, generator=generator, dtype=dtype) * sizes
    times = torch.zeros_like(error, requires_grad=True)
    functional.normalize_error(times, reduction="sum").backward(error)
    torch.testing.assert_close(times.grad, error / error.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("bad", [INF, math.nan])
def test_normalize_error_does_not_hide_what_is_not_finite(bad):
    times = torch.zeros(1, 2, requires_grad=True)
    functional.normalize_error(times).backward(torch.tensor([[bad, 1.0]]))
    assert times.grad.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
def test_the_compiled_losses_are_those_of_the_targets(dtype, label_dtype):
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 20, (64, 5), generator=generator).to(dtype)
    times = times.masked_fill(times > 15, INF)
    times[3] = INF
    labels = torch.randint(0, 5, (64,), generator=generator).to(label_dtype)
    times.requires_grad_()
    of_rows = losses.RelativeTargetLoss(3, 16, "none")(times, labels)
    # With more dimensions nothing is compiled.
    nested = times.detach().reshape(8, 8, 5).transpose(1, 2).requires_grad_()
    of_grid = losses.RelativeTargetLoss(3, 16, "none")(nested, labels.reshape(8, 8))
    torch.testing.assert_close(of_rows, of_grid.reshape(64))
    weights = torch.rand(64, generator=generator, dtype=dtype)
    (of_rows * weights).sum().backward()
    (of_grid.reshape(64) * weights).sum().backward()
    torch.testing.assert_close(times.grad, nested.grad.transpose(1, 2).reshape(64, 5))


def test_errors_are_normalised_alike_compiled_and_not():
    errors = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    errors[2] = 0
    found = []
    for create_graph in (False, True):  # with a graph nothing is compiled
        times = torch.zeros(6, 3, 4, requires_grad=True)
        out = functional.normalize_error(times)
        (grad,) = torch.autograd.grad(out, times, errors, create_graph=create_graph)
        found.append(grad.detach())
    torch.testing.assert_close(*found)
    torch.testing.assert_close(found[0].flatten(1).norm(dim=1), torch.tensor([1, 1, 0, 1, 1, 1]) / 6)


def test_weights_of_the_cross_entropy_are_of_any_precision():
    times, labels, weight = torch.rand(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1]), torch.rand(3)
    found = [
        losses.TemporalCrossEntropyLoss(t_max=1, weight=w)(times, labels) for w in (weight, weight.double())
    ]
    assert torch.equal(*found)


def test_whole_numbers_as_target_times_are_refused():
    with pytest.raises(TypeError, match=r"targets must be floating where they are times \[1, 3\]"):
        losses.TargetTimeLoss(8)(torch.ones(1, 3), torch.tensor([[1, 2, 3]]))
