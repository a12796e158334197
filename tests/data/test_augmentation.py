"""Augmentation changes training rows, in a way that seed and epoch determine; evaluation rows stay as they are."""

import builtins
from dataclasses import replace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from helpers.augmentation import RATE, files, listener, same  # noqa: F401
from helpers.builders import drawing, mm_model
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    ASTFeatureExtractor,
    ClapFeatureExtractor,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    SeamlessM4TFeatureExtractor,
    Siglip2ImageProcessorPil,
    TrainingArguments,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from modeling_mm import MMForSequenceClassification, MMProcessor, cli
from modeling_mm.data import augmentation
from modeling_mm.data.augmentation import (
    AUDIO,
    IMAGES,
    Augmentation,
    log_mel_frames,
    scale_frequencies,
    spec_augment,
)
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import MediaRef
from modeling_mm.data.rows import Columns, Row
from modeling_mm.model.audio_mm import read_audio
from modeling_mm.training.arguments import DataArguments
from modeling_mm.training.trainer import MMTrainer


@pytest.fixture
def rows(files):
    """Rows of a classification with one image, text and audio clip each; images and clips repeat."""
    images, clips = files
    return [Row(n + 1, [images[n % 3]], "is there a red square in it", n % 2, [clips[n % 2]]) for n in range(6)]


def audio_views(augmentation, processor, paths):
    """The tensors of a view of each clip, of one row."""
    clips = list(map(MediaRef, paths))
    rate = processor.feature_extractor.sampling_rate
    samples = {clip.key: read_audio(clip.source, rate, processor.max_seconds) for clip in clips}
    return augmentation.audio_views(processor, [clips], samples)


def everything(seed=0):
    return Augmentation(IMAGES, AUDIO, word_dropout=0.3, modality_dropout=0.2, seed=seed)


def test_a_batch_is_decided_by_seed_and_epoch_and_nothing_global(listener, rows):
    collator = MMCollator(listener, "classification", augmentation=everything())
    first = collator(rows)
    torch.manual_seed(5)
    np.random.seed(5)
    state = torch.get_rng_state()
    assert same(first, collator(rows))
    assert torch.equal(state, torch.get_rng_state())  # and the model's dropout goes on as without augmentation
    other = replace(collator, augmentation=everything(seed=1))(rows)
    collator.augmentation.epoch.fill_(1)
    assert not same(first, collator(rows)) and not same(first, other)
    assert not same(first, MMCollator(listener, "classification")(rows))
    collator.augmentation.epoch.fill_(0)
    assert same(first, collator(rows))


def test_nothing_asked_changes_nothing(listener, rows):
    plain = MMCollator(listener, "classification")(rows)
    assert same(plain, MMCollator(listener, "classification", augmentation=Augmentation())(rows))


def test_workers_that_live_on_see_each_epoch(listener, rows):
    collator = MMCollator(listener, "classification", augmentation=everything())
    options = {"batch_size": 3, "collate_fn": collator}
    alone, many = DataLoader(rows, **options), DataLoader(rows, num_workers=2, persistent_workers=True, **options)
    seen = []
    for epoch in range(2):
        collator.augmentation.epoch.fill_(epoch)
        seen.append(list(alone))
        assert all(same(*pair) for pair in zip(seen[-1], many, strict=True))
    assert not same(seen[0][0], seen[1][0])


def trainer_for(processor, folder, files, **options):
    """A trainer, with augmentation, of a tiny classifier on twelve rows, three steps per epoch."""
    images, _ = files
    labels = ["no", "yes"]
    cells = {
        "image": [images[n % 3] for n in range(12)],
        "text": ["is there a red square"] * 12,
        "label": [labels[n % 2] for n in range(12)],
    }
    dataset = MMDataset("rows", datasets.Dataset.from_dict(cells), folder, Columns(target="label"), labels)
    torch.manual_seed(0)
    model = mm_model("bert", head=MMForSequenceClassification, image_token_id=processor.image_token_id)
    model.resize_token_embeddings(len(processor.tokenizer))
    changes = Augmentation(["crop", "color"], word_dropout=0.3, modality_dropout=0.3)
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, per_device_train_batch_size=4,
        num_train_epochs=2, save_steps=4, **options,
    )  # fmt: skip
    collator = MMCollator(processor, "classification", augmentation=changes)
    return MMTrainer(model=model, args=args, data_collator=collator, train_dataset=dataset, eval_dataset=dataset)


