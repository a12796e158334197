# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The Space shows a field for each column of a model's table, and its answers are the model's."""

import pytest
import torch
from helpers.table import COLUMNS

pytest.importorskip("gradio")

from helpers.space import save_tiny, serve, stop  # noqa: E402

from modeling_mm import MMForSequenceClassification, MMProcessor  # noqa: E402
from modeling_mm.checkpoint import load_checkpoint  # noqa: E402


@pytest.fixture(scope="module", params=[False, True], ids=["image", "audio"])
def space(request, tmp_path_factory):
    """A folder with a classifier that takes a table, a server of it, and the empty inputs for other media."""
    folder = tmp_path_factory.mktemp("tables")
    options = {"id2label": {0: "no", 1: "yes"}, "late_fusion": "concat", "table_columns": COLUMNS}
    save_tiny(folder, MMForSequenceClassification, "bert", audio=request.param, **options)
    processor = MMProcessor.from_pretrained(folder)
    processor.table_columns = COLUMNS
    processor.save_pretrained(folder)
    server = serve(folder)
    yield folder, server, [None] if request.param else []
    stop(server)


def test_the_cells_are_classified_like_by_the_model(space):
    folder, server, audio = space
    (value, error) = server.call(folder.name, "classify", None, "is it red", *audio, 30, "m", None)
    assert error is None
    label, found = value
    model, processor = load_checkpoint(str(folder))
    inputs = processor(text=["is it red"], table=[{"age": 30, "sex": "m"}], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(dim=-1).max().item()
    assert found["score"] == pytest.approx(expected, abs=1e-4)
    assert set(found["brought"]) == {"text", "table"}


@pytest.mark.parametrize("cells", [["many", "m", None], [{"a": 1}, "", 3], [1e300, "m", 3], [3, ["m"], 3]])
def test_cells_that_a_field_cannot_hold_are_refused(space, cells):
    folder, server, audio = space
    value, error = server.call(folder.name, "classify", None, "is it red", *audio, *cells)
    assert value is None and "cannot hold this value" in str(error)


def test_a_table_alone_and_an_unknown_category_are_classified(space):
    folder, server, audio = space
    value, error = server.call(folder.name, "classify", None, "", *audio, None, "other", None)
    assert error is None and set(value[1]["brought"]) == {"table"}
    value, error = server.call(folder.name, "classify", None, "", *audio, None, "", None)
    assert value is None and "numbers" in str(error)
