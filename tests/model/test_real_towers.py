# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The laws on pretrained towers. Slow, and skipped unless towers are named by Hub id or folder, for instance

    MM_VISION=facebook/dinov2-small MM_DECODER=HuggingFaceTB/SmolLM2-135M-Instruct \
        MM_ENCODER=sentence-transformers/all-MiniLM-L6-v2 python -m pytest -m slow tests/model/test_real_towers.py
"""

import os

import pytest
import torch
from helpers.builders import drawing, open_gates
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel, MMProcessor

TOWERS = {name: os.environ.get(name) for name in ("MM_VISION", "MM_DECODER", "MM_ENCODER")}
MISSING = [name for name, source in TOWERS.items() if source is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no pretrained towers: set {', '.join(MISSING)}"),
]
VISION, DECODER, ENCODER = TOWERS.values()
DTYPES = [torch.float32, torch.bfloat16]
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}]


def sees(dtype=torch.float32, head=MMForConditionalGeneration, text=DECODER, **fields):
    """A freshly composed model, its gates closed, and its processor."""
    model = head.from_towers(vision=VISION, text=text, dtype=dtype, **fields).eval()
    return model, MMProcessor.from_towers(vision=VISION, text=text)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_closed_gates_give_the_decoder_s_logits_to_the_bit(dtype):
    model, processor = sees(dtype)
    plain = AutoModelForCausalLM.from_pretrained(DECODER, dtype=dtype).eval()
    texts = ["The capital of France is Paris, and that of Italy", "Once upon a time"]
    inputs = processor.tokenizer(texts, return_tensors="pt", padding=True)
    expected = plain(**inputs).logits
    known = expected.shape[-1]  # the marker's row was added to the vocabulary
    assert torch.equal(model(**inputs).logits[..., :known], expected)
    images = processor(images=[drawing(60), drawing(200)], return_tensors="pt")
    assert torch.equal(model(**inputs, **images).logits[..., :known], expected)
    open_gates(model, 0.5)
    assert not torch.equal(model(**inputs, **images).logits[..., :known], expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chat_is_answered_as_the_decoder_answers_it(dtype):
    model, processor = sees(dtype)
    plain = AutoModelForCausalLM.from_pretrained(DECODER, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION[0]["content"][0]["text"]}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    expected = plain.generate(**inputs, max_new_tokens=12, do_sample=False)
    ours = processor.apply_chat_template(
        QUESTION, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(ours["input_ids"], inputs["input_ids"])
    image = processor(images=drawing(120), return_tensors="pt")
    answer = model.generate(**ours, **image, max_new_tokens=12, do_sample=False)
    assert torch.equal(answer, expected)
    assert "Paris" in processor.decode(answer[0, inputs["input_ids"].shape[1] :])


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_closed_gates_give_the_encoder_s_states_to_the_bit(dtype):
    model, processor = sees(dtype, MMModel, ENCODER)
    plain = AutoModel.from_pretrained(ENCODER, dtype=dtype).eval()
    inputs = processor(text=["a cat on a mat", "a red square"], return_tensors="pt", padding=True)
    images = processor(images=[drawing(60), drawing(200)], return_tensors="pt")
    expected = plain(**inputs).last_hidden_state
    assert torch.equal(model(**inputs, **images).last_hidden_state, expected)


def test_an_encoder_learns_what_only_the_picture_shows():
    model, processor = sees(head=MMForSequenceClassification, text=ENCODER, num_labels=2)
    model.model.vision_tower.requires_grad_(False)
    model.model.text_model.requires_grad_(False)
    images = [drawing(colour) for colour in ((200, 30, 30), (30, 30, 200))]
    inputs = processor(text=["which colour?"] * 2, images=images, return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(**inputs, labels=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


def test_a_composed_model_comes_back_to_the_bit(tmp_path):
    model, processor = sees(torch.bfloat16)
    open_gates(model, 0.5).save_pretrained(tmp_path)
    inputs = processor(text=["<image>An image of"], images=[drawing(90)], return_tensors="pt")
    again = MMForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
