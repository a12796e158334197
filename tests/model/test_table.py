# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Laws of numbers and categories as a modality: alone as in any batch, missing as absent, the same after loading."""

import copy
import json

import pytest
import torch
from helpers.builders import drawing, model_for, padded, pictures, text_inputs, token_row
from helpers.programs import ABSENT, run_without_package
from helpers.table import COLUMNS, NAN, VALUES, table_model

from modeling_mm import (
    MMConfig,
    MMForConditionalGeneration,
    MMForImageTextRetrieval,
    MMForSequenceClassification,
    MMProcessor,
)

KINDS = [None, "concat", "sum", "weighted", "gated", "product", "product_mlp"]
LENGTHS = (9, 7, 5, 8)


def classifier(kind=None, **fields):
    both = {} if kind is None else {"late_fusion": kind, "cross_attention": True}
    return table_model("bert", MMForSequenceClassification, num_labels=3, **both, **fields)


def batch(text="bert"):
    rows = [token_row(length) for length in LENGTHS]
    return rows, text_inputs(padded(rows), text)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_images", [False, True])
def test_a_row_alone_equals_the_row_in_any_batch(kind, with_images):
    model, (rows, inputs) = classifier(kind), batch()
    images = {**pictures(2), "image_index": torch.tensor([[0], [-1], [1], [-1]])} if with_images else {}
    together = model(**inputs, table_values=VALUES, **images).logits
    for place, row in enumerate(rows):
        alone = {} if place == 1 else {"table_values": VALUES[place : place + 1]}
        if with_images and place in (0, 2):
            alone["pixel_values"] = images["pixel_values"][place // 2 : place // 2 + 1]
        torch.testing.assert_close(model(input_ids=row[None], **alone).logits[0], together[place])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_any_cell_equals_a_call_without_a_table(kind):
    model, (_, inputs) = classifier(kind), batch()
    fused, plain = model(**inputs, table_values=VALUES).logits, model(**inputs).logits
    assert torch.equal(fused[1], plain[1])
    assert not torch.isclose(fused[[0, 2, 3]], plain[[0, 2, 3]]).all(dim=1).any()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_counts_and_a_missing_or_unknown_one_is_a_state_of_its_own(kind):
    model, ids = classifier(kind), token_row(6)[None]
    with torch.no_grad():
        model.model.fusion.table_tower.missing.normal_()
    rows = [[30.0, 1.0, 7.5], [31.0, 1.0, 7.5], [30.0, 0.0, 7.5], [30.0, 2.0, 7.5], [30.0, 1.0, NAN], [NAN, 1.0, 7.5]]
    logits = torch.cat([model(input_ids=ids, table_values=torch.tensor([row])).logits for row in rows])
    assert (torch.cdist(logits, logits) + torch.eye(len(rows)) > 1e-4).all()


@torch.no_grad()
def test_numbers_far_beyond_the_training_rows_are_cut_off():
    model, ids = classifier("concat"), token_row(6)[None]
    far, farther = ([[number, 1.0, 7.5]] for number in (1e6, 3e38))
    outputs = [model(input_ids=ids, table_values=torch.tensor(row)).logits for row in (far, farther)]
    assert torch.equal(*outputs) and outputs[0].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_the_bins_in_full(dtype):
    model, (_, inputs) = classifier("concat"), batch()
    full = model(**inputs, table_values=VALUES).logits
    half = copy.deepcopy(model).to(dtype)(**inputs, table_values=VALUES).logits
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.25)


@torch.no_grad()
def test_generation_with_a_cache_equals_generation_without():
    model, rows = table_model(), [token_row(7) for _ in range(4)]
    inputs = {"input_ids": torch.stack(rows), "attention_mask": torch.ones(4, 7).long(), "table_values": VALUES}
    options = {"max_new_tokens": 6, "do_sample": False}
    cached = model.generate(**inputs, **options)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    assert torch.equal(cached, model.generate(**inputs, **options, cache_implementation="static"))
    for place, row in enumerate(rows):
        alone = model.generate(row[None], table_values=VALUES[place : place + 1], **options)
        assert torch.equal(alone[0], cached[place])
    with pytest.raises(ValueError, match="media_start"):
        model(input_ids=inputs["input_ids"], media_key_values=model.encode_media(table_values=VALUES))


