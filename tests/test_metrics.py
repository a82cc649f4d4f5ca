import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssnn_plugin import metrics

INF = math.inf


@st.composite
def decisions(draw):
    """Output times with many ties and silences, labels, and potentials that are all different."""
    classes, samples = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    time = st.sampled_from([2.0, 3.0, 5.0, INF])
    sample = st.lists(time, min_size=classes, max_size=classes)
    times = draw(st.lists(sample, min_size=samples, max_size=samples))
    times.append([INF] * classes)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=len(times), max_size=len(times)))
    potential = [draw(st.permutations(range(classes))) for _ in times]
    return times, labels, potential


def naive_right(times, label, potential, tie, all_silent):
    classes = range(len(times))
    if all(t == INF for t in times):
        return all_silent == "potential" and max(classes, key=lambda j: potential[j]) == label
    earliest = [j for j in classes if times[j] == min(times)]
    return {
        "lenient": label in earliest,
        "first_index": label == earliest[0],
        "potential": label == max(earliest, key=lambda j: potential[j]),
        "unique": [label] == earliest,
    }[tie]


@pytest.mark.parametrize("all_silent", ["potential", "undecided"])
@pytest.mark.parametrize("tie", metrics.RULES)
@settings(deadline=None)
@given(batch=decisions())
def test_accuracy_is_that_of_the_naive_rule(batch, tie, all_silent):
    right = [naive_right(*sample, tie, all_silent) for sample in zip(*batch, strict=True)]
    times, labels, potential = (torch.tensor(values) for values in batch)
    found = metrics.accuracy(times, labels, potential=potential.float(), tie=tie, all_silent=all_silent)
    assert found == sum(right) / len(right)


@pytest.mark.parametrize(
    ("tie", "with_potential", "expected"),
    [
        ("lenient", False, 0.0),
        ("first_index", False, 0.0),
        ("unique", False, 0.0),
        ("lenient", True, 1.0),
        ("first_index", True, 1.0),
        ("potential", True, 1.0),
        ("unique", True, 0.0),
    ],
)
def test_silence_is_decided_by_potential_or_not_at_all(tie, with_potential, expected):
    potential = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]) if with_potential else None
    times, labels = torch.full((2, 3), INF), torch.tensor([0, 2])
    assert metrics.accuracy(times, labels, potential=potential, tie=tie) == expected


def test_four_rules_on_one_tie():
    times, labels = torch.tensor([[4.0, 4.0, 9.0], [4.0, 4.0, 9.0], [7.0, 3.0, INF]]), torch.tensor([0, 1, 1])
    potential = torch.tensor([[1.0, 2.0, 9.0], [2.0, 1.0, 9.0], [1.0, 1.0, 9.0]])
    found = {tie: metrics.accuracy(times, labels, potential=potential, tie=tie) for tie in metrics.RULES}
    assert found == {"lenient": 1.0, "first_index": 2 / 3, "potential": 1 / 3, "unique": 1 / 3}


@pytest.mark.parametrize("tie", metrics.RULES)
def test_accuracy_of_an_empty_batch_is_nan(tie):
    empty = torch.zeros(0, 3)
    assert math.isnan(metrics.accuracy(empty, torch.zeros(0, dtype=torch.long), potential=empty, tie=tie))


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (torch.tensor([0, 2]), {"tie": "unique"}, ValueError, r"labels must lie in 0 \.\.\. 1, got 2"),
        (torch.tensor([0]), {"tie": "unique"}, ValueError, r"labels must have shape \[2\], got \[1\]"),
        (torch.tensor([0.0, 1.0]), {"tie": "unique"}, TypeError, "labels must .* got torch.float32"),
        (torch.tensor([0, 1]), {"tie": "any"}, ValueError, "tie must be one of 'lenient'.* got 'any'"),
        (torch.tensor([0, 1]), {}, ValueError, "potential must be given for tie or all_silent"),
    ],
)
def test_accuracy_names_what_is_wrong(labels, options, error, message):
    with pytest.raises(error, match=message):
        metrics.accuracy(torch.zeros(2, 2), labels, **options)


T_MAX = 9
SIZES = [(2, 3), (4,), (3,)]
ZEROS = torch.zeros(2, 3)


