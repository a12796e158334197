"""`modeling-mm search`: results equal brute force, as a table, JSON and a page; ANN indices reach their recall."""

# ruff: noqa: F811 (fixtures are imported by name)

import json
import re

import numpy as np
import pytest
import torch
from helpers.builders import mm_model
from helpers.index import clip, image_folder, refused, rows_of, run_index, run_search, table  # noqa: F401
from lancedb.index import IvfPq
from PIL import Image

from modeling_mm import cli
from modeling_mm.commands import search
from modeling_mm.search import ann
from modeling_mm.search.ann import build_ann
from modeling_mm.search.dual_encoder import DualEncoder
from modeling_mm.search.gallery import ANN, Gallery, quoted


def test_search_ranks_as_brute_force_does(clip, image_folder, tmp_path):
    folder = str(tmp_path / "i")
    run_index(model=clip, images=image_folder, index=folder)
    vectors, encoder = rows_of(folder), DualEncoder.load(clip)
    text = encoder.embed_texts(["a red square"])[0]
    image = encoder.embed_images([Image.open(image_folder / "04.png").convert("RGB")])[0]
    both = 0.3 * image + 0.7 * text
    path = str(image_folder / "04.png")
    for query, flags in (
        (text, {"text": "a red square"}),
        (image, {"image": path}),
        (both / np.linalg.norm(both), {"text": "a red square", "image": path, "image_weight": 0.3}),
    ):
        hits = run_search(index=folder, top_k=5, **flags)
        expected = sorted(vectors, key=lambda name: -(vectors[name] @ query))[:5]
        assert [hit["id"] for hit in hits] == expected
        np.testing.assert_allclose([hit["score"] for hit in hits], [vectors[o] @ query for o in expected], atol=1e-5)
    assert run_search(index=folder, image=path)[0]["id"] == "04.png"


def test_filters_look_at_columns_before_pictures_are_ranked(clip, table, tmp_path, capsys):
    folder = str(tmp_path / "i")
    run_index(model=clip, images=table, index=folder)
    hits = run_search(index=folder, text="red", where="price >= 2 AND price < 5", top_k=10)
    assert sorted(hit["metadata"]["price"] for hit in hits) == [2, 3, 4]
    (hit,) = run_search(index=folder, text="red", where="code = '007'", top_k=1)
    assert hit["metadata"]["code"] == "007"
    assert run_search(index=folder, text="red", where="price > 100") == []
    for bad in ("colour = 1", "price <", "price = 'x' OR"):
        assert "price" in refused(capsys, "search", "--index", folder, "--text", "red", "--where", bad)


