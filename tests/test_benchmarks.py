"""That the sides of a benchmark do the same, and that what it measures is measured."""

import importlib
import itertools
import math
import time

import memory_steps
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from typer.testing import CliRunner

from benchmarks import (
    bins,
    continuous,
    convolution,
    gpu,
    growth,
    inference,
    memory,
    mnist,
    peers,
    rates,
    relu,
    start,
    step,
)
from benchmarks.__main__ import app
from benchmarks.printing import add_row, cell, ratio
from benchmarks.timing import Timing, alternate, in_turn, tenth
from reproductions.errors import SuiteError
from ssnn_plugin import LIF, decode


def times_and_labels(samples):
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 3 * bins.T_MAX, (samples, 784), generator=generator).float()
    return times.masked_fill(times >= bins.T_MAX, math.inf), torch.arange(samples) % 10


@pytest.mark.slow
@pytest.mark.parametrize("name", bins.CONTENDERS)
def test_each_contender_learns(name):
    torch.manual_seed(0)
    batch = times_and_labels(4)
    step = bins.CONTENDERS[name].step(bins.network(batch[0]))
    losses = [step(*batch).item() for _ in range(12)]
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_the_loop_has_the_weights_and_first_spikes_of_the_network_on_times():
    torch.manual_seed(0)
    times, _ = times_and_labels(4)
    layers = bins.network(times)
    first = nn.Sequential(layers[0], *bins._of_the_host(layers[1]))
    trains = torch.stack([first(spikes) for spikes in decode.times_to_spikes(times, bins.T_MAX)])
    expected = layers[1](layers[0](times))
    assert expected.isfinite().any()
    assert (decode.spikes_to_times(trains) == expected).double().mean() > 0.999


def test_peak_memory_is_what_a_step_takes():
    peak = memory.peak(memory_steps.takes_32_mib, torch.zeros(1, 1), torch.zeros(1), warm_up=0)
    assert 32 <= peak < 40


def test_a_step_that_fails_where_memory_is_measured_is_told(capfd):
    with pytest.raises(RuntimeError, match="measures memory ended with exit code 1"):
        memory.peak(memory_steps.fails, torch.zeros(1, 1), torch.zeros(1))
    assert "ValueError: no step" in capfd.readouterr().err


def test_a_figure_that_could_not_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "measure", None)
    (tmp_path / "file").touch()
    command = ["growth", "--figure", str(tmp_path / "file" / "growth.png")]
    with pytest.raises(SuiteError, match="nothing can be written there"):
        CliRunner().invoke(app, command, catch_exceptions=False, standalone_mode=False)


def test_the_benchmark_on_a_gpu_refuses_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SuiteError, match="needs a GPU that torch can use"):
        CliRunner().invoke(app, ["gpu"], catch_exceptions=False, standalone_mode=False)


def test_its_networks_are_of_one_shape_and_fire_as_they_should():
    torch.manual_seed(0)
    case = next(gpu.cases(torch.device("cpu"), batch=8, images=1))
    assert 0.08 < case.times.isfinite().double().mean() < 0.12
    assert torch.equal(case.intensities > 0, case.times.isfinite())
    with torch.no_grad():
        spikes, values = case.spiking(case.times), case.dense(case.intensities)
    assert spikes.shape == values.shape == (8, 10)
    assert 0.2 < spikes.isfinite().double().mean() < 0.4
    assert gpu.same_spikes(case) == 1


def test_calls_are_timed_in_turn_and_per_call():
    order = []
    runs = {"nap": lambda: (order.append("nap"), time.sleep(0.01)), "none": lambda: order.append("none")}
    taken = in_turn(runs, 3, calls={"none": 2}, warm_up=1)
    assert order == ["nap", "none", "none"] * 4
    assert all(len(timing.wall) == len(timing.cpu) == 3 for timing in taken.values())
    assert min(taken["nap"].wall) >= 0.01 > min(taken["nap"].cpu)  # asleep, a thread does nothing
    assert min(taken["none"].wall) < 0.01


