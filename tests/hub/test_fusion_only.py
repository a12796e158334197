# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""A checkpoint without its frozen towers: small, fetched at their revision when it loads, equal to the whole one."""

import json

import pytest
import torch
from helpers.builders import SENTENCES, causal_model, text_config, vision_config, vision_model
from helpers.push import check_card_runs, check_repository, make_model, make_table, push, python
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPImageProcessorPil, PreTrainedTokenizerFast

from modeling_mm.hub.repository import files_of
from modeling_mm.training.scratch import train_tokenizer


@pytest.fixture(scope="module")
def towers(hub, tmp_path_factory):
    """A vision tower and a text model on the Hub, of which the second has no image marker yet, and no padding."""
    folder = tmp_path_factory.mktemp("towers")
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
    tokenizer = train_tokenizer(SENTENCES, "scratch-tiny")
    unmarked = tokenizer.backend_tokenizer.to_str().replace("<image>", "<other>")
    tokens = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(unmarked), **tokens)
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder / "vision")
    vision_model("clip_vision_model").save_pretrained(folder / "vision")
    plain.save_pretrained(folder / "text")
    causal_model("llama", vocab_size=len(plain), **wide).save_pretrained(folder / "text")
    card = b"---\nlicense: mit\n---\n"
    for name in ("vision", "text"):
        files = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        hub.add(f"towers/{name}", files | {"README.md": card})
    return folder


FROM_HUB = ["--vision_tower", "towers/vision", "--text_model", "towers/text"]


@pytest.fixture(scope="module")
def composed(hub, towers):
    """A model trained over towers from the Hub, which stayed frozen."""
    make_table(towers)
    argv = ["train", "--train_file", "t.csv", "--validation_file", "t.csv", "--max_steps", "2", "--output_dir", "out"]
    argv += ["--save_strategy", "no", "--report_to", "none", "--use_cpu", "--max_new_tokens", "2"]
    done = python(hub, towers, "-m", "modeling_mm.cli", *argv, *FROM_HUB, "--learning_rate", "1e-1")
    assert done.returncode == 0, done.stderr[-3000:]
    return towers


def weight_bytes(files):
    return sum(size for path, size in files.items() if path.endswith(".safetensors"))


@pytest.mark.slow
def test_fusion_only_holds_what_was_trained_and_loads_to_equal_logits(hub, composed):
    config = json.loads((composed / "out" / "config.json").read_text())
    sources = config["tower_sources"]
    assert {part: own["id"] for part, own in sources.items()} == {
        "vision_tower": "towers/vision",
        "text_model": "towers/text",
    }
    assert sources["text_model"]["revision"] == hub.repositories["model", "towers/text"].at().oid
    card = (composed / "out" / "README.md").read_text()
    assert "| mit | frozen |" in card and ModelCard(card).data.base_model == ["towers/vision", "towers/text"]
    argv = ["--model", composed / "out", "--repo_id", "alice/fusion", "--fusion_only"]
    result = push(hub, composed, *argv)  # proves it before and after, without the package, towers fetched
    assert isinstance(result, dict) and result["pushed"], result
    assert push(hub, composed, *argv)["revision"] == result["revision"]
    files, card, _ = check_repository(hub, "alice/fusion", result["revision"])
    check_card_runs(hub, composed, card)
    model = load_file(composed / "out" / "model.safetensors")
    trained = sum(value.nbytes for name, value in model.items() if ".fusion." in name)
    pushed = weight_bytes({path: len(content.data) for path, content in files.items()})
    assert trained < pushed <= 1.1 * trained
    assert pushed < weight_bytes(files_of(composed / "out")) / 2
    # the package loads it too, and what it saves again is whole
    done = python(hub, composed, "-c", SAVE_AGAIN, "alice/fusion", result["revision"])
    assert done.returncode == 0, done.stderr[-3000:]
    again = load_file(composed / "again" / "model.safetensors")
    assert again.keys() == model.keys() and all(torch.equal(value, again[name]) for name, value in model.items())
    # its tower's revision is gone
    tower = hub.repositories["model", "towers/text"]
    commits, branches = dict(tower.commits), dict(tower.branches)
    tower.commit("main", {"README.md": tower.at().files["README.md"]}, "all anew")
    del tower.commits[sources["text_model"]["revision"]]
    told = python(hub, composed, "-c", SAVE_AGAIN, "alice/fusion", result["revision"])
    tower.commits, tower.branches = commits, branches
    last = told.stderr.strip().splitlines()[-1]
    where = f"'towers/text' at revision {sources['text_model']['revision']}"
    assert f"the text_model of this model comes from {where}, which could not be fetched: " in last


