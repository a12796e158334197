# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Ask: chat about images and sounds. Each is encoded when it is first asked about, and then asked many times."""

import html
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import example_media
import gradio as gr
import torch
from cache import MediaCache
from limits import (
    ANSWER_SECONDS,
    CHARACTERS,
    FAILED,
    NEW_TOKENS,
    PICTURES,
    Refused,
    checked_number,
    checked_text,
    open_picture,
    open_sound,
    uploaded_file,
    visits,
)
from loading import Shown
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

logger = logging.getLogger(__name__)

SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
Messages = list[dict[str, Any]]  # {"role", "text", "files"}


class Reader(BaseStreamer):
    """An answer as it grows: the whole text so far with every token, also in languages without spaces.

    left: set when nobody reads any more.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.ids, self.texts = tokenizer, None, queue.Queue()
        self.left = threading.Event()

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:  # the prompt comes first
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()
        if text and not text.endswith("\ufffd"):  # half a letter
            self.texts.put(text)

    def end(self) -> None:
        self.texts.put(None)

    def __iter__(self) -> Iterator[str]:
        return iter(lambda: self.texts.get(timeout=2 * ANSWER_SECONDS), None)


class Until(StoppingCriteria):
    """Stops an answer when nobody reads it any more, or when it takes too long."""

    def __init__(self, reader: Reader):
        self.reader, self.deadline = reader, time.monotonic() + ANSWER_SECONDS

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        over = self.reader.left.is_set() or time.monotonic() > self.deadline
        return torch.full((len(input_ids),), over, device=input_ids.device)


class PlainChatbot(gr.Chatbot):
    """Shows every text letter by letter; Gradio's own renders HTML that is harmless, as <img> of any address."""

    def get_block_name(self) -> str:
        return "chatbot"

    def postprocess(self, value: Any) -> Any:
        shown = super().postprocess(value)
        for content in (content for message in shown.root for content in message.content):
            if content.type == "text":
                content.text = html.escape(content.text, quote=False)
        return shown

    def preprocess(self, payload: Any) -> Any:
        messages = super().preprocess(payload)
        for content in (content for message in messages for content in message["content"]):
            if content["type"] == "text":
                content["text"] = html.unescape(content["text"])
        return messages


