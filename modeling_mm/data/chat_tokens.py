# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Tokens of conversations, and which of them training learns.

The learned tokens are those of `{% generation %}` blocks, which the processor's chat template has if it can (see
`model/chat_mm.py`). For other templates they are found by comparing the texts of the conversation up to each answer
and with it, which fails, in a sentence, for templates that change earlier turns when others follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from ..model.chat_mm import has_generation_marks
from ..model.media_mm import MODALITIES
from ..model.processing_mm import MMProcessor
from .conversations import Turn
from .media import BadRow
from .rows import Row, with_turns

IGNORED = -100  # the label of a token that is not learned


@dataclass(frozen=True)
class ChatTokens:
    """The token ids of a conversation, and for each whether it is learned."""

    ids: list[int]
    learned: list[bool]

    @property
    def labels(self) -> list[int]:
        """The ids of learned tokens, and -100 for others."""
        return [token if learned else IGNORED for token, learned in zip(self.ids, self.learned, strict=True)]

    def cut(self, length: int) -> "ChatTokens":
        """The first tokens and the last one, which ends the turn; at most `length`."""
        if len(self.ids) <= length:
            return self
        return ChatTokens([*self.ids[: length - 1], self.ids[-1]], [*self.learned[: length - 1], self.learned[-1]])


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes conversations as `apply_chat_template(..., tokenize=True)` of the processor would.

    Args:
        learned: `assistant` for its turns, `last` for the last of them, `all` for all tokens but markers.

    Raises:
        ValueError: the tokenizer does not tell where its tokens stand in a text.
    """

    processor: MMProcessor
    learned: str = "assistant"

    def __post_init__(self):
        if not self.processor.tokenizer.is_fast:
            raise ValueError("conversations need a fast tokenizer, which tells where its tokens stand in a text")

    def encode(self, conversations: Sequence[Sequence[Turn]]) -> list[ChatTokens]:
        """Tokens of whole conversations.

        Raises:
            BadRow: the template does not take the turns, or does not tell which tokens are an assistant's.
        """
        texts, spans = self.render(conversations)
        encoded = self.tokenize(texts, return_offsets_mapping=True)
        markers = {self.processor.marker_id(modality) for modality in MODALITIES.values()}
        found = []
        for turns, ids, offsets, places in zip(
            conversations, encoded["input_ids"], encoded["offset_mapping"], spans, strict=True
        ):
            answers = [turn for turn in turns if turn.role == "assistant"]
            chosen = [places[i] for i, turn in enumerate(answers) if turn.learned]
            if self.learned == "all":
                learned = [token not in markers for token in ids]
            else:
                chosen = chosen[-1:] if self.learned == "last" else chosen
                learned = [any(begin < b and a < end for a, b in chosen) for begin, end in offsets]
            found.append(ChatTokens(ids, learned))
        return found

    def prompts(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int]]:
        """Tokens of conversations that an answer is to follow."""
        texts, _ = self.rendered([[turn.message for turn in turns] for turns in conversations], True)
        return self.tokenize(texts)["input_ids"]

    def tokenize(self, texts: list[str], **options) -> Any:
        """The tokenizer's output, with special tokens unless the template begins with one."""
        start = self.processor.tokenizer.bos_token
        special = start is None or not texts[0].startswith(start)
        return self.processor.tokenizer(texts, add_special_tokens=special, **options)

    def rendered(self, messages: list[list[dict[str, Any]]], with_prompt: bool = False) -> tuple[list[str], Any]:
        """The texts of conversations, and the spans of their `{% generation %}` blocks.

        Raises:
            BadRow: the template refuses the turns.
        """
        template = self.processor.chat_template
        marks = has_generation_marks(template)
        options = {"chat_template": template, "add_generation_prompt": with_prompt}
        options |= self.processor.tokenizer.special_tokens_map
        try:
            return render_jinja_template(conversations=messages, return_assistant_tokens_mask=marks, **options)
        except Exception as error:  # a template raises what it likes, for instance for a system turn
            raise BadRow(f"the chat template does not take these turns: {error}") from None

    def render(self, conversations: Sequence[Sequence[Turn]]) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """The texts of conversations, and where in them the assistant's turns stand."""
        messages = [[turn.message for turn in turns] for turns in conversations]
        texts, spans = self.rendered(messages)
        spans = spans or [[] for _ in texts]
        for row, (turns, text) in enumerate(zip(conversations, texts, strict=True)):
            if len(spans[row]) != sum(turn.role == "assistant" for turn in turns):
                spans[row] = self.compared_spans(turns, text)
        return texts, spans

    def compared_spans(self, turns: Sequence[Turn], text: str) -> list[tuple[int, int]]:
        """The places of the assistant's turns in a text, found by the texts that end before and behind each.

        Raises:
            BadRow: the text does not begin with those.
        """
        spans = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            messages = [part.message for part in turns[: number + 1]]
            before, behind = (self.rendered([m], p)[0][0] for m, p in ((messages[:-1], True), (messages, False)))
            behind = behind.rstrip()
            if not (text.startswith(before) and text.startswith(behind) and len(before) < len(behind)):
                raise BadRow(
                    f"the chat template writes turn {number + 1} differently when others follow, so its tokens cannot "
                    "be identified; use a tokenizer whose chat template has {% generation %} marks"
                )
            spans.append((len(before), len(behind)))
        return spans

    def fit(self, row: Row, max_length: int) -> Row:
        """The row, cut behind an answer so that it has at most `max_length` tokens; its media are cut likewise.

        Raises:
            BadRow: the first answer ends beyond that.
        """
        turns = row.turns
        while (length := len(self.encode([turns])[0].ids)) > max_length:
            kept = next((i for i in range(len(turns) - 2, -1, -1) if turns[i].role == "assistant"), None)
            if kept is None:
                raise BadRow(f"the first exchange has {length} tokens; expected at most {max_length} (--max_length)")
            turns = turns[: kept + 1]
        if not any(turn.learned for turn in turns):
            raise BadRow(f"no answer that is learned ends within {max_length} tokens (--max_length)")
        return row if turns is row.turns else with_turns(row, turns)
