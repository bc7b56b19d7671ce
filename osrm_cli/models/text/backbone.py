"""One language model in memory, to which the updates of text tasks are added one after the other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from osrm_cli.adapters.adapter import Adapter
from osrm_cli.adapters.config import TEXT_TASK_TYPES
from osrm_cli.errors import library_errors
from osrm_cli.models.backbone import BackboneModel, BackboneTaskSource, with_backbone_deltas
from osrm_cli.models.classifier import load_tokenizer
from osrm_cli.models.peft_model import check_adapter_task_type, make_peft_model, with_adapted_backbone
from osrm_cli.models.text.completions import CompletionTokenizer
from osrm_cli.models.text.generation import CompletionLosses, compute_completion_losses, generate_tokens
from osrm_cli.models.text.language_model import load_language_model
from osrm_cli.models.token_batches import Encoding

TOKENIZER_NAME = "tokenizer_config.json"


class TextBackbone(BackboneModel):
    """A model that writes text."""

    @classmethod
    def load(
        cls, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, beside: Path | None = None
    ) -> Self:
        """Load a base model, or a merged one.

        Args:
            folder: The model's folder.
            device: Device of the model.
            dtype: Precision of its weights.
            beside: Folder of an adapter, whose own tokenizer and chat template count if it has one.

        Raises:
            OsrmError: If it cannot write text, or has no tokenizer.
        """
        tokenizer = load_tokenizer(beside if beside and (beside / TOKENIZER_NAME).is_file() else folder)
        model = load_language_model(folder, tokenizer, dtype, device=device).model
        model.requires_grad_(False).train(False)
        return cls(folder, model, tokenizer, device)

    def completions(self, max_length: int, skip_long: bool = False) -> CompletionTokenizer:
        """The tokenizer of prompts and completions."""
        return CompletionTokenizer(self.tokenizer, self.model.config.is_encoder_decoder, max_length, skip_long)

    @contextmanager
    def attach(self, source: BackboneTaskSource) -> Iterator[Any]:
        """Add a folder's update to this model; it is removed at the end.

        Args:
            source: The task's adapter or updates on disk; nothing is added where the model contains them already.
        """
        if adapter := source.adapter:
            check_adapter_task_type(adapter, TEXT_TASK_TYPES)
            with with_adapted_backbone(self.model, self._attach_adapter(adapter), adapter) as model:
                yield model
            return
        with with_backbone_deltas(self.model, source.read_delta, source.delta_layers):
            yield self.model

    def _attach_adapter(self, adapter: Adapter) -> Any:
        hint = "where tokens were added, merge with --as model and score that"
        with library_errors(f"{adapter.folder} does not fit the base model", hint):
            return make_peft_model(self.model, adapter)

    def losses(
        self, model: torch.nn.Module, encodings: Sequence[Encoding], batch_size: int, advance: Callable[[int], None]
    ) -> CompletionLosses:
        """Loss of each completion, see ``compute_completion_losses``."""
        return compute_completion_losses(model, encodings, self.tokenizer, self.device, batch_size, advance)

    def generate_tokens(
        self,
        model: Any,
        prompts: Sequence[Encoding],
        batch_size: int,
        max_new_tokens: int,
        stop: Sequence[str],
        advance: Callable[[int], None],
    ) -> list[list[int]]:
        """Greedy answers, see ``generate_tokens``."""
        return generate_tokens(model, prompts, self.tokenizer, self.device, batch_size, max_new_tokens, stop, advance)

    def generate(
        self,
        model: Any,
        prompts: Sequence[Encoding],
        batch_size: int,
        max_new_tokens: int,
        stop: Sequence[str],
        advance: Callable[[int], None],
    ) -> list[str]:
        """Greedy answers as text; stop strings and what follows them are cut off."""
        tokens = self.generate_tokens(model, prompts, batch_size, max_new_tokens, stop, advance)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [min((text.partition(end)[0] for end in stop), key=len, default=text) for text in texts]