class Asker:
    """Answers questions; remembers what the towers made of the last media, by their content."""

    KEPT = 64

    def __init__(self, shown: Shown):
        self.shown, self.memories = shown, MediaCache(self.KEPT)

    def memory(self, path: Path) -> dict[str, Any]:
        """The memory of one image or sound by its modality, as `project_media` has it."""
        if path.suffix.lower() not in SOUNDS:
            return self.memories.of(path, self.seen, "image")
        if not self.shown.hears:
            raise Refused("This model does not hear; ask it about images.")
        return self.memories.of(path, self.heard, "audio")

    def seen(self, path: Path) -> dict[str, Any]:
        return self.projected(self.shown.processor.flat_images([[open_picture(path, self.shown.processor)]]))

    def heard(self, path: Path) -> dict[str, Any]:
        return self.projected(self.shown.processor.flat_audio([[open_sound(path)]]))

    @torch.no_grad()
    def projected(self, media: dict[str, torch.Tensor]) -> dict[str, Any]:
        model = self.shown.model
        return model.project_media(**{name: value.to(model.device) for name, value in media.items()})

    def joined(self, paths: list[Path]) -> dict[str, Any]:
        """The memories of all media of a prompt, those of one modality in a row."""
        own = [self.memory(path) for path in paths]
        joined = {}
        for modality in ("image", "audio"):
            some = [memory[modality] for memory in own if modality in memory]
            if some:
                present = None if some[0].present is None else torch.cat([memory.present for memory in some])
                index = torch.arange(len(some), device=self.shown.model.device)[None]
                joined[modality] = type(some[0])(torch.cat([memory.states for memory in some]), index, present)
        return joined

    def prompt(self, messages: Messages) -> torch.Tensor:
        """Token ids (1, T) of a conversation, by the model's own chat template."""
        turns = []
        for message in messages:
            kinds = ["audio" if path.suffix.lower() in SOUNDS else "image" for path in message["files"]]
            parts = [{"type": kind} for kind in kinds] + [{"type": "text", "text": message["text"]}]
            turns.append({"role": message["role"], "content": parts})
        processor = self.shown.processor
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        start = processor.tokenizer.bos_token
        special = start is None or not text.startswith(start)
        ids = processor.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
        if ids.shape[1] >= self.shown.longest:
            raise Refused("The conversation is longer than the model can read; start a new one or ask more briefly.")
        return ids.to(self.shown.model.device)

    def answer(self, messages: Messages, new_tokens: int) -> Iterator[str]:
        """The answer to the last message, longer with every token."""
        ids, model = self.prompt(messages), self.shown.model
        new_tokens = min(new_tokens, self.shown.longest - ids.shape[1])
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            memories = self.joined([path for message in messages for path in message["files"]])
            if memories:
                options["media_key_values"], options["media_start"] = model.attended(memories, ids)
        reader = Reader(self.shown.processor.tokenizer)
        failures = list[Exception]()

        def generate() -> None:
            try:
                model.generate(
                    ids,
                    streamer=reader,
                    do_sample=False,
                    max_new_tokens=new_tokens,
                    stopping_criteria=StoppingCriteriaList([Until(reader)]),
                    **options,
                )
            except Exception as error:
                failures.append(error)
                reader.end()

        threading.Thread(target=generate, daemon=True).start()
        text = ""
        try:
            for text in reader:
                yield text
        finally:  # also where the person went away in the middle
            reader.left.set()
        if failures:
            raise failures[0]
        if not text:
            yield "(the model says nothing)"


def parts_of(content: Any) -> tuple[str, list[Any]]:
    """Text and files of a message in Gradio's history."""
    parts = content if isinstance(content, (list, tuple)) else [content]
    texts, files = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "text":
            texts.append(part["text"])
        elif isinstance(part, dict):
            files.append(part.get("file") or part)
    return " ".join(texts), files


def conversation(asker: Asker, message: Any, history: Any, follow_up: bool) -> Messages:
    """What the model is to read: with `follow_up` all turns; otherwise the question, about the latest media.

    Raises:
        Refused: a turn is not what it should be, or there are too many media.
    """
    if not isinstance(message, dict):
        raise Refused("A message has a text and a list of files.")
    turns = [(one.get("role"), *parts_of(one.get("content"))) for one in history or [] if isinstance(one, dict)]
    turns.append(("user", message.get("text"), list(message.get("files") or [])))
    merged: Messages = []
    for role, text, given in turns:
        role = "assistant" if role == "assistant" else "user"
        text = checked_text(text, asker.shown.processor)
        files = [path for path in (uploaded_file(one, "file") for one in given) if path] if role == "user" else []
        if merged and merged[-1]["role"] == role:  # Gradio keeps files as messages of their own
            merged[-1]["text"] = f"{merged[-1]['text']} {text}".strip()
            merged[-1]["files"] += files
        else:
            merged.append({"role": role, "text": text, "files": files})
    if not checked_text(message.get("text"), asker.shown.processor):
        raise Refused("There is no question; write one beside the image.")
    if not follow_up:
        own = [path for path in (uploaded_file(one, "file") for one in turns[-1][2]) if path]
        earlier = next((turn["files"] for turn in reversed(merged) if turn["files"]), [])
        question = checked_text(message["text"], asker.shown.processor)
        merged = [{"role": "user", "text": question, "files": own or earlier}]
    if sum(len(turn["files"]) for turn in merged) > PICTURES:
        raise Refused(f"That is more than {PICTURES} images and sounds for one conversation.")
    return merged


