"""Only the neuron swapped: which losses train a network of neurons that fire at most once?

scikit-learn's digits (no download), 64-300-10, each host, in its loop over time steps and event by
event, with the host's own losses and ours. Prints a table of test accuracies after the last epoch,
ties and silence decided by the potential.
"""

import argparse
from time import perf_counter

import norse.torch as norse
import torch
from sklearn.datasets import load_digits
from snntorch import functional as SF
from torch import nn

import ssnn_plugin.norse as for_norse
import ssnn_plugin.snntorch as for_snntorch
from ssnn_plugin import decode, encode, metrics, to_event_driven

NUM_STEPS, BATCH, HIDDEN, TRAINING = 32, 35, 300, 1400


def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]


def snntorch_net():
    return nn.Sequential(
        nn.Linear(64, HIDDEN, bias=False),
        for_snntorch.SingleSpike(init_hidden=True),
        nn.Linear(HIDDEN, 10, bias=False),
        for_snntorch.SingleSpike(init_hidden=True, output=True),
    )


def norse_net():
    outputs = for_norse.SingleSpikeIFParameters(silent_gradient=True)
    return norse.SequentialState(
        norse.Lift(nn.Linear(64, HIDDEN, bias=False)),
        for_norse.SingleSpikeIF(),
        norse.Lift(nn.Linear(HIDDEN, 10, bias=False)),
        for_norse.SingleSpikeIF(outputs),
    )


def snntorch_loop(net, trains):
    for_snntorch.reset(net)
    spikes, _ = zip(*[net(step) for step in trains], strict=True)
    return torch.stack(spikes)


def norse_loop(net, trains):
    return net(trains)[0]


def spike_count_mse(spikes, labels):
    """What Norse's users write: the label fires, the others do not."""
    return nn.functional.mse_loss(spikes.sum(0), nn.functional.one_hot(labels, 10).float())


# Losses on spike trains and labels. Targets are steps.
OURS = {
    "ce_temporal_loss()": for_snntorch.ce_temporal_loss(),
    "mse_temporal_loss(on_target=8, off_target=None)": for_snntorch.mse_temporal_loss(
        on_target=8, off_target=None
    ),
    "relative_temporal_loss(3)": for_snntorch.relative_temporal_loss(gamma=3),
}
HOSTS = {
    "snntorch": {
        "SF.ce_temporal_loss()": SF.ce_temporal_loss(),
        "SF.mse_temporal_loss(on_target=8, off_target=31)": SF.mse_temporal_loss(
            on_target=8, off_target=NUM_STEPS - 1
        ),
        "SF.mse_count_loss(1/32, 0)": SF.mse_count_loss(correct_rate=1 / NUM_STEPS, incorrect_rate=0),
    },
    "norse": {"spike count, MSE": spike_count_mse},
}
MODELS = {
    "snntorch": (snntorch_net, snntorch_loop, for_snntorch.calibrate),
    "norse": (norse_net, norse_loop, for_norse.calibrate),
}


def train(host, loss_fn, mode, epochs, seed=0, start=True):
    """Test accuracy of a network trained by a loss; `mode` is "loop" or "events"."""
    torch.manual_seed(seed)
    build, loop, calibrate = MODELS[host]
    net, (images, labels) = build(), digits()
    if start:
        calibrate(net, for_snntorch.latency(images[:TRAINING][:200], NUM_STEPS), fraction=0.5)
    first = next(net.parameters())
    first.register_hook(lambda grad: grad - grad.mean(1, keepdim=True))  # gradient centralization
    event_net = to_event_driven(net, t_max=NUM_STEPS)

    def outputs(x):
        if mode == "loop":
            return loop(net, for_snntorch.latency(x, NUM_STEPS))
        times = event_net(encode.latency(x, NUM_STEPS))
        return decode.times_to_spikes(times, NUM_STEPS, silent_gradient=True)

    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * TRAINING // BATCH)
    for _ in range(epochs):
        for i in torch.randperm(TRAINING).split(BATCH):
            spikes = outputs(images[i])
            loss = loss_fn(spikes, labels[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        times, potential = event_net(encode.latency(images[TRAINING:], NUM_STEPS), return_potential=True)
    return metrics.accuracy(times, labels[TRAINING:], potential=potential, tie="potential")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--host", choices=HOSTS, action="append")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| host | loss | in the loop over steps | event by event |\n|---|---|---|---|")
    begun = perf_counter()
    for host in args.host or HOSTS:
        for name, loss_fn in {**HOSTS[host], **OURS}.items():
            cells = []
            for mode in ("loop", "events"):
                found = [train(host, loss_fn, mode, args.epochs, seed) for seed in range(args.seeds)]
                cells.append(", ".join(f"{accuracy:.1%}" for accuracy in found))
            print(f"| {host} | `{name}` | {cells[0]} | {cells[1]} |", flush=True)
    print(f"\n{perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
