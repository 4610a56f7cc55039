"""Contrastive representation distillation (Tian, Krishnan, Isola 2020, 1910.10699)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from kdbench.errors import UserError
from kdbench.losses.features import Pairs, paired, pooled
from kdbench.losses.outputs import Outputs
from kdbench.records import Count, Positive


class CRD(nn.Module):
    """Noise-contrastive estimation both ways between student and teacher embeddings of the same sample.

    Embeddings are L2-normalised linear maps of the pooled features, learned by the loss. For an embedding v and the
    other network's memory bank m of M samples: h = e / (e + K/M) with e = exp(m·v / τ) / Z, and the loss is
    −mean(log h(own sample) + Σ over K drawn samples of log(1 − h)). Z is M · mean(exp(m·v / τ)) of the first batch
    and stays. Each bank's entries follow their sample's embedding with a momentum.

    Samples are drawn, with replacement, from those of other classes, or by `draw_from` from all other samples. The
    draws come from torch's generator, which training seeds by epoch; banks and Z are buffers: both resume.
    """

    tasks = ("classification",)
    labelled = True

    banks: Tensor
    scales: Tensor
    order: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(
        self,
        student: Outputs,
        teacher: Outputs,
        pairs: Annotated[Pairs, Field(max_length=1)],
        dimensions: Count = 128,
        negatives: Count = 16384,
        contrast_temperature: Positive = 0.07,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        draw_from: Literal["other_classes", "other_samples"] = "other_classes",
    ) -> None:
        super().__init__()
        if student.labels is None:
            raise UserError("crd: needs the place of each sample in the training set: not known here")
        self.pairs = pairs
        self.negatives = negatives
        self.contrast_temperature = contrast_temperature
        self.momentum = momentum
        ((ours, theirs),) = paired(student, teacher, pairs)
        self.embeddings = nn.ModuleList(
            nn.Linear(f.shape[1], dimensions, device=f.device, dtype=f.dtype) for f in (ours, theirs)
        )
        samples = len(student.labels)
        groups = student.labels if draw_from == "other_classes" and student.labels.ndim == 1 else torch.arange(samples)
        counts = torch.bincount(groups)
        if int(counts.max()) == samples:
            raise UserError("crd: every training sample is of one class: set draw_from to 'other_samples'")
        bound = (dimensions / 3) ** -0.5
        self.register_buffer("banks", ours.new_empty(2, samples, dimensions).uniform_(-bound, bound))
        self.register_buffer("scales", ours.new_zeros(2))
        # Samples ordered by class: those of other classes are the ones before and after the class's own stretch.
        self.register_buffer("order", groups.argsort(stable=True).to(ours.device), persistent=False)
        self.register_buffer("starts", (counts.cumsum(0) - counts)[groups].to(ours.device), persistent=False)
        self.register_buffer("counts", counts[groups].to(ours.device), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Features [N, C, …] of the pair and `places` [N] of the student's outputs; `target` is not looked at."""
        if student.places is None:
            raise UserError("crd: needs the place of each sample in the training set: not known here")
        ((ours, theirs),) = paired(student, teacher, self.pairs)
        both = [
            functional.normalize(layer(pooled(features)), dim=1)
            for layer, features in zip(self.embeddings, (ours, theirs), strict=True)
        ]
        drawn = torch.cat([student.places[:, None], self._draw(student.places)], dim=1)
        terms = [self._contrast(embedding, 1 - side, drawn) for side, embedding in enumerate(both)]
        if self.training:
            for bank, embedding in zip(self.banks, both, strict=True):
                moved = self.momentum * bank[student.places] + (1 - self.momentum) * embedding.detach()
                bank[student.places] = functional.normalize(moved, dim=1)
        return torch.stack(terms).sum()

    def _draw(self, places: Tensor) -> Tensor:
        """[N, K]: for each sample, K others."""
        starts, counts = self.starts[places, None], self.counts[places, None]
        share = torch.rand(len(places), self.negatives, dtype=torch.float64, device=places.device)
        drawn = (share * (len(self.order) - counts)).long()
        return self.order[torch.where(drawn < starts, drawn, drawn + counts)]

    def _contrast(self, embedding: Tensor, side: int, drawn: Tensor) -> Tensor:
        """The loss of embeddings [N, D] against bank `side`, the first drawn of each row [N, 1 + K] being its own."""
        samples = self.banks.shape[1]
        # All products at once are a matrix product; gathering the K entries first would take N · K · D numbers.
        e = torch.exp((embedding @ self.banks[side].clone().T).gather(1, drawn) / self.contrast_temperature)
        if self.training and not self.scales[side]:
            self.scales[side] = e.detach().mean() * samples
        e = e / (self.scales[side].clone() if self.scales[side] else e.detach().mean() * samples)
        noise = self.negatives / samples
        own, others = e[:, 0], e[:, 1:]
        log_own = torch.log(own / (own + noise + 1e-7))
        log_others = torch.log(noise / (others + noise + 1e-7)).sum(dim=1)
        return -(log_own + log_others).mean()
