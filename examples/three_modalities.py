"""Image, text and audio in one model: the text asks for the colour of the image or the pitch of the tone.

Run on a CPU, in a minute:  pip install "modeling-mm[train,audio]"; python examples/three_modalities.py [STEPS]
"""

import sys

import numpy as np
import torch
from transformers import BertConfig, ByT5Tokenizer, ResNetConfig, ViTImageProcessorPil, WhisperFeatureExtractor

from modeling_mm import MMForSequenceClassification, MMProcessor

tokenizer = ByT5Tokenizer(extra_ids=0, extra_special_tokens=["<image>", "<audio>"])
pixels, log_mel = ViTImageProcessorPil(size={"height": 32, "width": 32}), WhisperFeatureExtractor(chunk_length=1)
processor = MMProcessor.from_towers(pixels, tokenizer, log_mel, max_seconds=1)
cnn = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "basic"}
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
towers = ResNetConfig(**cnn), BertConfig(**sizes, vocab_size=len(tokenizer)), ResNetConfig(num_channels=1, **cnn)
# With the Hub: towers = "google/siglip2-base-patch16-224", "answerdotai/ModernBERT-base", "openai/whisper-tiny"
torch.manual_seed(0)
model = MMForSequenceClassification.from_towers(*towers, processor=processor, num_labels=4)  # blue, red, low, high
optimizer, rng = torch.optim.AdamW(model.parameters(), lr=1e-3), np.random.default_rng(0)


def batch(rows):
    red, high, asks_pitch = rng.integers(2, size=(3, rows))
    images = rng.integers(0, 80, (rows, 32, 32, 3)) + np.array([[0, 0, 120], [120, 0, 0]])[red][:, None, None]
    tones = np.sin(np.arange(8000) * (0.1 + 0.1 * high + rng.uniform(0, 0.05, rows))[:, None])  # half a second each
    texts = [f"<image><audio>{('which colour?', 'high or low?')[question]}" for question in asks_pitch]
    media = {"images": list(images.astype(np.uint8)), "audio": list(tones)}
    inputs = processor(text=texts, **media, padding=True, return_tensors="pt")
    return {**inputs, "labels": torch.tensor(np.where(asks_pitch, 2 + high, red))}


for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 250):
    model.train()(**batch(16)).loss.backward(), optimizer.step(), optimizer.zero_grad()
test = batch(200)
print(f"correct: {(model.eval()(**test).logits.argmax(dim=1) == test['labels']).float().mean():.0%} of 200 new rows")
