"""What the benchmark of gradient rules computes, against loops over times and by hand."""

import math

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gradients
from benchmarks.__main__ import app
from ssnn_plugin import IF
from ssnn_plugin.nn import SpikeLinear, SpikeSequential

T = gradients.T_MAX


def layer(inputs, outputs, seed, **options):
    made = SpikeLinear(inputs, outputs, IF(), t_max=T, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(seed)
    made.weight.data = 0.4 * torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) + 0.1
    return made


def network(seed=0):
    return SpikeSequential(layer(12, 8, seed), layer(8, 4, seed + 1, silent_gradient=True))


def spike_times(batch=32, inputs=12, seed=0):
    times = torch.randint(0, T + 4, (batch, inputs), generator=torch.Generator().manual_seed(seed)).double()
    return times.masked_fill(times >= T, math.inf)


def test_ramp_weighted_gradients_are_those_of_a_loop_over_causal_inputs():
    net, times = network(), spike_times()
    labels = torch.arange(32) % 4
    rule = gradients.RULES["ramp-weighted"]
    learned = rule.learner(net)(times).detach().requires_grad_()
    gradients.loss_function()(learned, labels).backward()
    hidden = net[0](times)
    assert torch.equal(learned, net(times))
    assert hidden.isfinite().any()
    assert hidden.isinf().any()

    grads = [torch.zeros_like(part.weight) for part in net]
    for b in range(len(times)):
        of_hidden = torch.zeros(8, dtype=torch.float64)
        for j in range(4):
            end = min(learned[b, j].item(), T)
            for i in range(8):
                age = max(end - hidden[b, i].item(), 0.0) / T
                grads[1][j, i] -= learned.grad[b, j] * age
                of_hidden[i] += learned.grad[b, j] * net[1].weight[j, i].detach() * age
        for j in range(8):
            if hidden[b, j].isfinite():
                grads[0][j] -= of_hidden[j] * (hidden[b, j] - times[b]).clamp(min=0) / T

    gradients.loss_function()(rule.learner(net)(times), labels).backward()
    for part, expected in zip(net, grads, strict=True):
        torch.testing.assert_close(part.weight.grad, expected)


def test_the_smooth_network_survives_by_the_product_of_its_chances():
    net = SpikeSequential(SpikeLinear(1, 1, IF(), t_max=T, dtype=torch.float64))
    net[0].weight.data.fill_(1.1)
    start = 3
    p_before, p_after = (1 / (1 + math.exp((1 - v) / gradients.NOISE)) for v in (0.0, 1.1))
    survival, expected = 1.0, 0.0
    for t in range(T):
        survival *= 1 - (p_after if t >= start else p_before)
        expected += survival
    times = gradients.smooth_times(net, torch.tensor([[float(start)]], dtype=torch.float64))
    assert times.item() == pytest.approx(expected)


def test_a_step_against_the_smooth_gradient_lowers_the_loss_of_the_smooth_network():
    net, data = network(), (spike_times(), torch.arange(32) % 4)
    grad = gradients.smooth_gradient(net, data)
    losses = []
    for step in (0.0, 1e-3):
        net[0].weight.data -= step * grad / grad.norm()
        losses.append(gradients.loss_function()(gradients.smooth_times(net, data[0]), data[1]).item())
    assert losses[1] - losses[0] == pytest.approx(-1e-3 * grad.norm().item(), rel=0.05)


@pytest.mark.parametrize("name", gradients.RULES)
def test_what_an_input_is_told_depends_on_when_it_came_as_the_rule_says(name):
    net = SpikeSequential(layer(12, 20, 0), layer(20, 8, 1), layer(8, 4, 2))
    spread, by_lag = gradients.told_apart(net, gradients.RULES[name], spike_times(400), 0)
    known = [told for told in by_lag if not math.isnan(told)]
    if name in ("latency", "surrogate"):
        assert spread < 1e-6
    elif name == "local_slope":  # a window of four bins to either side
        assert min(known[:5]) > 0
        assert known[5:]
        assert not any(known[5:])
    elif name == "ramp-weighted":  # all errors are of one size
        assert known == pytest.approx([lag * known[1] for lag in range(len(known))])
    else:
        assert spread > 0.2


def test_descent_is_what_a_step_does_and_leaves_the_weights():
    net, data = network(), (spike_times(), torch.arange(32) % 4)
    before = net[0].weight.clone()
    grad = gradients.gradient(net, gradients.RULES["every bin, Arctan"], data)
    loss = gradients.loss_function()
    start = loss(net(data[0]), data[1]).item()
    tried = []
    for step in gradients.STEPS:
        net[0].weight.data = before - step * before.norm() * grad / grad.norm()
        tried.append(loss(net(data[0]), data[1]).item() / start - 1)
    net[0].weight.data = before.clone()
    assert gradients.descent(net, grad, data) == pytest.approx(min(tried))
    assert torch.equal(net[0].weight, before)


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_rule_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "LEARNING_RATES", (1e-2,))
    figure = tmp_path / "gradients.svg"
    options = ["--images", "500", "--epochs", "1", "--seeds", "1", "--figure", str(figure)]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["gradients", *options])
    assert result.exit_code == 0, result.output
    assert figure.read_text().startswith("<?xml")


def test_a_row_has_means_and_deviations_over_seeds_and_the_legend_hides_no_bar(tmp_path, monkeypatch):
    seeds = [(0.5, 0.1, -0.01), (0.7, 0.3, -0.03)]
    finding = gradients.Finding(1e-2)
    for accuracy, cosine, descent in seeds:
        finding.accuracies.append(accuracy)
        finding.cosines.append((cosine, -cosine))
        finding.descents.append((descent, -descent))
        finding.spreads.append(cosine)
        finding.by_lag.append([cosine] * T)
    audits = {kind: dict.fromkeys(gradients.RULES, finding) for kind in gradients.NETWORKS}
    told = ["60.0 ± 14.1 (0.01)", "0.20 ± 0.14 / -0.20 ± 0.14", "-2.0 ± 1.4 / +2.0 ± 1.4", "0.20 ± 0.14"]
    assert gradients.row("latency", audits) == ["latency", *told, *told]

    drawn = []
    monkeypatch.setattr(gradients.plt, "close", drawn.append)
    gradients.draw(audits, tmp_path / "figure.png")
    (figure,) = drawn
    left, right = figure.axes
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(left.get_window_extent())
    assert [text.get_text() for text in legend.get_texts()] == list(gradients.NETWORKS)
    assert [bar.has_yerr for bar in right.containers] == [True] * len(gradients.RULES)


@pytest.mark.parametrize("options", [["--dataset", "eth80"], ["--figure", "gradients.txt"]])
def test_what_the_command_has_not_is_refused(options):
    result = CliRunner().invoke(app, ["gradients", *options])
    assert result.exit_code
    assert "must be" in str(result.exception)
