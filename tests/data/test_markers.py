"""Tables, streams, batches and commands look for the processor's markers in a text, not for the default ones."""

import inspect
import json
from pathlib import Path

import datasets
import pytest
import torch
from helpers.builders import mm_model
from helpers.collator import files  # noqa: F401
from transformers import CLIPImageProcessorPil

from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Columns, Row, media_markers, present_modalities, without
from modeling_mm.data.shards import open_shards
from modeling_mm.data.stream import MMStream
from modeling_mm.evaluation.modalities import WithoutModality

OTHERS = {"image": "<picture>", "audio": "<clip>", "video": "<film>"}


@pytest.fixture
def others(tokenizer):
    """A processor with other markers than the default ones."""
    tokenizer.add_tokens(list(OTHERS.values()), special_tokens=True)
    size = {"height": 16, "width": 16}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size, do_convert_rgb=True)
    return MMProcessor(image_processor, tokenizer, **{f"{name}_token": marker for name, marker in OTHERS.items()})


def test_markers_are_the_processor_s_and_else_those_of_a_new_one(others, processor):
    assert media_markers(others) == OTHERS
    assert media_markers() == media_markers(processor) == {name: f"<{name}>" for name in OTHERS}


def test_no_marker_is_written_in_the_code_that_reads_rows():
    import modeling_mm.data

    for path in Path(inspect.getfile(modeling_mm.data)).parent.glob("*.py"):
        assert not any(f'"<{name}>"' in path.read_text() for name in OTHERS), path


def table_of(files, text):
    return datasets.Dataset.from_list([{"image": files[:2], "text": text, "label": "a"}])


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_a_table_and_a_stream_count_the_markers_of_the_processor(files, others, tmp_path, kind):
    columns = Columns("image", "text", "label", *(["audio", "video"] if kind != "image" else []))
    expected = f"the text has 1 '{OTHERS[kind]}' markers but the row has {2 if kind == 'image' else 0}"
    for text, refused in ((f"what {OTHERS[kind]} is it", True), (f"a tag <{kind}> of HTML", False)):
        table = table_of(files, text)
        if kind != "image":
            table = table.add_column("audio", [""]).add_column("video", [""])
        table.to_parquet(tmp_path / "t.parquet")

        def rows(table=table):
            return MMDataset("t", table, tmp_path, columns, ["a"]).check(markers=media_markers(others))

        def streamed():
            options = {"task": "classification", "labels": ["a"], "markers": media_markers(others)}
            return next(iter(MMStream(open_shards(str(tmp_path / "*.parquet")), columns, **options)))

        for read in (rows, streamed):
            if refused:
                with pytest.raises(BadRow, match=expected):
                    read()
            else:
                read()


@pytest.mark.parametrize("left_out", [(), ("image",), ("image", "text"), ("audio", "video"), tuple(OTHERS)])
def test_a_modality_left_out_takes_its_own_markers_with_it(left_out):
    text = "a <picture> b <clip> c <film> d <image>"
    row = Row(1, ["a.png"], text, 0, ["a.wav"], ["a.mp4"])
    expected = "" if "text" in left_out else text
    for name in set(left_out) - {"text"}:
        expected = expected.replace(OTHERS[name], "")

    class Rows(list):
        labels = None

    changed = without(row, left_out, OTHERS)
    assert changed.text == expected and changed == WithoutModality(Rows([row]), left_out, OTHERS)[0]
    assert {name for name, items in changed.media.items() if not items} == set(left_out) - {"text"}
    present = [name for name in ("text", *OTHERS) if name not in left_out]
    assert present_modalities(changed, OTHERS) == present


@pytest.mark.parametrize("task", ["generation", "classification"])
def test_blind_leaves_out_the_markers_of_the_processor_alone(files, others, task):
    target = "yes" if task == "generation" else 0
    blind, plain = MMCollator(others, task, blind=True), MMCollator(others, task)
    for text in ("<picture>is <picture>it<clip>", "is it", "is <image> it", "", "<picture>"):
        batch = blind([Row(1, files[:2] if "<p" in text else [], text, target), Row(2, files, "", target)])
        bare = text.replace("<picture>", "").replace("<clip>", "")
        expected = plain([Row(1, [], bare, target), Row(2, [], "", target)])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in batch.items())


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_commands_look_for_the_markers_of_the_model_s_processor(files, others, tmp_path, capsys, streaming):
    model = mm_model(
        "bert",
        head=MMForSequenceClassification,
        num_labels=2,
        image_token_id=others.image_token_id,
        id2label={0: "a", 1: "b"},
    )
    model.resize_token_embeddings(len(others.tokenizer))
    model.save_pretrained(tmp_path / "model")
    others.save_pretrained(tmp_path / "model")
    quiet = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no", "--max_steps", "1"]
    for text, status in (("what <picture> is it", 2), ("what <picture><picture> is it", 0), ("tag <image>", 0)):
        rows = [{"image": files[:2], "text": text, "label": label} for label in "ab"]
        path = tmp_path / ("t.parquet" if streaming else "t.jsonl")
        if streaming:
            datasets.Dataset.from_list(rows).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["train", "--task", "classification", "--model", tmp_path / "model", "--output_dir", tmp_path / "out"]
        argv += ["--train_file", path, "--validation_file", path, *quiet, "--streaming", str(streaming).lower()]
        assert cli.main([*map(str, argv)]) == status
        if status:
            assert "the text has 1 '<picture>' markers but the row has 2 images" in capsys.readouterr().err
        argv = ["evaluate", "--model", tmp_path / "model", "--test_file", path, "--device", "cpu"]
        assert cli.main([*map(str, argv)]) == status
