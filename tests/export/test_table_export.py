# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""An exported classifier takes the table of a row, and gives the model's outputs with and without it."""

import pytest
import torch
from helpers.builders import OLD_LIBRARY, model_for
from helpers.table import COLUMNS

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMProcessor
from modeling_mm.export.runtime import ExportedMM
from modeling_mm.export.writer import export_model

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(OLD_LIBRARY, reason="an export needs transformers 5.23 or newer")
TABLE = [{"age": 30, "sex": "m"}, None, {"fare": 1e6, "sex": "x"}]


@pytest.fixture
def clerk(processor):
    """A processor with a table."""
    return MMProcessor(processor.image_processor, processor.tokenizer, table_columns=COLUMNS)


@torch.no_grad()
@pytest.mark.parametrize(
    "export_format, fusion",
    [
        ("onnx", "product_mlp"),
        ("torch", "concat"),
        pytest.param("onnx", "concat", marks=pytest.mark.slow),
        pytest.param("onnx", "linear", marks=pytest.mark.slow),
    ],
)
def test_an_exported_table_gives_the_same_logits(clerk, tmp_path, export_format, fusion):
    model = model_for(
        clerk,
        MMForSequenceClassification,
        "bert",
        num_labels=3,
        table_columns=COLUMNS,
        late_fusion=fusion,
        cross_attention=True,
    )
    export_model(model, clerk, str(tmp_path), export_format)
    exported = ExportedMM.from_pretrained(str(tmp_path))
    inputs = clerk(text=["yes", "no", "blue"], table=TABLE, padding=True, return_tensors="pt")
    options = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(exported(**inputs)["logits"].cpu(), model(**inputs).logits, **options)
    del inputs["table_values"]
    torch.testing.assert_close(exported(**inputs)["logits"].cpu(), model(**inputs).logits, **options)


def test_a_generating_model_with_a_table_is_refused(clerk, tmp_path):
    model = model_for(clerk, MMForConditionalGeneration, table_columns=COLUMNS)
    with pytest.raises(ValueError, match="with a table, only classifiers can be exported"):
        export_model(model, clerk, str(tmp_path))
