# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Multimodal chat templates, made from the text-only template of any tokenizer.

Trainers learn the tokens of `{% generation %}` blocks, which few templates have. `with_generation_marks` adds them to
any template that puts answers in as they are: it renders the template with placeholders for answers, and puts each
answer in place of its placeholder. What the template writes between the prompt and the answer (an empty reasoning, a
channel), and the token that ends the turn, are the assistant's too, because `generate` has to write them.
"""

from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

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
    "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] -}}{{- eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] -}}{{- '\n' -}}{%- endif -%}{%- endfor -%}"
)
ANSWER = "\ue000"  # for private use, so that no text has it
HIDE_ANSWERS = (
    "{%- set hidden = namespace(answers=[], messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' and message['content'] is string and message['content'] "
    "and not message['tool_calls'] CONDITION -%}"
    "{%- set hidden.answers = hidden.answers + [message['content'] FILTER] -%}"
    "{%- set hidden.messages = hidden.messages + [dict(message, content='ANSWER')] -%}"
    "{%- else -%}{%- set hidden.messages = hidden.messages + [message] -%}{%- endif -%}{%- endfor -%}"
    "{%- set messages = hidden.messages -%}{%- set rendered -%}"
)
# GAPS stand between the prompt of an answer and its words, ENDS behind them; both are an assistant's
SHOW_ANSWERS = (
    "{%- endset -%}{%- set pieces = rendered.split('ANSWER') -%}{%- set next = namespace(skip=0) -%}"
    "{%- for piece in pieces -%}{%- set around = namespace(gap='', end='') -%}"
    "{%- for gap in GAPS -%}"
    "{%- if not around.gap and piece.endswith(gap) -%}{%- set around.gap = gap -%}{%- endif -%}{%- endfor -%}"
    "{%- set last = loop.last -%}{%- set stop = piece|length - (0 if last else around.gap|length) -%}"
    "{{- piece[next.skip:stop] -}}"
    "{%- if not last -%}{%- set following = pieces[loop.index] -%}"
    "{%- for end in ENDS -%}"
    "{%- if not around.end and following.startswith(end) -%}{%- set around.end = end -%}{%- endif -%}{%- endfor -%}"
    "{%- generation -%}{{- around.gap + hidden.answers[loop.index0] + around.end -}}{%- endgeneration -%}"
    "{%- set next.skip = around.end|length -%}{%- endif -%}{%- endfor -%}"
)


def multimodal_chat_template(
    tokenizer: PreTrainedTokenizerBase, image_token: str, audio_token: str, video_token: str
) -> str:
    """A chat template that takes image, audio and video parts, made from the tokenizer's (None: a plain one)."""

    def render(template: str, messages: list[dict[str, Any]], with_prompt: bool) -> str:
        options = {"chat_template": template, "add_generation_prompt": with_prompt, "tokenize": False}
        return tokenizer.apply_chat_template(messages, **options)

    template = PLAIN_TEMPLATE
    if tokenizer.chat_template is not None:
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        template = with_generation_marks(tokenizer.chat_template, render, special)
    flatten = FLATTEN_CONTENT.replace("IMAGE_TOKEN", image_token).replace("AUDIO_TOKEN", audio_token)
    return flatten.replace("VIDEO_TOKEN", video_token) + template


def has_generation_marks(template: str) -> bool:
    """True if a template says which tokens are an assistant's."""
    return "endgeneration" in template


def with_generation_marks(
    template: str, render: Callable[[str, list[dict[str, Any]], bool], str], special_tokens: Iterable[str]
) -> str:
    """A template with `{% generation %}` blocks; as it is if it has them, or would render other texts with them.

    Args:
        render: the text of a template, messages and `add_generation_prompt`.
        special_tokens: among them the one that ends a turn.
    """
    if has_generation_marks(template):
        return template
    probes = sample_conversations(lambda messages: render(template, messages, False))
    gaps, ends = surroundings(template, render, probes, list(special_tokens))
    condition = "and '</think>' not in message['content']" if "</think>" in template else ""  # which it takes apart
    hide = HIDE_ANSWERS.replace("ANSWER", ANSWER).replace("CONDITION", condition)
    show = SHOW_ANSWERS.replace("ANSWER", ANSWER).replace("GAPS", repr(gaps)).replace("ENDS", repr(ends))
    for form in ("", "| trim") if ends else ():
        marked = hide.replace("FILTER", form) + template + show
        try:
            if all(
                render(marked, p, prompt) == render(template, p, prompt) for p in probes for prompt in (False, True)
            ):
                return marked
        except Exception:  # a template may not take part in this, for reasons of its own
            continue
    return template


def surroundings(
    template: str,
    render: Callable[[str, list[dict[str, Any]], bool], str],
    probes: list[list[dict[str, Any]]],
    special_tokens: list[str],
) -> tuple[list[str], list[str]]:
    """Texts that a template writes between the prompt of an answer and the answer, and tokens by which it ends turns.

    Both are empty if an answer does not follow its prompt, or is not ended by a special token.
    """
    gaps, ends = list[str](), list[str]()
    for probe in probes:
        if any("tool_calls" in turn for turn in probe):
            continue
        hidden = [{**turn, "content": ANSWER} if turn["role"] == "assistant" else turn for turn in probe]
        pieces, prompt = render(template, hidden, False).split(ANSWER), render(template, hidden[:-1], True)
        before = ANSWER.join(pieces[:-1])
        if not before.startswith(prompt):
            return [], []
        gaps.append(before[len(prompt) :])
        for after in pieces[1:]:
            space = after[: len(after) - len(after.lstrip())]
            ends.append(next((space + token for token in special_tokens if after.lstrip().startswith(token)), ""))
    if not all(ends):
        return [], []
    return sorted(filter(None, set(gaps)), key=len, reverse=True), sorted(set(ends), key=len, reverse=True)


def sample_conversations(render: Callable[[list[dict[str, Any]]], str]) -> list[list[dict[str, Any]]]:
    """Conversations that a template takes, found by trying: of one or two questions, with or without system turn."""
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}
    texts = ("a cat", " two\n\nlines ", "a </b> in <b>")
    answers = [{"role": "assistant", "content": text} for text in texts]
    call = {"function": {"name": "look", "arguments": {"at": "it"}}, "type": "function"}
    used = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3", "name": "look"},
    ]
    found = []
    for beginning in ([], [system]):
        for answer in answers:
            tools = [question, *used, answer]
            for messages in ([question, answer], [question, answers[0], question, answer], tools):
                try:
                    render([*beginning, *messages])
                except Exception:  # raised by the template, for instance for a system turn
                    continue
                found.append([*beginning, *messages])
    return found
