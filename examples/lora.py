"""LoRA in the text model with full training of the fusion: train, save, load, merge, and get the same logits.

Run on a CPU, in seconds:  python examples/lora.py [STEPS]
"""

import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import ByT5Tokenizer, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

from modeling_mm import MMForConditionalGeneration, MMProcessor

tokenizer = ByT5Tokenizer(extra_ids=0, extra_special_tokens=["<image>"])
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
vision, text = CLIPVisionConfig(**sizes, image_size=32, patch_size=8), LlamaConfig(**sizes, vocab_size=len(tokenizer))
# With the Hub: vision, text = "google/siglip2-base-patch16-224", "HuggingFaceTB/SmolLM2-135M-Instruct"
image_processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
processor = MMProcessor.from_towers(image_processor, tokenizer)  # or (vision, text)
model = MMForConditionalGeneration.from_towers(vision, text, processor=processor)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(f"{folder}/base")
    # an already trained fusion can have adapters too: model.lora_targets("text", "fusion")
    lora = LoraConfig(target_modules=model.lora_targets("text"), modules_to_save=["fusion"])
    adapted = get_peft_model(model, lora)
    adapted.print_trainable_parameters()
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-2)  # frozen weights get no gradient
    images, answers = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")], ["It is red", "It is blue"]
    batch = processor(images, [f"<image>{answer}" for answer in answers], padding=True, return_tensors="pt")
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 50):
        loss = adapted(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
        loss.backward(), optimizer.step(), optimizer.zero_grad()
    adapted.save_pretrained(f"{folder}/adapter")
    model = MMForConditionalGeneration.from_pretrained(f"{folder}/base")
    merged = PeftModel.from_pretrained(model, f"{folder}/adapter").merge_and_unload()
torch.testing.assert_close(merged.eval()(**batch).logits, adapted.eval()(**batch).logits, atol=1e-4, rtol=1e-4)
print(f"loss {loss:.4f}, the same logits after merging, gates {merged.fusion_gates()[0]}")
