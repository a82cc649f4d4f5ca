"""The contract that third parties can subclass, held by the layer and by every front end."""

import math

import pytest
import torch
from torch import nn

from ssnn_plugin import IF, decode, nir, norse, snntorch, to_event_driven
from ssnn_plugin.functional import first_spike_linear
from ssnn_plugin.nn import SpikeConv2d, SpikeLinear
from ssnn_plugin.testing import SingleSpikeContract, first_spikes_in_a_loop

norse_torch = pytest.importorskip("norse.torch")


def _linear(weight, bias):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    if bias is not None:
        linear.bias.data.copy_(bias)
    return linear


class TestSpikeLinear(SingleSpikeContract):
    def build(self, weight, bias, neuron, t_max):
        linear = _linear(weight, bias)
        layer = SpikeLinear(*weight.t().shape, neuron, t_max=t_max, bias=bias is not None, dtype=weight.dtype)
        layer.load_state_dict(linear.state_dict())
        return layer

    def spike_times(self, module, times):
        return module(times)

    def nir_round_trip(self, module):
        from ssnn_plugin.nn import SpikeSequential

        return nir.from_nir(nir.to_nir(SpikeSequential(module)))

    def neurons(self):
        return [*super().neurons(), IF(2.0, delay=1), IF(1.0, delay=3, beta=0.5)]


class TestReferenceKernel(TestSpikeLinear):
    def spike_times(self, module, times):
        layer = module if isinstance(module, SpikeLinear) else module[0]
        return first_spike_linear(
            times, layer.weight, layer.neuron, t_max=layer.t_max, bias=layer.bias, backend="reference"
        )

    # What compiles is a module's forward; the reference kernel is compiled in test_first_spike_linear.py.
    compiles = False


class Steps(SingleSpikeContract):
    def spike_times(self, module, times):
        return decode.spikes_to_times(self.spike_trains(module, times))

    def spike_trains(self, module, times):
        return self.run(module, decode.times_to_spikes(times, self.T_MAX))


class TestSnnTorchSteps(Steps):
    sequence = False

    def build(self, weight, bias, neuron, t_max):
        lif = snntorch.SingleSpike(
            beta=neuron.beta, threshold=neuron.threshold, init_hidden=True, sequence=self.sequence
        )
        return nn.Sequential(_linear(weight, bias), lif)

    def run(self, module, spikes):
        snntorch.reset(module)
        outputs = [module(step) for step in spikes]
        return torch.stack([out[0] if isinstance(out, tuple) else out for out in outputs])

    def nir_round_trip(self, module):
        return nir.from_nir(nir.to_nir(module, t_max=self.T_MAX), host="snntorch")


class TestSnnTorchSequence(TestSnnTorchSteps):
    sequence = True

    def run(self, module, spikes):
        snntorch.reset(module)
        return module(spikes)

    def nir_round_trip(self, module):
        back = nir.from_nir(nir.to_nir(module, t_max=self.T_MAX))[0]
        return self.build(back.weight, back.bias, back.neuron, self.T_MAX)


class TestNorseLayer(Steps):
    def build(self, weight, bias, neuron, t_max):
        p = norse.SingleSpikeIFParameters(v_th=neuron.threshold, tau_mem_inv=1 - neuron.beta)
        return norse_torch.SequentialState(_linear(weight, bias), norse.SingleSpikeIF(p, dt=1.0))

    def run(self, module, spikes):
        return module(spikes)[0]

    def nir_round_trip(self, module):
        return nir.from_nir(nir.to_nir(module, t_max=self.T_MAX), host="norse")


class TestNorseCell(Steps):
    def build(self, weight, bias, neuron, t_max):
        p = norse.SingleSpikeIFParameters(v_th=neuron.threshold, tau_mem_inv=1 - neuron.beta)
        return norse_torch.SequentialState(_linear(weight, bias), norse.SingleSpikeIFCell(p, dt=1.0))

    def run(self, module, spikes):
        state, trains = None, []
        for step in spikes:
            z, state = module(step, state)
            trains.append(z)
        return torch.stack(trains)

    def nir_round_trip(self, module):
        back = nir.from_nir(nir.to_nir(module, t_max=self.T_MAX))
        p = norse.SingleSpikeIFParameters(v_th=back[0].neuron.threshold, tau_mem_inv=1 - back[0].neuron.beta)
        cell = norse.SingleSpikeIFCell(p, dt=1.0)
        return norse_torch.SequentialState(_linear(back[0].weight, back[0].bias), cell)


