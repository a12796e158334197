"""Direct preference optimisation with TRL: of two answers about an image, the right one is preferred.

Run on a CPU:  pip install trl; python examples/trl_dpo.py [STEPS]      (40 steps: half a minute)
"""

import copy
import sys

from datasets import Dataset, Image, List
from PIL import Image as Picture
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

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

images = [[Picture.new("RGB", (32, 32), colour)] for colour in COLOURS] * 16
right = [[{"role": "assistant", "content": colour}] for colour in COLOURS] * 16
wrong = right[1:] + right[:1]
pairs = {
    "prompt": [[{"role": "user", "content": QUESTION}]] * 64,
    "chosen": right,
    "rejected": wrong,
    "images": images,
}
rows = Dataset.from_dict(pairs).cast_column("images", List(Image()))
options = {
    "max_steps": int(sys.argv[1]) if len(sys.argv) > 1 else 40,
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
}
options |= {"per_device_train_batch_size": 16, "learning_rate": 1e-3}
args = DPOConfig("runs/dpo", save_strategy="no", report_to="none", disable_tqdm=True, **options)
trainer = DPOTrainer(model, copy.deepcopy(model), args, train_dataset=rows, processing_class=processor)
trainer.train()
shares = [log["rewards/accuracies"] for log in trainer.state.log_history if "rewards/accuracies" in log]
print(f"the right answer is preferred in {shares[0]:.0%} of the pairs at first, in {shares[-1]:.0%} at last")
