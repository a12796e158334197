"""The commands end to end on small data: train, evaluate, predict, resume, LoRA."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.builders import causal_model  # noqa: F401
from helpers.digits import write_digits
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil, pipeline

from modeling_mm import cli
from modeling_mm.checkpoint import last_checkpoint, load_checkpoint
from modeling_mm.training.trainer import MMTrainer

TINY = ["--vision_tower", "scratch-tiny", "--text_model", "scratch-tiny", "--fusion_layers", "0", "1"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for header, kind in ((("image", "text", "label"), "label"), (("image", "text", "answer"), "answer")):
        write_digits(folder, f"train_{kind}.csv", 0, 320, header)
        write_digits(folder, f"test_{kind}.csv", 320, 60, header)
    return folder


def run(capsys, *argv):
    """Run a verb that must succeed; returns the JSON of its last line."""
    assert cli.main(list(map(str, argv))) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("task, kind", [("classification", "label"), ("generation", "answer")])
def test_a_csv_becomes_a_model_that_evaluates_and_predicts(digits, tmp_path, capsys, task, kind):
    out = tmp_path / "out"
    report = run(
        capsys, "train", "--task", task, "--train_file", digits / f"train_{kind}.csv", *TINY, *QUIET,
        "--test_file", digits / f"test_{kind}.csv", "--output_dir", out, "--num_train_epochs", 12,
        "--per_device_train_batch_size", 32, "--learning_rate", "2e-3", "--max_new_tokens", 4,
    )  # fmt: skip
    assert report["accuracy"] > 0.5 > report["blind_accuracy"]
    assert report["evaluated_on"] == "test" and report["evaluated_rows"] == 60
    for name in ("curves.png", "samples.png"):
        Image.open(out / name).verify()
    assert json.loads((out / "report.json").read_text())["accuracy"] == report["accuracy"]
    card = (out / "README.md").read_text()
    assert "pipeline_tag" in card and "\n## Intended use and limits\n" in card  # the Space displays that section

    again = run(capsys, "evaluate", "--model", out, "--test_file", digits / f"test_{kind}.csv", "--device", "cpu")
    assert again["accuracy"] == report["accuracy"]
    rows = [json.loads(line) for line in (out / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    assert sum(row["correct"] for row in rows) / 60 == pytest.approx(again["accuracy"])
    Image.open(out / "evaluation" / "report.png").verify()

    look = tmp_path / "look.png"
    prediction = run(
        capsys, "predict", "--model", out, "--image", digits / "digit320.png", "--text", "which digit is this?",
        "--explain", look,
    )  # fmt: skip
    result = prediction["results"][0]
    assert result["label" if task == "classification" else "answer"] == rows[0]["prediction"]
    Image.open(look).verify()


def test_convolutions_train_in_channels_last_and_are_saved_as_ever(digits, tmp_path, capsys, monkeypatch):
    out, train, trained = tmp_path / "out", MMTrainer.train, []

    def spy(trainer, *args, **kwargs):
        result = train(trainer, *args, **kwargs)
        trained.append(trainer.model)
        return result

    monkeypatch.setattr(MMTrainer, "train", spy)
    run(capsys, "train", "--train_file", digits / "train_label.csv", *TINY, *QUIET, "--output_dir", out,
        "--max_steps", 2)  # fmt: skip
    weights = {name: p for name, p in trained[0].named_parameters() if p.dim() == 4 and p.shape[-1] > 1}
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights.values())
    saved = load_checkpoint(out)[0].state_dict()
    assert all(saved[name].is_contiguous() and saved[name].equal(p) for name, p in weights.items())


def test_generation_folder_answers_through_the_pipeline(digits, tmp_path, capsys):
    out = tmp_path / "out"
    run(
        capsys, "train", "--train_file", digits / "train_answer.csv", *TINY, *QUIET, "--output_dir", out,
        "--max_steps", 2,
    )  # fmt: skip
    turn = [{"type": "image", "url": str(digits / "digit0.png")}, {"type": "text", "text": "which digit is this?"}]
    ask = pipeline("image-text-to-text", model=str(out))
    chats = ask(text=[{"role": "user", "content": turn}], max_new_tokens=4)
    assert chats[0]["generated_text"][-1]["role"] == "assistant"
    model, processor = load_checkpoint(str(out))
    from modeling_mm.data.collator import MMCollator
    from modeling_mm.data.rows import Row

    batch = MMCollator(processor, "generation")([Row(1, [str(digits / "digit0.png")], "which digit is this?")])
    tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)
    text = processor.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert chats[0]["generated_text"][-1]["content"] == text


def test_bad_rows_are_skipped_listed_and_counted(digits, tmp_path, capsys):
    path = digits / "some_bad.csv"
    lines = (digits / "train_answer.csv").read_text().splitlines()[:30]
    path.write_text("\n".join([*lines, "nowhere.png,which?,one", "digit3.png,which?,"]) + "\n")
    report = run(
        capsys, "train", "--train_file", path, *TINY, *QUIET, "--output_dir", tmp_path / "o", "--max_steps", 1,
        "--on_bad_row", "skip",
    )  # fmt: skip
    listed = [json.loads(line) for line in (tmp_path / "o" / "bad_rows.jsonl").read_text().splitlines()]
    assert report["skipped_rows"] == 2 and [bad["row"] for bad in listed] == [30, 31]
    assert "does not exist" in listed[0]["reason"] and "'answer' is empty" in listed[1]["reason"]


def resumable(digits, out, *extra):
    argv = [
        sys.executable, "-m", "modeling_mm.cli", "train", "--train_file", str(digits / "train_answer.csv"), *TINY,
        "--output_dir", str(out), "--use_cpu", "--max_steps", "40", "--save_steps", "8", "--logging_steps", "8",
        "--per_device_train_batch_size", "24", "--group_by_image", "true", "--disable_tqdm", "true", *extra,
    ]  # fmt: skip
    return subprocess.Popen(
        argv, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_and_resumed_is_never_interrupted(digits, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = resumable(digits, whole)
    assert process.wait() == 0, process.stderr.read()
    process = resumable(digits, killed)
    while not (killed / "checkpoint-16" / "trainer_state.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    # a partly written checkpoint is skipped
    (killed / "checkpoint-999").mkdir()
    (killed / "checkpoint-999" / "trainer_state.json").write_text("{")
    assert last_checkpoint(str(killed)) in (str(killed / "checkpoint-16"), str(killed / "checkpoint-24"))
    process = resumable(digits, killed, "--resume_from_checkpoint", "last")
    assert process.wait() == 0, process.stderr.read()
    first, second = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def towers(tmp_path, tokenizer_folder):
    """Folders with a decoder and a CLIP tower, as if pretrained."""
    from helpers.builders import vision_model
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    text, vision = tmp_path / "text", tmp_path / "vision"
    causal_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(text)
    tokenizer.save_pretrained(text)
    vision_model("clip_vision_model").save_pretrained(vision)
    side = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=side, do_center_crop=False).save_pretrained(vision)
    return ["--vision_tower", str(vision), "--text_model", str(text)]


def test_lora_falls_reloads_and_merges(digits, towers, tmp_path, capsys):
    from peft import PeftModel

    out = tmp_path / "out"
    run(
        capsys, "train", "--train_file", digits / "train_answer.csv", *towers, *QUIET, "--output_dir", out,
        "--use_peft", "true", "--gradient_checkpointing", "true", "--max_steps", 60, "--logging_steps", 10,
        "--learning_rate", "2e-2", "--per_device_train_batch_size", 16,
    )  # fmt: skip
    history = json.loads((out / "report.json").read_text())["loss_history"]
    assert history[-1] < 0.8 * history[0]
    names = load_file(out / "adapter_model.safetensors").keys()
    assert any(".text_model." in n and "lora_A" in n for n in names) and any(".fusion." in n for n in names)
    assert not any(".vision_tower." in n for n in names)
    assert not any(".fusion." in n and "lora" in n for n in names)

    base, processor = load_checkpoint(str(out / "base"))
    adapted = PeftModel.from_pretrained(base, out).eval()
    image = Image.open(digits / "digit0.png").convert("RGB")
    batch = processor(images=image, text="<image>which digit is this?", return_tensors="pt")
    with torch.no_grad():
        logits = adapted(**batch).logits
        again = PeftModel.from_pretrained(load_checkpoint(str(out / "base"))[0], out).eval()(**batch).logits
        merged = load_checkpoint(str(out))[0](**batch).logits
        plain = load_checkpoint(str(out / "base"))[0](**batch).logits
        through_auto = AutoModelForImageTextToText.from_pretrained(out).eval()(**batch).logits
    assert torch.equal(logits, again) and torch.equal(logits, through_auto)
    assert (merged - logits).abs().max() <= 1e-5
    assert (plain - logits).abs().max() > 1e-2
    trained = run(
        capsys, "predict", "--model", out, "--image", digits / "digit0.png", "--text", "which digit is this?"
    )  # fmt: skip
    assert set(trained["results"][0]) == {"text", "answer"}


def test_frozen_parts_do_not_move(digits, towers, tmp_path, capsys):
    out = tmp_path / "out"
    run(
        capsys, "train", "--train_file", digits / "train_answer.csv", *towers, *QUIET, "--output_dir", out,
        "--max_steps", 3, "--learning_rate", "1e-2",
    )  # fmt: skip
    trained = AutoModelForImageTextToText.from_pretrained(out).state_dict()
    text, vision = load_file(towers[3] + "/model.safetensors"), load_file(towers[1] + "/model.safetensors")
    tower = {n.rpartition("vision_tower.")[2]: v for n, v in trained.items() if "vision_tower." in n}
    assert vision and all(torch.equal(tower[n], v) for n, v in vision.items())
    queries = [n for n in text if n.endswith("q_proj.weight")]
    assert queries and all(
        torch.equal(trained[f"model.text_model.{n.removeprefix('model.')}"], text[n]) for n in queries
    )
    assert any(v.abs().max() > 0 for n, v in trained.items() if n.endswith("cross_attn_gate"))