def test_an_interrupted_training_sees_what_an_uninterrupted_one_sees(processor, tmp_path, files):
    whole = trainer_for(processor, tmp_path, files)
    whole.train()
    assert whole.data_collator.augmentation.epoch == 1
    resumed = trainer_for(processor, tmp_path, files)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # within the second epoch
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def test_evaluation_and_prediction_see_rows_as_they_are(processor, tmp_path, files):
    trainer = trainer_for(processor, tmp_path, files, per_device_eval_batch_size=4)
    plain = MMCollator(processor, "classification")
    rows = [trainer.eval_dataset[i] for i in range(4)]
    for loader in (trainer.get_eval_dataloader(), trainer.get_test_dataloader(trainer.eval_dataset)):
        assert same(plain(rows), dict(next(iter(loader))))
    assert not same(plain(rows), dict(trainer.data_collator(rows)))


@pytest.mark.parametrize("names", [[name] for name in IMAGES] + [list(IMAGES)], ids="+".join)
@pytest.mark.parametrize("size", [(8, 8), (31, 17), (40, 64)])
def test_pictures_keep_their_size_and_their_range(names, size):
    random = np.random.default_rng(0)
    bytes_ = {str(n): random.integers(60, 200, (size[1], size[0], 3), dtype=np.uint8) for n in range(4)}
    images = {key: Image.fromarray(value) for key, value in bytes_.items()}
    images["black"], images["white"] = (Image.new("RGB", size, color) for color in ((0, 0, 0), (255, 255, 255)))
    views = Augmentation(names).image_views(images)
    assert list(views) == list(images)
    assert all(view.size == size and view.mode == "RGB" for view in views.values())
    assert any(np.asarray(views[key]).tolist() != np.asarray(images[key]).tolist() for key in bytes_)
    assert not np.asarray(views["black"]).any()
    if "color" not in names:
        assert all(59 <= np.asarray(views[key]).min() <= np.asarray(views[key]).max() <= 200 for key in bytes_)
        assert (np.asarray(views["white"]) >= 254).all()


def test_a_flip_is_the_mirror_picture_or_none():
    ramp = Image.fromarray(np.tile(np.arange(20, dtype=np.uint8)[None, :, None], (20, 1, 3)))
    views = Augmentation(["flip"]).image_views({str(n): ramp for n in range(12)})
    mirrored = [np.asarray(view)[0, 0, 0] == 19 for view in views.values()]
    assert {True, False} == set(mirrored)
    for view, turned in zip(views.values(), mirrored, strict=True):
        assert (np.asarray(view)[:, :: -1 if turned else 1] == np.asarray(ramp)).all()


@pytest.mark.parametrize("size", [(200, 50), (50, 200)])
def test_a_crop_keeps_most_of_the_picture_and_its_proportions(size):
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([across, down, across], axis=-1).astype(np.uint8))
    for view in Augmentation(["crop"]).image_views({str(n): image for n in range(10)}).values():
        pixels = np.asarray(view).astype(float)
        wide, high = np.ptp(pixels[..., 0]) / 255, np.ptp(pixels[..., 1]) / 255
        assert 0.65 < wide * high <= 1 and 0.8 < wide / high < 1.25


def test_a_very_large_picture_is_shrunk_in_proportion():
    (view,) = Augmentation(["flip"]).image_views({"large": drawing((9, 9, 9), 1024).resize((2048, 1024))}).values()
    assert view.size == (1024, 512)