def test_standard_output_is_lines_of_json_or_a_table(clip, table, tmp_path, capsys):
    folder = str(tmp_path / "i")
    run_index(model=clip, images=table, index=folder)
    capsys.readouterr()
    assert cli.main(["search", "--index", folder, "--text", "red", "--top_k", "3", "--json"]) == 0
    hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2, 3] and set(hits[0]["metadata"]) == {"caption", "price", "code"}
    assert cli.main(["search", "--index", folder, "--text", "red", "--top_k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(hit["id"] in line for hit, line in zip(hits, lines[1:], strict=True))


def test_the_page_holds_its_pictures_and_escapes_what_it_shows(clip, table, image_folder, tmp_path):
    folder, page = str(tmp_path / "i"), tmp_path / "out" / "found.html"
    run_index(model=clip, images=table, index=folder)
    (image_folder / "00.png").unlink()
    argv = ["--index", folder, "--text", "<script>{x}", "--image", str(image_folder / "04.png"), "--html", str(page)]
    search.main([*argv, "--top_k", "12"])
    text = page.read_text()
    assert "<script>" not in text and "&lt;script&gt;{x}" in text
    assert "<b>" not in text and "&lt;b&gt;no. 3&lt;/b&gt;" in text
    assert text.count('src="data:image/jpeg;base64,') == 12 and text.count("image cannot be read") == 1
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_reranking_is_by_the_matching_head(image_folder, processor, tmp_path):
    heads = pytest.importorskip("modeling_mm.model.retrieval_mm")
    model = mm_model(head=heads.MMForImageTextRetrieval, image_token_id=processor.image_token_id)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    folder, tokens = str(tmp_path / "i"), processor.tokenizer(["a red square"], return_tensors="pt")
    run_index(model=tmp_path / "model", images=image_folder, index=folder)
    (image_folder / "06.png").unlink()
    hits = run_search(index=folder, text="a red square", rerank=12, top_k=12)
    assert hits[-1]["id"] == "06.png" and hits[-1]["matching"] is None
    for hit in hits[:-1]:
        pixels = processor.image_processor(images=[Image.open(hit["image"])], return_tensors="pt")
        with torch.no_grad():
            apart, together = model.match(**tokens, **pixels)[0].tolist()
            similar = model(**tokens, **pixels).logits_per_text.item()
        assert hit["matching"] == pytest.approx(together - apart + similar, abs=1e-3)
    scores = [hit["matching"] for hit in hits[:-1]]
    assert scores == sorted(scores, reverse=True) and scores[0] - scores[-1] > 0.1
    assert [hit["score"] for hit in hits] != sorted((hit["score"] for hit in hits), reverse=True)


def synthetic(folder, count=1200, width=32):
    """A gallery of clustered embeddings, without images."""
    numbers = np.random.default_rng(0)
    vectors = numbers.standard_normal((40, width))[numbers.integers(0, 40, count)]
    vectors = (vectors + 0.4 * numbers.standard_normal((count, width))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made_by = {"model": "m", "weights": "w", "width": width, "vocabulary": "v", "image_processor": {}}
    gallery = Gallery.create(str(folder), made_by, {})
    ids = [str(number) for number in range(count)]
    gallery.put({name: ids for name in ("id", "image", "_source", "_stamp", "_details")}, vectors, {})
    return gallery, vectors


def test_an_ann_index_says_its_recall_and_exact_search_stays(tmp_path, caplog):
    gallery, vectors = synthetic(tmp_path / "i")
    built = build_ann(gallery, min_recall=0.9, sample=30)
    assert f"recall@10 {built['recall_at_10']:.3f}" in caplog.text
    queries = vectors[:30]
    truth = [set(map(str, np.argsort(-(vectors @ query))[:10])) for query in queries]
    near = [{row["id"] for row in gallery.nearest(query, 10)} for query in queries]
    assert np.mean([len(a & b) / 10 for a, b in zip(near, truth, strict=True)]) >= 0.8
    assert [{row["id"] for row in gallery.nearest(query, 10, exact=True)} for query in queries] == truth
    gallery.put({name: ["late"] for name in ("id", "image", "_source", "_stamp", "_details")}, vectors[:1] * -1, {})
    assert gallery.nearest(-vectors[0], 1)[0]["id"] == "late"  # rows that the index does not know yet
    gallery.compact()
    assert gallery.nearest(-vectors[0], 1)[0]["id"] == "late" and gallery.get_metadata(ANN) == built


def test_a_narrow_filter_finds_rows_in_far_parts_of_an_ann_index(tmp_path):
    gallery, vectors = synthetic(tmp_path / "i")
    gallery.table.create_index("vector", config=IvfPq(distance_type="cosine", num_partitions=16))
    far = sorted(map(str, np.argsort(vectors @ vectors[0])[:10]))
    where, search_params = f"id IN ({quoted(far)})", ann.EFFORTS["IVF_PQ"][0] | {"minimum_nprobes": 1}
    assert sorted(row["id"] for row in gallery.nearest(vectors[0], 10, where, search_params=search_params)) == far


def test_an_ann_index_that_misses_too_much_is_dropped(tmp_path, monkeypatch):
    gallery, vectors = synthetic(tmp_path / "i")
    monkeypatch.setattr(ann, "EFFORTS", {"IVF_PQ": [{"minimum_nprobes": 1, "maximum_nprobes": 1}]})
    with pytest.raises(ValueError, match="no ANN index reached a recall of 1.0, the best 0"):
        build_ann(gallery, min_recall=1.0, sample=30)
    assert gallery.get_metadata(ANN) is None and gallery.table.list_indices() == []
    assert gallery.nearest(vectors[0], 1)[0]["id"] == "0"
