"""The trainer that the methods share, and each method on tiny data."""

import copy
import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from tiny_runs import config, execute
from torch import nn

from reproductions import catalog, methods
from reproductions.config import Config, Network
from reproductions.errors import SuiteError
from reproductions.methods.bs4nn import Binary
from reproductions.methods.minibatch import Augment, Done, Minibatch, Stage, Training, augmented, warped
from reproductions.records import EpochStatistics
from reproductions.runner import Run
from ssnn_plugin import IF
from ssnn_plugin.functional import first_spike_linear
from ssnn_plugin.losses import RelativeTargetLoss
from ssnn_plugin.nn import EarliestSpikePool2d, SpikeConv2d, SpikeLinear

pytestmark = pytest.mark.usefixtures("cheap_runs")
INF = math.inf
SHAPE = (1, 6, 6)


class Convolutional(Minibatch):
    """A method as one would write it: a convolution, a pool, dropout, a cost and a projection."""

    def __init__(self, settings, seed=0):
        first = Stage(
            SpikeConv2d(1, 3, 3, IF(1.0), t_max=8.0, init_range=(-0.2, 0.5)),
            EarliestSpikePool2d(2),
            nn.Flatten(),
        )
        output = SpikeLinear(
            12, 2, IF(1.0), t_max=8.0, silent_gradient=True, init_range=(-0.1, 0.4), dropout=0.1
        )
        super().__init__(settings, [first, output], SHAPE, seed, "cpu")
        self.relative = RelativeTargetLoss(2.0, 8.0)
        self.cost, self.calls = 0.0, []

    def forward(self, times):
        return super().forward(times.reshape(-1, *SHAPE))

    def loss(self, outputs, potential, labels):
        return self.relative(outputs, labels)

    def costs(self, layers):
        return self.cost * sum(p.square().sum() for p in self.network.parameters())

    def after_backward(self):
        self.calls.append("backward")

    def after_step(self):
        self.calls.append("step")


class Settings(Config):
    training: Training


def _settings(encoding=None, **training):
    coded = {} if encoding is None else {"encoding": encoding}
    values = {"epochs": 4, "batch_size": 16, "optimizer": "adam", "learning_rates": [1e-2], **training}
    return Settings(
        method="m", implementation="s4nn", dataset="digits", description="", validation=0,
        network=Network(t_max=8.0), training=Training(**values), **coded,
    )  # fmt: skip


def _method(seed=0, **training):
    torch.manual_seed(seed)
    return Convolutional(_settings(**training), seed)


