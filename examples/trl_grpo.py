"""GRPO with TRL: a model that names colours at random learns the right ones from a reward alone.

Run on a CPU:  pip install trl; python examples/trl_grpo.py [STEPS]      (60 steps: a minute)
"""

import sys

import torch
from datasets import Dataset, Image, List
from PIL import Image as Picture
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from modeling_mm import MMForConditionalGeneration, MMProcessor

COLOURS, QUESTION = ["red", "green", "blue", "white"], "what colour is it"
words = ["<pad>", "</s>", "<unk>", "<image>", *QUESTION.split(), *COLOURS]
core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
tokenizer.add_tokens(["<image>"], special_tokens=True)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
vision, text = CLIPVisionConfig(**sizes, image_size=32, patch_size=8), LlamaConfig(**sizes, vocab_size=len(tokenizer))
# With the Hub: vision, text = "google/siglip2-base-patch16-224", "HuggingFaceTB/SmolLM2-135M-Instruct"
image_processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
processor = MMProcessor.from_towers(image_processor, tokenizer)
model = MMForConditionalGeneration.from_towers(vision, text, processor=processor)

images, prompt = [Picture.new("RGB", (32, 32), colour) for colour in COLOURS], [{"role": "user", "content": QUESTION}]
guesses = [processor.apply_chat_template([*prompt, {"role": "assistant", "content": colour}]) for colour in COLOURS]
ids = tokenizer([f"<image>{guess}" for guess in guesses], return_tensors="pt")["input_ids"]
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(60):  # without images: it learns to name a colour, and nothing about which
    model(input_ids=ids, labels=ids).loss.backward(), optimizer.step(), optimizer.zero_grad()


def right(completions, colour, **columns):
    """1 for the right colour, 0 for another."""
    return [float(answer[0]["content"].strip() == name) for answer, name in zip(completions, colour, strict=True)]


rows = {"prompt": [prompt] * 64, "images": [[image] for image in images] * 16, "colour": COLOURS * 16}
rows = Dataset.from_dict(rows).cast_column("images", List(Image()))
options = {
    "max_steps": int(sys.argv[1]) if len(sys.argv) > 1 else 60,
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
}
options |= {"per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 3, "learning_rate": 2e-3}
args = GRPOConfig("runs/grpo", save_strategy="no", report_to="none", disable_tqdm=True, **options)
trainer = GRPOTrainer(model, right, args, train_dataset=rows, processing_class=processor)
trainer.train()
rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
print(f"reward: {rewards[0]:.2f} in the first step, {sum(rewards[-5:]) / len(rewards[-5:]):.2f} in the last five")
