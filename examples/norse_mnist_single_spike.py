"""MNIST with Norse: latency-coded images, neurons that fire at most once, event by event."""

import argparse
from itertools import islice
from statistics import median
from time import perf_counter

import norse.torch as norse
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from ssnn_plugin import losses, metrics, to_event_driven
from ssnn_plugin.encode import latency as latency_times
from ssnn_plugin.norse import LatencyEncoder, SingleSpikeIF, SpikesToTimesDecoder

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-root", default="data", help="folder with MNIST/raw, or to download it to")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--num-steps", type=int, default=256)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--loop-steps", type=int, default=5, help="training steps in the loop over time, timed")
args = parser.parse_args()
torch.manual_seed(0)

transform = transforms.Compose([transforms.ToTensor(), nn.Flatten(0)])
train_set = datasets.MNIST(args.data_root, train=True, download=True, transform=transform)
test_set = datasets.MNIST(args.data_root, train=False, download=True, transform=transform)
train_loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True)
test_loader = DataLoader(test_set, args.batch_size)

encode = LatencyEncoder(args.num_steps)
net = norse.SequentialState(
    norse.Lift(nn.Linear(784, 800, bias=False)),
    SingleSpikeIF(),
    nn.Dropout(0.3),
    norse.Lift(nn.Linear(800, 10, bias=False)),
    SingleSpikeIF(),
)
weights = [module.lifted_module.weight for module in (net[0], net[3])]
nn.init.normal_(weights[0], 0.01, 0.05)
nn.init.normal_(weights[1], 0.01, 0.02)
weights[0].register_hook(lambda grad: grad - grad.mean(1, keepdim=True))  # gradient centralization
decode = SpikesToTimesDecoder(t_silent=args.num_steps, convert_indices_to_times=False)
loss_fn = losses.RelativeTargetLoss(args.num_steps / 12, args.num_steps)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)


def forward_pass(spikes):
    spikes, states = net(spikes)
    return decode(spikes, potential=states[-1].v)[0]


def training_step(images, labels):
    loss = loss_fn(forward_pass(encode(images)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def timed(step, images, labels):
    start = perf_counter()
    step(images, labels)
    return perf_counter() - start


# The loop over time steps works as before ...
net.train()
loop_seconds = [timed(training_step, *batch) for batch in islice(train_loader, args.loop_steps)]

# ... and the same network, with the same parameters, runs event by event.
event_net = to_event_driven(net, t_max=args.num_steps, silent_gradient=True)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(train_loader))


def event_step(images, labels):
    loss = loss_fn(event_net(latency_times(images, args.num_steps)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def accuracy():
    event_net.eval()
    right = 0.0
    for images, labels in test_loader:
        times, potential = event_net(latency_times(images, args.num_steps), return_potential=True)
        right += metrics.accuracy(times, labels, potential=potential) * len(labels)
    event_net.train()
    return right / len(test_set)


event_seconds = []
for epoch in range(args.epochs):
    for images, labels in train_loader:
        event_seconds.append(timed(event_step, images, labels))
        scheduler.step()
    print(
        f"epoch {epoch + 1}: test accuracy {accuracy():.2%}, ties and silence decided by potential",
        flush=True,
    )

net.eval(), event_net.eval()
images, _ = next(iter(test_loader))
event_by_event = event_net(latency_times(images, args.num_steps)).clamp(max=args.num_steps)
same = (forward_pass(encode(images)) == event_by_event).double().mean()
print(f"same output spikes in the loop over {args.num_steps} steps: {same:.2%}")
loop, event = median(loop_seconds), median(event_seconds)
print(f"training step in the loop: {1e3 * loop:.0f} ms")
print(f"training step event by event: {1e3 * event:.1f} ms, {loop / event:.0f} times faster")