def test_two_sides_are_timed_on_the_same_inputs_in_turn():
    order = []
    both = (lambda x: order.append(("first", x))), (lambda x: order.append(("second", x)))
    taken = alternate(*both, [1, 2], clock=itertools.count().__next__)
    assert order == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]
    assert [timing.cpu for timing in taken] == [[1, 1], [1, 1]]  # by a clock that ticks when it is read
    assert all(len(timing.wall) == 2 for timing in taken)


def test_the_cpu_time_of_an_interpreter_is_its_own():
    (taken, _) = alternate(start._start("math"), lambda _: None, [None], start._of_children)
    assert taken.cpu[0] > 0.001


FAST = Timing(wall=[0.001 * k for k in range(1, 12)], cpu=[0.0005 * k for k in range(1, 12)])
SLOW = Timing(wall=[12.0, 12.0], cpu=[0.01, 0.03])


def test_cells_hold_wall_time_and_below_it_cpu_time():
    assert cell(FAST) == "2 / 6\n1 / 3"
    assert cell(SLOW) == "12000 / 12000\n12 / 20"
    assert ratio(SLOW, FAST) == "6000 / 2000\n12.00 / 6.67"
    table = Table("", "one", "other", "ratio")
    add_row(table, ("row",), (FAST, FAST))
    same = "1.00 / 1.00\n1.00 / 1.00"
    told = "2 / 6 (3.5 ... 8.5)\n1 / 3 (1.75 ... 4.25)"
    assert [list(column.cells) for column in table.columns] == [["row"], [told], [told], [same]]


@pytest.mark.parametrize("label", [recipe.name for recipe in step.RECIPES])
def test_a_row_of_two_sides_fits_140_columns(label):
    table = Table("recipe", "stage", "spiking (ms)", "ReLU MLP (ms)", "ratio")
    odd = Timing(wall=[0.0123456] * 2, cpu=[0.0123456] * 2)
    add_row(table, (label, "after an epoch"), (odd, odd))
    assert Console(width=1000).measure(table).maximum <= 140


def test_the_tenth_is_near_the_least():
    assert tenth([3.0]) == 3
    assert tenth([float(value) for value in range(11)]) == 1


def spikes_of_a_batch(samples=2):
    times, labels = times_and_labels(samples)
    times = times.mul(8).floor().masked_fill(times.isinf(), math.inf)
    images = torch.where(times.isfinite(), 1 - times / peers.T_MAX, 0)
    return peers.Batch(times, images, labels)


@pytest.mark.slow
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_each_peer_learns_and_decides(peer):
    if not peer.installed:
        pytest.skip("not installed")
    torch.manual_seed(0)
    runs = peer.build([spikes_of_a_batch()])
    runs.infer()
    runs.step()


def test_a_library_that_is_missing_is_known():
    assert not peers.Peer("no_such_library", "", peers.PEERS[0].build).installed
    assert peers.PEERS[0].installed


def broken(batches):
    importlib.import_module("torch.no_such_dependency")


def test_libraries_that_cannot_be_timed_are_told_in_a_line_each():
    ours = peers.Peer(None, peers.PEERS[0].name, lambda batches: peers.Runs(lambda: None, lambda: None))
    missing, unusable = (
        peers.Peer("no_such_library", "Missing", broken),
        peers.Peer("torch", "Unusable", broken),
    )
    told = []
    table = peers.table([ours, missing, unusable], [spikes_of_a_batch()], 1, told.append)
    assert told == [
        "Missing: not installed",
        "Unusable: cannot be imported: No module named 'torch.no_such_dependency'",
    ]
    assert table.row_count == 2


def test_peers_are_chosen_by_their_modules():
    assert peers.chosen(None) == list(peers.PEERS)
    assert [peer.module for peer in peers.chosen(["norse"])] == [None, None, None, "norse"]
    with pytest.raises(SuiteError, match=r"--only must be of snntorch, norse, .*, got norce"):
        peers.chosen(["norse", "norce"])


def test_what_of_ours_cannot_be_imported_is_an_error():
    with pytest.raises(ImportError):
        peers.Peer(None, "ours", broken).runs([])


@pytest.mark.parametrize("axis", growth.AXES)
def test_one_thing_grows_at_a_time(axis):
    cases = growth.cases(axis)
    assert [getattr(case, axis) for case in cases] == list(growth.AXES[axis][1])
    for case, other in itertools.pairwise(cases):
        assert {axis} == {name for name in growth.AXES if getattr(case, name) != getattr(other, name)}