def _samples(n=64):
    """Two classes: the early spikes are in the upper or in the lower half."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    times = torch.randint(4, 8, (n, 36), generator=generator).float()
    half = torch.randint(0, 4, (n, 18), generator=generator).float()
    for label, part in enumerate((slice(0, 18), slice(18, 36))):
        times[labels == label, part] = half[labels == label]
    return times, labels


def _train(method, epochs, first=0):
    times, labels = _samples()
    return [method.train_epoch(epoch, times, labels, lambda n: None) for epoch in range(first, epochs)]


def _weights(method):
    return torch.cat([p.detach().flatten() for p in method.network.parameters()])


def test_the_trainer_calls_the_method_after_every_batch_and_counts_every_layer():
    method = _method()
    statistics = _train(method, 4)
    assert method.calls == ["backward", "step"] * 4 * 4
    for epoch in statistics:
        for spikes, silent, neurons in zip(epoch.spikes, epoch.silent, (48, 2), strict=True):
            assert 0 < spikes < neurons
            assert silent == pytest.approx(1 - spikes / neurons)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "least"),
    [
        ("s4nn-tuned", 0.85),
        ("ts4tl", 0.85),
        ("bs4nn", 0.7),
        ("sparse-ramp", 0.9),
        ("mostafa", 0.85),
        ("ds4nn", 0.4),
    ],
)
def test_a_method_learns_the_digits(tmp_path, method, least):
    chosen = catalog.find(method, "digits").with_epochs(8)
    history = execute(Run(chosen, "digits", results=tmp_path)).history
    assert history[-1].train.loss < 0.6 * history[0].train.loss
    assert history[-1].validation["potential"] > least


def test_layers_are_those_before_the_pool():
    times, _ = _samples(5)
    layers, potential = _method().predict(times)
    assert [layer.shape for layer in layers] == [(5, 3, 4, 4), (5, 2)]
    assert potential.shape == (5, 2)


@pytest.mark.parametrize("training", [{}, {"augment": {"shift": 2}, "average_last": 2}], ids=str)
def test_going_on_from_a_checkpoint_gives_the_same_weights(training):
    whole, part, rest = (_method(**training) for _ in range(3))
    _train(whole, 4)
    _train(part, 3)
    rest.load_state_dict(part.state_dict())
    torch.manual_seed(77)
    _train(rest, 4, first=3)
    assert torch.equal(_weights(rest), _weights(whole))
    times, _ = _samples()
    assert torch.equal(rest.predict(times)[0][-1], whole.predict(times)[0][-1])


def test_the_random_numbers_of_the_caller_change_nothing_but_the_seed_does():
    one, same, other = _method(), _method(), _method()
    other.seed = 1
    torch.manual_seed(1)
    _train(one, 2)
    torch.manual_seed(2)
    _train(same, 2)
    _train(other, 2)
    assert torch.equal(_weights(one), _weights(same))
    assert not torch.equal(_weights(one), _weights(other))


def test_costs_are_added_to_what_is_learned_from_but_not_to_the_loss_shown():
    with_cost, without = _method(), _method()
    with_cost.cost = 10.0
    shown = [_train(method, 1)[0].loss for method in (with_cost, without)]
    assert shown[0] > 0
    assert _weights(with_cost).norm() < _weights(without).norm()


def test_prediction_uses_the_mean_of_the_last_weights_and_leaves_them_alone():
    method = _method(average_last=2)
    kept = []
    for epoch in range(4):
        _train(method, epoch + 1, first=epoch)
        kept.append(_weights(method).clone())
    seen = []
    method.forward = lambda times: (seen.append(_weights(method).clone()), (times, times))[1]
    method.predict(_samples()[0])
    torch.testing.assert_close(seen[0], (kept[2] + kept[3]) / 2)
    assert torch.equal(_weights(method), kept[3])


def test_before_the_last_epochs_prediction_uses_the_weights_themselves():
    method, seen = _method(average_last=2), []
    _train(method, 2)
    method.forward = lambda times: (seen.append(_weights(method).clone()), (times, times))[1]
    method.predict(_samples()[0])
    assert torch.equal(seen[0], _weights(method))


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_checkpoint_that_holds_sums_of_weights_is_taken_up(epochs):
    method = _method(average_last=2)
    kept = []
    for epoch in range(epochs):
        _train(method, epoch + 1, first=epoch)
        if epoch >= 2:
            kept.append([p.detach().clone() for p in method.network.parameters()])
    state = copy.deepcopy(method.state_dict())
    expected = method.predict(_samples()[0])[0][-1]
    sums = [torch.stack(parts).sum(0) for parts in zip(*kept, strict=True)]
    other = _method(average_last=2)
    other.load_state_dict(state | {"average": {"sums": sums, "epochs": len(kept)}})
    assert torch.equal(other.predict(_samples()[0])[0][-1], expected)
    for one in (method, other):
        _train(one, epochs + 1, first=epochs)
    assert torch.equal(other.predict(_samples()[0])[0][-1], method.predict(_samples()[0])[0][-1])


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_the_optimizer_is_the_one_asked_for_with_a_rate_per_stage(optimizer, kind):
    method = _method(optimizer=optimizer, learning_rates=[0.1, 0.2], schedule={"kind": "linear"})
    assert type(method.optimizer).__name__ == kind
    assert [group["lr"] for group in method.optimizer.param_groups] == [0.1, 0.2]
    method._set_rates(2.0)
    assert [group["lr"] for group in method.optimizer.param_groups] == pytest.approx([0.05, 0.1])


def test_another_number_of_rates_is_refused():
    with pytest.raises(SuiteError, match="learning_rates must hold one number, or 2, one per layer, got 3"):
        _method(learning_rates=[0.1, 0.2, 0.3])


def test_statistics_are_means_over_samples_and_neurons():
    spikes = [torch.tensor([[4, 0], [2, 2]]), torch.tensor([3, 4])]
    assert EpochStatistics.of(8.0, 3.0, spikes, 4) == EpochStatistics(
        loss=2.0, accuracy=0.75, spikes=[2.0, 1.75], silent=[0.5, 0.125], dead=[1, 0]
    )


def test_only_images_are_changed():
    with pytest.raises(SuiteError, match=r"training\.augment needs images, got 20 features per sample"):
        Minibatch(_settings(augment=Augment(shift=1)), [nn.Linear(20, 2)], (20,), 0, "cpu")


def test_a_shift_moves_the_image_and_lets_silence_in():
    image = torch.arange(12.0).reshape(1, 12)
    images = image.repeat(200, 1)
    moved = augmented(
        images, (1, 3, 4), Augment(shift=1), torch.inf, torch.Generator().manual_seed(0)
    ).reshape(200, 3, 4)
    padded = nn.functional.pad(image.reshape(3, 4), [1] * 4, value=INF)
    possible = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    found = [next(k for k, other in enumerate(possible) if torch.equal(one, other)) for one in moved]
    assert set(found) == set(range(9))


def test_a_shifted_image_may_be_reflected_at_its_edge():
    image = torch.arange(12.0).reshape(1, 12)
    moved = augmented(
        image.repeat(200, 1), (1, 3, 4), Augment(shift=1, border="reflect"), torch.inf, torch.Generator()
    )
    rows, columns = torch.tensor([1, 0, 1, 2, 1]), torch.tensor([1, 0, 1, 2, 3, 2])
    reflected = image.reshape(3, 4)[rows][:, columns]
    possible = {tuple(reflected[i : i + 3, j : j + 4].flatten().tolist()) for i in range(3) for j in range(3)}
    assert set(map(tuple, moved.tolist())) == possible


def test_a_border_without_a_shift_or_an_image_smaller_than_the_shift_is_refused():
    with pytest.raises(ValidationError, match="border goes with a shift above 0, got 'reflect'"):
        Augment(shift=0, border="reflect", mirror=True)
    wide = _settings(augment=Augment(shift=3, border="reflect"))
    with pytest.raises(SuiteError, match=r"augment\.shift must be below 3, .*image of 3 x 4.* got 3"):
        Minibatch(wide, [nn.Linear(12, 2)], (1, 3, 4), 0, "cpu")


def test_a_shift_moves_all_channels_alike():
    one = torch.rand(50, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    times = torch.cat([one, one + 1], dim=1).flatten(1)
    moved = augmented(
        times, (2, 3, 3), Augment(shift=2), torch.inf, torch.Generator().manual_seed(0)
    ).reshape(50, 2, 9)
    torch.testing.assert_close(moved[:, 1], moved[:, 0] + 1)


def test_a_mirrored_image_is_one_of_two():
    image = torch.arange(6.0).reshape(1, 6)
    random = torch.Generator().manual_seed(0)
    changed = augmented(image.repeat(50, 1), (1, 2, 3), Augment(shift=0, mirror=True), torch.inf, random)
    assert sorted(changed.unique(dim=0).tolist()) == [[0, 1, 2, 3, 4, 5], [2, 1, 0, 5, 4, 3]]


def test_each_image_is_mirrored_in_every_other_epoch():
    class Seen(Minibatch):
        def _step(self, inputs, labels):
            self.seen[labels] = inputs
            return Done(0.0, 0.0, [])

    image = torch.arange(6.0).reshape(1, 6).repeat(40, 1)
    method = Seen(
        _settings(augment=Augment(shift=0, mirror="alternate")), [nn.Linear(6, 2)], (1, 2, 3), 0, "cpu"
    )
    mirrored = []
    for epoch in (0, 1, 2, 7):
        method.seen = torch.zeros(40, 6)
        method.train_epoch(epoch, image, torch.arange(40), lambda n: None)
        mirrored.append(method.seen[:, 0] == 2)
        expected = torch.where(mirrored[-1][:, None], image.reshape(40, 2, 3).flip(2).flatten(1), image)
        assert torch.equal(method.seen, expected)
    assert 10 < mirrored[0].sum() < 30
    assert torch.equal(mirrored[0], mirrored[2])
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[1], mirrored[3])


def test_cutout_blanks_a_square_clipped_at_the_edges_in_all_channels():
    image = 1 + torch.arange(40.0).reshape(1, 40)
    random = torch.Generator().manual_seed(0)
    changed = augmented(image.repeat(2000, 1), (2, 4, 5), Augment(shift=0, cutout=2), torch.inf, random)
    blanked = changed.reshape(2000, 2, 4, 5).isinf()
    assert torch.equal(changed[changed.isfinite()], image.expand_as(changed)[changed.isfinite()])
    possible = torch.zeros(20, 4, 5, dtype=torch.bool)
    for place, (row, column) in enumerate(itertools.product(range(4), range(5))):
        possible[place, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] = True
    assert torch.equal(blanked[:, 0], blanked[:, 1])
    assert torch.equal(blanked[:, 0].unique(dim=0), possible.unique(dim=0))


def test_a_square_as_large_as_the_image_is_refused():
    whole = _settings(augment=Augment(shift=0, cutout=3))
    with pytest.raises(SuiteError, match=r"augment\.cutout must be below 3, .*image of 3 x 4, got 3"):
        Minibatch(whole, [nn.Linear(12, 2)], (1, 3, 4), 0, "cpu")


def test_cutout_leaves_shifts_and_mirror_images_what_they_are():
    images, shape = torch.rand(64, 30, generator=torch.Generator().manual_seed(3)), (1, 5, 6)
    changes = {"shift": 2, "mirror": True}
    plain = augmented(images, shape, Augment(**changes), 1.0, torch.Generator().manual_seed(1))
    cut = augmented(images, shape, Augment(**changes, cutout=3), 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(cut[cut != 1], plain[cut != 1])
    assert not torch.equal(cut, plain)


def _directions(images):
    """Angles in degrees of the longest axis of images [batch, 1, size, size], and their extent along it."""
    at = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    y, x, light = at[:, None], at[None, :], images[:, 0]
    xx, yy, xy = ((light * m).sum((1, 2)) / light.sum((1, 2)) for m in (x * x, y * y, x * y))
    return torch.rad2deg(0.5 * torch.atan2(2 * xy, xx - yy)), (xx + yy).sqrt()


@pytest.mark.parametrize(("rotate", "zoom"), [(30, 0), (0, 0.2), (20, 0.1)])
def test_images_are_turned_and_scaled_within_the_bounds(rotate, zoom):
    bar = torch.zeros(1, 1, 41, 41)
    bar[..., 19:22, 10:31] = 1
    augment = Augment(shift=0, rotate=rotate, zoom=zoom)
    changed = warped(bar.repeat(500, 1, 1, 1), augment, torch.Generator().manual_seed(0))
    angles, extents = _directions(changed)
    extents = extents / _directions(bar)[1]
    assert angles.abs().max() <= rotate + 0.5
    assert extents.min() >= 1 - zoom - 0.03
    assert extents.max() <= 1 + zoom + 0.03
    if rotate:
        assert angles.min() < -0.95 * rotate
        assert angles.max() > 0.95 * rotate
    if zoom:
        assert extents.min() < 1 - 0.9 * zoom
        assert extents.max() > 1 + 0.9 * zoom


def test_a_turn_keeps_angles_in_images_that_are_no_squares():
    wide = torch.zeros(1, 1, 21, 61)
    wide[..., 9:12, 26:35] = 1
    changed = warped(wide.repeat(200, 1, 1, 1), Augment(shift=0, rotate=90), torch.Generator().manual_seed(0))
    assert ((changed.flatten(1).sum(1) / 27 - 1).abs() < 0.05).all()


@pytest.mark.parametrize(
    "encoding", [{"kind": "linear", "scale": 2.0}, {"kind": "direct", "mean": 0.3}], ids=str
)
def test_a_turn_codes_intensities_anew(encoding):
    settings = _settings(augment=Augment(shift=0, rotate=1e-6), encoding=encoding)
    method = Minibatch(settings, [nn.Linear(12, 2)], (1, 3, 4), 0, "cpu")
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-200, 256, (5, 12), generator=generator).clamp(min=0)
    x = levels.double() / 255
    coded = settings.encoding.of_intensities(x)
    torch.testing.assert_close(settings.encoding.intensities(coded), x)
    torch.testing.assert_close(method.varied(coded, torch.Generator()), coded, atol=1e-6, rtol=1e-6)


def test_a_turn_of_whole_bins_is_refused():
    settings = _settings(augment=Augment(shift=0, rotate=5), encoding={"kind": "latency"})
    with pytest.raises(
        SuiteError, match=r"rotate and zoom go with the encodings 'linear' and 'direct', .*'latency'"
    ):
        Minibatch(settings, [nn.Linear(12, 2)], (1, 3, 4), 0, "cpu")


def _learned(name, seed=0, epochs=1):
    """A tiny method after some epochs on random images, and images of the test."""
    method = methods.build(config(name), (1, 8, 8), 10, seed, "cpu")
    generator = torch.Generator().manual_seed(4)
    times = torch.randint(0, 32, (200, 64), generator=generator).float()
    for epoch in range(epochs):
        method.train_epoch(epoch, times, torch.arange(200) % 10, lambda n: None)
    return method, times


def test_bs4nn_predicts_with_two_values_per_layer_that_were_learned():
    method, times = _learned("bs4nn")
    (hidden, output), _ = method.predict(times)
    before = torch.tensor([0.2, 0.5])
    for layer, alpha, first in zip(method.connections, method.alphas, before, strict=True):
        assert layer.weight.unique().tolist() == [-alpha.item(), alpha.item()]
        assert alpha.item() != first
    binary = [alpha * real.sign() for alpha, real in zip(method.alphas, method.learned, strict=True)]
    neuron = IF(1.0, delay=1)
    expected = first_spike_linear(times, binary[0], neuron, t_max=32)
    assert torch.equal(hidden, expected)
    assert torch.equal(output, first_spike_linear(expected, binary[1], neuron, t_max=32))


def test_binary_weights_pass_the_gradient_straight_through():
    weight = torch.tensor([[0.3, -0.2, 0.0], [-0.1, -4.0, 2.0]], requires_grad=True)
    module = Binary(0.5, torch.float32)
    binary = module(weight)
    assert binary.tolist() == [[0.5, -0.5, 0.5], [-0.5, -0.5, 0.5]]
    gradient = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    binary.backward(gradient)
    assert torch.equal(weight.grad, gradient)
    assert module.alpha.grad.item() == pytest.approx((1 - 2 + 3 - 4 - 5 + 6) / 6)


def test_bs4nn_keeps_the_real_weights_within_the_clip():
    method = methods.build(config("bs4nn", clip=0.2), (1, 8, 8), 10, 0, "cpu")
    assert max(weight.abs().max().item() for weight in method.learned) > 0.2
    method.after_step()
    assert max(weight.abs().max().item() for weight in method.learned) == pytest.approx(0.2)


def test_every_implementation_has_settings_and_a_builder():
    for name in methods.IMPLEMENTATIONS:
        found = methods.find(name)
        assert found.name == name
        assert issubclass(found.settings, Config)


def test_building_twice_gives_the_same_weights():
    one, same = (methods.build(config("minibatch"), (1, 8, 8), 10, 3, "cpu") for _ in range(2))
    assert torch.equal(_weights(one), _weights(same))
