"""Text embeddings of prompts: every distinct prompt is encoded once, then the encoder is freed."""
# B batch, T tokens, D width of the embedding

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ..batch import torch_rng

NUM_TOKENS = 77
ON_DEVICE = 256  # prompts whose embeddings stay on the device: 40 MB in bfloat16
ENCODED_AT_ONCE = 32


class Prompts:
    """A table of embeddings; `folder` holds the text encoder and tokenizer in diffusers' layout.

    Without a folder (a base with random weights) an embedding is a seeded draw that only depends on
    the prompt: enough to plan, test and measure with.
    """

    def __init__(self, folder: Path | None, width: int) -> None:
        self.folder, self.width = folder, width
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._rows: dict[str, int] = {}
        self._table: torch.Tensor | None = None  # (prompts, T, D)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Keep embeddings in this dtype, for use on this device."""
        self.device, self.dtype = torch.device(device), dtype
        if self._table is not None:
            self._table = self._stored(self._table)

    def _stored(self, table: torch.Tensor) -> torch.Tensor:
        few = len(table) <= ON_DEVICE
        return table.to(self.device if few else "cpu", self.dtype)

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode the prompts that are not in the table yet; the encoder is loaded, then freed."""
        new = sorted(set(prompts) - self._rows.keys())
        if not new:
            return
        encoded = self._encode(new) if self.folder else self._draw(new)
        for name in new:
            self._rows[name] = len(self._rows)
        parts = [encoded] if self._table is None else [self._table.cpu(), encoded]
        self._table = self._stored(torch.cat([p.to("cpu", self.dtype) for p in parts]))

    def _draw(self, prompts: list[str]) -> torch.Tensor:
        shape = (NUM_TOKENS, self.width)
        return torch.stack([torch.randn(shape, generator=torch_rng(0, p)) for p in prompts])

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> torch.Tensor:
        from transformers import CLIPTextModel, CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(self.folder, subfolder="tokenizer")
        encoder = CLIPTextModel.from_pretrained(self.folder, subfolder="text_encoder")
        encoder = encoder.to(self.device, self.dtype).eval()
        found = []
        for start in range(0, len(prompts), ENCODED_AT_ONCE):
            ids = tokenizer(
                prompts[start : start + ENCODED_AT_ONCE],
                max_length=NUM_TOKENS,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
            ).input_ids
            found.append(encoder(ids.to(self.device))[0].cpu())
        return torch.cat(found)

    def __call__(self, prompts: list[str]) -> torch.Tensor:
        """Return the embeddings of a batch, (B, T, D), on the device."""
        self.prepare(prompts)
        rows = [self._rows[p] for p in prompts]
        return self._table[rows].to(self.device, non_blocking=True)
