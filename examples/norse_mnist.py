"""MNIST with Norse: images as constant currents, leaky neurons, a loop over time steps."""

import argparse

import norse.torch as norse
import torch
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

transform = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), nn.Flatten(0)]
)
train_set = datasets.MNIST(args.data_root, train=True, download=True, transform=transform)
test_set = datasets.MNIST(args.data_root, train=False, download=True, transform=transform)
train_loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True)
test_loader = DataLoader(test_set, args.batch_size)

encode = norse.ConstantCurrentLIFEncoder(args.num_steps)
net = norse.SequentialState(
    norse.Lift(nn.Linear(784, 800)),
    norse.LIF(norse.LIFParameters(v_th=torch.tensor(0.5))),
    norse.Lift(nn.Linear(800, 10)),
    norse.LI(),
)
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)


def forward_pass(spikes):
    voltages, _ = net(spikes)
    return voltages.max(0).values


def training_step(images, labels):
    loss = loss_fn(forward_pass(encode(images)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def accuracy():
    right = 0
    for images, labels in test_loader:
        right += (forward_pass(encode(images)).argmax(1) == labels).sum().item()
    return right / len(test_set)


for epoch in range(args.epochs):
    for images, labels in train_loader:
        training_step(images, labels)
    print(f"epoch {epoch + 1}: test accuracy {accuracy():.2%}", flush=True)
