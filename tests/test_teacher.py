"""A ReLU network that learns beside a spiking one, and what that one learns from it."""

import copy
import math

import pytest
import torch
from test_every_bin import TEACHER, images, method_of, train
from torch import nn

from reproductions.errors import SuiteError
from reproductions.methods.minibatch import MixedPrecision
from reproductions.methods.teacher import Teacher, TeacherSettings


def teacher_of(**settings):
    torch.manual_seed(0)
    return Teacher(TeacherSettings(**TEACHER | settings), (1, 6, 6), 4, 6, MixedPrecision(), "cpu")


def test_it_learns_from_the_labels():
    teacher, (times, labels) = teacher_of(), images()
    for _ in range(20):
        teacher.learn(times, labels, 1.0)
    assert (teacher.soft.argmax(1) == labels).double().mean() > 0.95


def test_its_answer_is_what_it_says_before_it_learns_softened():
    teacher, (times, labels) = teacher_of(temperature=2.0), images()
    with torch.no_grad():
        said = teacher.network((1 - times / 6).clamp(min=0).reshape(-1, 1, 6, 6))
    teacher.learn(times, labels, 1.0)
    torch.testing.assert_close(teacher.soft, (said / 4 / 2).softmax(1))


def test_a_rate_of_zero_leaves_its_weights():
    teacher, (times, labels) = teacher_of(), images()
    before = [parameter.clone() for parameter in teacher.network.parameters()]
    teacher.learn(times, labels, 0.0)
    assert all(map(torch.equal, before, teacher.network.parameters()))


def test_the_loss_has_the_gradient_of_a_cross_entropy_on_soft_targets():
    """Hinton, Vinyals & Dean (2015), section 2: (softmax(z / T) - softmax(v / T)) T per sample."""
    teacher, (times, labels) = teacher_of(temperature=2.5), images(16)
    teacher.learn(times, labels, 1.0)
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher.loss(logits).backward()
    torch.testing.assert_close(logits.grad, ((logits / 2.5).softmax(1) - teacher.soft).detach() * 2.5 / 16)
    agreeing = (2.5 * teacher.soft.log()).requires_grad_()
    torch.testing.assert_close(teacher.loss(agreeing), torch.tensor(0.0))


def test_with_a_share_of_none_the_network_learns_as_without_a_teacher():
    alone, beside = method_of(), method_of(teacher=TEACHER | {"share": 0.0})
    for method in (alone, beside):
        train(method, 1)
    assert all(map(torch.equal, alone.network.parameters(), beside.network.parameters()))


@pytest.mark.parametrize("potential_loss", [0.0, 0.5])
def test_earliness_and_potential_learn_from_labels_and_answers(potential_loss):
    method = method_of(teacher=TEACHER | {"share": 0.75}, potential_loss=potential_loss)
    train(method, 2)
    answers, labels = method.teacher.soft, images()[1][: len(method.teacher.soft)]
    # Silent outputs without a potential: whatever is asked for, all classes are as likely.
    method.at_end = torch.zeros_like(answers)
    loss = method.loss(torch.full_like(answers, math.inf), method.at_end, labels)
    divergence = (answers * (4 * answers).log()).sum(1).mean()
    expected = (1 + potential_loss) * (0.25 * math.log(4) + 0.75 * 3.0**2 * divergence)
    torch.testing.assert_close(loss, expected)


def test_times_and_potentials_have_the_gradient_of_soft_targets():
    """That of silent outputs comes from the labels, and from the answers by their potential alone."""
    method = method_of(teacher=TEACHER | {"share": 0.75, "temperature": 2.0}, potential_loss=0.5)
    train(method, 1)
    answers, labels = method.teacher.soft, images()[1][: len(method.teacher.soft)]
    targets = nn.functional.one_hot(labels, 4)
    times = torch.arange(4.0).repeat(len(labels), 1).requires_grad_()
    method.at_end = torch.linspace(-1, 1, 4).repeat(len(labels), 1).requires_grad_()

    def expected(logits):
        from_answers = (logits / 2).softmax(1) - answers
        return (0.25 * (logits.softmax(1) - targets) + 0.75 * 2 * from_answers).detach() / len(labels)

    method.loss(times, method.at_end, labels).backward()
    torch.testing.assert_close(times.grad, -expected(-times))
    torch.testing.assert_close(method.at_end.grad, 0.5 * 2 * expected(2 * method.at_end))
    silent = torch.full_like(answers, math.inf).requires_grad_()
    method.loss(silent, method.at_end, labels).backward()
    torch.testing.assert_close(silent.grad, -0.25 * (0.25 - targets) / len(labels))


def test_of_one_sample_it_says_what_is_likely_and_learns_nothing():
    teacher, (times, labels) = teacher_of(), images()
    before = copy.deepcopy(teacher.network.state_dict())
    teacher.learn(times[:1].double(), labels[:1], 1.0)
    assert teacher.soft.sum() == pytest.approx(1)
    assert all(torch.equal(before[key], value) for key, value in teacher.network.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "layers", "message"),
    [
        ((36,), ["16"], r"training\.teacher\.layers: a ReLU network needs images, got 36 features"),
        ((1, 6, 6), ["4C7"], r"training\.teacher\.layers: '4C7' does not fit"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(shape, layers, message):
    settings = TeacherSettings(**TEACHER | {"layers": layers})
    with pytest.raises(SuiteError, match=message):
        Teacher(settings, shape, 4, 6, MixedPrecision(), "cpu")
