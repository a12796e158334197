"""Compose a vision tower and a text model; at first the model answers exactly as the text model does.

Run on a CPU, in seconds:  python examples/quickstart.py
The towers here are tiny and random, so nothing is downloaded; the answers are noise until the model is trained.
"""

import torch
from PIL import Image
from transformers import ByT5Tokenizer, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from modeling_mm import MMForConditionalGeneration, MMProcessor

# With the Hub, both are ids, and the next five statements are not needed:
# vision, text = "google/siglip2-base-patch16-224", "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = ByT5Tokenizer(extra_ids=0, extra_special_tokens=["<image>"])
image_processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
text = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)).eval()

processor = MMProcessor.from_towers(image_processor, tokenizer)  # or (vision, text)
image = Image.new("RGB", (200, 120), "red")
question = [{"type": "image", "image": image}, {"type": "text", "text": "What colour is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": question}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
with torch.no_grad():
    expected = text(inputs["input_ids"]).logits
    model = MMForConditionalGeneration.from_towers(vision, text, processor=processor).eval()
    assert torch.equal(model(**inputs).logits, expected)  # the gates of the fusion start at zero
print("gates:", model.fusion_gates())
answer = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
print("answer:", repr(processor.decode(answer, skip_special_tokens=True)))
