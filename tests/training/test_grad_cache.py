# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""GradCache with audio, batch norms, and several processes that lack modalities."""

import pytest
import torch
from helpers.retrieval import EARS, collate, naive, pairs_of_rows, processes, retriever, trained
from transformers import AutoConfig

from modeling_mm.model.losses_mm import text_keys


def collate_with_audio(rows):
    """Extends `collate`: each distinct audio clip once, for the rows that have one."""
    batch = collate(rows)
    keys = list(dict.fromkeys(row["sound_key"] for row in rows if "sound" in row))
    if keys:
        clips = [next(row["sound"] for row in rows if row.get("sound_key") == key) for key in keys]
        index = [[keys.index(row["sound_key"]) if "sound" in row else -1] for row in rows]
        batch |= {"input_features": torch.stack(clips), "audio_index": torch.tensor(index)}
        batch["audio_keys"] = torch.tensor(keys)
    return batch


def collate_only_audio(rows):
    """The batch of `collate_with_audio` without images."""
    return {
        name: value for name, value in collate_with_audio(rows).items() if "image" not in name and "pixel" not in name
    }


def without_keys(collator):
    """A collator whose batches lack the keys of equal media and texts."""
    return lambda rows: {name: value for name, value in collator(rows).items() if not name.endswith("_keys")}


def audio_rows(which=range(8)):
    """Rows of which those in `which` have an audio clip; the first and the third have the same one."""
    clips = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(2))
    keys = [0, 1, 0, 3, 4, 5, 6, 7]
    rows = pairs_of_rows()
    return [
        {**row, "sound": clips[keys[i]], "sound_key": keys[i]} if i in which else row for i, row in enumerate(rows)
    ]


def different_rows():
    """Rows with a different image each."""
    return [{**row, "key": place} for place, row in enumerate(pairs_of_rows())]


def audio_fields():
    return {"audio_config": AutoConfig.for_model("whisper", **EARS), "audio_token_id": 97}


def furthest(first, second):
    """The largest difference between two steps."""
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


@pytest.mark.parametrize("which", [range(8), (0, 2, 5), (4,)], ids=str)
@pytest.mark.parametrize("collator", [collate_with_audio, collate_only_audio])
def test_cached_gradients_with_sound_are_those_of_the_large_batch(tmp_path, collator, which):
    if collator is collate_only_audio and len(which) < 8:
        which = (0, 1, 2, 3, 4, 5, 6)  # one row without both; every small batch has audio
    options = {"rows": audio_rows(which), "collator": collator, **audio_fields()}
    large, loss = trained(tmp_path, 8, **options)
    for size in (2, 4):
        cached, other = trained(tmp_path, size, 8, **options)
        assert other == pytest.approx(loss, rel=1e-5) and furthest(large, cached) < 1e-5
    assert large["audio_projection.weight"].abs().max() > 1e-4


def test_cached_gradients_need_no_keys_where_all_media_differ(tmp_path):
    options = {"rows": different_rows(), "collator": without_keys(collate)}
    large, loss = trained(tmp_path, 8, **options)
    cached, other = trained(tmp_path, 2, 8, **options)
    assert other == pytest.approx(loss, rel=1e-5) and furthest(large, cached) < 1e-5


def test_each_small_batch_has_its_own_batch_norm_and_is_counted_once(tmp_path):
    """The reference keeps the graphs of all small batches, which GradCache avoids."""
    batches = []
    options = {"rows": different_rows(), "vision": "resnet"}
    moved, loss = trained(
        tmp_path, 2, 8, collator=lambda rows: batches.append(collate(rows)) or batches[-1], **options
    )
    torch.manual_seed(0)
    model = retriever("bert", matching_weight=0.0, vision="resnet").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = [model(**{**batch, "return_loss": False}) for batch in batches]
    texts, media = (torch.cat([output[name] for output in outputs]) for name in ("text_embeds", "image_embeds"))
    keys = torch.cat([text_keys(batch["input_ids"], batch["attention_mask"]) for batch in batches])
    assert len(batches) == 4 and len(keys.unique()) == 8
    expected = naive("infonce", texts, media, torch.eye(8).bool(), *model.temperature())
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    steps = {name: -p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert furthest(steps, {name: moved[name] for name in steps}) < 1e-5
    statistics = {name: value - before[name] for name, value in model.named_buffers() if "running" in name}
    assert furthest(statistics, {name: moved[name] for name in statistics}) < 1e-6
    counts = {int(value) for name, value in moved.items() if name.endswith("num_batches_tracked")}
    assert statistics and counts == {4}


def test_only_a_batch_norm_that_trains_ties_the_gradients_to_the_small_batch(tmp_path):
    options = {"rows": different_rows(), "vision": "resnet"}
    for lora, equal in ((False, False), (True, True)):  # with adapters the tower is frozen
        large, _ = trained(tmp_path, 8, lora=lora, **options)
        cached, _ = trained(tmp_path, 2, 8, lora=lora, **options)
        assert (furthest(large, cached) < 1e-5) == equal


# name: number of rows that are compared, options
RUNS = {
    "plain": (None, {}),
    "cached": (8, {"gradient_checkpointing": True}),
    "cached, with adapters": (8, {"lora": True}),
    "plain, one row with sound": (None, {"sound": True}),
    "cached, one row with sound": (8, {"sound": True}),
}


def options_of(run):
    """Arguments of `trained`; with "sound" only one row has audio, so that one process has none."""
    size, options = RUNS[run]
    options = {"rows": different_rows(), **options}
    if options.pop("sound", False):
        rows = [{**row, "key": place} for place, row in enumerate(audio_rows((5,)))]
        options |= {"rows": rows, "collator": collate_with_audio, **audio_fields()}
    return size, options


STEPS = """
import sys
from pathlib import Path
import torch
import training.test_grad_cache as module

folder, found = Path(sys.argv[2]), {}
for run in module.RUNS:
    size, options = module.options_of(run)
    found[run] = module.trained(folder, 4 if size is None else 2, size, **options)
    assert torch.distributed.get_world_size() == 2
if torch.distributed.get_rank() == 0:
    torch.save(found, folder / "found.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_step_as_one(tmp_path):
    processes(STEPS, 2, str(tmp_path), tmp_path=tmp_path)
    found = torch.load(tmp_path / "found.pt")
    for run in RUNS:
        moved, loss = trained(tmp_path, 8, **options_of(run)[1])
        moved_by_two, other = found[run]
        assert other == pytest.approx(loss, rel=1e-4), run
        assert furthest(moved, moved_by_two) < 1e-5, run
