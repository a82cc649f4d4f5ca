"""What every layer of neurons that fire at most once has to do, as tests to subclass.

Needs pytest. Write a class whose name pytest collects, tell it how to build and run your layer, and
it is checked against a loop over bins, in spike times, gradients, copies, dtypes and devices:

    class TestMyLayer(SingleSpikeContract):
        def build(self, weight, bias, neuron, t_max):
            return MyLayer(weight, bias, neuron.threshold, t_max)

        def spike_times(self, module, times):
            return module(times)

The plug-in's own layers and its snnTorch and Norse neurons pass the same class.
"""

from __future__ import annotations

import copy
import math
import pickle
import shutil

import torch
from torch import Tensor, nn

from .neurons import IF

try:
    import pytest
except ImportError as error:
    raise ImportError("ssnn_plugin.testing needs pytest: pip install 'ssnn-plugin[test]'") from error

__all__ = ["SingleSpikeContract", "first_spikes_in_a_loop", "latency_gradients"]


def first_spikes_in_a_loop(
    times: Tensor, weight: Tensor, bias: Tensor | None, neuron: IF, t_max: int
) -> tuple[Tensor, Tensor]:
    """First-spike times [batch, out] and potentials of a layer, bin by bin, as the conventions say it.

    >>> first_spikes_in_a_loop(torch.tensor([[1.0]]), torch.tensor([[2.0]]), None, IF(1.0), 4)
    (tensor([[1.]]), tensor([[2.]]))
    """
    spikes = times.new_full((len(times), len(weight)), math.inf)
    v, potential = torch.zeros_like(spikes), torch.zeros_like(spikes)
    for t in range(t_max):
        v = neuron.beta * v + (times == t).to(times.dtype) @ weight.detach().t()
        if bias is not None:
            v = v + bias.detach()
        waiting = spikes.isinf()
        potential = torch.where(waiting, v, potential)
        fires = waiting & (v > neuron.threshold) & (t + neuron.delay < t_max)
        spikes = spikes.masked_fill(fires, t + neuron.delay)
    return spikes, potential


