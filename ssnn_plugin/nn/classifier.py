"""A single-spike network on the features of a frozen extractor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor, nn

from .. import _checks
from ..functional.silent import overdue_times
from ..neurons import WindowedRamp
from .calibration import evaluating
from .decision import Decision
from .linear import SpikeLinear
from .scaling import MinMaxScaling
from .sequential import SpikeSequential

Values: TypeAlias = "Tensor | np.ndarray[Any, Any]"


class SpikeClassifier(nn.Module):
    """Neurons that fire at most once, trained on the features of a frozen extractor.

    Each feature is scaled to 0 ... 1 by its range in the training set and spikes at 1 - x; what is 0 is
    silent. Ramp neurons in consecutive windows follow, each the clipped ReLU of what its layer
    collected until its window starts, so that gradients are exact; the first output decides.

    Args:
        extractor: any module, images [batch, ...] -> features [batch, ...]; it is never trained.
        in_features: number of features per image, all dimensions together.
        classes: number of classes.
        hidden: widths of the hidden layers.
        dropout: in training, of the spikes into each layer behind the first.
        spike_price: cost of a hidden spike, times how early it comes in its window; makes spikes few.
        window: length of a hidden layer's window: activations above it count as this much.
        output_window: the same of the outputs; one that would fire later, at `t_max`, is silent.

    Shape: images, a tensor or a NumPy array -> first-spike times of the outputs [batch, classes], or
    (times, potential) with `return_potential=True`.

    Raises:
        ValueError: arguments out of range; in `fit` also data without samples, with one class only, with
            labels out of range or with another number of features.
        TypeError: images or labels that are neither a tensor nor a NumPy array.
        RuntimeError: used before `fit`.

    Source: the neurons are those of Stanojevic et al. 2024 (B1-model); a single-spike network as the
    classifier behind a pre-trained extractor is the use of Moqadasi, Safari & Mateo 2025.

    >>> import torch
    >>> images, labels = torch.rand(40, 1, 4, 4), torch.arange(40) % 2
    >>> images[labels == 1, :, :2] += 1
    >>> classifier = SpikeClassifier(torch.nn.Flatten(), 16, classes=2, hidden=[32])
    >>> _ = classifier.fit([(images, labels)], steps=200, learning_rate=1e-2)
    >>> bool((classifier.predict(images) == labels).all())
    True
    """

    def __init__(
        self,
        extractor: nn.Module,
        in_features: int,
        classes: int,
        hidden: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        spike_price: float = 0.0,
        window: float = 5.0,
        output_window: float = 30.0,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes!r}")
        _checks.not_negative("spike_price", spike_price)
        _checks.positive("window", window)
        _checks.positive("output_window", output_window)
        self.extractor = extractor.requires_grad_(False).eval()
        self.in_features, self.classes, self.spike_price = in_features, classes, spike_price
        ends = [1.0 + window * number for number in range(len(hidden) + 1)]
        ends.append(ends[-1] + output_window)
        widths = [in_features, *hidden, classes]
        self.layers = nn.ModuleList()
        for (n_in, n_out), (start, end) in zip(
            itertools.pairwise(widths), itertools.pairwise(ends), strict=True
        ):
            neuron, p = WindowedRamp(end - start, start=start), dropout if self.layers else 0.0
            self.layers.append(SpikeLinear(n_in, n_out, neuron, t_max=end, bias=True, dropout=p))
        self.t_max = ends[-1]
        self.scaling = MinMaxScaling(in_features)
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, classes={self.classes}, spike_price={self.spike_price}"

    def reset_parameters(self) -> None:
        """Draw the weights as of a ReLU network, which this is (He et al. 2015); biases start at 0."""
        for layer in self._connections():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def train(self, mode: bool = True) -> SpikeClassifier:
        """As of any module, but the extractor stays in its evaluation mode."""
        super().train(mode)
        self.extractor.eval()
        return self

    @torch.no_grad()
    def features(self, images: Values) -> Tensor:
        """What the extractor makes of images, [batch, in_features]."""
        like = self.scaling.low
        images = _as_tensor("images", images, like.dtype).to(like.device)
        features: Tensor = self.extractor(images).flatten(1)
        if features.shape[1] != self.in_features:
            raise ValueError(
                f"in_features must be what the extractor returns, {features.shape[1]} per image, "
                f"got {self.in_features}"
            )
        return features

    def encode(self, features: Tensor) -> Tensor:
        """Features [batch, in_features] -> spike times, the stronger the earlier."""
        x: Tensor = self.scaling(features)
        return (1 - x).masked_fill(x == 0, torch.inf)

    def spike_times(self, images: Values) -> list[Tensor]:
        """Spike times of the inputs and of every layer, for `metrics.SpikeCounts`."""
        times = [self.encode(self.features(images))]
        for layer in self.layers:
            times.append(layer(times[-1]))
        return times

    @overload
    def forward(self, images: Values, return_potential: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Values, return_potential: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, images: Values, return_potential: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Images -> times of the outputs [batch, classes], or (times, potential)."""
        layers, potential = self._fire(self.encode(self.features(images)))
        return (layers[-1], potential) if return_potential else layers[-1]

    def predict(self, images: Values) -> Tensor:
        """Classes [batch]: the first output to fire; ties and silence are decided by potential."""
        return self.decide(images).winner

    @torch.no_grad()
    def decide(self, images: Values) -> Decision:
        """Classes, when they were decided and after how many spikes; layer by layer, without dropout."""
        with evaluating(self):
            return SpikeSequential(*self.layers).decide(self.encode(self.features(images)))

    def fit(
        self,
        data: Iterable[tuple[Values, Values]],
        *,
        steps: int = 1500,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
        progress: Callable[[int, float], None] | None = None,
    ) -> SpikeClassifier:
        """Learn from batches of (images, labels), such as a `DataLoader`, from new weights on.

        Each image passes the extractor once; its features are kept in memory. The same seed gives the same
        network.

        Args:
            data: batches of images and class numbers [batch].
            steps: mini-batches to learn from; the step size falls to 0 along a cosine.
            batch_size, learning_rate, weight_decay: of Adam, the decay decoupled.
            seed: of weights, order and dropout.
            progress: called with the number of steps done and the loss.
        """
        _checks.whole_and_positive("steps", steps)
        _checks.whole_and_positive("batch_size", batch_size)
        features, labels = self._collect(data)
        self.scaling.fit(features)
        times = self.encode(features)
        with torch.random.fork_rng(devices=[times.device] if times.is_cuda else []):
            torch.manual_seed(seed)
            self.reset_parameters()
            optimizer = torch.optim.AdamW(self.layers.parameters(), learning_rate, weight_decay=weight_decay)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            self.train()
            for step, batch in enumerate(itertools.islice(_batches(len(labels), batch_size), steps), 1):
                loss = self._loss(times[batch], labels[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                if progress is not None:
                    progress(step, loss.item())
        return self.eval()

    def _collect(self, data: Iterable[tuple[Values, Values]]) -> tuple[Tensor, Tensor]:
        dtype = self.scaling.low.dtype
        pairs = [(self.features(images), _as_tensor("labels", labels, dtype)) for images, labels in data]
        if not pairs:
            raise ValueError("data must hold at least one batch of (images, labels), got none")
        features = torch.cat([part for part, _ in pairs])
        labels = torch.cat([part for _, part in pairs]).to(features.device)
        _checks.class_labels(labels, features.new_empty(len(features), self.classes))
        present = torch.unique(labels).tolist()
        if len(present) < 2:
            raise ValueError(f"data must hold at least two classes, got {present} alone")
        return features, labels.long()

    def _connections(self) -> list[SpikeLinear]:
        return [layer for layer in self.layers if isinstance(layer, SpikeLinear)]

    def _fire(self, times: Tensor) -> tuple[list[Tensor], Tensor]:
        fired: list[Tensor] = []
        potential = times
        for layer in self.layers:
            times, potential = layer(times, return_potential=True)
            fired.append(times)
        return fired, potential

    def _loss(self, times: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy on -t, and the price of the hidden spikes."""
        fired, potential = self._fire(times)
        output = self._connections()[-1]
        due = overdue_times(fired[-1], potential, output.neuron, output.t_max)
        loss = nn.functional.cross_entropy(-due, labels)
        leads = [
            (layer.t_max - spikes).relu().sum()
            for layer, spikes in zip(self._connections()[:-1], fired[:-1], strict=True)
        ]
        return loss + self.spike_price * sum(leads) / len(labels) if leads else loss


def _as_tensor(name: str, values: Values, dtype: torch.dtype) -> Tensor:
    """Arrays count as tensors; of NumPy's default, double precision, they become the dtype of the network."""
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
        return values.to(dtype) if values.is_floating_point() else values
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(values).__name__}")
    return values


def _batches(samples: int, size: int) -> Iterable[Tensor]:
    """Mini-batches without end, every sample once before any comes again."""
    while True:
        yield from torch.split(torch.randperm(samples), size)
