# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Conversations about small images, in each format that people have them in, and chat templates of known models."""

import json

from helpers.builders import drawing

from modeling_mm.data.conversations import conversation_column, media_column
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table

COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 200), "white": (250, 250, 250)}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% elif message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # which takes reasoning out of an answer, and writes an empty one into the last
    "{%- for message in messages %}{%- if message.role != 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- else %}"
    "{%- set content = message.content %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content.lstrip('\n') }}{%- else %}"
    "{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SHOUTING = (  # which changes what stands in an answer, so that it cannot be marked
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' + message['content'] | upper + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)


def messages(row):
    colour, image = row
    question = [{"type": "image"}, {"type": "text", "text": "what colour is it"}]
    turns = [("user", question), ("assistant", colour), ("user", f"is it {colour}"), ("assistant", "yes")]
    return {"messages": [{"role": role, "content": content} for role, content in turns], "images": [image]}


def llava(row):
    colour, image = row
    turns = [("human", "<image>\nwhat colour is it"), ("gpt", colour), ("human", f"is it {colour}"), ("gpt", "yes")]
    return {"id": image, "image": image, "conversations": [{"from": who, "value": words} for who, words in turns]}


def cauldron(row):
    colour, image = row
    turns = [("what colour is it", colour), (f"is it {colour}", "yes")]
    texts = [{"user": question, "assistant": answer, "source": "colours"} for question, answer in turns]
    return {"images": [image], "texts": texts}


def prompts(row):
    turns = messages(row)["messages"]
    return {"prompt": turns[:3], "completion": turns[3:], "images": [row[1]]}


FORMATS = {"messages": messages, "llava": llava, "cauldron": cauldron, "prompts": prompts}


def write_conversations(folder, kind, count=24, name="train"):
    """A file of conversations in this format, with the images that they are about."""
    rows = [(colour, f"{colour}.png") for colour in COLOURS]
    for colour, pixels in COLOURS.items():
        drawing(pixels).save(folder / f"{colour}.png")
    lines = [json.dumps(FORMATS[kind](rows[i % len(rows)])) for i in range(count)]
    path = folder / f"{kind}_{name}.{'json' if kind == 'llava' else 'jsonl'}"
    path.write_text(f"[{','.join(lines)}]" if kind == "llava" else "\n".join(lines))
    return path


def dataset_of(path):
    """The checked rows of a file of conversations."""
    table, folder = read_table(str(path))
    names = table.column_names
    columns = Columns(media_column(names, "image"), "", None, conversation=conversation_column(names))
    return MMDataset(str(path), table, folder, columns, task="generation").check()
