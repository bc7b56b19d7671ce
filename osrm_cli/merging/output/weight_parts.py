"""Where a model's files hold the weights that a merge changes: a layer may be part of a tensor, or lie in several.

The experts of a mixture are one parameter in the model (``mlp.experts.gate_up_proj``), each a layer of its own here.
Files hold that parameter as it is, ``(E, d_out, d_in)`` or ``(E, d_in, d_out)``, or matrices of each expert, of which
transformers makes the parameter when it loads them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from osrm_cli.adapters.layers import AdapterLayer, layer_matrix_shape
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.low_rank import LowRank
from osrm_cli.linalg.row_stream import RowStream, Update
from osrm_cli.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class WeightPart:
    """A tensor, or some rows of one, that a layer's update is added to.

    Attributes:
        layer: Full name of the layer.
        tensor: The tensor in the base model's files.
        shape: The tensor's shape as a matrix that has the part's rows.
        is_turned: Whether the part is stored as ``(d_in, d_out)``.
        first: The part's first row in the tensor.
        rows: Which rows of the update it holds, as the update is stored there.
    """

    layer: str
    tensor: str
    shape: tuple[int, int]
    is_turned: bool
    first: int
    rows: slice

    @classmethod
    def whole(cls, layer: str, tensor: str, checkpoint: Checkpoint, is_turned: bool = False) -> "WeightPart":
        """A tensor that is one layer's weight."""
        shape = layer_matrix_shape(checkpoint.tensors[tensor].shape)
        return cls(layer, tensor, shape, is_turned, 0, slice(0, shape[0]))

    def add(self, update: Update, read: Callable[[slice], torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The part's rows with the update added, some at a time.

        Args:
            update: The layer's, ``(d_out, d_in)``.
            read: Reads rows of the tensor.
            dtype: Of the sum, which is rounded once.
        """
        shift = self.first - self.rows.start

        def add_rows(place: slice, delta: torch.Tensor) -> torch.Tensor:
            start, stop = max(place.start, self.rows.start), max(min(place.stop, self.rows.stop), self.rows.start)
            own = delta[max(start - place.start, 0) : max(stop - place.start, 0)].cpu()
            old = read(slice(start + shift, start + shift + len(own)))
            wide = old.to(torch.promote_types(old.dtype, own.dtype))
            total = wide + own if wide is old else wide.add_(own)
            return total.to(dtype)

        return RowStream.of(_transpose_update(update) if self.is_turned else update).strips(add_rows)


def find_expert_weight_parts(
    checkpoint: Checkpoint, parameter: str, number: int, count: int, shape: AdapterLayer
) -> list[WeightPart]:
    """Where the files hold one expert.

    Args:
        checkpoint: The base model's files.
        parameter: Full name of the parameter that stacks the experts.
        number: The expert's.
        count: Number of experts that the adapters know.
        shape: The expert as a layer.

    Raises:
        OsrmError: If they do not hold it, or hold it in a way that is not known.
    """
    layer, widths = f"{parameter}.{number}", (shape.d_out, shape.d_in)
    stacks = checkpoint.find_names(parameter)
    if len(stacks) == 1:
        stored = checkpoint.tensors[stacks[0]].shape
        if count == 1 and stored == widths:  # a parameter that stacks nothing, such as a router's weight
            return [WeightPart.whole(layer, stacks[0], checkpoint)]
        if stored not in ((count, *widths), (count, *widths[::-1])):
            raise OsrmError(
                f"{checkpoint.folder}: {stacks[0]} is {stored}, expected {(count, *widths)}",
                "give the right base with --model",
            )
        is_square = widths[0] == widths[1]
        is_turned = parameter in checkpoint.architecture.turned_stacks if is_square else stored[1:] != widths
        height = stored[1]
        matrix = count * height, stored[2]
        return [WeightPart(layer, stacks[0], matrix, is_turned, number * height, slice(0, height))]
    sources = checkpoint.architecture.expert_names(parameter, number)
    found = [checkpoint.find_names(name) for name in sources]
    if not sources or any(len(names) != 1 for names in found):
        raise OsrmError(
            f"{checkpoint.folder}: none of its tensors is known to hold the expert {layer}",
            "give the right base with --model; or leave out --as model: PEFT's merge_and_unload makes a model of the "
            "merged adapter",
        )
    parts, row = [], 0
    for (name,) in found:
        height, width = layer_matrix_shape(checkpoint.tensors[name].shape)
        if width != shape.d_in:
            break
        parts.append(WeightPart(layer, name, (height, width), False, 0, slice(row, row + height)))
        row += height
    if row != shape.d_out or checkpoint.find_names(checkpoint.architecture.expert_names(parameter, count)[0]):
        matrices = ", ".join(f"{name} {checkpoint.tensors[name].shape}" for (name,) in found)
        raise OsrmError(
            f"{checkpoint.folder}: {matrices} do not make {count} experts of {widths}, as the adapters have them",
            "give the right base with --model",
        )
    return parts


def _transpose_update(update: Update) -> Update:
    if isinstance(update, LowRank):
        return LowRank(update.A.T, update.B.T)
    return RowStream.of(update.dense().T.contiguous())
