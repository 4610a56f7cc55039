"""An int8 file as a network that can be trained: its rounding is simulated, so that training learns to live with it.

What is trained is the graph of the static int8 file itself, node by node: rounded where it is, with batch norm folded
as it is, and without the activations that its clipping stands for. Weights are rounded in every pass from float32
ones, each channel's largest to the largest integer; activations by steps that start from the calibration and follow the
largest values of the batches, their zero points as calibrated (Jacob et al., 1712.05877). Gradients pass straight
through the rounding, and end where a value is clipped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdbench.errors import UserError, first_line
from kdbench.training.features import channels_first, observe
from kdbench.training.int8_graph import Grid, Plan, Weight, channel_sizes, read, written
from kdbench.training.operators import OPERATORS

SMALLEST_STEP = 1e-12
"""Of a channel of zeros."""

BATCH_SHARE = 0.1
"""Of a batch in the moving average of the steps of activations."""

SOLVED = "leave quantize.aware out"


class Graph(nn.Module):
    """What a plan computes: samples [N, …] to its output, rounded as its file rounds."""

    def __init__(self, plan: Plan, where: str) -> None:
        super().__init__()
        self.plan, self.where = plan, where
        sizes = channel_sizes(plan)
        self.sizes = [torch.tensor(size) for size in sizes]
        shares = [value / size for value, size in zip(plan.values, sizes, strict=True)]
        self.values = nn.ParameterList([nn.Parameter(torch.tensor(share)) for share in shares])
        """Of weights, as shares of the largest of their output channel: batch norm, which was folded into them, had
        made what is learnt from them independent of how large they are."""
        self.steps: Tensor
        """Of each grid. They change in every training pass."""
        self.register_buffer("steps", torch.tensor([grid.step for grid in plan.grids.values()]))
        self.numbers = {name: number for number, name in enumerate(plan.grids)}
        self.shown: dict[str, str] = {}
        """By tensor: the submodule through which it goes, to be seen."""
        # No buffers, which an average over the steps would round.
        self.constants = {name: torch.tensor(value) for name, value in plan.constants.items()}
        self.there = [torch.tensor(value != 0) if value.ndim > 1 else None for value in plan.values]
        """By weight: what of it is not 0. Zeros are of pruning, and stay."""

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError, which begins with `where`, where an operator can't do what the file asks of it."""
        try:
            return self.tensors(x)[self.plan.output]
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{self.where}: can't be trained in int8 ({first_line(error, 160)}): {SOLVED}") from error

    def tensors(self, x: Tensor) -> dict[str, Tensor]:
        """Every tensor of the graph by name."""
        self.constants = {name: value.to(x.device) for name, value in self.constants.items()}
        found = {self.plan.input: x, **self.constants}
        for weight, value in zip(self.plan.weights, self.weights(), strict=True):
            found[weight.name] = rounded_weight(value, weight)
        for node in self.plan.nodes:
            if node.operator == "QuantizeLinear":
                made: Any = self._rounded(found[node.inputs[0]], node.inputs[1])
            elif node.operator == "DequantizeLinear":
                made = found[node.inputs[0]]
            else:
                made = OPERATORS[node.operator](
                    *(found[name] if name else None for name in node.inputs), **node.attributes
                )
            for name, value in zip(node.outputs, (made,) if isinstance(made, Tensor) else made, strict=False):
                found[name] = self.get_submodule(self.shown[name])(value) if name in self.shown else value
        return found

    def weights(self) -> list[Tensor]:
        """The trained constants of the plan."""
        sized = [value * size.to(value.device) for value, size in zip(self.values, self.sizes, strict=True)]
        return [
            value if there is None else value * there.to(value.device)
            for value, there in zip(sized, self.there, strict=True)
        ]

    def written(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The file that this was made of, with what it has become."""
        trained = [value.detach().cpu() for value in self.weights()]
        values: list[NDArray[np.float32]] = [value.numpy() for value in trained]
        weight_steps: list[NDArray[np.float32]] = [
            weight_step(value, weight).numpy() for value, weight in zip(trained, self.plan.weights, strict=True)
        ]
        steps = dict(zip(self.plan.grids, self.steps.tolist(), strict=True))
        return written(model, self.plan, values, weight_steps, steps)

    def _rounded(self, x: Tensor, name: str) -> Tensor:
        grid, place = self.plan.grids[name], self.numbers[name]
        if self.training and grid.moves:
            wanted = step_for(x.detach(), grid)
            self.steps[place] = (self.steps[place] + BATCH_SHARE * (wanted - self.steps[place])).clamp(SMALLEST_STEP)
        step = self.steps[place].item()
        return torch.fake_quantize_per_tensor_affine(x, step, grid.zero, grid.lowest, grid.highest)


def step_for(x: Tensor, grid: Grid) -> float:
    """The smallest step with which no value lies beyond the grid; of a grid that begins at 0, none above."""
    ends = [(x.max().item(), grid.highest - grid.zero), (x.min().item(), grid.lowest - grid.zero)]
    return min(grid.most, max(value / end for value, end in ends if end))


def simulated(model: onnx.ModelProto, floating: onnx.ModelProto, where: str | Path) -> Graph:
    """The network of a static int8 file, in evaluation mode; weights start from those of its fp32 parent `floating`.

    Raises UserError, which begins with `where`, for a file that can't be trained.
    """
    plan = read(model, floating)
    known = {*OPERATORS, "QuantizeLinear", "DequantizeLinear"}
    unknown = sorted({node.operator for node in plan.nodes} - known)
    if unknown:
        raise UserError(f"{where}: {' and '.join(unknown)} can't be trained in int8: {SOLVED}")
    if not plan.grids or not any(weight.rounded for weight in plan.weights):
        raise UserError(f"{where}: has no layer of signed int8 weights in QDQ form that could be trained: {SOLVED}")
    return Graph(plan, str(where)).eval()


def show(graph: Graph, floating: onnx.ModelProto, student: nn.Module, layers: Sequence[str], x: Tensor) -> None:
    """Gives `graph` submodules of the student's names, through which the tensors go that `layers` of the student give.

    They are found by their values for samples `x`. Raises UserError for a layer whose output is no tensor of the file.
    """
    with torch.no_grad():
        features = observe(student.eval(), x, layers, "student").features
        tensors = Graph(read(floating, floating), graph.where).tensors(x)
    readers = {node.inputs[0]: node.outputs[0] for node in graph.plan.nodes if node.operator == "QuantizeLinear"}
    there = {name for node in graph.plan.nodes for name in node.outputs}
    for layer, feature in features.items():
        first = channels_first(student.get_submodule(layer))
        wanted = feature.transpose(1, 2) if feature.ndim == 3 and first else feature
        name = next((name for name in tensors if name in there and _same(tensors[name], wanted)), None)
        if name is None:
            raise UserError(
                f"distill.losses: what the student's '{layer}' gives is not to be found in {graph.where}, where "
                "quantization-aware training would learn from it: name another layer"
            )
        owner: nn.Module = graph
        *path, last = layer.split(".")
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        seen = nn.Identity()
        seen.channels_first = first  # type: ignore[assignment]
        owner.add_module(last, seen)
        graph.shown[readers.get(name, name)] = layer


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return False
    return bool((one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max())))


def rounded_weight(value: Tensor, weight: Weight) -> Tensor:
    """A weight as int8 has it. A bias stays: int32 is as fine as float32."""
    if not weight.rounded:
        return value
    step = weight_step(value, weight)
    zero = torch.zeros(step.shape, dtype=torch.int32, device=value.device)
    if weight.axis is None:
        return torch.fake_quantize_per_tensor_affine(value, step, zero, -weight.limit, weight.limit)
    return torch.fake_quantize_per_channel_affine(value, step, zero, weight.axis, -weight.limit, weight.limit)


def weight_step(value: Tensor, weight: Weight) -> Tensor:
    """The scale of each channel [C], or of all []: the largest value becomes the largest integer."""
    axes = [axis for axis in range(value.ndim) if axis != weight.axis]
    sizes = value.detach().abs()
    return ((sizes.amax(axes) if axes else sizes) / weight.limit).clamp(min=SMALLEST_STEP)
