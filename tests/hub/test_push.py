# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Pushed repositories are complete, verified before and after, and load from the Hub without this package."""

import json

import pytest
import torch
from helpers.builders import SENTENCES, mm_model
from helpers.push import SCRATCH, check_card_runs, check_repository, code_of, make_model, push, python, train
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from modeling_mm import MMProcessor
from modeling_mm.hub.repository import files_of, is_replaced, stage
from modeling_mm.hub.verification import verify_repository
from modeling_mm.model.configuration_mm import AUTO_MAP
from modeling_mm.training.scratch import audio_config, feature_extractor, train_tokenizer


def test_a_trained_folder_is_pushed_in_one_commit_and_loads_back(hub, tmp_path):
    train(tmp_path, "--task", "generation", *SCRATCH, "--max_new_tokens", "2", "--output_dir", tmp_path / "out")
    result = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", "alice/answers")
    repository = hub.repositories["model", "alice/answers"]
    assert result["pushed"] and repository.at().oid == result["revision"]
    assert len(repository.commits) == 2  # the Hub's first commit and ours
    files, card, data = check_repository(hub, "alice/answers", result["revision"])
    assert {"model.safetensors", "chat_template.jinja", "curves.png", "samples.png"} <= set(files)
    scores = {result.metric_type: result.metric_value for result in data.eval_results}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert scores == {name: report[name] for name in ("accuracy", "loss", "blind_accuracy")}
    assert str(tmp_path / "out") not in code_of(card) and "alice/answers" in code_of(card)
    assert not [body for body in hub.validated if body["errors"]] and hub.validated


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [["generation"], ["classification", "--label_column", "answer"], ["retrieval", "--text_column", "caption"]],
    ids=lambda t: t[0],
)
def test_each_head_s_card_runs_anywhere_and_pushing_twice_is_once(hub, tmp_path, task):
    name = f"alice/{task[0]}"
    train(tmp_path, "--task", *task, *SCRATCH, "--output_dir", tmp_path / "out")
    check_card_runs(hub, tmp_path / "out", (tmp_path / "out" / "README.md").read_text())
    result = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", name)
    assert isinstance(result, dict) and result["pushed"], result
    _, card, _ = check_repository(hub, name, result["revision"])
    check_card_runs(hub, tmp_path, card)
    before = len(hub.log)
    again = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", name)
    assert again["revision"] == result["revision"] and not again["pushed"]
    assert not [path for method, path, _ in hub.log[before:] if method == "PUT" or "/commit/" in path]
    assert len(hub.repositories["model", name].commits) == 2


@pytest.mark.slow
def test_an_adapter_is_pushed_as_one(hub, tmp_path):
    train(
        tmp_path,
        "--task",
        "generation",
        *SCRATCH,
        "--use_peft",
        "true",
        "--learning_rate",
        "1e-2",
        "--output_dir",
        tmp_path / "out",
    )
    result = push(hub, tmp_path, "--model", tmp_path / "out", "--repo_id", "alice/adapter", "--revision", "second")
    repository = hub.repositories["model", "alice/adapter"]
    assert set(repository.branches) == {"main", "second"} and list(repository.at().files) == [".gitattributes"]
    files, card, _ = check_repository(hub, "alice/adapter", result["revision"])
    assert {"adapter_model.safetensors", "model.safetensors", "modeling_mm.py"} <= set(files)
    assert str(tmp_path) not in files["adapter_config.json"].data.decode()
    repository.branches["main"] = result["revision"]
    check_card_runs(hub, tmp_path, card)
    flags = ["--image", tmp_path / "0.png", "--text", "what is it?", "--device", "cpu", "--max_new_tokens", "3"]
    runs = [
        python(hub, tmp_path, "-m", "modeling_mm.cli", "predict", "--model", source, *flags)
        for source in ("alice/adapter", tmp_path / "out")
    ]
    assert [done.returncode for done in runs] == [0, 0], runs[0].stderr[-2000:]
    results = [json.loads(done.stdout.splitlines()[-1])["results"] for done in runs]
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_space_goes_beside_a_private_model(hub, tmp_path):
    make_model(tmp_path / "model")
    space = tmp_path / "hub_space"
    (space / "__pycache__").mkdir(parents=True)
    (space / "__pycache__" / "app.pyc").write_bytes(b"no")
    (space / "app.py").write_text("print()\n")
    (space / "requirements.txt").write_text("gradio\n")
    (space / "README.md").write_text("---\nsdk: gradio\ntitle: t\n---\n")
    argv = ["--model", tmp_path / "model", "--repo_id", "alice/secret", "--private"]
    argv += ["--space", "alice/secret-demo", "--space_folder", space]
    result = push(hub, tmp_path, *argv)
    shown = hub.repositories["space", "alice/secret-demo"]
    assert shown.private and hub.repositories["model", "alice/secret"].private
    assert shown.variables == {"MM_MODEL_ID": "alice/secret", "MM_MODEL_REVISION": result["revision"]}
    assert set(shown.at().files) == {".gitattributes", "app.py", "requirements.txt", "README.md"}
    assert push(hub, tmp_path, *argv)["space_revision"] == result["space_revision"]
    assert len(shown.commits) == 2


