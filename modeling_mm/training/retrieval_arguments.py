# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of `modeling-mm train` for retrieval.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RetrievalArguments:
    """Retrieval: arguments that only --task retrieval uses."""

    contrastive_loss: str = field(
        default="infonce",
        metadata={
            "help": "contrastive loss: softmax over the batch (infonce) or each pair by itself (sigmoid)",
            "choices": ["infonce", "sigmoid"],
        },
    )
    contrastive_weight: float = field(default=1.0, metadata={"help": "weight of the contrastive loss"})
    matching_weight: float = field(
        default=1.0, metadata={"help": "weight of the matching head's loss; 0 leaves the head out"}
    )
    matching_rows: int | None = field(
        default=None,
        metadata={"help": "number of randomly drawn rows per batch that the matching loss uses; all by default"},
    )
    language_weight: float = field(
        default=0.0, metadata={"help": "weight of the captioning loss, which needs a decoder; 0 leaves it out"}
    )
    embedding_size: int | None = field(
        default=None,
        metadata={"help": "size of the embeddings; the default is the width of the text backbone, at most 512"},
    )
    image_pooling: str = field(
        default="mean",
        metadata={
            "help": "pooling of image states: their mean, the first (class token), or the tower's own pooling",
            "choices": ["mean", "first", "tower"],
        },
    )
    text_pooling: str | None = field(
        default=None,
        metadata={
            "help": "pooling of text states; the default is the first of an encoder and the last of a decoder",
            "choices": ["first", "mean", "last"],
        },
    )
    contrastive_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "rows that the contrastive loss compares, by gradient caching: a multiple of the batch size; "
            "batch norms that train, such as those of scratch towers, still normalise over the batch size"
        },
    )
    rerank: int = field(
        default=0, metadata={"help": "evaluate also with the best N candidates reranked by the matching head"}
    )

    def config(self) -> dict[str, Any]:
        """The fields of `MMConfig` that these arguments set."""
        fields = dict(vars(self))
        for name in ("contrastive_batch_size", "rerank"):
            del fields[name]
        return {**fields, "pooling": fields.pop("text_pooling")}