class TestConvolution(TestSpikeLinear):
    """A 1 x 1 convolution on one pixel is a fully connected layer."""

    def build(self, weight, bias, neuron, t_max):
        layer = SpikeConv2d(
            *weight.t().shape, 1, neuron, t_max=t_max, bias=bias is not None, dtype=weight.dtype
        )
        layer.load_state_dict({"weight": weight[..., None, None]} | ({} if bias is None else {"bias": bias}))
        return layer

    def spike_times(self, module, times):
        return module(times[..., None, None]).flatten(1)

    def nir_round_trip(self, module):
        return nir.from_nir(nir.to_nir(module, input_shape=(9, 1, 1)))


class TestConvolutionInSteps(Steps):
    def build(self, weight, bias, neuron, t_max):
        conv = nn.Conv2d(*weight.t().shape, 1, bias=bias is not None, dtype=weight.dtype)
        conv.weight.data.copy_(weight[..., None, None])
        if bias is not None:
            conv.bias.data.copy_(bias)
        lif = snntorch.SingleSpike(neuron.beta, neuron.threshold, init_hidden=True, sequence=True)
        return norse_torch.SequentialState(norse_torch.Lift(conv), lif)

    def run(self, module, spikes):
        snntorch.reset(module)
        return module(spikes[..., None, None])[0].flatten(2)


class TestEventDriven(TestSpikeLinear):
    def build(self, weight, bias, neuron, t_max):
        if neuron.delay:
            return super().build(weight, bias, neuron, t_max)
        steps = TestSnnTorchSteps().build(weight, bias, neuron, t_max)
        return to_event_driven(steps, t_max=t_max, silent_gradient=False)

    def nir_round_trip(self, module):
        return None


@pytest.mark.parametrize("wrong", ["refires", "late", "weak", "gradient"])
def test_the_contract_catches_wrong_layers(wrong):
    """A contract that cannot fail proves nothing."""

    class Wrong(TestSnnTorchSteps):
        def run(self, module, spikes):
            trains = super().run(module, spikes)
            if wrong == "refires":
                return torch.maximum(trains, trains.roll(1, 0))
            if wrong == "late":
                return trains.roll(1, 0)
            return trains * 0.5 if wrong == "gradient" else trains

        def build(self, weight, bias, neuron, t_max):
            low = IF(max(0.0, neuron.threshold - 1e-3), beta=neuron.beta)
            return super().build(weight, bias, low if wrong == "weak" else neuron, t_max)

    check = {
        "refires": Wrong().test_fires_at_most_once,
        "late": Wrong().test_first_spikes_are_those_of_a_loop_over_bins,
        "weak": Wrong().test_fires_strictly_above_the_threshold,
        "gradient": Wrong().test_gradients_are_those_of_the_rule,
    }[wrong]
    with pytest.raises(AssertionError):
        check()


class _Forgetful(SpikeLinear):
    def load_state_dict(self, state):
        return None


@pytest.mark.parametrize("wrong", ["stateful", "shuffled", "single", "forgetful", "negative"])
def test_the_contract_catches_what_layers_must_not_do(wrong):
    class Wrong(TestSpikeLinear):
        calls = 0

        def build(self, weight, bias, neuron, t_max):
            layer = super().build(weight, bias, neuron, t_max)
            if wrong == "forgetful":
                layer.__class__ = _Forgetful
            return layer

        def spike_times(self, module, times):
            found = super().spike_times(module, times)
            self.calls += 1
            if wrong == "stateful":
                return found + (self.calls > 1)
            if wrong == "shuffled" and len(times) > 1:
                return found.roll(1, 0)
            return found.float() if wrong == "single" else found

        def nir_round_trip(self, module):
            back = super().nir_round_trip(module)
            back[0].weight.data.neg_()
            return back

    check = {
        "stateful": Wrong().test_a_fresh_state_replays_whatever_came_before,
        "shuffled": Wrong().test_a_sample_does_not_depend_on_its_batch,
        "single": Wrong().test_keeps_the_dtype,
        "forgetful": Wrong().test_copies_pickles_and_state_dicts_behave_alike,
        "negative": Wrong().test_survives_nir,
    }[wrong]
    with pytest.raises(AssertionError):
        check()


def test_the_loop_of_the_contract_by_hand():
    """Weights 60 and 50, threshold 100, a bin of delay; a leak forgets the first input."""
    times, weight = torch.tensor([[3.0, 7.0]]), torch.tensor([[60.0, 50.0]])
    assert first_spikes_in_a_loop(times, weight, None, IF(100.0, delay=1), 256)[0].item() == 8
    leaky, potential = first_spikes_in_a_loop(times, weight, None, IF(100.0, beta=0.5), 8)
    assert leaky.item() == math.inf
    assert potential.item() == 60 * 0.5**4 + 50
