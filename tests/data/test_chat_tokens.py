# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Learned tokens are exactly the assistant's, whatever the chat template; marks change no token."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.builders import model_for
from helpers.conversations import CHATML, LLAMA2, QWEN3, SHOUTING
from transformers import CLIPImageProcessorPil
from transformers.utils.chat_template_utils import render_jinja_template

from modeling_mm import MMProcessor
from modeling_mm.commands.assembly import end_answers
from modeling_mm.data.chat_tokens import ChatEncoder
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.conversations import Turn
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Row

TEMPLATES = {"plain": None, "chatml": CHATML, "llama2": LLAMA2, "qwen3": QWEN3, "shouting": SHOUTING}
ENDS = {"plain": "</s>", "chatml": "<|im_end|>", "llama2": " </s>", "qwen3": "<|im_end|>", "shouting": "<|im_end|>"}


def processor_with(tokenizer, kind, template=None):
    """A processor whose tokenizer has a template of this kind, or this template, and its special tokens."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "</s>"})
    tokenizer.chat_template = template or TEMPLATES[kind]
    size = {"height": 16, "width": 16}
    return MMProcessor(image_processor=CLIPImageProcessorPil(size=size, crop_size=size), tokenizer=tokenizer)


def turns_of(*texts, images=0):
    """Turns of a user and an assistant by turns, images before the first."""
    parts = [({"type": "text", "text": text},) for text in texts]
    turns = [Turn(("user", "assistant")[i % 2], part, i % 2 == 1) for i, part in enumerate(parts)]
    turns[0] = Turn("user", ({"type": "image"},) * images + turns[0].content)
    return turns


TWO = ("what colour is the circle", "blue", "is there a red square", "yes")


def spans_of(tokens):
    """Runs of learned token ids."""
    runs, before = [], False
    for token, learned in zip(tokens.ids, tokens.learned, strict=True):
        if learned and not before:
            runs.append([])
        if learned:
            runs[-1].append(token)
        before = learned
    return runs


@pytest.mark.parametrize("kind", TEMPLATES)
def test_answers_and_the_ends_of_their_turns_are_learned_and_nothing_else(tokenizer, kind):
    processor = processor_with(tokenizer, kind)
    (tokens,) = ChatEncoder(processor).encode([turns_of(*TWO, images=1)])
    words = [text.upper() if kind == "shouting" else text for text in TWO[1::2]]
    if kind == "qwen3":  # writes it before the last answer, as `generate` has to
        words[1] = f"<think>\n\n</think>\n\n{words[1]}"
    if kind == "llama2":
        words = [f" {word}" for word in words]
    expected = [processor.tokenizer(word + ENDS[kind], add_special_tokens=False)["input_ids"] for word in words]
    assert spans_of(tokens) == expected


@pytest.mark.parametrize("kind", TEMPLATES)
def test_tokens_are_those_of_the_chat_template(tokenizer, kind):
    processor, turns = processor_with(tokenizer, kind), turns_of(*TWO)
    (tokens,) = ChatEncoder(processor).encode([turns])
    messages = [turn.message for turn in turns]
    decode, start = processor.tokenizer.decode, processor.tokenizer.bos_token
    assert decode(tokens.ids).removeprefix(start) == processor.apply_chat_template(messages).removeprefix(start)
    (prompt,) = ChatEncoder(processor).prompts([turns[:3]])
    text = processor.apply_chat_template(messages[:3], add_generation_prompt=True)
    assert decode(prompt).removeprefix(start) == text.removeprefix(start)


@pytest.mark.parametrize("kind", ["chatml", "llama2", "qwen3"])
@pytest.mark.parametrize("with_prompt", [False, True])
def test_marks_change_no_character(tokenizer, kind, with_prompt):
    processor = processor_with(tokenizer, kind)
    assert "endgeneration" in processor.chat_template
    options = {"add_generation_prompt": with_prompt, **processor.tokenizer.special_tokens_map}
    plain = TEMPLATES[kind]
    for texts in (TWO, (*TWO, "a </b> {{ b }}", " c\n\n d "), TWO[:2]):
        messages = [{"role": turn.role, "content": turn.text} for turn in turns_of(*texts)]
        marked, spans = render_jinja_template(
            conversations=[messages],
            chat_template=processor.chat_template,
            return_assistant_tokens_mask=True,
            **options,
        )
        assert marked == render_jinja_template(conversations=[messages], chat_template=plain, **options)[0]
        assert len(spans[0]) == len(texts) // 2


def test_a_template_that_changes_answers_is_left_as_it_is(tokenizer):
    assert "endgeneration" not in processor_with(tokenizer, "shouting").chat_template


def test_trainers_of_others_find_the_marks(tokenizer):
    processor = processor_with(tokenizer, "chatml")
    messages = [{"role": turn.role, "content": turn.text} for turn in turns_of(*TWO)]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    batch = processor.tokenizer.apply_chat_template(messages, chat_template=processor.chat_template, **options)
    (tokens,) = ChatEncoder(processor).encode([turns_of(*TWO)])
    learned = [i for i, mark in zip(batch["input_ids"], batch["assistant_masks"], strict=True) if mark]
    assert learned == [i for run in spans_of(tokens) for i in run]


def test_an_answer_that_the_template_takes_apart_is_refused(tokenizer):
    encoder = ChatEncoder(processor_with(tokenizer, "qwen3"))
    with pytest.raises(BadRow, match="writes turn 2 differently when others follow"):
        encoder.encode([turns_of("is there", "<think>\nblue\n</think>\n\nyes", "no", "no")])


def test_a_template_that_refuses_a_turn_is_quoted(tokenizer):
    system = Turn("system", ({"type": "text", "text": "be brief"},))
    with pytest.raises(BadRow, match="does not take these turns: no system"):
        ChatEncoder(processor_with(tokenizer, "llama2")).encode([[system, *turns_of(*TWO)]])


def test_the_last_turn_or_all_tokens_may_be_learned(tokenizer):
    processor, turns = processor_with(tokenizer, "chatml"), turns_of(*TWO, images=1)
    (last,) = ChatEncoder(processor, "last").encode([turns])
    assert len(spans_of(last)) == 1
    (whole,) = ChatEncoder(processor, "all").encode([turns])
    assert whole.learned.count(False) == 1 and whole.ids[whole.learned.index(False)] == processor.image_token_id


def test_a_call_of_a_tool_changes_no_character_and_is_learned(tokenizer):
    template = CHATML.replace("message['content']", "(message['content'] or message['tool_calls'][0]['name'])")
    processor = processor_with(tokenizer, "chatml", template)
    call = Turn("assistant", (), True, {"tool_calls": [{"name": "look"}]})
    turns = [
        *turns_of("what is it")[:1],
        call,
        Turn("tool", ({"type": "text", "text": "3"},)),
        *turns_of("a", "yes")[1:],
    ]
    (tokens,) = ChatEncoder(processor).encode([turns])
    spans = [processor.tokenizer.decode(run) for run in spans_of(tokens)]
    assert spans == ["look<|im_end|>", "yes<|im_end|>"]


def test_a_long_conversation_is_cut_behind_an_answer_with_its_media(tokenizer):
    processor = processor_with(tokenizer, "chatml")
    turns = turns_of(*TWO, *TWO, images=1)
    turns[4] = Turn("user", ({"type": "image"}, *turns[4].content))
    row = Row(1, ["a.png", "b.png"], "", turns=turns)
    encoder = ChatEncoder(processor)
    lengths = [len(encoder.encode([turns[:n]])[0].ids) for n in (2, 4, 6, 8)]
    assert encoder.fit(row, lengths[3]) is row
    for limit, kept, images in ((lengths[3] - 1, 6, 2), (lengths[2] - 1, 4, 1), (lengths[0], 2, 1)):
        cut = encoder.fit(row, limit)
        assert len(cut.turns) == kept and len(cut.images) == images
    with pytest.raises(BadRow, match="the first exchange has"):
        encoder.fit(row, lengths[0] - 1)
    others = [replace(turn, learned=i == 7) for i, turn in enumerate(turns)]
    with pytest.raises(BadRow, match="no answer that is learned ends within"):
        encoder.fit(replace(row, turns=others), lengths[2])


def test_a_batch_of_conversations_has_their_labels(tokenizer):
    processor = processor_with(tokenizer, "chatml")
    rows = [Row(1, [], "", turns=turns_of(*TWO)), Row(2, [], "", turns=turns_of(*TWO[:2]))]
    batch = MMCollator(processor, "generation")(rows)
    encoded = ChatEncoder(processor).encode([row.turns for row in rows])
    for place, tokens in enumerate(encoded):
        length = len(tokens.ids)
        assert batch["input_ids"][place, :length].tolist() == tokens.ids
        assert batch["labels"][place, :length].tolist() == tokens.labels
        assert (batch["labels"][place, length:] == -100).all() and not batch["attention_mask"][place, length:].any()
    asked = MMCollator(processor, "generation", with_prompts=True)(rows)
    prompts = ChatEncoder(processor).prompts([row.turns[:-1] for row in rows])
    for place, ids in enumerate(prompts):
        assert asked["prompt_input_ids"][place, -len(ids) :].tolist() == ids
    assert torch.equal(asked["labels"], batch["labels"])


def test_generation_stops_where_the_template_ends_a_turn(tokenizer):
    processor = processor_with(tokenizer, "chatml")
    model, collator = model_for(processor), MMCollator(processor, "generation")
    row = Row(1, [], "", turns=turns_of(*TWO))
    end_answers(model, collator, SimpleNamespace(train=[row]))
    ids = processor.tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    assert model.generation_config.eos_token_id == ids
