"""MNIST with snnTorch: latency-coded images, leaky neurons, a loop over time steps."""

import argparse

import snntorch as snn
import torch
from snntorch import functional as SF
from snntorch import spikegen, utils
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data-root", default="data", help="folder with MNIST/raw, or to download it to")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--num-steps", type=int, default=256)
parser.add_argument("--batch-size", type=int, default=64)
args = parser.parse_args()
torch.manual_seed(0)

transform = transforms.Compose([transforms.ToTensor(), nn.Flatten(0)])
train_set = datasets.MNIST(args.data_root, train=True, download=True, transform=transform)
test_set = datasets.MNIST(args.data_root, train=False, download=True, transform=transform)
train_loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True)
test_loader = DataLoader(test_set, args.batch_size)

net = nn.Sequential(
    nn.Linear(784, 800),
    snn.Leaky(beta=0.95, init_hidden=True),
    nn.Linear(800, 10),
    snn.Leaky(beta=0.95, init_hidden=True, output=True),
)
loss_fn = SF.ce_temporal_loss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)


def encode(images):
    return spikegen.latency(images, args.num_steps, linear=True, normalize=True, clip=True)


def forward_pass(spikes):
    utils.reset(net)
    spk_rec, mem_rec = zip(*[net(step) for step in spikes], strict=True)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def training_step(images, labels):
    spk_rec, _ = forward_pass(encode(images))
    loss = loss_fn(spk_rec, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def accuracy():
    right = 0.0
    for images, labels in test_loader:
        right += SF.accuracy_temporal(forward_pass(encode(images))[0], labels) * len(labels)
    return right / len(test_set)


for epoch in range(args.epochs):
    for images, labels in train_loader:
        training_step(images, labels)
    print(f"epoch {epoch + 1}: test accuracy {accuracy():.2%}", flush=True)
