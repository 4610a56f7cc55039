"""Knowledge distillation (Hinton, Vinyals, Dean 2015, 1503.02531)."""

from torch import Tensor, nn

from kdbench.losses.logits import dynamic_temperatures, kl_divergence, standardized
from kdbench.losses.outputs import Outputs, full_precision


class KD(nn.Module):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), summed over classes, mean over samples.

    T² keeps the gradient's size the same for every temperature; a higher one softens the targets. `standardize` gives
    each row of logits mean 0 and standard deviation 1 before (2403.01427). `dynamic_temperature` shares T out between
    student and teacher by the sharpness of their logits, sample by sample (2404.12711), and T_s · T_t takes the place
    of T².
    """

    tasks = ("classification",)

    def __init__(
        self,
        student: Outputs,
        teacher: Outputs,
        temperature: float = 4.0,
        standardize: bool = False,
        dynamic_temperature: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.standardize = standardize
        self.dynamic_temperature = dynamic_temperature

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Logits [N, C] of both; `target` is not looked at; a scalar in nats."""
        ours, theirs = full_precision(student.logits), full_precision(teacher.logits.detach())
        if self.standardize:
            ours, theirs = standardized(ours), standardized(theirs)
        if self.dynamic_temperature:
            our_t, their_t = dynamic_temperatures(ours, theirs, self.temperature)
            return kl_divergence(ours / our_t, theirs / their_t, our_t * their_t)
        return kl_divergence(ours / self.temperature, theirs / self.temperature) * self.temperature**2
