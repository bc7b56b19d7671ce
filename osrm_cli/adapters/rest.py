"""What an extracted adapter does not hold, in a file of its own, which a merge into a model adds back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.layers import AdapterLayer, layer_matrix_shape, layer_name_sort_key
from osrm_cli.errors import OsrmError
from osrm_cli.linalg.row_stream import RowStream, Update
from osrm_cli.storage import input_files
from osrm_cli.storage.input_files import TensorLocation


@dataclass(frozen=True)
class AdapterWithRest(Adapter):
    """An extracted adapter and its rest: together they are the whole difference of the fine-tuned model.

    Tensors that no adapter holds count as layers too, see ``AdapterLayer.is_tensor``.

    Attributes:
        rest: By the name of the layer, ``(d_out, d_in)``, or of another tensor, as the base model stores it.
    """

    rest: Mapping[str, TensorLocation] = field(kw_only=True)

    @classmethod
    def of(cls, adapter: Adapter) -> Adapter:
        """An adapter with the rest that its record names; itself if it names none.

        Raises:
            OsrmError: If the file is missing, damaged or another one.
        """
        recorded = adapter.record.get("rest")
        if not recorded:
            return adapter
        path = adapter.folder / recorded["path"]
        if not path.is_file() or input_files.file_digest(path) != recorded["sha256"]:
            problem = "is another file" if path.is_file() else "is missing"
            raise OsrmError(
                f"{adapter.source} was extracted with --keep-rest, but {path} {problem}",
                "put the rest there or extract again; without --as model it is not needed",
            )
        rest = input_files.list_safetensors_headers([path])
        others = {name: _rest_as_adapter_layer(at) for name, at in rest.items() if name not in adapter.layers}
        layers = {**adapter.layers, **others}
        values = {each.name: getattr(adapter, each.name) for each in fields(adapter) if each.init}
        ordered = {name: layers[name] for name in sorted(layers, key=layer_name_sort_key)}
        return cls(**{**values, "layers": ordered}, rest=rest)

    @property
    def is_dense(self) -> bool:
        """Whether updates are dense, without factors."""
        return True

    def update(self, layer: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Update:
        """``s B A`` and the rest by their rows; the rest alone of what the factors do not hold.

        Raises:
            OsrmError: If one contains NaN or infinity.
        """
        shape = self.layers[layer]
        rows = input_files.read_safetensors_tensor(self.rest[layer]).reshape(shape.d_out, shape.d_in).to(device)
        if shape.is_tensor:
            return RowStream(
                (shape.d_out, shape.d_in), dtype, rows.device, lambda place: rows[place].to(dtype, copy=True)
            )
        return RowStream.of(self.delta(layer, dtype, device)).then(lambda place, product: product.add_(rows[place]))

    def with_layer_names(self, names: Mapping[str, str]) -> Self:
        """The same adapter with other names for its layers and tensors."""
        return replace(super().with_layer_names(names), rest={names[name]: at for name, at in self.rest.items()})


def _rest_as_adapter_layer(location: TensorLocation) -> AdapterLayer:
    d_out, d_in = layer_matrix_shape(location.shape)
    return AdapterLayer(d_out, d_in, min(d_out, d_in), 1.0, embedding=False, is_tensor=True)