@pytest.mark.parametrize(
    ("prepares", "side", "side_of_crops"),
    [
        (ViTImageProcessorPil(size={"height": 32, "width": 48}), 48, 58),
        (ViTImageProcessorPil(size={"height": 32, "width": 32}, do_resize=False), 512, 512),
        (CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=32), 40, 48),
        (ConvNextImageProcessorPil(size={"shortest_edge": 56}), 64, 77),
        (ViTImageProcessorPil(size={"height": 1000, "width": 1000}), 512, 512),
        (Siglip2ImageProcessorPil(), 512, 512),
    ],
)
def test_a_picture_is_changed_no_larger_than_its_tower_sees_it(prepares, side, side_of_crops):
    large = {"large": drawing((9, 9, 9), 1024).resize((2048, 1024))}
    for names, expected in ((["rotate"], side), (["rotate", "crop"], side_of_crops)):
        (view,) = Augmentation(names).image_views(large, prepares).values()
        assert view.size == (2 * expected, expected)
        small = {"small": drawing((9, 9, 9), 20)}
        assert Augmentation(names).image_views(small, prepares)["small"].size == (20, 20)


def test_a_distinct_picture_and_a_distinct_sound_have_one_view_in_a_batch(listener, rows):
    plain = MMCollator(listener, "classification")(rows)
    changed = {"pixel_values": torch.zeros(3, dtype=torch.bool), "input_features": torch.zeros(2, dtype=torch.bool)}
    for seed in range(4):  # a crop may be the whole image, but hardly ever four times
        augmentation = Augmentation(["crop"], ["noise", "specaugment"], seed=seed)
        batch = MMCollator(listener, "classification", augmentation=augmentation)(rows)
        for name in ("image_index", "audio_index", "input_ids"):
            assert torch.equal(plain[name], batch[name])
        for name, seen in changed.items():
            assert plain[name].shape == batch[name].shape
            seen |= (plain[name] != batch[name]).flatten(1).any(dim=1)
    assert all(seen.all() for seen in changed.values())


def test_noise_is_as_loud_as_said_and_silence_stays_silent(listener, files):
    _, clips = files
    clip = read_audio(clips[0], RATE)
    loud = []
    for seed in range(20):
        view = Augmentation(audio=["noise"]).waveform(clip, listener, np.random.default_rng(seed))
        assert view.dtype == np.float32 and view.shape == clip.shape and np.abs(view).max() <= 1
        loud.append(10 * np.log10(np.mean(clip**2) / np.mean((view - clip) ** 2)))
    assert 9.5 < min(loud) and max(loud) < 30.5 and np.ptp(loud) > 5
    silent = np.zeros(100, np.float32)
    assert not Augmentation(audio=["noise"]).waveform(silent, listener, np.random.default_rng(0)).any()


def test_speed_changes_length_and_pitch_alike(listener):
    clip = np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE).astype(np.float32)
    listener.max_seconds, lengths = 1.0, []
    for seed in range(10):
        view = Augmentation(audio=["speed"]).waveform(clip, listener, np.random.default_rng(seed))
        pitch = np.abs(np.fft.rfft(view * np.hanning(len(view)))).argmax() * RATE / len(view)
        assert view.dtype == np.float32 and abs(pitch * len(view) / len(clip) - 440) < 5
        lengths.append(len(view) / len(clip))
    assert 1 / 1.15 <= min(lengths) < 0.95 and 1.05 < max(lengths) <= 1.15
    listener.max_seconds = 0.5
    views = [Augmentation(audio=["speed"]).waveform(clip, listener, np.random.default_rng(s)) for s in range(10)]
    assert max(map(len, views)) == len(clip)


def test_a_shift_puts_silence_in_front_and_stays_in_bounds(listener, files):
    _, clips = files
    clip = read_audio(clips[0], RATE)
    for seed in range(5):
        view = Augmentation(audio=["shift"]).waveform(clip, listener, np.random.default_rng(seed))
        silence = len(view) - len(clip)
        assert 0 < silence <= 0.1 * RATE and not view[:silence].any() and (view[silence:] == clip).all()
    listener.max_seconds = 0.5
    view = Augmentation(audio=["shift"]).waveform(clip, listener, np.random.default_rng(0))
    assert len(view) == len(clip)


