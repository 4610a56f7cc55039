"""Distillation losses. To add one: a module with an `nn.Module`, and its line in LOSSES.

A loss is built as `Loss(student, teacher, **options)` from sample outputs, which give it the shapes that it needs, and
called as `loss(student, teacher, target)`. Its options are typed: recipes are checked against them. It owns the
parameters that it learns with, such as regressors; what it keeps between batches are its buffers, so that both are in
the checkpoint. An option `pairs` names submodules whose features it reads; one named `temperature` may be scheduled.
Class attributes say what sets a loss apart: `tasks = ("multi_label",)` where it is not for every task,
`labelled = True` where it looks at the labels, `taught = False` where it does not look at the teacher.
"""

from torch import nn

from kdbench.losses.attention import Attention
from kdbench.losses.binary_cross_entropy import BinaryCrossEntropy
from kdbench.losses.cosine import Cosine
from kdbench.losses.crd import CRD
from kdbench.losses.cross_entropy import CrossEntropy
from kdbench.losses.dist import DIST
from kdbench.losses.dkd import DKD
from kdbench.losses.hint import Hint
from kdbench.losses.kd import KD
from kdbench.losses.multi_label import MultiLabel
from kdbench.losses.parameters import Parameters
from kdbench.losses.rkd import RKD
from kdbench.losses.soft_targets import SoftTargets
from kdbench.losses.sp import SP

LOSSES: dict[str, type[nn.Module]] = {
    "attention": Attention,
    "binary_cross_entropy": BinaryCrossEntropy,
    "cosine": Cosine,
    "crd": CRD,
    "cross_entropy": CrossEntropy,
    "dist": DIST,
    "dkd": DKD,
    "hint": Hint,
    "kd": KD,
    "multi_label": MultiLabel,
    "parameters": Parameters,
    "rkd": RKD,
    "soft_targets": SoftTargets,
    "sp": SP,
}
