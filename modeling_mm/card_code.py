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
    """Python that opens a model of this task and asks it about a picture.

    An adapter's base lies in a sub-folder where it was trained, and beside the adapter in a repository.
    """
    auto = AUTO_CLASSES.get(task, "AutoModelForSequenceClassification")
    apart = adapter and source == "."
    opened = "source" if not apart else 'f"{source}/base"'
    lines = ["import peft  # noqa: F401, from_pretrained finds the adapter by it"] if adapter and not apart else []
    lines += ["from peft import PeftModel"] if apart else []
    lines += ["from PIL import Image", f"from transformers import {', '.join(sorted([auto, 'AutoProcessor']))}", ""]
    lines += [SOURCE.format(source)]
    lines += [f"model = {auto}.from_pretrained({opened}, trust_remote_code=True)  # the code beside the weights"]
    lines += ["model = PeftModel.from_pretrained(model, source)"] if apart else []
    lines += ["processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)"]
    lines += ['picture = Image.new("RGB", (224, 224), "red")  # or Image.open("yours.jpg")']
    asked = {"generation": GENERATION, "retrieval": RETRIEVAL}.get(task, CLASSIFY + SAY.get(task, BEST))
    return "\n".join([*lines, asked])