@pytest.fixture
def work(tmp_path):
    """A saved model, and a folder to write its repository into."""
    make_model(tmp_path / "model")
    (tmp_path / "staged").mkdir()
    return tmp_path


def test_what_is_not_on_the_list_does_not_travel(work):
    for name in ("training_args.bin", "optimizer.pt", "predictions.jsonl", "notes.txt", "secret.png", "own.py"):
        (work / "model" / name).write_bytes(b"not for others")
    (work / "model" / "modules.json").write_text("[]")
    (work / "model" / "1_Pooling").mkdir()
    (work / "model" / "1_Pooling" / "config.json").write_text("{}")
    (work / "model" / "README.md").write_text(
        '![a](curves.png) ![b](/etc/x.png) ![c](training_args.bin)\nsource = "."\n'
    )
    (work / "model" / "curves.png").write_bytes(b"png")
    stage(work / "model", work / "staged", "alice/x")
    paths = set(files_of(work / "staged"))
    assert {"modules.json", "1_Pooling/config.json", "curves.png", "model.safetensors", "modeling_mm.py"} <= paths
    assert all(is_replaced(path) or path == "curves.png" for path in paths)
    assert 'source = "alice/x"' in (work / "staged" / "README.md").read_text()
    assert json.loads((work / "staged" / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_pickled_weights_are_refused(work):
    weights = load_file(work / "model" / "model.safetensors")
    torch.save(weights, work / "model" / "pytorch_model.bin")
    (work / "model" / "model.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match="safetensors"):
        stage(work / "model", work / "staged", "alice/x")


@pytest.mark.slow
def test_the_proof_asks_about_sound_and_video_too(tmp_path):
    size = {"height": 16, "width": 16}
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny", audio=True, video=True)
    parts = {"image_processor": CLIPImageProcessorPil(size=size, crop_size=size), "tokenizer": tokenizer}
    processor = MMProcessor(**parts, audio=feature_extractor(0.2), max_seconds=0.2, max_frames=2)
    markers = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("image", "audio", "video")
    }
    model = mm_model("llama", audio_config=audio_config("scratch-tiny"), num_frames=2, **markers)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "staged").mkdir()
    proof = verify_repository(*stage(tmp_path / "model", tmp_path / "staged", "alice/x"), tmp_path)
    asked = {"input pixel_values", "input input_features", "input pixel_values_videos", "logits"}
    assert asked <= set(proof.expected)
    proof.check(str(tmp_path / "staged"), offline=True)


@pytest.mark.slow
def test_a_staged_folder_that_is_not_the_model_is_found_out(work):
    model, processor = stage(work / "model", work / "staged", "alice/x")
    proof = verify_repository(model, processor, work)
    proof.check(str(work / "staged"))
    weights = load_file(work / "staged" / "model.safetensors")
    weights["classifier.bias"] += 1e-3
    save_file(weights, work / "staged" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="loaded without this package, gives another 'logits' than the model itself"):
        proof.check(str(work / "staged"))
    (work / "staged" / "fusion_mm.py").unlink()
    with pytest.raises(ValueError, match="does not load without this package: .*fusion_mm"):
        proof.check(str(work / "staged"))
