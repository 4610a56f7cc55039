"""Losses against golden values (from the papers' public code) and their defining properties."""

import pytest
import torch

from kdbench.errors import UserError
from kdbench.losses import LOSSES, WeightedSum
from kdbench.losses.outputs import Outputs

K = torch.arange(20, dtype=torch.float64)
STUDENT = Outputs(torch.sin(K + 1).reshape(4, 5))
TEACHER = Outputs((2 * torch.cos(K / 2)).reshape(4, 5))
TARGET = torch.tensor([0, 1, 2, 3])


def value(name, student=STUDENT, teacher=TEACHER, **options):
    return LOSSES[name](student, teacher, **options)(student, teacher, TARGET)


@pytest.mark.parametrize(
    ("name", "options", "golden"),
    [
        ("cross_entropy", {}, 1.3692643),
        ("kd", {"temperature": 1.0}, 0.4162883),
        ("kd", {"temperature": 2.0}, 0.4567032),
        ("kd", {"temperature": 4.0}, 0.4637680),
    ],
)
def test_golden_values(name, options, golden):
    assert float(value(name, **options)) == pytest.approx(golden, abs=1e-6)


def test_kd_is_zero_for_equal_logits_and_positive_otherwise():
    assert float(value("kd", TEACHER, TEACHER)) == pytest.approx(0, abs=1e-12)
    assert float(value("kd")) > 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_reach_the_student_alone(name):
    student = Outputs(STUDENT.logits.clone().requires_grad_())
    teacher = Outputs(TEACHER.logits.clone().requires_grad_())
    value(name, student, teacher).backward()
    assert student.logits.grad.abs().sum() > 0
    assert teacher.logits.grad is None


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_finite_for_extreme_logits_in_bf16(name):
    student = Outputs((80 * torch.sign(STUDENT.logits)).bfloat16())
    teacher = Outputs((-80 * torch.sign(STUDENT.logits)).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = value(name, student, teacher)
    assert torch.isfinite(found)
    assert found.dtype == torch.float32


def test_weighted_sum_is_the_sum_of_its_weighted_terms():
    both = WeightedSum({"cross_entropy": 0.1, "kd": 0.9}, {"kd": {"temperature": 2.0}}, STUDENT, TEACHER)
    expected = 0.1 * value("cross_entropy") + 0.9 * value("kd", temperature=2.0)
    assert float(both(STUDENT, TEACHER, TARGET)) == pytest.approx(float(expected))


def test_unknown_loss_is_named():
    with pytest.raises(UserError, match="unknown loss 'kdd': did you mean 'kd'"):
        WeightedSum({"kdd": 1.0}, {}, STUDENT, TEACHER)
