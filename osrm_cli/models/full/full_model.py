"""A fully fine-tuned model as an update of its base model: what an adapter is to a merge, but dense."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Self

import torch
from torch import Tensor

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.layers import AdapterLayer, is_base_module, layer_matrix_shape, layer_name_sort_key
from osrm_cli.adapters.open_adapter import split_adapter_source
from osrm_cli.linalg.row_stream import RowStream, Update
from osrm_cli.models.base_model import find_base_model
from osrm_cli.models.full.fine_tuned import FineTunedModel, FineTunedPair
from osrm_cli.storage import hub, input_files
from osrm_cli.storage.input_files import TensorLocation, read_safetensors_tensor
from osrm_cli.storage.records import BaseModelId
from osrm_cli.storage.safetensors_writer import TYPES


@dataclass(frozen=True)
class FullModel(Adapter):
    """A full model that stands where an adapter stands: every tensor that differs counts as a layer.

    Weights of linear layers have their layer's name, all others the tensor's own; ``AdapterLayer.is_tensor`` tells.

    Attributes:
        pairs: By the name of the layer or tensor.
        parameters: By the same, the name of the model's parameter.
        head: Location of each tensor of the head, by its name in the model.
    """

    pairs: Mapping[str, FineTunedPair] = field(kw_only=True)
    parameters: Mapping[str, str] = field(kw_only=True)
    head: Mapping[str, TensorLocation] = field(kw_only=True)

    @classmethod
    def open_on(cls, source: str, base: BaseModelId) -> "FullModel":
        """Pair a full model with its base model, and list what differs in shape alone: no weight is read.

        Args:
            source: A folder, perhaps as ``NAME=FOLDER``.
            base: The base model.

        Raises:
            OsrmError: If they are missing, damaged or quantized, or do not belong together.
        """
        alias, path = split_adapter_source(source)
        tuned = FineTunedModel.open(path, find_base_model(base.name, base.revision))
        named = {pair.layer or tuned.parameters.get(name, name): pair for name, pair in tuned.pairs.items()}
        pairs = {name: named[name] for name in sorted(named, key=layer_name_sort_key)}
        layers = {name: _fine_tuned_as_layer(pair) for name, pair in pairs.items()}
        dtypes = [TYPES[pair.tuned.dtype] for pair in pairs.values()]
        return cls(
            alias or hub.short_source_name(path),
            path,
            tuned.folder,
            "full model",
            replace(tuned.adapter_config(list(tuned.layers)), base_model=base.name, revision=base.revision),
            {},
            layers,
            {},
            dtype=reduce(torch.promote_types, dtypes),
            base=base,
            data_source=None,
            max_length=None,
            alias=alias,
            warnings=tuple(
                f"{path}: {pair.added_rows} rows of {name} are left out, the base model does not have them"
                for name, pair in pairs.items()
                if pair.added_rows > 0
            ),
            pairs=pairs,
            parameters={name: f"{name}.weight" if pair.layer else name for name, pair in pairs.items()},
            head=tuned.head,
        )

    @property
    def is_dense(self) -> bool:
        """Whether updates are dense, without factors."""
        return True

    def update(self, layer: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Update:
        """``W - W0`` by its rows, formed in the wider of ``dtype`` and the stored types.

        Raises:
            OsrmError: If a weight contains NaN or infinity.
        """
        pair = self.pairs[layer]
        tuned, base = (
            tensor.to(device) for tensor in (read_safetensors_tensor(pair.tuned), read_safetensors_tensor(pair.base))
        )
        if pair.added_rows < 0:  # what the base model alone has does not change
            tuned = torch.cat([tuned, base[len(tuned) :].to(tuned.dtype)])
        tuned, base = self.oriented(layer, tuned), self.oriented(layer, base)
        wide = torch.promote_types(torch.promote_types(tuned.dtype, base.dtype), dtype)
        shape = (base.shape[0], base.shape[1])
        return RowStream(shape, wide, base.device, lambda place: tuned[place].to(wide) - base[place].to(wide))

    def head_tensors(self) -> dict[str, Tensor]:
        """The tensors of the task's head by their name in the model."""
        return self._read_head(of_base=False)

    def module_tensors(self) -> dict[str, Tensor]:
        """The tensors of other modules that the base model does not have, by their name in the model."""
        return self._read_head(of_base=True)

    def sha256(self) -> str:
        """Digest of the folder."""
        return input_files.sha256(self.folder)

    def with_layer_names(self, names: Mapping[str, str]) -> Self:
        """The same model with other names for its layers and tensors."""
        layers = {names[name]: layer for name, layer in self.layers.items()}
        pairs = {names[name]: pair for name, pair in self.pairs.items()}
        parameters = {names[name]: parameter for name, parameter in self.parameters.items()}
        return replace(self, layers=layers, pairs=pairs, parameters=parameters)

    def oriented(self, layer: str, tensor: Tensor) -> Tensor:
        """A tensor of the model as a matrix ``(d_out, d_in)``, without rows that the base model does not have.

        Args:
            layer: The name of the layer or tensor.
            tensor: As the model stores it.
        """
        pair = self.pairs[layer]
        matrix = tensor.reshape(layer_matrix_shape(tensor.shape))
        return matrix.T.contiguous() if pair.is_transposed else matrix[: self.layers[layer].d_out]

    def _read_head(self, of_base: bool) -> dict[str, Tensor]:
        wanted = {n: at for n, at in self.head.items() if is_base_module(self.config, n) == of_base}
        return {name: read_safetensors_tensor(location) for name, location in wanted.items()}


def _fine_tuned_as_layer(pair: FineTunedPair) -> AdapterLayer:
    rows, columns = layer_matrix_shape(pair.base.shape)
    d_out, d_in = (columns, rows) if pair.is_transposed else (rows, columns)
    return AdapterLayer(d_out, d_in, min(d_out, d_in), 1.0, embedding=False, is_tensor=pair.layer is None)