def test_growth_is_measured_and_drawn(tmp_path):
    rows = [(case, growth.measure(case, 1)) for case in (growth.Case(batch=2), growth.Case(batch=4))]
    for _, timings in rows:
        assert {growth.FORWARD, growth.DECIDE, growth.STEP, growth.DENSE} == set(timings)
        assert all(min(timing.wall) > 0 for timing in timings.values())
    for axes in (["batch", "bins"], ["batch"]):
        growth.draw(dict.fromkeys(axes, rows), tmp_path / "growth.png")
        assert (tmp_path / "growth.png").stat().st_size > 5000
    assert growth.table({"batch": rows}).row_count == 2


def test_converted_relu_networks_are_timed_on_the_same_outputs():
    torch.manual_seed(0)
    with torch.no_grad():
        runs = relu.runs("MobileNetV2", torch.rand(4, 3, 32, 32))
        expected = runs[relu.MODEL]()
        for name in (relu.FOLDED, "ramps, logits"):
            torch.testing.assert_close(runs[name](), expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(runs["ramps, first spikes"]()[0].argmin(1), expected.argmax(1))
        assert runs["ramps, all spike times"]()["output"].shape == (4, 10)


@pytest.mark.slow
def test_gradients_of_rates_are_timed_beside_those_through_time(tmp_path):
    row = rates.measure(2, 3, rounds=3)
    assert all(min(taken.wall) > 0 for taken in row.timings.values())
    assert all(peak > 0 for peak in row.peaks.values())
    assert len(row.cosines) == 4
    assert rates.cosines(1, torch.rand(3, 784), torch.arange(3)) == pytest.approx([1.0] * 4, abs=1e-4)
    rates.draw([row], tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 1000


@pytest.fixture
def few_steps(monkeypatch):
    """An epoch of two batches of random images."""
    for module in (mnist, step, inference):
        monkeypatch.setattr(module, "EPOCH", 2)
    torch.manual_seed(0)
    images = torch.rand(2 * mnist.BATCH, 784) * (torch.rand(2 * mnist.BATCH, 784) < 0.2)
    times = torch.where(images > 0, ((1 - images) * mnist.T_MAX).floor(), math.inf)
    return mnist.Batch(times, images, torch.arange(len(images)) % 10)


def test_batches_are_of_a_fixed_order_that_starts_again(few_steps):
    batches = mnist.in_batches(few_steps)
    first, second, again = batches(0, 3)
    assert torch.equal(first.times, again.times)
    drawn = torch.cat([first.images, second.images])
    assert torch.equal(drawn.sum(1).sort().values, few_steps.images.sum(1).sort().values)


def test_steps_are_timed_at_first_and_after_an_epoch(few_steps):
    assert step.table(mnist.in_batches(few_steps), 2).row_count == 8
    assert continuous.table(mnist.in_batches(continuous.in_continuous_time(few_steps)), 2).row_count == 16


def test_leaky_neurons_with_and_without_a_closed_form_fire_about_as_often(few_steps):
    torch.manual_seed(0)
    closed, searched = (case for case in continuous.CASES if isinstance(case.neuron, LIF))
    assert hasattr(closed.neuron.compiled(), "crossing")
    assert not hasattr(searched.neuron.compiled(), "crossing")
    times = continuous.in_continuous_time(few_steps).times[:64]
    one, other = (case.network()[0](times).isfinite().double().mean().item() for case in (closed, searched))
    assert one == pytest.approx(other, rel=0.15)


def test_a_part_of_the_neurons_of_a_convolution_fires_at_first(few_steps):
    assert convolution.table(mnist.in_batches(few_steps), 2).row_count == 2 * len(convolution.FIRING)


def test_decisions_are_timed_before_and_after_learning(few_steps):
    told = []
    pixels = (few_steps.images * 255).to(torch.uint8)
    table = inference.table(mnist.in_batches(few_steps), few_steps, pixels, 1, told.append)
    assert table.row_count == 2 * 2 * 2 * 4
    assert [line.partition(":")[0] for line in told] == [recipe.name for recipe in step.RECIPES]
