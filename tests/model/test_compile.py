# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Compiled or exported by torch, every model is one graph with the same outputs as in eager mode."""

import pytest
import torch
from helpers.builders import IMAGE_ID, mixed_rows, mm_model, padded, pictures, text_inputs, token_row
from torch._dynamo.testing import CompileCounter

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.model.media_mm import NEVER, media_start_from_markers

HEADS = {"base": MMModel, "generation": MMForConditionalGeneration, "classification": MMForSequenceClassification}
QUICK = [("generation", "llama"), ("classification", "bert")]
OTHERS = [("base", "llama"), ("base", "bert"), ("classification", "llama")]
KINDS = [*QUICK, *(pytest.param(*kind, marks=pytest.mark.slow) for kind in OTHERS)]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Reset the compiler, so that no test uses a graph of another one."""
    torch._dynamo.reset()


def inputs(head, text, media=True, rows=None):
    """A padded batch for the head, with or without media."""
    batch = text_inputs(padded(mixed_rows()[0] if rows is None else rows), text)
    if head == "classification":
        batch.pop("position_ids", None)
    return {**batch, **pictures(2), "image_index": mixed_rows()[1][: len(batch["input_ids"])]} if media else batch


def main_output(output):
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("media", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["media", "text"])
@pytest.mark.parametrize("head, text", KINDS)
@torch.no_grad()
def test_one_compiled_graph_equals_eager_and_serves_again(head, text, media):
    model, counter = mm_model(text, head=HEADS[head]), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(2):  # the second batch has other rows and images of the same shapes
        batch = inputs(head, text, media)
        torch.testing.assert_close(main_output(compiled(**batch)), main_output(model(**batch)))
    assert counter.frame_count == 1


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_graph_with_attentions_equals_eager():
    model, batch = mm_model(attn_implementation="eager"), inputs("generation", "llama")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    eager_attentions, compiled_attentions = (
        variant(**batch, output_attentions=True).cross_attentions for variant in (model, compiled)
    )
    torch.testing.assert_close(compiled_attentions, eager_attentions)


@pytest.mark.slow
def test_a_compiled_step_trains_like_an_eager_one():
    def gradients(compile):
        torch.manual_seed(0)
        model = mm_model().train()
        step = torch.compile(model, backend="aot_eager", fullgraph=True) if compile else model
        batch = inputs("generation", "llama")
        step(**batch, labels=batch["input_ids"]).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    torch.testing.assert_close(gradients(True), gradients(False))


@pytest.mark.slow
@pytest.mark.parametrize("head, text", KINDS)
@torch.no_grad()
def test_code_of_inductor_equals_eager(head, text):
    model, batch = mm_model(text, head=HEADS[head]), inputs(head, text)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(main_output(compiled(**batch)), main_output(model(**batch)), atol=1e-5, rtol=1e-4)


def prompts():
    """A batch with no, one and two images per row, padded on the left."""
    batch = padded([token_row(9), token_row(7, [2]), token_row(11, [1, 5])], "left")
    batch.pop("position_ids")
    return {**batch, **pictures(2), "image_index": torch.tensor([[-1, -1], [0, -1], [1, 0]])}


@pytest.mark.parametrize("text", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_compiled_generation_with_a_static_cache_gives_the_same_tokens(text):
    model, batch = mm_model(text), prompts()
    expected = model.generate(**batch, **GREEDY)
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    assert torch.equal(model.generate(**batch, **GREEDY, cache_implementation="static"), expected)


@pytest.mark.slow
def test_generation_compiled_by_inductor_gives_the_same_tokens():
    model, batch = mm_model(), prompts()
    expected = model.generate(**batch, **GREEDY)
    model.forward = torch.compile(model.forward, fullgraph=True)
    assert torch.equal(model.generate(**batch, **GREEDY, cache_implementation="static"), expected)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["traced", "strict"])
@pytest.mark.parametrize("head, text", KINDS)
@torch.no_grad()
def test_an_exported_program_equals_eager_in_other_shapes(head, text, strict):
    model, batch = mm_model(text, head=HEADS[head]), inputs(head, text)
    model.config.text_config.use_cache = False  # torch.export does not support a cache as an output
    axis = torch.export.Dim.DYNAMIC  # raises if a dynamic size becomes constant
    dynamic = {name: {0: axis} if name == "pixel_values" else {0: axis, 1: axis} for name in batch}
    program = torch.export.export(model, (), batch, dynamic_shapes=dynamic, strict=strict).module()
    for rows in ([token_row(5, [1])] * 2, [token_row(13, [0, 4])] * 3):
        other = inputs(head, text, rows=rows)
        expected = main_output(model(**other))
        torch.testing.assert_close(main_output(program(**other)), expected, atol=1e-5, rtol=1e-4)


def test_media_start_is_the_column_of_each_image_s_own_marker():
    rows = torch.full((6, 5), 7)
    rows[1, 3] = rows[2, 0] = rows[2, 4] = rows[3, 2] = rows[4, 1] = rows[4, 2] = rows[4, 3] = IMAGE_ID
    index = torch.tensor([[0, 1], [0, -1], [1, 0], [0, 1], [0, 1], [-1, -1]])
    expected = [[0, 0], [3, NEVER], [0, 4], [2, NEVER], [1, 2], [NEVER, NEVER]]
    assert media_start_from_markers(rows == IMAGE_ID, index).tolist() == expected
    more = torch.arange(7).expand(6, -1)  # more images than columns
    assert media_start_from_markers(rows == IMAGE_ID, more)[4].tolist() == [1, 2, 3, *[NEVER] * 4]
    assert media_start_from_markers(None, index).tolist() == [[0, 0], [0, NEVER], *[[0, 0]] * 3, [NEVER, NEVER]]