def _layers(samples, seed=0):
    """Times in and after the window, silences, and a first sample without output spikes."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randint(0, T_MAX + 4, (samples, *size), generator=generator).float() for size in SIZES]
    layers = [times.masked_fill(times > T_MAX + 1, INF) for times in layers]
    layers[-1][0] = INF
    return layers


def naive_counts(layers):
    samples = len(layers[0])
    total, until = [0] * len(layers), [0] * len(layers)
    response, tied, silent = 0.0, 0, 0
    for b in range(samples):
        rows = [times[b].flatten().tolist() for times in layers]
        decision = min(*rows[-1], T_MAX)
        response += decision
        silent += decision == T_MAX
        tied += decision < T_MAX and rows[-1].count(decision) > 1
        for k, row in enumerate(rows):
            total[k] += sum(t < T_MAX for t in row)
            until[k] += sum(t < T_MAX and t <= decision for t in row)
    return metrics.SpikeStatistics(
        samples,
        tuple(n / samples for n in total),
        tuple(n / samples for n in until),
        response / samples,
        tied / samples,
        silent / samples,
    )


def _close(found, expected):
    assert found.samples == expected.samples
    for name in ("total", "until_decision", "response_time", "tied", "silent"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


@pytest.mark.parametrize("samples", [1, 2, 40])
def test_spike_counts_are_those_of_the_naive_loop(samples):
    counts = metrics.SpikeCounts(T_MAX)
    layers = _layers(samples)
    counts.update(*layers)
    found = counts.compute()
    _close(found, naive_counts(layers))
    assert found.silent > 0
    assert samples < 40 or found.tied > 0


def test_spike_counts_add_up_over_batches_of_any_size():
    layers = _layers(40)
    counts = metrics.SpikeCounts(T_MAX)
    for first, last in [(0, 1), (1, 1), (1, 30), (30, 40)]:
        counts.update(*(times[first:last] for times in layers))
    _close(counts.compute(), naive_counts(layers))


def test_spike_counts_keep_no_graph():
    counts = metrics.SpikeCounts(T_MAX)
    counts.update(*(times.requires_grad_() for times in _layers(7)))
    assert not counts._sums.requires_grad


def test_spike_counts_start_over_after_reset():
    counts = metrics.SpikeCounts(T_MAX)
    counts.update(*_layers(7, seed=1))
    counts.reset()
    layers = _layers(5, seed=2)
    counts.update(*layers[1:])
    _close(counts.compute(), naive_counts(layers[1:]))


def test_spike_counts_need_data():
    counts = metrics.SpikeCounts(T_MAX)
    with pytest.raises(RuntimeError, match="no samples were counted: call update first"):
        counts.compute()
    counts.update(*(times[:0] for times in _layers(1)))
    with pytest.raises(RuntimeError, match="no samples were counted"):
        counts.compute()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (_layers(2)[1:], "update was called with 3 layers before, now 2"),
        (_layers(2)[:1], "layers must hold the times of inputs and outputs, got 1 tensors"),
        ([ZEROS, torch.zeros(3, 3), ZEROS], r"layers\[1\] must have shape \[2, \*features\], got \[3, 3\]"),
        ([ZEROS, torch.zeros(2), ZEROS], r"layers\[1\] must have shape \[2, \*features\], got \[2\]"),
        ([ZEROS, torch.full((2, 3), math.nan), ZEROS], r"layers\[1\] must hold spike times >= 0.* NaN"),
        ([ZEROS, ZEROS, torch.full((2, 3), -1.0)], r"layers\[2\] must hold spike times.* a negative time"),
    ],
)
def test_a_refused_update_is_named_and_changes_nothing(layers, message):
    counts = metrics.SpikeCounts(T_MAX)
    counts.update(*_layers(4))
    before = counts.compute()
    with pytest.raises(ValueError, match=message):
        counts.update(*layers)
    assert counts.compute() == before


def test_spike_counts_need_a_window():
    with pytest.raises(ValueError, match="t_max must be finite and greater than 0, got 0"):
        metrics.SpikeCounts(0)


def test_counts_without_outputs_are_refused():
    counts = metrics.SpikeCounts(8)
    with pytest.raises(ValueError, match=r"layers\[-1\] must hold at least one output, got \[2, 0\]"):
        counts.update(torch.zeros(2, 3), torch.zeros(2, 0))
    assert counts.samples == 0
