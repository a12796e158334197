# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""GradCache beyond images and one process: sound, batch norms, several processes with what each lacks."""

import pytest
import torch
from helpers.retrieval import EARS, collate, naive, pairs_of_rows, processes, retriever, trained
from transformers import AutoConfig

from modeling_mm.model.losses_mm import text_keys


def collate_heard(rows):
    """As `collate`, and each distinct sound once, for the rows that have one."""
    batch = collate(rows)
    keys = list(dict.fromkeys(row["sound_key"] for row in rows if "sound" in row))
    if keys:
        sounds = [next(row["sound"] for row in rows if row.get("sound_key") == key) for key in keys]
        index = [[keys.index(row["sound_key"]) if "sound" in row else -1] for row in rows]
        batch |= {"input_features": torch.stack(sounds), "audio_index": torch.tensor(index)}
        batch["audio_keys"] = torch.tensor(keys)
    return batch


def collate_only_heard(rows):
    """The same without images."""
    return {name: value for name, value in collate_heard(rows).items() if "image" not in name and "pixel" not in name}


def without_keys(collator):
    """The same batches, of which nothing tells what is the same."""
    return lambda rows: {name: value for name, value in collator(rows).items() if not name.endswith("_keys")}


def heard_rows(which=range(8)):
    """Rows of which some have a sound, the first and the third the same one."""
    sounds = torch.randn(8, 8, 16, generator=torch.Generator().manual_seed(2))
    keys = [0, 1, 0, 3, 4, 5, 6, 7]
    rows = pairs_of_rows()
    return [
        {**row, "sound": sounds[keys[i]], "sound_key": keys[i]} if i in which else row for i, row in enumerate(rows)
    ]


def different_rows():
    """Rows with an image of their own each."""
    return [{**row, "key": place} for place, row in enumerate(pairs_of_rows())]


def hearing():
    return {"audio_config": AutoConfig.for_model("whisper", **EARS), "audio_token_id": 97}


def furthest(one, other):
    """The largest difference between two steps."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize("which", [range(8), (0, 2, 5), (4,)], ids=str)
@pytest.mark.parametrize("collator", [collate_heard, collate_only_heard])
def test_cached_gradients_with_sound_are_those_of_the_large_batch(tmp_path, collator, which):
    if collator is collate_only_heard and len(which) < 8:
        which = (0, 1, 2, 3, 4, 5, 6)  # one row with neither; every small batch has a sound
    options = {"rows": heard_rows(which), "collator": collator, **hearing()}
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
    """The reference keeps the graphs of all small batches, which is what GradCache does without."""
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
    for lora, equal in ((False, False), (True, True)):  # beside adapters the tower is frozen
        large, _ = trained(tmp_path, 8, lora=lora, **options)
        cached, _ = trained(tmp_path, 2, 8, lora=lora, **options)
        assert (furthest(large, cached) < 1e-5) == equal


# name: size of the large batch's parts, how many rows are compared, options
RUNS = {
    "plain": (None, {}),
    "cached": (8, {"gradient_checkpointing": True}),
    "cached, with adapters": (8, {"lora": True}),
    "plain, one row with sound": (None, {"sound": True}),
    "cached, one row with sound": (8, {"sound": True}),
}


def options_of(run):
    """What `trained` is to be told; in "sound" one row alone has one, so that one process has none at all."""
    size, options = RUNS[run]
    options = {"rows": different_rows(), **options}
    if options.pop("sound", False):
        rows = [{**row, "key": place} for place, row in enumerate(heard_rows((5,)))]
        options |= {"rows": rows, "collator": collate_heard, **hearing()}
    return size, options


STEPS = """
import sys
from pathlib import Path
import torch
import training.test_grad_cache as here

folder, found = Path(sys.argv[2]), {}
for run in here.RUNS:
    size, options = here.options_of(run)
    found[run] = here.trained(folder, 4 if size is None else 2, size, **options)
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
        theirs, other = found[run]
        assert other == pytest.approx(loss, rel=1e-4), run
        assert furthest(moved, theirs) < 1e-5, run
