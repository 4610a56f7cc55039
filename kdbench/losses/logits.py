"""What the losses on logits share."""

import torch
from torch import Tensor
from torch.nn import functional


def kl_divergence(ours: Tensor, theirs: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """KL(softmax(theirs) ‖ softmax(ours)) of logits [N, C] in nats, times `scale` [N, 1]; the mean over rows."""
    ours, theirs = functional.log_softmax(ours, dim=1), functional.log_softmax(theirs, dim=1)
    terms = functional.kl_div(ours, theirs, reduction="none", log_target=True)
    return (terms * scale).sum() / len(terms)


def standardized(logits: Tensor) -> Tensor:
    """Rows [N, C] with mean 0 and standard deviation 1 (logit standardization, Sun et al. 2024, 2403.01427)."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + 1e-7)


def dynamic_temperatures(ours: Tensor, theirs: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Temperatures [N, 1] of student and teacher for each sample (DTKD, Wei and Bai 2024, 2404.12711).

    T_s = 2 · y / (x + y) · T and T_t = 2 · x / (x + y) · T, where x and y are the sharpness log Σ exp(z) of the
    teacher's and the student's logits: the sharper of the two is softened more. Unlike in the paper the logits are
    centred first: softmax does not see the shift, and the sharpness is then at least log C, never zero or negative.
    """
    y, x = (torch.logsumexp(z - z.mean(dim=1, keepdim=True), dim=1, keepdim=True) for z in (ours, theirs))
    return 2 * y / (x + y) * temperature, 2 * x / (x + y) * temperature
