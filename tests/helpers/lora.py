"""Shared code of the tests of adapters: a batch, a few training steps, the layers with an adapter."""

import torch
from helpers.builders import mixed_rows, mm_model, padded, pictures, text_inputs

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification


def batch_for(model):
    """A mixed batch with labels for the model's head."""
    rows, image_index = mixed_rows()
    batch = text_inputs(padded(rows), model.config.text_config.model_type)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if isinstance(model, MMForSequenceClassification):
        labels = torch.tensor([0, 1, 1, 0])
    images = pictures(2, model.config.vision_config.model_type)
    return {**batch, **images, "image_index": image_index, "labels": labels}


def learn(model, batch, steps=3):
    """Losses of a few steps of the trainable parameters; the model is left in evaluation mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def adapted_layers(model):
    """Names of the layers with an adapter, as in the base model."""
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


def saved_base(folder, **model):
    """A model loaded from a folder, as peft needs a base with a name."""
    mm_model(**model).save_pretrained(folder)
    return MMForConditionalGeneration.from_pretrained(folder).eval()