EXTRACTORS = {
    "whisper": (lambda: WhisperFeatureExtractor(feature_size=64, chunk_length=1), 64),
    "ast": (lambda: ASTFeatureExtractor(num_mel_bins=32, max_length=98), 32),
    "clap": (lambda: ClapFeatureExtractor(feature_size=64, sampling_rate=RATE, max_length_s=1), 64),
    "seamless": (lambda: SeamlessM4TFeatureExtractor(num_mel_bins=80), 80),
}


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_specaugment_masks_frames_and_bins_of_the_clip_only(processor, files, kind):
    make, bins = EXTRACTORS[kind]
    hearing = MMProcessor(processor.image_processor, processor.tokenizer, audio=make(), max_seconds=1.0)
    _, clips = files
    plain = hearing.flat_audio([clips])
    batch = audio_views(Augmentation(audio=["specaugment"]), hearing, clips)
    assert torch.equal(plain["audio_index"], batch["audio_index"]) and plain.keys() == batch.keys()
    before, after = (log_mel_frames(b["input_features"], hearing.feature_extractor) for b in (plain, batch))
    assert before.shape[2] == bins and after.data_ptr() == batch["input_features"].data_ptr()
    mask = plain.get("input_features_mask")
    for clip in range(2):
        changed = before[clip] != after[clip]
        assert 0 < changed.float().mean() < 0.5
        assert len(after[clip][changed].unique()) == 1  # one value, the mean
        if mask is not None:
            real = round(len(changed) * float(mask[clip].float().mean()))
            assert not changed[real:].any() and real < len(changed)
            changed = changed[:real]
        whole_bins, whole_frames = changed.all(dim=0), changed.all(dim=1)
        assert torch.equal(changed, (whole_bins[None] | whole_frames[:, None]) & changed)