def latency_gradients(
    grad: Tensor, spikes: Tensor, times: Tensor, weight: Tensor, neuron: IF
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dweight, dL/dbias, dL/dtimes for dL/dspikes = grad, neuron by neuron.

    dt/dV = -1, and every input spike counted at the crossing stands for +w in V (docs/three-modes.md).

    >>> t, w = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    >>> [g.item() for g in latency_gradients(torch.tensor([[1.0]]), t, t, w, IF(1.0))]
    [-1.0, -2.0, 2.0]
    """
    grad_weight, grad_times = torch.zeros_like(weight), torch.zeros_like(times)
    grad_bias = weight.new_zeros(len(weight))
    for b, j in (spikes.isfinite()).nonzero().tolist():
        crossing = spikes[b, j] - neuron.delay
        counted = times[b] <= crossing
        grad_weight[j] -= grad[b, j] * counted
        grad_bias[j] -= grad[b, j] * (crossing + 1)
        grad_times[b] += grad[b, j] * weight.detach()[j] * counted
    return grad_weight, grad_bias, grad_times


class SingleSpikeContract:
    """Checks of a fully connected layer of neurons that fire at most once; a 1 x 1 convolution is one.

    Override `build` and `spike_times`; `spike_trains` and `nir_round_trip` if there are such; the
    class attributes if the layer can do less.
    """

    #: what the layer supports
    bias = True
    leak = True
    #: whether its gradient is that of a rule which `rate` tells, the latency rule if it is left as it is
    latency_rule = True
    #: whether gradients with respect to the input spike times are handed on
    input_gradient = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    #: whether it compiles with `torch.compile(fullgraph=True)`
    compiles = True

    T_MAX = 16

    def build(self, weight: Tensor, bias: Tensor | None, neuron: IF, t_max: int) -> nn.Module:
        """The layer with these weights [out, in] and this bias [out], as parameters of their values."""
        raise NotImplementedError

    def spike_times(self, module: nn.Module, times: Tensor) -> Tensor:
        """Output spike times [batch, out] for input spike times [batch, in], from a fresh state."""
        raise NotImplementedError

    def rate(self, crossing: Tensor, potential: Tensor, neuron: IF) -> Tensor:
        """-dt/dV of the layer's gradient rule, at crossings and potentials [batch, out]."""
        return torch.ones_like(crossing)

    def spike_trains(self, module: nn.Module, times: Tensor) -> Tensor | None:
        """Output spike trains [t_max, batch, out] from a fresh state, if there are such."""
        return None

    def nir_round_trip(self, module: nn.Module) -> nn.Module | None:
        """The layer after a trip through NIR, runnable by `spike_times`, if it can make one."""
        return None

    def neurons(self) -> list[IF]:
        """Neurons to check; the thresholds are met exactly by whole weights."""
        leaks = (1.0, 0.5) if self.leak else (1.0,)
        return [IF(threshold, beta=beta) for threshold in (0.0, 2.0) for beta in leaks]

    def _example(self, dtype: torch.dtype = torch.float64, batch: int = 6) -> tuple[Tensor, Tensor, Tensor]:
        """Whole weights and bins, so that every sum is exact: ties, silence, inputs after the window."""
        generator = torch.Generator().manual_seed(7)
        times = torch.randint(0, self.T_MAX + 2, (batch, 9), generator=generator).to(dtype)
        times[:, :2] = times[:, 2:4]
        times = times.masked_fill(torch.rand(times.shape, generator=generator) < 0.3, math.inf)
        times[0] = math.inf
        times = times.masked_fill(times >= self.T_MAX, math.inf)
        weight = torch.randint(-2, 4, (5, 9), generator=generator).to(dtype)
        weight[-1] = -1.0
        bias = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0], dtype=dtype)
        return times, weight, bias

    def _cases(self, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor, Tensor | None, IF]]:
        times, weight, bias = self._example(dtype)
        biases = (None, bias) if self.bias else (None,)
        return [(times, weight, b, neuron) for neuron in self.neurons() for b in biases]

    def test_first_spikes_are_those_of_a_loop_over_bins(self) -> None:
        for dtype in self.dtypes:
            for times, weight, bias, neuron in self._cases(dtype):
                module = self.build(weight, bias, neuron, self.T_MAX)
                expected, _ = first_spikes_in_a_loop(times, weight, bias, neuron, self.T_MAX)
                assert torch.equal(self.spike_times(module, times).detach(), expected), (dtype, bias, neuron)

    def test_fires_strictly_above_the_threshold(self) -> None:
        times, weight = torch.tensor([[3.0, 5.0]], dtype=torch.float64), torch.tensor([[2.0, 1e-9]]).double()
        module = self.build(weight, None, IF(2.0), self.T_MAX)
        assert self.spike_times(module, times).item() == 5.0

    def test_fires_at_most_once(self) -> None:
        for times, weight, bias, neuron in self._cases():
            module = self.build(weight, bias, neuron, self.T_MAX)
            trains = self.spike_trains(module, times)
            if trains is None:
                pytest.skip("no spike trains")
            assert set(torch.unique(trains).tolist()) <= {0.0, 1.0}
            assert int(trains.sum(0).max()) == 1

    def test_a_fresh_state_replays_whatever_came_before(self) -> None:
        times, weight, _ = self._example()
        module = self.build(weight, None, IF(2.0), self.T_MAX)
        first = self.spike_times(module, times)
        self.spike_times(module, times[:2])
        assert torch.equal(self.spike_times(module, times), first)

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        times, weight, _ = self._example()
        module = self.build(weight, None, IF(2.0), self.T_MAX)
        alone = torch.cat([self.spike_times(module, sample.unsqueeze(0)) for sample in times])
        assert torch.equal(self.spike_times(module, times), alone)

    def test_gradients_are_those_of_the_rule(self) -> None:
        if not self.latency_rule:
            pytest.skip("a gradient without a rule")
        for times, weight, bias, neuron in self._cases():
            module = self.build(weight, bias, neuron, self.T_MAX)
            inputs = times.clone().requires_grad_(self.input_gradient)
            spikes = self.spike_times(module, inputs)
            generator = torch.Generator().manual_seed(1)
            grad = torch.randn(spikes.shape, generator=generator, dtype=spikes.dtype)
            parameters = list(module.parameters())
            wanted = [*parameters, inputs] if self.input_gradient else parameters
            gradients = torch.autograd.grad(spikes, wanted, grad)
            fired, potential = first_spikes_in_a_loop(times, weight, bias, neuron, self.T_MAX)
            error = grad * self.rate(fired - neuron.delay, potential, neuron)
            of_weight, of_bias, of_times = latency_gradients(error, fired, times, weight, neuron)
            expected = [of_bias if p.ndim == 1 else of_weight.reshape(p.shape) for p in parameters]
            for actual, formula in zip(gradients, [*expected, of_times], strict=False):
                torch.testing.assert_close(actual, formula, atol=1e-8, rtol=1e-8)

    def test_keeps_the_dtype(self) -> None:
        for dtype in self.dtypes:
            times, weight, _ = self._example(dtype)
            assert self.spike_times(self.build(weight, None, IF(2.0), self.T_MAX), times).dtype == dtype

    def test_runs_on_an_accelerator(self) -> None:
        if not torch.accelerator.is_available():
            pytest.skip("no accelerator")
        device = torch.accelerator.current_accelerator()
        times, weight, _ = self._example()
        module = self.build(weight, None, IF(2.0), self.T_MAX)
        expected = self.spike_times(module, times)
        moved = self.spike_times(module.to(device), times.to(device))
        assert torch.equal(moved.cpu(), expected)

    def test_copies_pickles_and_state_dicts_behave_alike(self) -> None:
        times, weight, bias = self._example()
        given = bias if self.bias else None
        module = self.build(weight, given, IF(2.0), self.T_MAX)
        expected = self.spike_times(module, times)
        other = self.build(
            torch.zeros_like(weight), None if given is None else given * 0, IF(2.0), self.T_MAX
        )
        other.load_state_dict(module.state_dict())
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
            assert torch.equal(self.spike_times(twin, times), expected)
            assert not {id(p) for p in twin.parameters()} & {id(p) for p in module.parameters()}

    def test_compiles(self) -> None:
        if not self.compiles:
            pytest.skip("does not compile")
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            pytest.skip("torch.compile needs a C++ compiler")
        times, weight, _ = self._example(torch.float32)
        module = self.build(weight, None, IF(2.0), self.T_MAX)
        expected = self.spike_times(module, times)
        try:
            module.compile(fullgraph=True)
            assert torch.equal(self.spike_times(module, times), expected)
        finally:
            torch.compiler.reset()

    def test_survives_nir(self) -> None:
        for times, weight, bias, neuron in self._cases():
            module = self.build(weight, bias, neuron, self.T_MAX)
            back = self.nir_round_trip(module)
            if back is None:
                pytest.skip("no way through NIR")
            assert torch.equal(self.spike_times(back, times), self.spike_times(module, times))
