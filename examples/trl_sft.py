"""Supervised fine-tuning with TRL: conversations about images, of which the assistant's turns are learned.

Run on a CPU:  pip install trl; python examples/trl_sft.py [STEPS]      (60 steps: half a minute)
"""

import sys

from datasets import Dataset, Image, List
from PIL import Image as Picture
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from modeling_mm import MMForConditionalGeneration, MMProcessor, cli

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

images = [[Picture.new("RGB", (32, 32), colour)] for colour in COLOURS] * 16
turns = [[("user", QUESTION), ("assistant", colour)] for colour in COLOURS] * 16
messages = [[{"role": role, "content": words} for role, words in conversation] for conversation in turns]
rows = Dataset.from_dict({"messages": messages, "images": images}).cast_column("images", List(Image()))
options = {
    "max_steps": int(sys.argv[1]) if len(sys.argv) > 1 else 60,
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
}
options |= {"per_device_train_batch_size": 16, "learning_rate": 2e-3, "assistant_only_loss": True}
args = SFTConfig("runs/sft", save_strategy="no", report_to="none", disable_tqdm=True, **options)
trainer = SFTTrainer(model, args, train_dataset=rows, processing_class=processor)
trainer.train()
losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
print(f"loss: {losses[0]:.2f} in the first step, {losses[-1]:.2f} in the last")
trainer.save_model()  # a folder for all verbs of the command
rows.select(range(4)).to_parquet("runs/sft/test.parquet")
cli.main(["evaluate", "--model", "runs/sft", "--test_file", "runs/sft/test.parquet", "--device", "cpu"])
