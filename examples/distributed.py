"""Train on several processes, which learn what one process learns.

scikit-learn's digits (no download), 64-100-10, event by event. Every process takes its share of each
mini-batch, and `DistributedDataParallel` averages the gradients:

    python examples/distributed.py
    torchrun --nproc-per-node 2 examples/distributed.py
"""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ssnn_plugin import ReLPSP, metrics
from ssnn_plugin.losses import TemporalCrossEntropyLoss
from ssnn_plugin.nn import SpikeLinear

TRAINING = 1400


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=40, help="of all processes together")
    parser.add_argument("--save", type=Path, help="file for the weights")
    options = parser.parse_args()

    parallel = "RANK" in os.environ  # started by torchrun
    if parallel:
        distributed.init_process_group("gloo")
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if parallel else (0, 1)
    if options.batch_size % processes:
        parser.error(f"--batch-size must be shared evenly by {processes} processes")

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data / 16)[order]
    times = (1 - x).masked_fill(x == 0, torch.inf)
    labels = torch.tensor(data.target)[order]

    torch.manual_seed(0)
    net = nn.Sequential(
        SpikeLinear(64, 100, ReLPSP(), t_max=4.0, init_range=(-0.1, 0.2)),
        SpikeLinear(100, 10, ReLPSP(), t_max=8.0, init_range=(-0.1, 0.2)),
    ).double()
    model = DistributedDataParallel(net) if parallel else net
    criterion = TemporalCrossEntropyLoss(8.0, temperature=0.02)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for epoch in range(options.epochs):
        shuffled = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(epoch))
        whole = len(shuffled) - len(shuffled) % options.batch_size  # equal shares: the mean of their means
        for batch in shuffled[:whole].split(options.batch_size):
            share = batch[rank::processes]
            loss = criterion(model(times[share]), labels[share])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    if rank == 0:
        with torch.no_grad():
            outputs, potential = net[1](net[0](times[TRAINING:]), return_potential=True)
        accuracy = metrics.accuracy(outputs, labels[TRAINING:], potential=potential)
        print(f"{processes} processes: test accuracy {accuracy:.2%}")
        if options.save:
            torch.save(net.state_dict(), options.save)
    if parallel:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
