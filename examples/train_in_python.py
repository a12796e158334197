"""Training in Python: a table becomes an MMDataset, an MMCollator makes batches, and MMTrainer trains.

Run on a CPU:  pip install easy-vqa; python examples/train_in_python.py [STEPS]      (300 steps: a minute)
"""

import sys
from pathlib import Path

import easy_vqa
from datasets import Dataset
from transformers import ByT5Tokenizer, LlamaConfig, ResNetConfig, TrainingArguments, ViTImageProcessorPil

from modeling_mm import MMCollator, MMDataset, MMForConditionalGeneration, MMProcessor, MMTrainer, load_checkpoint
from modeling_mm.data.rows import Columns

questions, answers, image_ids = easy_vqa.get_train_questions()
images = easy_vqa.get_train_image_paths()
table = Dataset.from_dict({"image": [images[i] for i in image_ids], "text": questions, "answer": answers})
rows = MMDataset("easy-vqa", table.select(range(4000)), Path(), Columns(target="answer")).check()
train, held_out = rows.hold_out(0.05, seed=0)

tokenizer = ByT5Tokenizer(extra_ids=0, extra_special_tokens=["<image>"])
vision = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 96], depths=[1, 1, 1], layer_type="basic")
sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
text = LlamaConfig(**sizes, vocab_size=len(tokenizer), initializer_range=0.1, tie_word_embeddings=True)
# With the Hub: vision, text = "google/siglip2-base-patch16-224", "HuggingFaceTB/SmolLM2-135M-Instruct"
processor = MMProcessor.from_towers(ViTImageProcessorPil(size={"height": 64, "width": 64}), tokenizer)
model = MMForConditionalGeneration.from_towers(vision, text, processor=processor)

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
options = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "use_cpu": True, "report_to": "none"}
args = TrainingArguments("runs/in_python", max_steps=steps, save_strategy="no", disable_tqdm=True, **options)
parts = {"data_collator": MMCollator(processor, "generation"), "processing_class": processor}
trainer = MMTrainer(model, args, train_dataset=train, eval_dataset=held_out, **parts)
trainer.train()
print("loss on held-out rows:", trainer.evaluate()["eval_loss"])
trainer.save_model()  # `modeling-mm predict --model runs/in_python` works with this folder too
print("trained folder:", type(load_checkpoint("runs/in_python")[0]).__name__)