@pytest.mark.parametrize("kind", ["whisper", "ast", "clap"])  # which subtracts each bin's mean, so all of a tone
@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_scaled_frequencies_are_those_of_a_higher_or_lower_tone(processor, kind, factor):
    make, _ = EXTRACTORS[kind]
    hearing = MMProcessor(processor.image_processor, processor.tokenizer, audio=make(), max_seconds=1.0)
    times = np.arange(RATE) / RATE
    for hertz in (500, 1500, 4000):
        tones = [(np.sin(2 * np.pi * tone * times).astype(np.float32), RATE) for tone in (hertz, hertz * factor)]
        features = log_mel_frames(hearing.flat_audio([tones])["input_features"], hearing.feature_extractor)
        plain = features.clone()
        scale_frequencies(features, np.array([factor, 1.0]), hearing.feature_extractor)
        higher, tone = features[:, features.shape[1] // 2].argmax(dim=-1)
        assert abs(higher - tone) <= 1
        torch.testing.assert_close(features[1], plain[1])


def test_another_voice_leaves_padding_and_loudness_alone(listener, files):
    _, clips = files
    plain = listener.flat_audio([clips])
    batch = audio_views(Augmentation(audio=["vtlp"]), listener, clips)
    before, after = plain["input_features"], batch["input_features"]
    assert (before != after).flatten(1).any(dim=1).all()
    assert after.max() <= before.max() and after.min() >= before.min()  # interpolated
    real = plain["input_features_mask"].sum(dim=1).tolist()
    for clip, length in enumerate(real):
        silence = slice(length + 2, None)  # windows of the first two frames reach into the clip
        torch.testing.assert_close(before[clip, :, silence], after[clip, :, silence])


def test_masks_are_of_two_bands_and_two_spans_at_most():
    for seed in range(40):
        frames = torch.rand(100, 64)
        before = frames.clone()
        spec_augment(frames, np.random.default_rng(seed))
        rows, columns = ((frames != before).float().mean(dim=axis) > 0.9 for axis in (1, 0))
        assert rows.sum() <= 20 and columns.sum() <= 16
        for line in (rows, columns):
            assert (torch.diff(line.int(), prepend=torch.zeros(1, dtype=torch.int)) == 1).sum() <= 2


def test_short_and_silent_clips_can_be_augmented(listener, tmp_path):
    paths = []
    for number, clip in enumerate((np.full(1, 0.1), np.zeros(RATE // 4), np.full(2 * RATE, 0.1))):
        paths.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(paths[-1], clip, RATE)
    listener.max_seconds = 1.5
    with pytest.warns(UserWarning, match="only its first"):
        batch = audio_views(Augmentation(audio=AUDIO), listener, paths)
    assert torch.isfinite(batch["input_features"]).all() and len(batch["input_features"]) == 3


BAD = {
    "names": ({"images": ["blur"]}, "--augment_images knows no 'blur'; choose from crop, rotate, flip, color"),
    "sounds": (
        {"audio": ["echo"]},
        "--augment_audio knows no 'echo'; choose from speed, noise, shift, vtlp, specaugment",
    ),
    "words": ({"word_dropout": 1.0}, "--word_dropout is 1.0; expected a probability"),
    "modalities": ({"modality_dropout": -0.1}, "--modality_dropout is -0.1; expected a probability"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


def test_without_kornia_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("kornia"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'needs kornia: pip install "modeling-mm\[augment\]"'):
        Augmentation(["crop"])
    Augmentation(audio=AUDIO, word_dropout=0.1)  # which need no more than there is


def test_sound_that_the_model_cannot_have_changed_is_told(processor):
    with pytest.raises(ValueError, match="--augment_audio needs a model with an audio tower"):
        MMCollator(processor, "classification", augmentation=Augmentation(audio=["noise"]))
    waves = MMProcessor(processor.image_processor, processor.tokenizer, audio=Wav2Vec2FeatureExtractor())
    for name in ("vtlp", "specaugment"):
        with pytest.raises(ValueError, match=f"{name} changes log-mel features, but this audio tower takes waveforms"):
            MMCollator(waves, "classification", augmentation=Augmentation(audio=["noise", name]))
    MMCollator(waves, "classification", augmentation=Augmentation(audio=["noise"]))


def command(folder, *more):
    argv = ["train", "--train_file", folder / "t.csv", "--task", "classification", "--output_dir", folder / "out"]
    for tower in ("--vision_tower", "--audio_tower", "--text_model"):
        argv += [tower, "scratch-tiny"]
    argv += ["--audio_column", "audio", "--max_seconds", 1, "--max_steps", 1, "--use_cpu", "--disable_tqdm", "true"]
    return [*map(str, argv), "--save_strategy", "no", *map(str, more)]


def test_the_command_augments_and_shows_it(files, tmp_path):
    images, clips = files
    cells = [f"{images[n % 3]},a red one,{clips[n % 2]},{'ab'[n % 2]}" for n in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["image,text,audio,label", *cells]))
    flags = ["--augment_images", "crop,color", "--augment_audio", "noise", "specaugment", "--word_dropout", 0.2]
    assert cli.main(command(tmp_path, *flags, "--modality_dropout", 0.2)) == 0
    with Image.open(tmp_path / "out" / "augmented.png") as sheet:
        assert min(sheet.size) > 400
    assert (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--augment_images", "crop,blur"], "knows no 'blur'; choose from"),
        (["--task", "matching", "--modality_dropout", "0.1"], "--task matching needs both in each row"),
    ],
)
def test_the_command_refuses_before_it_reads(tmp_path, capsys, flags, message):
    assert cli.main(command(tmp_path, *flags)) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_names_in_help_are_the_names_there_are():
    fields = DataArguments.__dataclass_fields__
    assert all(name in fields["augment_images"].metadata["help"] for name in augmentation.IMAGES)
    assert all(name in fields["augment_audio"].metadata["help"] for name in augmentation.AUDIO)
