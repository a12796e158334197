# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Multimodal chat templates, made from the text-only template of any tokenizer."""

# Rewrites each message's content list to a string with a marker for each item, for a template that takes strings only.
FLATTEN_CONTENT = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}{%- else -%}"
    "{%- set parts = namespace(text='') -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{%- set parts.text = parts.text + part['text'] -%}"
    "{%- elif part['type'] == 'image' -%}{%- set parts.text = parts.text + 'IMAGE_TOKEN' -%}"
    "{%- elif part['type'] == 'audio' -%}{%- set parts.text = parts.text + 'AUDIO_TOKEN' -%}"
    "{%- elif part['type'] == 'video' -%}{%- set parts.text = parts.text + 'VIDEO_TOKEN' -%}{%- endif -%}"
    "{%- endfor -%}{%- set text = parts.text -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=text)] -%}{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
# For tokenizers without a chat template: the user's text, a new line, the answer, the end token.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}{{- message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- else -%}{{- '\n' -}}{%- endif -%}{%- endfor -%}"
)


def multimodal_chat_template(template: str | None, image_token: str, audio_token: str, video_token: str) -> str:
    """A chat template that takes image, audio and video parts, made from one for strings (None: a plain one)."""
    flatten = FLATTEN_CONTENT.replace("IMAGE_TOKEN", image_token).replace("AUDIO_TOKEN", audio_token)
    return flatten.replace("VIDEO_TOKEN", video_token) + (template or PLAIN_TEMPLATE)