@torch.no_grad()
def test_a_compiled_graph_gives_the_same_logits():
    model, (_, inputs) = classifier("concat"), batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(**inputs, table_values=VALUES).logits, model(**inputs, table_values=VALUES).logits
    )


@torch.no_grad()
@pytest.mark.parametrize("text", ["llama", "bert"])
def test_zero_gates_hide_the_table(text):
    head = MMForConditionalGeneration if text == "llama" else MMForSequenceClassification
    model = table_model(text, head, gate=0.0)
    inputs = batch(text)[1]
    assert torch.equal(model(**inputs, table_values=VALUES).logits, model(**inputs).logits)


@pytest.mark.parametrize(("kind", "cross_attention"), [(None, True), ("concat", True), ("concat", False)])
def test_every_weight_of_the_tower_gets_a_gradient(kind, cross_attention):
    model = table_model(
        "bert", MMForSequenceClassification, num_labels=3, late_fusion=kind, cross_attention=cross_attention
    ).train()
    model(**batch()[1], table_values=VALUES, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    names = [name for name, weight in model.named_parameters() if "table_tower" in name and weight.grad is None]
    assert names == []


def test_cells_are_hidden_in_training_only():
    tower = classifier("concat").model.fusion.table_tower
    assert torch.equal(tower(VALUES)[1], tower(VALUES)[1])
    tower.train()
    assert not torch.equal(tower(VALUES)[1], tower(VALUES)[1])


@torch.no_grad()
def test_a_saved_model_with_a_table_loads_with_and_without_the_package(tmp_path, processor):
    model = model_for(
        processor, MMForSequenceClassification, "bert", table_columns=COLUMNS, late_fusion="concat", num_labels=3
    )
    processor = MMProcessor(processor.image_processor, processor.tokenizer, table_columns=COLUMNS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    table = [{"age": 30, "sex": "m"}, {"fare": "7.5"}]
    inputs = MMProcessor.from_pretrained(tmp_path)(
        text=["yes", "no"], table=table, images=[drawing((9, 9, 9)), None], padding=True, return_tensors="pt"
    )
    expected = model(**inputs).logits
    assert torch.equal(MMForSequenceClassification.from_pretrained(tmp_path)(**inputs).logits, expected)
    program = (
        ABSENT
        + """
import json
import sys

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoProcessor

folder = sys.argv[1]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.fromarray(np.full((20, 20, 3), 9, dtype=np.uint8))
table = [{"age": 30, "sex": "m"}, {"fare": "7.5"}]
inputs = processor(text=["yes", "no"], table=table, images=[image, None], padding=True, return_tensors="pt")
print(json.dumps({"logits": model(**inputs).logits.tolist()}))
"""
    )
    remote = run_without_package(program, tmp_path, str(tmp_path))
    torch.testing.assert_close(torch.tensor(json.loads(remote)["logits"]), expected)


def test_values_of_another_shape_and_of_a_model_without_a_table_are_refused():
    ids = token_row(5)[None]
    with pytest.raises(ValueError, match=r"`table_values` has shape \(1, 2\); expected \(B, 3\)"):
        classifier()(input_ids=ids, table_values=VALUES[:1, :2])
    with pytest.raises(ValueError, match="takes none; compose it with `table_columns`"):
        model = copy.deepcopy(classifier())
        model.model.fusion.table_tower = None
        model(input_ids=ids, table_values=VALUES[:1])
    with pytest.raises(ValueError, match="takes no table"):
        table_model("bert", MMForImageTextRetrieval)


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"name": "age", "kind": "number", "bins": [1.0, 1.0], "mean": 0.0, "scale": 1.0}, "increasing"),
        ({"name": "age", "kind": "number", "bins": [1.0, 1.0 + 1e-9], "mean": 0.0, "scale": 1.0}, "increasing"),
        ({"name": "age", "kind": "number", "bins": [0.0, 1.0], "mean": 0.0, "scale": 0.0}, "positive `scale`"),
        ({"name": "age", "kind": "number"}, "needs `bins`"),
        ({"name": "sex", "kind": "category", "values": []}, "needs `values`"),
        ({"name": "sex", "kind": "category", "values": ["a", "a"]}, "needs `values`"),
        ({"name": "born", "kind": "date"}, "expected 'number' or 'category'"),
        ({"kind": "number"}, "names"),
    ],
)
def test_columns_that_a_config_cannot_hold_are_refused(column, reason):
    with pytest.raises(Exception, match=reason):
        MMConfig(table_columns=[column])
