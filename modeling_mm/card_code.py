# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""The code block of a model card: it runs as it is, without this package, wherever `source` points."""

SOURCE = 'source = "{}"'

GENERATION = """inputs = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is it?"}]}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])"""

CLASSIFY = """inputs = processor(images=picture, text="<image>what is it?", return_tensors="pt")
"""
SAY = {
    "multilabel": "print([model.config.id2label[i] for i, x in enumerate(model(**inputs).logits[0]) if x > 0])",
    "regression": "print(model(**inputs).logits[0].tolist())",
}
BEST = "print(model.config.id2label[model(**inputs).logits.argmax().item()])"

RETRIEVAL = """pixels = processor(images=[picture], return_tensors="pt")["pixel_values"]
texts = processor(text=["a red square", "a dog"], padding=True, return_tensors="pt")
pictures = model.get_image_features(pixels).pooler_output
print(model.get_text_features(**texts).pooler_output @ pictures.T)"""

AUTO_CLASSES = {"generation": "AutoModelForImageTextToText", "retrieval": "AutoModelForZeroShotImageClassification"}


def usage(task: str, adapter: bool, source: str = ".") -> str:
    """Python that opens a model of this task, or an adapter, and asks it about a picture."""
    auto = AUTO_CLASSES.get(task, "AutoModelForSequenceClassification")
    opened = f"{auto}.from_pretrained(source, trust_remote_code=True)"
    if adapter:
        opened = f'{auto}.from_pretrained(source, subfolder="base", trust_remote_code=True)'
    lines = ["from peft import PeftModel"] if adapter else []
    lines += ["from PIL import Image", f"from transformers import {', '.join(sorted([auto, 'AutoProcessor']))}", ""]
    lines += [SOURCE.format(source), f"model = {opened}  # code: *_mm.py, in there"]
    lines += ["model = PeftModel.from_pretrained(model, source)"] if adapter else []
    lines += ["processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)"]
    lines += ['picture = Image.new("RGB", (224, 224), "red")  # or Image.open("yours.jpg")']
    asked = {"generation": GENERATION, "retrieval": RETRIEVAL}.get(task, CLASSIFY + SAY.get(task, BEST))
    return "\n".join([*lines, asked])
