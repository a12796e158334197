"""The feature cache: training with it equals training without; stale, broken or partial entries are not used."""

import json
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.builders import VISION, drawing, mm_model, pictures, token_row, vision_model
from helpers.feature_cache import build, picture_rows, small_parts, tiny_model, tiny_processor, tower_of
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil

from modeling_mm import cli
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.media import MediaRef
from modeling_mm.training.build import use_cached_features

COUNT, DISTINCT = 24, 23
STEPS = ["--max_steps", "6", "--logging_steps", "1", "--per_device_train_batch_size", "4", "--max_new_tokens", "2"]
QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none", "--save_strategy", "no"]
FROZEN = ["--vision_trainable", "false", "--text_model", "scratch-tiny", "--fusion_layers", "0", "1"]


@pytest.fixture
def rows(tmp_path):
    return picture_rows(tmp_path, COUNT)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Tables of images and audio, some images in two rows and some rows without one; a vision tower in a folder."""
    np = pytest.importorskip("numpy")
    soundfile = pytest.importorskip("soundfile")
    work = tmp_path_factory.mktemp("cached")
    for i in range(8):
        drawing((30 * i, 240 - 30 * i, 90), size=24).save(work / f"{i}.png")
        tone = np.sin(2 * np.pi * (200 + 90 * i) * np.arange(4000) / 16000)
        soundfile.write(work / f"{i}.wav", tone.astype(np.float32), 16000)
    texts = ["a red one", "blue", "two", "green and round", "seven", "none of it"]
    header = "image,audio,text,answer,label"
    lines = [
        f"{f'{i % 8}.png' if i % 5 else ''},{i * 3 % 8}.wav,what is {texts[i % 6]},{texts[i % 4]},{'ab'[i % 2]}"
        for i in range(20)
    ]
    (work / "t.csv").write_text("\n".join([header, *lines]) + "\n")
    (work / "v.csv").write_text("\n".join([header, *lines[1:5]]) + "\n")
    pairs = [f"{i % 8}.png,it is {texts[i % 6]} number {i}" for i in range(16)]
    (work / "pairs.csv").write_text("\n".join(["image,text", *pairs]) + "\n")
    torch.manual_seed(0)
    vision_model("clip_vision_model").save_pretrained(work / "clip")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(work / "clip")
    return work


def train(work, out, *argv):
    """The report, losses and saved weights of a run that must succeed."""
    tower = [] if "--vision_tower" in argv else ["--vision_tower", work / "clip"]
    argv = ["train", *tower, *FROZEN, *STEPS, *QUIET, *argv, "--output_dir", out]
    assert cli.main(list(map(str, argv))) == 0
    report = json.loads((out / "report.json").read_text())
    return report, load_file(out / "model.safetensors")


WAYS = {
    "generation": [],
    "generation, resampled": ["--num_latents", "4"],
    "classification, grid": ["--task", "classification", "--vision_tower", "scratch-tiny"],
    "late fusion": ["--task", "classification", "--late_fusion", "gated"],
    "sound": ["--audio_column", "audio", "--audio_tower", "scratch-tiny", "--audio_trainable", "false",
              "--max_seconds", "0.5", "--dataloader_num_workers", "2"],
    "retrieval, pooled": ["--task", "retrieval", "--image_pooling", "tower", "--rerank", "2"],
}  # fmt: skip


FAST = ("generation", "classification, grid")


@pytest.fixture
def towers_at_rest(monkeypatch):
    """Makes a tower fail if it runs beside its cache."""

    def refuse(tower, args):
        raise AssertionError("a tower ran beside its cache")

    def then_rest(trainer, *arguments):
        use_cached_features(trainer, *arguments)
        for name in ("vision_tower", "audio_tower"):
            if (tower := getattr(trainer.model.base_model, name)) is not None:
                tower.register_forward_pre_hook(refuse)

    monkeypatch.setattr("modeling_mm.commands.train.use_cached_features", then_rest)


@pytest.mark.parametrize("way", [way if way in FAST else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_trained_with_the_cache_is_trained_without_it(work, tmp_path, way, towers_at_rest):
    table = "pairs.csv" if "retrieval" in way else "t.csv"
    argv = [*WAYS[way], "--train_file", work / table]
    argv += ["--validation_file", work / ("pairs.csv" if "retrieval" in way else "v.csv")]
    plain, weights = train(work, tmp_path / "plain", *argv)
    cached, same = train(work, tmp_path / "cached", *argv, "--cache_features", tmp_path / "features")
    kinds = {path.name.split("-")[0] for path in (tmp_path / "features").iterdir()}
    assert kinds == ({"image", "audio"} if way == "sound" else {"image"})
    # the states are those of another batch: products of matrices of other sizes add up in another order
    assert cached["loss_history"] == pytest.approx(plain["loss_history"], abs=2e-5)
    assert len(set(plain["loss_history"])) == 6
    assert weights.keys() == same.keys() and any("vision_tower" in name for name in weights)
    worst = max(float((weights[name].float() - same[name].float()).abs().max()) for name in weights)
    assert worst < 1e-5
    timings = ("train_seconds", "output_dir", "loss_history")
    numbers = {name: value for name, value in plain.items() if name not in timings and isinstance(value, float)}
    assert numbers and {name: cached[name] for name in numbers} == pytest.approx(numbers, abs=2e-5)


@pytest.mark.slow
def test_two_processes_train_from_one_cache_as_they_do_without(work, tmp_path):
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    argv = ["train", "--train_file", work / "t.csv", "--validation_file", work / "v.csv", *STEPS, *QUIET, *FROZEN]
    argv = [*started, "-m", "modeling_mm.cli", *map(str, [*argv, "--vision_tower", work / "clip"])]
    flags = {"plain": [], "cached": ["--cache_features", str(tmp_path / "features")]}
    for name, flag in flags.items():
        done = subprocess.run(
            [*argv, "--output_dir", str(tmp_path / name), *flag], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
    keys = [key for path in shards(tmp_path, "features") for key in load_keys(path)]
    assert len(keys) == len(set(keys)) == 8  # each image was computed by one of the two
    plain, cached = (load_file(tmp_path / name / "model.safetensors") for name in flags)
    assert max(float((plain[name].float() - cached[name].float()).abs().max()) for name in plain) < 1e-5


@pytest.mark.parametrize("vision", VISION)
def test_states_in_place_of_pictures_give_the_same_output(vision):
    model, pixels = mm_model(vision=vision), pictures(3, vision)
    ids, index = torch.stack([token_row(7, [1]) for _ in range(3)]), torch.tensor([[1], [0], [2]])
    with torch.no_grad():
        states = model.get_image_features(**pixels).pooler_output
        expected = model(input_ids=ids, image_index=index, **pixels).logits
        masks = {name: value for name, value in pixels.items() if name == "pixel_attention_mask"}
        assert torch.equal(model(input_ids=ids, image_index=index, image_states=states, **masks).logits, expected)
        one_each = model(input_ids=ids, image_states=states[index[:, 0]], **masks).logits
        assert masks or torch.equal(one_each, expected)
    generated = model.generate(ids, image_index=index, image_states=states, **masks, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, model.generate(ids, image_index=index, **pixels, max_new_tokens=3, do_sample=False))


def test_states_beside_pictures_or_of_another_width_are_refused():
    model, ids = mm_model(), token_row(5)[None]
    with pytest.raises(ValueError, match="`image_states` came together with raw media"):
        model(input_ids=ids, **pictures(1), image_states=torch.zeros(1, 5, 24))
    with pytest.raises(ValueError, match=r"`image_states` has shape \(1, 5, 7\); expected \(I, P, 24\)"):
        model(input_ids=ids, image_states=torch.zeros(1, 5, 7))


@pytest.mark.parametrize("vision", ["clip_vision_model", "resnet", "siglip2_vision_model"])
def test_entries_are_what_the_tower_gives_and_the_same_content_is_computed_once(rows, tmp_path, vision):
    model, processor = tiny_model(vision), tiny_processor()
    if vision == "siglip2_vision_model":
        processor.image_processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=9)
    tower = tower_of(model, processor)
    cached = build(tower, rows, tmp_path / "cache")
    assert tower.count == DISTINCT
    media = [[rows.row(i).images[0]] for i in (3, 0, 3, 1)]
    batch = pickle.loads(pickle.dumps(cached)).batch(media)
    assert batch["image_index"].tolist() == [[0], [1], [0], [2]]  # two files are two images, whatever they hold
    pixels = MMCollator(processor, "generation").flat_images([rows.row(i) for i in (3, 0, 3, 1)])
    assert torch.equal(batch["image_index"], pixels.pop("image_index"))
    torch.testing.assert_close(batch["image_states"], model.get_image_features(**pixels).pooler_output)
    mask = {name: pixels[name] for name in pixels if name == "pixel_attention_mask"}
    assert batch.keys() == {"image_states", "image_index", *mask}
    assert all(torch.equal(batch[name], value) for name, value in mask.items())
    with pytest.raises(ValueError, match=r"'other.png' is not in the cache"):
        cached.batch([[MediaRef("other.png")]])


def test_bfloat16_takes_half_and_rounds(rows, tmp_path):
    model, processor = tiny_model(), tiny_processor()
    exact, half = (
        build(tower_of(model, processor, dtype=dtype), rows, tmp_path / "cache")
        for dtype in (torch.float32, torch.bfloat16)
    )
    media = [[rows.row(i).images[0]] for i in range(4)]
    assert torch.equal(half.batch(media)["image_states"], exact.batch(media)["image_states"].bfloat16())


def stale(what, model, processor):
    with torch.no_grad():
        if what == "weights":
            next(model.base_model.vision_tower.parameters()).add_(1e-3)
        if what == "tower":
            model.base_model.vision_tower.config.layer_norm_eps *= 10
    return model, tiny_processor(image_mean=[0.4] * 3) if what == "settings" else processor


@pytest.mark.parametrize("what", ["nothing", "weights", "tower", "settings"])
def test_a_stale_cache_is_not_used(rows, tmp_path, what):
    model, processor = tiny_model(), tiny_processor()
    build(tower_of(model, processor), rows, tmp_path / "cache")
    model, processor = stale(what, model, processor)
    again = tower_of(model, processor)
    cached = build(again, rows, tmp_path / "cache")
    assert again.count == (0 if what == "nothing" else DISTINCT)
    row = rows.row(5)
    pixels = MMCollator(processor, "generation").flat_images([row])["pixel_values"]
    expected = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(cached.batch([row.images])["image_states"], expected)


def test_a_file_with_another_content_is_another_picture(rows, tmp_path):
    build(tower_of(tiny_model(), tiny_processor()), rows, tmp_path / "cache")
    drawing((1, 2, 3)).save(tmp_path / "5.png")
    again = tower_of(tiny_model(), tiny_processor())
    build(again, rows, tmp_path / "cache")
    assert again.count == 1


def start(tmp_path, log, seconds):
    argv = ["-m", "helpers.feature_cache", tmp_path, tmp_path / "cache", tmp_path / log, seconds]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, argv)], cwd=Path(__file__).parents[1], **pipes)


def shards(tmp_path, name="cache"):
    return sorted((tmp_path / name).glob("*/*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_nothing_is_computed_again(rows, tmp_path, how, monkeypatch):
    small_parts(monkeypatch)
    process = start(tmp_path, "log", 0.3)
    until = time.monotonic() + 120
    while len(shards(tmp_path)) < 3:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    process.wait(30)
    there = [key for path in shards(tmp_path) for key in load_keys(path)]
    assert 3 <= len(there) < DISTINCT and len(set(there)) == len(there)
    again = tower_of(tiny_model(), tiny_processor())
    cached = build(again, rows, tmp_path / "cache")
    assert again.count == DISTINCT - len(there)
    assert not list((tmp_path / "cache").glob("*/*.part"))
    fresh = build(tower_of(tiny_model(), tiny_processor()), rows, tmp_path / "fresh")
    media = [rows.row(i).images for i in range(COUNT)]
    torch.testing.assert_close(cached.batch(media)["image_states"], fresh.batch(media)["image_states"])


def load_keys(path):
    with safe_open(path, "pt") as shard:
        return shard.metadata()["keys"].split()


@pytest.mark.slow
def test_two_processes_fill_a_cache_together_and_make_nothing_twice(rows, tmp_path):
    processes = [start(tmp_path, f"log{n}", 0.3) for n in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    counts = [int(out) for out, _ in outputs]
    assert sum(counts) == DISTINCT and min(counts) > 0
    there = [key for path in shards(tmp_path) for key in load_keys(path)]
    assert len(there) == len(set(there)) == DISTINCT


def test_a_part_left_over_is_removed_and_a_broken_shard_is_not_used(rows, tmp_path, monkeypatch, caplog):
    small_parts(monkeypatch)
    build(tower_of(tiny_model(), tiny_processor()), rows, tmp_path / "cache")
    broken = shards(tmp_path)[0]
    lost = len(load_keys(broken))
    broken.write_bytes(broken.read_bytes()[:-8])
    left = broken.with_name(f"{broken.name}.1.part")
    left.write_bytes(b"half")
    again = tower_of(tiny_model(), tiny_processor())
    build(again, rows, tmp_path / "cache")
    assert again.count == lost and not left.exists()
    assert f"'{broken}' is broken" in caplog.text


def test_a_full_disk_is_one_sentence_and_what_is_there_is_whole(rows, tmp_path, monkeypatch):
    small_parts(monkeypatch)
    model, processor = tiny_model(), tiny_processor()
    tower = tower_of(model, processor)
    (size,) = {tower.check([tower.prepare(rows.row(0).images[0])] * 2)}
    build(tower, rows.subset(list(range(5))), tmp_path / "cache", batch_size=1)
    there = shards(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # the kernel breaks off in the middle of a shard
    try:
        with pytest.raises(ValueError, match=r"the disk of '.*' is full; 4 entries are there, whole"):
            build(tower_of(model, processor), rows, tmp_path / "cache", batch_size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert shards(tmp_path) == there and not list((tmp_path / "cache").glob("*/*.part"))
    again = tower_of(model, processor)
    build(again, rows, tmp_path / "cache")
    assert again.count == DISTINCT - 4


def test_what_will_not_fit_is_refused_before_it_is_computed(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    tower = tower_of(tiny_model(), tiny_processor())
    with pytest.raises(ValueError, match=r"of 23 images takes 11 kB in .* 5 kB are free; .* --cache_dtype bfloat16"):
        build(tower, rows, tmp_path / "cache")
    assert tower.count == 0


def test_a_tower_that_never_says_the_same_twice_is_refused(rows, tmp_path):
    model = tiny_model()

    def noisy(tower, args, output):
        output.last_hidden_state = output.last_hidden_state + torch.rand_like(output.last_hidden_state)

    model.base_model.vision_tower.register_forward_hook(noisy)
    with pytest.raises(ValueError, match="'clip_vision_model' gives other states for the same medium"):
        build(tower_of(model, tiny_processor()), rows, tmp_path / "cache")


def test_pictures_prepared_in_several_sizes_are_refused(rows, tmp_path):
    drawing((1, 2, 3)).resize((32, 20)).save(tmp_path / "5.png")
    processor = tiny_processor(do_resize=False, do_center_crop=False)
    with pytest.raises(ValueError, match=r"prepared in one size.*\(1, 3, 20, 20\).*\(1, 3, 20, 32\)"):
        build(tower_of(tiny_model("resnet"), processor), rows, tmp_path / "cache")


REFUSED = {
    "trains": (["--vision_trainable", "true"], "nothing to cache: the vision tower trains"),
    "LoRA": (
        ["--use_peft", "true", "--lora_parts", "vision,text"],
        "nothing to cache: the vision tower trains .--vision_trainable, or LoRA in it.",
    ),
    "augmented": (["--augment_images", "crop"], "one view of the images, but --augment_images draws others"),
    "no media": (["--image_column", ""], "nothing to cache: the rows have no media"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_kept_is_refused_in_one_sentence(work, tmp_path, capsys, why):
    flags, reason = REFUSED[why]
    argv = ["train", "--train_file", work / "t.csv", "--vision_tower", work / "clip", *FROZEN, *STEPS, *QUIET]
    argv += [*flags, "--output_dir", tmp_path / "out", "--cache_features", tmp_path / "features"]
    assert cli.main(list(map(str, argv))) == 2
    assert re.search(reason, capsys.readouterr().err.strip().splitlines()[-1])
    assert not (tmp_path / "features").exists()
