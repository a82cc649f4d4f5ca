"""A training that nothing comes of says so, once."""

import warnings

import norse.torch as norse
import pytest
import snntorch.functional as SF
import torch
from snntorch import SpikingNeuron, backprop, utils
from torch import nn

from ssnn_plugin import SilentNetworkWarning, encode, losses, to_event_driven
from ssnn_plugin.norse import LatencyEncoder, SingleSpikeIF, SpikesToTimesDecoder
from ssnn_plugin.snntorch import SingleSpike, ce_temporal_loss, latency, reset

T, LABELS = 8, torch.arange(6) % 3


def _images():
    return torch.rand(6, 9, generator=torch.Generator().manual_seed(0))


def _net(weight, **options):
    last = SingleSpike(init_hidden=True, output=True, **options)
    net = nn.Sequential(
        nn.Linear(9, 7, bias=False),
        SingleSpike(init_hidden=True, **options),
        nn.Linear(7, 3, bias=False),
        last,
    )
    for layer in (net[0], net[2]):
        nn.init.constant_(layer.weight, weight)
    return net


def _steps(net, loss, restart=reset):
    """Two training steps, as in any script of snnTorch."""
    for _ in range(2):
        restart(net)
        spikes, _ = zip(*[net(step) for step in latency(_images(), T)], strict=True)
        loss(torch.stack(spikes), LABELS).backward()
    restart(net)


def _bptt(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for _ in range(2):
        backprop.BPTT(net, [(latency(_images(), T), LABELS)] * 2, optimizer, SF.ce_rate_loss(), time_var=True)


def _window(net):
    reset(net)
    net(latency(_images(), T))[0].sum().backward()


def _event_driven(net):
    times = to_event_driven(net, t_max=T)(encode.latency(_images(), T))
    losses.TemporalCrossEntropyLoss(T)(times, LABELS).backward()


TRAININGS = {
    "snnTorch's loss and reset": lambda weight: _steps(_net(weight), SF.mse_count_loss(), utils.reset),
    "snnTorch's loss, our reset": lambda weight: _steps(_net(weight), SF.ce_temporal_loss()),
    "our loss": lambda weight: _steps(_net(weight), ce_temporal_loss()),
    "BPTT": lambda weight: _bptt(_net(weight)),
    "a window at once": lambda weight: _window(_net(weight, sequence=True)),
    "event by event": lambda weight: _event_driven(_net(weight)),
    "Norse, no loss of ours": lambda weight: _norse(weight)[0].sum().backward(),
    "Norse, our decoder": lambda weight: _norse_decoded(weight).sum().backward(),
}


def _norse(weight):
    layers = nn.Linear(9, 7, bias=False), nn.Linear(7, 3, bias=False)
    for layer in layers:
        nn.init.constant_(layer.weight, weight)
    net = norse.SequentialState(layers[0], SingleSpikeIF(), layers[1], SingleSpikeIF())
    return net(LatencyEncoder(T)(_images()))


def _norse_decoded(weight):
    return SpikesToTimesDecoder(t_silent=T, convert_indices_to_times=False)(_norse(weight)[0])


def _said(train, weight, action="default"):
    SpikingNeuron.instances.clear()  # snnTorch resets the nets of the whole process
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.simplefilter(action, SilentNetworkWarning)
        train(weight)
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.filterwarnings("ignore")
def test_a_silent_training_says_so_once_with_the_remedy(train):
    (message,) = _said(train, 0.01)
    for remedy in ("calibrate(model, trains)", "silent_gradient=True", "bias=False", "docs/training.md"):
        assert remedy in message
    assert _said(train, 1.0, "always") == []


def test_what_is_no_training_says_nothing():
    def evaluate(weight):
        net = _net(weight)
        with torch.no_grad():
            for _ in range(2):
                reset(net)
                spikes = torch.stack([net(step)[0] for step in latency(_images(), T)])
            ce_temporal_loss()(spikes, LABELS)
            _norse(weight)
        reset(net)
        SingleSpike()(torch.zeros(2, 3))

    assert _said(evaluate, 0.01, "always") == []


def test_the_warning_can_be_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SilentNetworkWarning)
        with pytest.raises(SilentNetworkWarning, match="no neuron of a layer fired in a whole batch"):
            _event_driven(_net(0.01))
