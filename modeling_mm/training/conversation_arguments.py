# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Arguments of `modeling-mm train` for conversations and packing.

Importing this file imports neither torch nor transformers, so that `--help` answers at once.
"""

from dataclasses import dataclass, field


@dataclass
class ConversationArguments:
    """Conversations: their column, what is learned of them, and packing."""

    conversation_column: str | None = field(
        default=None,
        metadata={
            "help": "column with conversations, in place of a text and an answer; inferred from the names messages, "
            'conversations, texts (with images), or prompt and completion; "" if they are none'
        },
    )
    learned_turns: str = field(
        default="assistant",
        metadata={
            "help": "tokens of a conversation that are learned: all turns of the assistant, its last turn, or all",
            "choices": ["assistant", "last", "all"],
        },
    )
    fetch_images: bool = field(
        default=False,
        metadata={
            "help": "download images of conversations that are web addresses, at most 20 MB each, once for all runs"
        },
    )
    fetch_hosts: list[str] = field(
        default_factory=list,
        metadata={"help": "hosts that --fetch_images downloads from; any public address by default"},
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "fill each row of a batch with several rows of a generation, up to --max_length tokens; each "
            "attends to itself only (--per_device_train_batch_size then counts these packs)"
        },
    )
