"""Rows of an embedding or output layer that an adapter has trained (``trainable_token_indices``).

They are whole values: PEFT puts them in the place of the base model's rows, it adds nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from osrm_cli.adapters.config import CONFIG_NAME, AdapterConfig
from osrm_cli.adapters.layers import PREFIX, ROWS
from osrm_cli.errors import OsrmError
from osrm_cli.storage.input_files import TensorLocation

BASE_COPY = ".token_adapter.base_layer.weight"  # which PEFT stores where the vocabulary was resized


@dataclass(frozen=True)
class TrainedRows:
    """New rows of one weight.

    Attributes:
        indices: Their numbers.
        values: ``(len(indices), d)``.
    """

    indices: tuple[int, ...]
    values: torch.Tensor

    def placed_in(self, read: Callable[[slice], torch.Tensor], count: int) -> Callable[[slice], torch.Tensor]:
        """A function that reads some rows of a weight, with the new ones in their places.

        Args:
            read: Reads the weight's own.
            count: Number of its rows.
        """

        def read_placed(place: slice) -> torch.Tensor:
            first, last, _ = place.indices(count)
            rows = read(place)
            inside = [number for number, index in enumerate(self.indices) if first <= index < last]
            if inside:
                rows = rows.to(torch.promote_types(rows.dtype, self.values.dtype), copy=True)
                rows[[self.indices[number] - first for number in inside]] = self.values[inside].to(rows.dtype)
            return rows

        return read_placed


def find_trained_rows(
    folder: Path, config: AdapterConfig, tensors: Mapping[str, TensorLocation]
) -> dict[str, tuple[int, ...]]:
    """The numbers of the rows that an adapter holds, by the name of the module in the base model.

    Args:
        folder: The adapter, for errors.
        config: Its settings.
        tensors: Its tensors, by the names that PEFT gives them.

    Raises:
        OsrmError: If the settings do not say which rows they are, or there are none.
    """
    given = config.token_indices
    if not given:
        return {}
    found = {}
    for name, location in tensors.items():
        if not name.endswith(ROWS):
            continue
        module = name.removeprefix(PREFIX).removesuffix(ROWS)
        own = (
            given
            if isinstance(given, tuple)
            else next((value for key, value in given.items() if f".{module}".endswith(f".{key}")), ())
        )
        if len(location.shape) != 2 or len(own) != location.shape[0]:
            raise OsrmError(
                f"{folder / CONFIG_NAME}: trainable_token_indices does not say which rows of {module} were trained",
                "save the adapter again with PEFT",
            )
        found[module] = own
    if not found:
        raise OsrmError(
            f"{folder / CONFIG_NAME}: trainable_token_indices is set, but the adapter holds no such rows",
            "save the adapter again with PEFT",
        )
    return found
