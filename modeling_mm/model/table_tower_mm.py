# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMTableTower: numbers and categories of a row to one slot per column, and to one embedding for late fusion.

- A number is encoded piecewise linearly over quantile bins, then by a linear layer of its column (Gorishniy et al.
  2022, "On embeddings for numerical features in tabular deep learning"); beyond the bins it is cut off, so that
  outliers cannot grow. A category has an embedding, as has an unknown one. A missing cell is a learned state.
- In training, a random share of the cells is hidden, as missing or unknown: otherwise these states would not be
  trained where the training rows lack such cells.
- Bins are read from the config in each call: buffers would be rounded in half precision.

Shapes: B rows, C columns, N number columns, K bins, E cell width, M memory width, D text width.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_mm import MMConfig

PADDING = torch.finfo(torch.float32).max  # lower edge of the bins that a column has not: nothing reaches into them
FARTHEST = 3.0  # standard deviations from the mean, beyond which a number is cut off
BLOCKS = 2  # residual blocks of the embedding for late fusion


class MMTableTower(nn.Module):
    """Cells of number and category columns to states; see the file's docstring.

    Args:
        config: its `table_columns` are the columns, in the order of the cells.
    """

    def __init__(self, config: MMConfig):
        super().__init__()
        columns = config.table_columns or []
        width, cell = config.text_config.hidden_size, config.table_cell_size
        self.hidden_share = config.table_dropout
        self.numbers = [place for place, column in enumerate(columns) if column["kind"] == "number"]
        self.categories = [place for place, column in enumerate(columns) if column["kind"] == "category"]
        self.order = torch.tensor([*self.numbers, *self.categories], device="cpu").argsort().tolist()
        self.bins = [columns[place]["bins"] for place in self.numbers]
        self.moments = [(columns[place]["mean"], columns[place]["scale"]) for place in self.numbers]
        self.sizes = [len(columns[place]["values"]) for place in self.categories]
        self.missing = nn.Parameter(torch.zeros(len(columns), cell))
        if self.numbers:
            encoded = max(map(len, self.bins))  # one of each bin, and the standardised number
            self.number_weight = nn.Parameter(torch.zeros(len(self.numbers), encoded, cell))
            self.number_bias = nn.Parameter(torch.zeros(len(self.numbers), cell))
        if self.categories:
            self.category_embedding = nn.Embedding(sum(self.sizes) + len(self.sizes), cell)
        if config.cross_attention:
            self.slot_proj = nn.Linear(cell, config.fusion_memory_size)
            self.column_embedding = nn.Parameter(torch.zeros(len(columns), config.fusion_memory_size))
        if config.late_fusion is not None:
            self.pooler = nn.Linear(len(columns) * cell, width)
            self.blocks = nn.ModuleList([residual_block(width, config.table_dropout) for _ in range(BLOCKS)])

    @torch.no_grad()
    def reset(self) -> None:
        """Initialise the weights by the width of their inputs, whatever the range of the text backbone's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=module.in_features**-0.5)
                init.zeros_(module.bias)
        init.zeros_(self.missing)
        if self.numbers:
            init.normal_(self.number_weight, std=self.number_weight.shape[1] ** -0.5)
            init.zeros_(self.number_bias)
        if self.categories:
            init.normal_(self.category_embedding.weight, std=0.5)
        if hasattr(self, "column_embedding"):
            init.normal_(self.column_embedding, std=0.5)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Slots (B, C, M) of the cells and, with late fusion, the embedding (B, D) of the rows.

        Args:
            values: (B, C), as `table_mm.table_tensor` returns it.
        """
        cells = self.embed_cells(values.float())  # (B, C, E)
        pooled = None
        if hasattr(self, "pooler"):
            pooled = self.pooler(cells.flatten(1))
            for block in self.blocks:
                pooled = pooled + block(pooled)
        slots = self.slot_proj(cells) + self.column_embedding if hasattr(self, "slot_proj") else cells
        return slots, pooled

    def embed_cells(self, values: torch.Tensor) -> torch.Tensor:
        """The states (B, C, E) of cells (B, C)."""
        hidden = torch.ones_like(values)
        if self.training and self.hidden_share:
            hidden = torch.rand_like(values) / self.hidden_share
        is_unknown = (hidden >= 0.5) & (hidden < 1)  # of a category; a hidden number is missing
        is_number = torch.tensor([place in self.numbers for place in range(values.shape[1])], device=values.device)
        missing = values.isnan() | (hidden < 0.5) | (is_unknown & is_number)
        states = []
        if self.numbers:
            encoded = self.encode_numbers(values[:, self.numbers].nan_to_num()).to(self.number_weight.dtype)
            states.append((torch.einsum("bnk,nke->bne", encoded, self.number_weight) + self.number_bias).relu())
        if self.categories:
            sizes = torch.tensor(self.sizes, device=values.device)
            index = values[:, self.categories].nan_to_num().long().clamp(min=0)
            index = torch.where(is_unknown[:, self.categories], sizes, torch.minimum(index, sizes))
            states.append(self.category_embedding(index + (sizes + 1).cumsum(0) - sizes - 1))
        ordered = torch.cat(states, dim=1)[:, self.order]
        return torch.where(missing[..., None], self.missing.to(ordered.dtype), ordered)

    def encode_numbers(self, values: torch.Tensor) -> torch.Tensor:
        """The piecewise linear encoding (B, N, K + 1) of numbers (B, N), in float32: the share of each bin that lies
        below the number, and the standardised number."""
        longest = max(map(len, self.bins)) - 1
        pairs = [list(zip(bins, bins[1:], strict=False)) for bins in self.bins]
        low = [[a for a, _ in row] + [PADDING] * (longest - len(row)) for row in pairs]
        width = [[b - a for a, b in row] + [1.0] * (longest - len(row)) for row in pairs]
        options = {"dtype": torch.float32, "device": values.device}
        shares = (values[..., None] - torch.tensor(low, **options)) / torch.tensor(width, **options)
        mean, scale = torch.tensor(self.moments, **options).unbind(1)
        standard = ((values - mean) / scale).clamp(-FARTHEST, FARTHEST)
        return torch.cat([shares.clamp(0, 1), standard[..., None]], dim=-1)


def residual_block(width: int, dropout: float) -> nn.Sequential:
    """A block to be added to its input (B, D)."""
    layers = [nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(2 * width, width))


__all__ = ["MMTableTower"]