def said(asker: Asker, words: Callable[[], tuple[Messages, Any]], request: gr.Request | None) -> Iterator[str]:
    """The answer to what `words` gives, messages and how long it may become; what is wrong with them, as an answer."""
    try:
        visits.admit(request)
        messages, new_tokens = words()
        yield from asker.answer(messages, checked_number(new_tokens, 1, NEW_TOKENS, "The length of the answer"))
    except Exception as error:  # said, not raised: after an error Gradio 6.31 takes no further message
        if not isinstance(error, Refused):
            logger.exception("a question failed")
            error = Refused(FAILED)
        gr.Warning(error.message, title=error.title)
        yield error.message


def endpoints(asker: Asker) -> tuple[Callable[..., Iterator[str]], Callable[..., Iterator[str]]]:
    """What the tab calls, and what programs do."""

    def chat(
        message: dict,
        history: list,
        follow_up: bool = False,
        new_tokens: float = 64,
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Ask about images (and sounds, if the model hears). Later questions go to the same ones.

        What cannot be answered is said in one sentence in place of the answer.

        Args:
            message: the question as `text` and uploaded `files`; without files, it is about the latest ones.
            follow_up: whether the model also reads the earlier questions and answers.
            new_tokens: how long the answer may become.
        """
        yield from said(asker, lambda: (conversation(asker, message, history, bool(follow_up)), new_tokens), request)

    def ask(
        question: str, picture: Any = None, sound: Any = None, new_tokens: Any = 64, request: gr.Request | None = None
    ) -> Iterator[str]:
        """Ask a question about an image (or a sound, if the model hears).

        What cannot be answered is said in one sentence in place of the answer.

        Args:
            question: what to ask, in words.
            image: an uploaded image, or none.
            sound: an uploaded sound, or none.
            new_tokens: how long the answer may become.
        """
        message = {"text": question, "files": [file for file in (picture, sound) if file]}
        yield from said(asker, lambda: (conversation(asker, message, [], False), new_tokens), request)

    return chat, ask


def ask_tab(asker: Asker) -> None:
    """The tab."""
    hears = asker.shown.hears
    what = "images or sounds" if hears else "one or several images"
    examples = [
        {"text": "what shape is in the image?", "files": [example_media.shape("red", "circle")]},
        {"text": "what is the color of the shape?", "files": [example_media.shape("teal", "triangle")]},
        {"text": "does the image contain a rectangle?", "files": [example_media.shape("yellow", "rectangle")]},
    ]
    follow_up = gr.Checkbox(False, label="Follow up: the model also reads earlier questions and answers", render=False)
    new_tokens = gr.Slider(1, NEW_TOKENS, 64, step=1, label="Longest answer, in tokens", render=False)
    chat, ask = endpoints(asker)
    gr.ChatInterface(
        chat,
        multimodal=True,
        chatbot=PlainChatbot(
            height=420,
            label="Conversation",
            render_markdown=False,
            latex_delimiters=[],
            allow_tags=False,
            buttons=["copy"],
            feedback_options=None,
            placeholder=f"Attach {what}, then ask.",
        ),
        textbox=gr.MultimodalTextbox(
            placeholder=f"Attach {what} and ask",
            file_types=["image", "audio"] if hears else ["image"],
            file_count="multiple",
            sources=["upload"],
            max_plain_text_length=CHARACTERS,
            show_label=False,
            stop_btn=True,
        ),
        additional_inputs=[follow_up, new_tokens],
        additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
        examples=[[example] for example in examples],
        run_examples_on_click=True,
        cache_examples=False,
        flagging_mode="never",
        analytics_enabled=False,
        fill_height=False,
        api_name="chat",
        api_visibility="undocumented",  # the schema of its message is not one that MCP clients accept
        show_progress="minimal",
    )
    with gr.Column(visible=False):  # the same for programs, an input for each thing
        question = gr.Textbox(label="question")
        picture, sound = gr.Image(label="picture", type="filepath"), gr.Audio(label="sound", type="filepath")
        length = gr.Number(64, label="new_tokens")
        gr.Button().click(
            ask, [question, picture, sound, length], gr.Textbox(label="answer"), api_name="ask", preprocess=False
        )
