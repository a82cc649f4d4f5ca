"""Small ReLU networks, written in the ways that people write them."""

import torch
from torch import nn
from torch.nn import functional as F


def with_random_statistics(model, seed=0):
    """Batch normalisations as after training, with factors of either sign."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.3, generator=generator)
                norm.running_var.uniform_(0.5, 2, generator=generator)
                if norm.affine:
                    norm.weight.uniform_(-1, 1.5, generator=generator)
                    norm.bias.normal_(0, 0.3, generator=generator)
    return model


class Functional(nn.Module):
    """Functions instead of modules, and a view that reads the size of the batch."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, dilation=2, padding=2)
        self.fc = nn.Linear(6 * 4, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.relu(self.conv2(x)), 2)
        x = F.dropout(x, 0.3, self.training)
        return self.fc(x.view(x.size(0), -1))


class Methods(nn.Module):
    """Methods, a cap of its own, means by dimension, a further argument with a default."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x, features=False):
        x = self.conv1(x).relu_().contiguous()
        x = self.conv2(x).clamp(0, 0.4).mean((2, 3))
        return x if features else self.fc(x)


class InPlace(nn.Module):
    """One ReLU for all, which overwrites what a shortcut reads later; sums in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, x):
        shortcut = self.norm1(self.conv1(x))
        out = self.norm2(self.conv2(self.relu(shortcut)))
        out += shortcut
        out.add_(shortcut)
        out = self.relu(out)
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class PreActivation(nn.Module):
    """Normalisations that stand behind sums, and cannot be folded."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False) for _ in range(2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms[:2], self.convs, strict=True):
            x = x + conv(F.relu(norm(x)))
        return self.fc(torch.flatten(self.pool(F.relu(self.norms[2](x))), 1))


class Bottlenecks(nn.Module):
    """Sums of values that may be negative, between which there is no ReLU; depthwise convolutions; ReLU6."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6(inplace=True)
        )
        self.blocks = nn.ModuleList(self.block() for _ in range(2))
        self.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 5))

    @staticmethod
    def block():
        return nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 4, 1, bias=False),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean([2, 3]))


class NormAfter(nn.Module):
    """Normalisations behind ReLUs and dropout, a learned factor that is rectified itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.scale, self.norm2, self.fc = nn.Parameter(torch.tensor(0.5)), nn.BatchNorm1d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(F.relu(self.conv(x))) * F.relu(self.scale)
        x = F.dropout(F.adaptive_avg_pool2d(x, 1).squeeze(), 0.1, self.training)
        return self.fc(self.norm2(x) / 2 - self.scale)


class Branches(nn.Module):
    """Branches of different depth side by side, and an activation that two layers read."""

    def __init__(self):
        super().__init__()
        self.short, self.long1, self.long2 = (
            nn.Conv2d(3, 2, 1),
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 3, 3, padding=2),
        )
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        long = F.relu(self.long2(F.relu(self.long1(x))))
        both = torch.cat([F.relu(self.short(x)), long], dim=1)
        pooled = F.max_pool2d(both, 3, 2, 1)
        return self.fc(0.5 * pooled.mean((2, 3)) - 1)


def perceptron():
    """Fully connected."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 8 * 8, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 5)
    )


def pooled_before():
    """Max-pools in front of the ReLU, as some write it."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 5)
    )


MODELS = {
    "functional": Functional,
    "methods": Methods,
    "in place": InPlace,
    "pre-activation": PreActivation,
    "bottlenecks": Bottlenecks,
    "branches": Branches,
    "norm after": NormAfter,
    "perceptron": perceptron,
    "pooled before": pooled_before,
}


def build(name, seed=0):
    """One of the models in double precision and evaluation mode, for images [*, 3, 8, 8]."""
    torch.manual_seed(seed)
    return with_random_statistics(MODELS[name](), seed).double().eval()


def images(samples=6, size=8, seed=1, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, channels, size, size, generator=generator, dtype=torch.double)
