"""S4NN (Kheradpisheh & Masquelier 2020): the authors' online protocol, and mini-batches.

Integrate-and-fire neurons with one bin of delay per layer, relative target times, dt/dV = -1,
errors normalised to unit L2 norm in every layer. `configs/s4nn-mnist.toml` is the released
recipe; dropout, learning-rate schedules, weight averaging and centred gradients are additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssnn_plugin import IF, losses, metrics, nn, online
from ssnn_plugin.functional import first_spike_linear, normalize_error

from ..config import Config, MinibatchTraining, OnlineTraining, Uniform
from . import EpochStatistics

# Samples that one compiled call learns from. Part of the protocol: the learning rate moves, and the
# random numbers of the dropout are drawn, once per chunk.
CHUNK = 2000


class S4NN:
    """Weights, decision and weight averaging, common to both protocols."""

    def __init__(self, config: Config, features: int, classes: int, seed: int) -> None:
        self.config, self.seed = config, seed
        self.neuron = IF(config.network.threshold, delay=1)
        self.t_max = config.network.t_max
        self.weights = self._draw_weights([features, *config.network.hidden, classes])
        self.average: list[Tensor] | None = None
        self.averaged = 0
        self.spikes: list[Tensor] = []

    def _draw_weights(self, sizes: list[int]) -> list[Tensor]:
        """As the authors draw them: NumPy's RandomState, first layer first."""
        random = np.random.RandomState(self.seed)
        weights = []
        for n_in, n_out, init in zip(sizes, sizes[1:], self.config.network.init, strict=False):
            draw = random.uniform if isinstance(init, Uniform) else random.normal
            a, b = init.uniform if isinstance(init, Uniform) else init.normal
            weights.append(torch.from_numpy(draw(a, b, (n_out, n_in))).to(self.config.network.torch_dtype))
        return weights

    def _rate_factor(self, progress: float) -> float:
        """Schedule of the learning rate; `progress` counts epochs and fractions of one."""
        schedule, epochs = self.config.training.schedule, self.config.training.epochs
        if schedule.kind == "constant" or progress < schedule.begin:
            return 1.0
        done = (progress - schedule.begin) / (epochs - schedule.begin)
        return 1 - done if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def _generator(self, epoch: int, purpose: int) -> torch.Generator:
        """Random numbers that depend on seed and epoch alone, so that a resumed run repeats them."""
        sequence = np.random.SeedSequence([self.seed, epoch, purpose])
        return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))

    def _redraw_dead(self, epoch: int, samples: int) -> None:
        """Redraw hidden neurons that hardly fired in the last epoch, after it was evaluated."""
        least = self.config.training.redraw_below * samples
        if not least or not self.spikes:
            return
        generator = self._generator(epoch, 1)
        for weight, spikes, init in zip(
            self.weights[:-1], self.spikes, self.config.network.init, strict=False
        ):
            assert isinstance(init, Uniform)
            online.redraw_dead(weight, spikes, least, *init.uniform, generator)

    def _training_thresholds(self) -> list[float]:
        """Thresholds while learning: with a fraction of the input spikes left out, less is enough."""
        training, threshold = self.config.training, self.neuron.threshold
        reduced = threshold * (1 - training.dropout) if training.scale_dropout else threshold
        return [threshold] + [reduced] * (len(self.weights) - 1)

    def _drop_inputs(self, times: Tensor, generator: torch.Generator) -> Tensor:
        p = self.config.training.input_dropout
        return times.masked_fill(torch.rand(times.shape, generator=generator) < p, torch.inf) if p else times

    def _accumulate_average(self, epoch: int) -> None:
        """Sum the weights of the last epochs; the prediction uses their mean."""
        if epoch < self.config.training.epochs - self.config.training.average_last:
            return
        current = [weight.detach().clone() for weight in self.weights]
        self.average = (
            [a + w for a, w in zip(self.average, current, strict=True)] if self.average else current
        )
        self.averaged += 1

    def predict(self, times: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Spike times by layer; the potential of a silent output is the one at bin T - 3, as published."""
        weights = [a / self.averaged for a in self.average] if self.average else self.weights
        layers = []
        with torch.no_grad():
            for weight in weights[:-1]:
                times = first_spike_linear(times.to(weight.device), weight, self.neuron, t_max=self.t_max)
                layers.append(times)
            output, potential = first_spike_linear(
                times.to(weights[-1].device),
                weights[-1],
                self.neuron,
                t_max=self.t_max,
                return_potential=True,
            )
            if bool(output.isinf().all(1).any()):
                early = times.masked_fill(times > self.t_max - 3, torch.inf)
                _, at_bin = first_spike_linear(
                    early, weights[-1], self.neuron, t_max=self.t_max, return_potential=True
                )
                potential = torch.where(output.isinf(), at_bin, potential)
        return (*layers, output), potential

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": [weight.detach() for weight in self.weights],
            "average": self.average,
            "averaged": self.averaged,
            "spikes": self.spikes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for weight, saved in zip(self.weights, state["weights"], strict=True):
            weight.detach().copy_(saved)
        self.average = state["average"] and [
            a.to(w) for a, w in zip(state["average"], self.weights, strict=True)
        ]
        self.averaged, self.spikes = state["averaged"], state["spikes"]


class S4NNOnline(S4NN):
    """One sample at a time, in file order unless the config shuffles."""

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        training = self.config.training
        assert isinstance(training, OnlineTraining)
        self._redraw_dead(epoch, len(times))
        order = torch.arange(len(times))
        if training.shuffle:
            order = torch.randperm(len(times), generator=self._generator(epoch, 2))
        dropping = self._generator(epoch, 3)
        hidden = len(self.weights) - 1
        loss = right = 0.0
        spikes = [torch.zeros(len(weight), dtype=torch.long) for weight in self.weights]
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            factor = self._rate_factor(epoch + start / len(order))
            done = online.s4nn_train(
                self.weights,
                self._drop_inputs(times[chunk], dropping),
                labels[chunk],
                thresholds=self._training_thresholds(),
                learning_rates=[rate * factor for rate in training.learning_rates],
                weight_decay=training.weight_decay,
                gamma=training.gamma,
                t_max=self.t_max,
                dropout=[training.dropout] * hidden + [0.0],
                seed=int(torch.randint(2**31, (), generator=dropping)),
            )
            loss += done.loss * len(chunk)
            right += done.accuracy * len(chunk)
            spikes = [a + b for a, b in zip(spikes, done.spikes, strict=True)]
            advance(len(chunk))
        self.spikes = spikes
        self._accumulate_average(epoch)
        n = len(order)
        return EpochStatistics(loss / n, right / n, tuple(s.sum().item() / n for s in spikes))


class S4NNMinibatch(S4NN):
    """Mini-batches through `nn.SpikeLinear`, autograd and a torch optimiser."""

    def __init__(self, config: Config, features: int, classes: int, seed: int, device: str) -> None:
        super().__init__(config, features, classes, seed)
        training = config.training
        assert isinstance(training, MinibatchTraining)
        self.training, self.device = training, device
        thresholds = self._training_thresholds()
        outputs = [False] * (len(self.weights) - 1) + [True]
        self.layers = [self._layer(*each) for each in zip(self.weights, thresholds, outputs, strict=True)]
        self.weights = [layer.weight for layer in self.layers]
        self.directions: list[Tensor] = []
        self.loss = losses.RelativeTargetLoss(training.gamma, self.t_max)
        groups = [
            {"params": [w], "lr": lr} for w, lr in zip(self.weights, training.learning_rates, strict=True)
        ]
        if training.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                groups, momentum=training.momentum, weight_decay=training.weight_decay
            )
        else:
            self.optimizer = torch.optim.AdamW(groups, weight_decay=training.weight_decay)

    def _layer(self, weight: Tensor, threshold: float, is_output: bool) -> nn.SpikeLinear:
        layer = nn.SpikeLinear(
            weight.shape[1],
            weight.shape[0],
            IF(threshold, delay=1),
            t_max=self.t_max,
            silent_gradient=is_output,
            device=self.device,
            dtype=self.config.network.torch_dtype,
        )
        layer.load_state_dict({"weight": weight})
        return layer

    def train_epoch(
        self, epoch: int, times: Tensor, labels: Tensor, advance: Callable[[int], None]
    ) -> EpochStatistics:
        self._redraw_dead(epoch, len(times))
        order = torch.randperm(len(times), generator=self._generator(epoch, 2))
        dropping = self._generator(epoch, 3)
        self.directions = self.directions or self._common_directions(times)
        loss = right = 0.0
        spikes = [torch.zeros(len(weight), dtype=torch.long) for weight in self.weights]
        for start in range(0, len(order), self.training.batch_size):
            batch = order[start : start + self.training.batch_size]
            self._set_rates(epoch + start / len(order))
            inputs = self._drop_inputs(times[batch], dropping).to(self.device)
            target = labels[batch].to(self.device)
            layers = self._forward(inputs, dropping)
            batch_loss = self.loss(layers[-1], target)
            self.optimizer.zero_grad()
            batch_loss.backward()
            if self.training.center_gradients:
                self._center_gradients()
            self.optimizer.step()
            right += metrics.accuracy(layers[-1].detach(), target, tie="lenient") * len(batch)
            loss += batch_loss.item() * len(batch)
            for total, layer in zip(spikes, layers, strict=True):
                total += layer.detach().isfinite().sum(0).cpu()
            advance(len(batch))
        self.spikes = spikes
        self._accumulate_average(epoch)
        n = len(order)
        return EpochStatistics(loss / n, right / n, tuple(s.sum().item() / n for s in spikes))

    def _center_gradients(self) -> None:
        """Gradient centralization (Yong et al., ECCV 2020) of the hidden layers.

        Every counted input has the same dV/dw = 1, so that a hidden neuron's gradient is mostly a
        common shift of all its weights: it fires ever earlier, or dies. Without that shift in the
        gradient the pattern is learned instead.
        """
        for weight, direction in zip(self.weights[:-1], self.directions, strict=True):
            assert weight.grad is not None
            weight.grad -= torch.outer(weight.grad @ direction, direction)

    def _common_directions(self, times: Tensor) -> list[Tensor]:
        """Unit vectors of the common shift: all weights alike, or as often as each input spikes."""
        directions = [torch.ones_like(weight[0]) for weight in self.weights[:-1]]
        if self.training.center_along == "mean input":
            directions[0] = times.isfinite().to(self.config.network.torch_dtype).mean(0).to(self.device)
        return [direction / direction.norm() for direction in directions]

    def _forward(self, times: Tensor, dropping: torch.Generator) -> list[Tensor]:
        outputs = []
        for layer in self.layers:
            times = layer(times)
            if self.training.normalize_errors:
                times = normalize_error(times)
            outputs.append(times)
            if self.training.dropout and layer is not self.layers[-1]:
                dropped = torch.rand(times.shape, generator=dropping) < self.training.dropout
                times = times.masked_fill(dropped.to(times.device), torch.inf)
        return outputs

    def _set_rates(self, progress: float) -> None:
        factor = self._rate_factor(progress)
        for group, rate in zip(self.optimizer.param_groups, self.training.learning_rates, strict=True):
            group["lr"] = rate * factor

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
