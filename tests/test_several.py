"""Several teachers: averages by hand, and teachers that know different classes."""

import pytest
import torch

from kdbench.losses import LOSSES
from kdbench.losses.outputs import Outputs
from kdbench.losses.several import Voice, averaged, conditional
from kdbench.losses.weighted import WeightedSum, terms
from kdbench.records import Loss

torch.manual_seed(0)
STUDENT = Outputs(torch.randn(6, 5, dtype=torch.float64, requires_grad=True))
FULL = torch.randn(6, 5, dtype=torch.float64)
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])


def voice(classes, weight=1.0, logits=FULL):
    places = torch.tensor(classes)
    return Voice(Outputs(logits[:, places]), places, weight)


def kd(student, teacher, target):
    return LOSSES["kd"](student, teacher, temperature=1.0)(student, teacher, target)


def test_the_average_is_weighted():
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    both = [Voice(Outputs(logits), torch.arange(2), weight) for logits, weight in ((first, 1.0), (second, 3.0))]
    torch.testing.assert_close(averaged(both).logits, torch.tensor([[0.25, 3.0]]))


def test_one_teacher_of_all_classes_is_the_plain_loss():
    torch.testing.assert_close(
        conditional(kd, STUDENT, [voice([0, 1, 2, 3, 4])], TARGET), kd(STUDENT, Outputs(FULL), TARGET)
    )


def test_a_teacher_is_heard_for_the_samples_of_its_classes_alone():
    rows = [0, 1, 5]  # of classes 0 and 1
    expected = kd(Outputs(STUDENT.logits[rows][:, [0, 1]]), Outputs(FULL[rows][:, [0, 1]]), TARGET[rows]) * 3 / 6
    torch.testing.assert_close(conditional(kd, STUDENT, [voice([0, 1])], TARGET), expected)
    gradient = torch.autograd.grad(conditional(kd, STUDENT, [voice([0, 1])], TARGET), STUDENT.logits)[0]
    assert gradient[rows][:, [0, 1]].abs().min() > 0
    assert gradient[[2, 3, 4]].abs().max() == 0
    assert gradient[:, [2, 3, 4]].abs().max() == 0


def test_teachers_of_parts_add_up_by_weight():
    parts = [voice([0, 1], 3.0), voice([2, 3, 4], 1.0)]
    alone = [conditional(kd, STUDENT, [part], TARGET) for part in parts]
    torch.testing.assert_close(conditional(kd, STUDENT, parts, TARGET), 0.75 * alone[0] + 0.25 * alone[1])


def test_without_labels_a_teacher_is_heard_for_every_sample():
    expected = kd(Outputs(STUDENT.logits[:, [0, 1]]), Outputs(FULL[:, [0, 1]]), TARGET)
    torch.testing.assert_close(conditional(kd, STUDENT, [voice([0, 1])], None), expected)


def test_labels_are_places_among_the_teachers_classes():
    def dkd(student, teacher, target):
        return LOSSES["dkd"](student, teacher)(student, teacher, target)

    rows, columns = [3, 4], [3, 4]
    expected = dkd(Outputs(STUDENT.logits[rows][:, columns]), Outputs(FULL[rows][:, columns]), torch.tensor([0, 1]))
    torch.testing.assert_close(conditional(dkd, STUDENT, [voice([3, 4])], TARGET), expected * 2 / 6)


def test_shares_of_mixed_labels_are_those_of_the_known_classes():
    seen = []

    def record(student, teacher, target):
        seen.append(target)
        return student.logits.sum()

    shares = torch.tensor([[0.6, 0.2, 0.2, 0, 0], [0.1, 0.1, 0.8, 0, 0], [0, 0, 0, 0.5, 0.5]]).double()
    conditional(record, Outputs(FULL[:3]), [voice([0, 1], logits=FULL[:3])], shares)
    torch.testing.assert_close(seen[0], torch.tensor([[0.75, 0.25]]).double())


def test_of_labels_that_don_t_exclude_each_other_every_sample_counts():
    targets = (FULL > 0).double()
    loss = LOSSES["multi_label"](STUDENT, Outputs(FULL))
    expected = loss(Outputs(STUDENT.logits[:, [1, 3]]), Outputs(FULL[:, [1, 3]]), targets)
    torch.testing.assert_close(conditional(loss, STUDENT, [voice([1, 3])], targets, exclusive=False), expected)


def test_a_batch_that_no_teacher_knows_gives_a_zero_with_a_gradient():
    value = conditional(kd, Outputs(STUDENT.logits[2:5]), [voice([0, 1], logits=FULL[2:5])], TARGET[2:5])
    assert value == 0
    assert value.requires_grad


def test_the_loss_on_labels_counts_once_however_many_teachers_there_are(tmp_path):
    losses = {"cross_entropy": Loss.model_validate(0.5), "kd": Loss.model_validate(1.0)}
    total = WeightedSum(terms(losses, 1.0, tmp_path, 1), STUDENT, STUDENT)
    value, parts = total(STUDENT, [voice([0, 1]), voice([2, 3, 4])], TARGET)
    torch.testing.assert_close(parts["cross_entropy"], torch.nn.functional.cross_entropy(STUDENT.logits, TARGET))
    assert value.item() == pytest.approx(0.5 * parts["cross_entropy"].item() + parts["kd"].item())


@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_a_loss_of_ones_own_sees_shares_of_mixed_labels_and_labels_that_don_t_exclude_each_other_as_they_are(
    tmp_path, task
):
    (tmp_path / "own.py").write_text("def first(student, teacher, target):\n    return target[:, 0].double().mean()\n")
    losses, both = {"own.py:first": Loss()}, torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]] * 6)
    total = WeightedSum(terms(losses, 1.0, tmp_path, 1), STUDENT, STUDENT, task)
    value, _ = total(STUDENT, [voice([0, 1])], both)
    assert value == {"classification": 0.5, "multi_label": 1.0}[task]
