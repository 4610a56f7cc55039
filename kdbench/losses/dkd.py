"""Decoupled knowledge distillation (Zhao et al. 2022, 2203.08679)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdbench.losses.logits import kl_divergence, standardized
from kdbench.losses.outputs import Outputs, full_precision


class DKD(nn.Module):
    """T² · (α · TCKD + β · NCKD), mean over samples.

    TCKD is the KL divergence of the two-way distributions {target class, all others}; NCKD that of the softmax over
    the others alone. KD is α = 1 with β = the teacher's probability of the others, small where the teacher is sure:
    decoupling gives what it knows of the other classes a weight of its own.
    """

    tasks = ("classification",)
    labelled = True

    def __init__(
        self,
        student: Outputs,
        teacher: Outputs,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.standardize = standardize

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Logits [N, C] of both, labels `target` [N] as integers; a scalar in nats."""
        ours, theirs = full_precision(student.logits), full_precision(teacher.logits.detach())
        if self.standardize:
            ours, theirs = standardized(ours), standardized(theirs)
        ours, our_others = _split(ours / self.temperature, target)
        theirs, their_others = _split(theirs / self.temperature, target)
        terms = self.alpha * kl_divergence(ours, theirs) + self.beta * kl_divergence(our_others, their_others)
        return terms * self.temperature**2


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, 2] of {target, others taken together}, and those of the others [N, C − 1]."""
    is_target = functional.one_hot(target, logits.shape[1]).bool()
    others = logits[~is_target].reshape(len(logits), -1)
    return torch.stack([logits[is_target], torch.logsumexp(others, dim=1)], dim=1), others