SAVE_AGAIN = """
import shutil, sys
from huggingface_hub import constants
from modeling_mm.checkpoint import load_checkpoint
shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
model, _ = load_checkpoint(sys.argv[1], revision=sys.argv[2])
assert model.config.fetched_towers is None and model.config.tower_sources
model.save_pretrained("again")
"""


@pytest.mark.slow
def test_fusion_only_is_refused_where_there_is_nothing_to_leave_out(hub, tmp_path):
    make_model(tmp_path / "model")
    argv = ["--model", tmp_path / "model", "--repo_id", "alice/x", "--fusion_only", "--dry_run"]
    assert "the config of this model names none" in push(hub, tmp_path, *argv)


EVERY_KIND = """
import json, torch
from pathlib import Path
from modeling_mm import MMForConditionalGeneration, MMForImageTextRetrieval, MMForSequenceClassification, MMModel
from modeling_mm.hub.repository import save_fusion_only

said = {}
for name, head, text, audio, options in [
    ("whole clip, tied head", MMForConditionalGeneration, "towers/tied", "towers/whisper", {}),
    ("encoder", MMForSequenceClassification, "towers/bert", None, {"num_labels": 3}),
    ("retrieval that writes", MMForImageTextRetrieval, "towers/text", None, {"language_weight": 1.0}),
    ("half precision", MMForConditionalGeneration, "towers/text", None, {"dtype": torch.bfloat16}),
]:
    model = head.from_towers("towers/clip", text, audio, **options)
    save_fusion_only(model, Path(name))
    again = head.from_pretrained(name, dtype=model.dtype)
    own, other = model.state_dict(), again.state_dict()
    base = MMModel.from_pretrained(name, dtype=model.dtype).state_dict()
    parts = {"vision_tower", "text_model"} | ({"audio_tower"} if audio else set())
    said[name] = {
        "fetched": set(json.loads(Path(name, "config.json").read_text())["fetched_towers"]) == parts,
        "equal": own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own),
        "base": all(torch.equal(value, base[n]) for n, value in model.model.state_dict().items()),
        "tied": (again.get_output_embeddings() is not None
                 and again.get_output_embeddings().weight is again.get_input_embeddings().weight),
    }
print(json.dumps(said))
"""


@pytest.mark.slow
def test_fusion_only_leaves_out_towers_of_every_kind(hub, towers):
    """Half of a CLIP, the encoder of a Whisper, heads tied and not; the base model loads from the same checkpoint."""
    whisper = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    whisper |= {"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "num_mel_bins": 8}
    whisper |= {"vocab_size": 99, "max_source_positions": 20, "pad_token_id": 0, "decoder_start_token_id": 1}
    halves = {"text_config": text_config("bert").to_dict() | {"projection_dim": 16}, "projection_dim": 16}
    made = {
        "clip": AutoModel.from_config(CLIPConfig(vision_config=vision_config().to_dict(), **halves)),
        "whisper": AutoModel.from_config(AutoConfig.for_model("whisper", **whisper)),
        "tied": causal_model("llama", tie_word_embeddings=True, vocab_size=270),
        "bert": AutoModel.from_config(text_config("bert", vocab_size=270)),
    }
    tokenizer = {path.name: path.read_bytes() for path in (towers / "text").glob("token*.json")}
    for name, model in made.items():
        model.save_pretrained(towers / name)
        hub.add(f"towers/{name}", tokenizer | {path.name: path.read_bytes() for path in (towers / name).iterdir()})
    done = python(hub, towers, "-c", EVERY_KIND)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: own["tied"] for name, own in said.items()} == {name: "tied" in name for name in said}
    assert all(own["fetched"] and own["equal"] and own["base"] for own in said.values()), said
