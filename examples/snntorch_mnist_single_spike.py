"""MNIST with snnTorch: latency-coded images, neurons that fire at most once, event by event."""

import argparse
from itertools import islice
from statistics import median
from time import perf_counter

import torch
from snntorch import utils
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from ssnn_plugin import decode, losses, metrics, to_event_driven
from ssnn_plugin.encode import latency as latency_times
from ssnn_plugin.snntorch import SingleSpike, latency, relative_temporal_loss

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

net = nn.Sequential(
    nn.Linear(784, 800, bias=False),
    SingleSpike(init_hidden=True),
    nn.Dropout(0.3),
    nn.Linear(800, 10, bias=False),
    SingleSpike(init_hidden=True, output=True),
)
nn.init.normal_(net[0].weight, 0.01, 0.05)
nn.init.normal_(net[3].weight, 0.01, 0.02)
net[0].weight.register_hook(lambda grad: grad - grad.mean(1, keepdim=True))  # gradient centralization
loss_fn = relative_temporal_loss(gamma=args.num_steps / 12)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)


def encode(images):
    return latency(images, args.num_steps)


def forward_pass(spikes):
    utils.reset(net)
    spk_rec, mem_rec = zip(*[net(step) for step in spikes], strict=True)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def training_step(images, labels):
    spk_rec, mem_rec = forward_pass(encode(images))
    loss = loss_fn(spk_rec, labels, mem_rec)
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
event_loss_fn = losses.RelativeTargetLoss(args.num_steps / 12, args.num_steps)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(train_loader))


def event_step(images, labels):
    loss = event_loss_fn(event_net(latency_times(images, args.num_steps)), labels)
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
in_the_loop = decode.spikes_to_times(forward_pass(encode(images))[0])
same = (in_the_loop == event_net(latency_times(images, args.num_steps))).double().mean()
print(f"same output spikes in the loop over {args.num_steps} steps: {same:.2%}")
loop, event = median(loop_seconds), median(event_seconds)
print(f"training step in the loop: {1e3 * loop:.0f} ms")
print(f"training step event by event: {1e3 * event:.1f} ms, {loop / event:.0f} times faster")
