"""A ReLU network that learns beside a spiking one, and what that one learns from it."""

import math

import pytest
import torch
from test_every_bin import TEACHER, images, method_of, train

from reproductions.methods.minibatch import MixedPrecision
from reproductions.methods.teacher import Teacher, TeacherSettings


def teacher_of(**settings):
    torch.manual_seed(0)
    return Teacher(TeacherSettings(**TEACHER | settings), (1, 6, 6), 4, 6, MixedPrecision(), "cpu")


def test_it_learns_from_the_labels():
    teacher, (times, labels) = teacher_of(), images()
    for _ in range(20):
        teacher.answer(times, labels, 1.0)
    assert (teacher.soft.argmax(1) == labels).double().mean() > 0.95


def test_its_answer_is_what_it_says_before_it_learns_softened():
    teacher, (times, labels) = teacher_of(temperature=2.0), images()
    with torch.no_grad():
        said = teacher.network((1 - times / 6).clamp(min=0).reshape(-1, 1, 6, 6))
    teacher.answer(times, labels, 1.0)
    torch.testing.assert_close(teacher.soft, (said / 4 / 2).softmax(1))


def test_a_rate_of_zero_leaves_its_weights():
    teacher, (times, labels) = teacher_of(), images()
    before = [parameter.clone() for parameter in teacher.network.parameters()]
    teacher.answer(times, labels, 0.0)
    assert all(map(torch.equal, before, teacher.network.parameters()))


def test_the_loss_has_the_gradient_of_a_cross_entropy_on_soft_targets():
    """Hinton, Vinyals & Dean (2015), section 2: (softmax(z / T) - softmax(v / T)) T per sample."""
    teacher, (times, labels) = teacher_of(temperature=2.5), images(16)
    teacher.answer(times, labels, 1.0)
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


def test_what_is_learned_from_answers_is_right():
    method = method_of(teacher=TEACHER | {"share": 0.9, "temperature": 1.0}, epochs=40)
    train(method, 40)
    times, labels = images()
    (*_, outputs), _ = method.predict(times)
    assert (outputs.argmin(1) == labels).double().mean() > 0.8, "chance is a quarter"
