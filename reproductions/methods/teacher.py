"""A teacher: a ReLU network that learns from the labels beside a spiking one, which learns its answers too.

What the teacher finds likely tells more of an image than its label does (Hinton, Vinyals & Dean 2015). Both
learn from the same mini-batches at the same time (Anil et al. 2018), so no network has to be trained before.
The teacher sees what the spiking network sees, intensities 1 - t / bins of the same spike times. It is thrown
away after training.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from ..config import Fraction, Strict
from .architecture import Layers
from .converted_relu import relu_stages
from .minibatch import MixedPrecision, in_a_row, lay_out_as_parameters

MOMENTUM = 0.9
# By which the logits of the teacher are divided, so that learning begins slowly.
SCALE = 4.0


class TeacherSettings(Strict):
    """Layers of the teacher, and how it learns, by stochastic gradient descent with Nesterov momentum.

    The spiking network learns from its answers, softened by `temperature`, with the weight `share`, and from
    the labels with the rest.
    """

    layers: Layers
    learning_rate: PositiveFloat
    weight_decay: Fraction = 0.0
    temperature: PositiveFloat = 3.0
    share: Fraction = 0.5


class Teacher:
    """Answers and learns by `learn`; `loss` compares what others say with what it answered last.

    Args:
        shape: of an image, [channels, height, width].
        bins: number of spike times of the inputs.
        precision: of its operations.

    Raises:
        SuiteError: features instead of images; layers that do not fit an image.
    """

    def __init__(
        self,
        settings: TeacherSettings,
        shape: tuple[int, ...],
        classes: int,
        bins: int,
        precision: MixedPrecision,
        device: str,
    ) -> None:
        self.settings, self.shape, self.bins, self.precision = settings, shape, bins, precision
        network = in_a_row(relu_stages(settings.layers, shape, classes, key="training.teacher.layers"))
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            settings.learning_rate,
            MOMENTUM,
            weight_decay=settings.weight_decay,
            nesterov=True,
        )
        self.soft = torch.empty(0, classes, device=device)

    def learn(self, times: Tensor, labels: Tensor, factor: float) -> None:
        """Say what is likely for spike times [batch, features], then learn from the labels.

        `factor` is that of the learning rate. From a single sample, which has no deviation that a batch could
        be normalised by, nothing is learned.
        """
        images = (1 - times.float() / self.bins).clamp_(min=0).reshape(-1, *self.shape)
        self.network.train(len(times) > 1)
        with self.precision.autocast(times.device):
            logits = self.network(images.contiguous(memory_format=torch.channels_last)).float() / SCALE
        self.soft = (logits.detach() / self.settings.temperature).softmax(1)
        if not self.network.training:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.settings.learning_rate
        self.optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(logits, labels))
        self.optimizer.step()

    def loss(self, logits: Tensor) -> Tensor:
        """Divergence of softened logits [batch, classes] from the answers (Hinton et al. 2015, 2)."""
        softened = (logits / self.settings.temperature).log_softmax(1)
        divergence = nn.functional.kl_div(softened, self.soft, reduction="batchmean")
        return self.settings.temperature**2 * divergence

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_as_parameters(self.optimizer)
