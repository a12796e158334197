# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Ask: chat about images and audio clips; each is encoded at the first question about it and cached for the others."""

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
    FAILED,
    MAX_CHARACTERS,
    MAX_MEDIA,
    MAX_NEW_TOKENS,
    Refused,
    checked_number,
    checked_text,
    open_audio,
    open_image,
    rate_limiter,
    uploaded_file,
)
from loading import LoadedModel
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
Messages = list[dict[str, Any]]  # {"role", "text", "files"}


class AnswerStreamer(BaseStreamer):
    """A stream of the answer so far, the whole text after every token, also in languages without spaces.

    disconnected: set when nobody reads the answer any more.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.ids, self.texts = tokenizer, None, queue.Queue()
        self.disconnected = threading.Event()

    def put(self, value: torch.Tensor) -> None:
        if self.ids is None:  # the prompt comes first
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()
        if text and not text.endswith("\ufffd"):  # a part of a character
            self.texts.put(text)

    def end(self) -> None:
        self.texts.put(None)

    def __iter__(self) -> Iterator[str]:
        return iter(lambda: self.texts.get(timeout=2 * ANSWER_SECONDS), None)


class StopWhenUnreadOrLate(StoppingCriteria):
    """Stops generation when nobody reads the answer any more, or when it takes too long."""

    def __init__(self, streamer: AnswerStreamer):
        self.streamer, self.deadline = streamer, time.monotonic() + ANSWER_SECONDS

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        over = self.streamer.disconnected.is_set() or time.monotonic() > self.deadline
        return torch.full((len(input_ids),), over, device=input_ids.device)


class PlainChatbot(gr.Chatbot):
    """A chatbot that shows every text literally; Gradio's renders HTML that it considers harmless, such as <img>."""

    def get_block_name(self) -> str:
        return "chatbot"

    def postprocess(self, value: Any) -> Any:
        messages = super().postprocess(value)
        for content in (content for message in messages.root for content in message.content):
            if content.type == "text":
                content.text = html.escape(content.text, quote=False)
        return messages

    def preprocess(self, payload: Any) -> Any:
        messages = super().preprocess(payload)
        for content in (content for message in messages for content in message["content"]):
            if content["type"] == "text":
                content["text"] = html.unescape(content["text"])
        return messages


class Asker:
    """Answers questions; caches the encoded media that were used last, by their content."""

    CACHE_SIZE = 64

    def __init__(self, loaded: LoadedModel):
        self.loaded, self.media_cache = loaded, MediaCache(self.CACHE_SIZE)

    def encode(self, path: Path) -> dict[str, Any]:
        """The memory of one image or audio clip by its modality, as `project_media` returns it."""
        if path.suffix.lower() not in AUDIO_SUFFIXES:
            return self.media_cache.get_or_compute(path, self.encode_image, "image")
        if not self.loaded.takes_audio:
            raise Refused("This model takes no audio; ask it about images.")
        return self.media_cache.get_or_compute(path, self.encode_audio, "audio")

    def encode_image(self, path: Path) -> dict[str, Any]:
        return self.project(self.loaded.processor.flat_images([[open_image(path, self.loaded.processor)]]))

    def encode_audio(self, path: Path) -> dict[str, Any]:
        return self.project(self.loaded.processor.flat_audio([[open_audio(path)]]))

    @torch.no_grad()
    def project(self, media: dict[str, torch.Tensor]) -> dict[str, Any]:
        model = self.loaded.model
        return model.project_media(**{name: value.to(model.device) for name, value in media.items()})

    def encode_all(self, paths: list[Path]) -> dict[str, Any]:
        """The memory of each modality for all media of a prompt: the media of one modality are concatenated."""
        memories = [self.encode(path) for path in paths]
        concatenated = {}
        for modality in ("image", "audio"):
            parts = [memory[modality] for memory in memories if modality in memory]
            if parts:
                present = None if parts[0].present is None else torch.cat([part.present for part in parts])
                index = torch.arange(len(parts), device=self.loaded.model.device)[None]
                concatenated[modality] = type(parts[0])(torch.cat([part.states for part in parts]), index, present)
        return concatenated

    def prompt(self, messages: Messages) -> torch.Tensor:
        """Token ids (1, T) of a conversation in the model's chat template.

        Raises:
            Refused: it is longer than the model can read.
        """
        turns = []
        for message in messages:
            kinds = ["audio" if path.suffix.lower() in AUDIO_SUFFIXES else "image" for path in message["files"]]
            parts = [{"type": kind} for kind in kinds] + [{"type": "text", "text": message["text"]}]
            turns.append({"role": message["role"], "content": parts})
        processor = self.loaded.processor
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        start = processor.tokenizer.bos_token
        special = start is None or not text.startswith(start)
        ids = processor.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
        if ids.shape[1] >= self.loaded.max_length:
            raise Refused("The conversation is longer than the model can read; start a new one or ask less.")
        return ids.to(self.loaded.model.device)

    def answer(self, messages: Messages, new_tokens: int) -> Iterator[str]:
        """Yield the answer to the last message so far, after every token."""
        ids, model = self.prompt(messages), self.loaded.model
        new_tokens = min(new_tokens, self.loaded.max_length - ids.shape[1])
        options: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            memories = self.encode_all([path for message in messages for path in message["files"]])
            if memories:
                options["media_key_values"], options["media_start"] = model.attended(memories, ids)
        streamer = AnswerStreamer(self.loaded.processor.tokenizer)
        failures = list[Exception]()

        def generate() -> None:
            try:
                model.generate(
                    ids,
                    streamer=streamer,
                    do_sample=False,
                    max_new_tokens=new_tokens,
                    stopping_criteria=StoppingCriteriaList([StopWhenUnreadOrLate(streamer)]),
                    **options,
                )
            except Exception as error:
                failures.append(error)
                streamer.end()

        threading.Thread(target=generate, daemon=True).start()
        text = ""
        try:
            for text in streamer:
                yield text
        finally:  # also if the client disconnects before the end
            streamer.disconnected.set()
        if failures:
            raise failures[0]
        if not text:
            yield "(the answer is empty)"


def parts_of(content: Any) -> tuple[str, list[Any]]:
    """The text and the files of a message in Gradio's history."""
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


def uploaded_files(attached: Any) -> list[Path]:
    """The uploaded files among the attachments of a message."""
    return [path for path in (uploaded_file(file, "file") for file in attached) if path]


def conversation(asker: Asker, message: Any, history: Any, follow_up: bool) -> Messages:
    """The messages for the model: all turns with `follow_up`, otherwise the question alone with the latest media.

    Raises:
        Refused: a turn is malformed, there is no question, or there are too many media.
    """
    if not isinstance(message, dict):
        raise Refused("A message has a text and a list of files.")
    turns = [(turn.get("role"), *parts_of(turn.get("content"))) for turn in history or [] if isinstance(turn, dict)]
    turns.append(("user", message.get("text"), list(message.get("files") or [])))
    merged: Messages = []
    for role, text, attached in turns:
        role = "assistant" if role == "assistant" else "user"
        text = checked_text(text, asker.loaded.processor)
        files = uploaded_files(attached) if role == "user" else []
        if merged and merged[-1]["role"] == role:  # Gradio stores each file as a separate message
            merged[-1]["text"] = f"{merged[-1]['text']} {text}".strip()
            merged[-1]["files"] += files
        else:
            merged.append({"role": role, "text": text, "files": files})
    if not checked_text(message.get("text"), asker.loaded.processor):
        raise Refused("There is no question; write one beside the image.")
    if not follow_up:
        attached_now = uploaded_files(turns[-1][2])
        earlier = next((turn["files"] for turn in reversed(merged) if turn["files"]), [])
        question = checked_text(message["text"], asker.loaded.processor)
        merged = [{"role": "user", "text": question, "files": attached_now or earlier}]
    if sum(len(turn["files"]) for turn in merged) > MAX_MEDIA:
        raise Refused(f"That is more than {MAX_MEDIA} images and audio clips for one conversation.")
    return merged


def stream_answer(
    asker: Asker, make_prompt: Callable[[], tuple[Messages, Any]], request: gr.Request | None
) -> Iterator[str]:
    """Yield the answer so far after every token; an error is yielded as the answer.

    Args:
        make_prompt: returns the messages and the maximum number of new tokens, or raises `Refused`.
    """
    try:
        rate_limiter.admit(request)
        messages, new_tokens = make_prompt()
        yield from asker.answer(messages, checked_number(new_tokens, 1, MAX_NEW_TOKENS, "The length of the answer"))
    except Exception as error:  # not raised: after an error Gradio 6.31 accepts no further message
        if not isinstance(error, Refused):
            logger.exception("a question failed")
            error = Refused(FAILED)
        gr.Warning(error.message, title=error.title)
        yield error.message


def endpoints(asker: Asker) -> tuple[Callable[..., Iterator[str]], Callable[..., Iterator[str]]]:
    """The function that the chat tab calls, and the one for programs."""

    def chat(
        message: dict,
        history: list,
        follow_up: bool = False,
        new_tokens: float = 64,
        request: gr.Request | None = None,
    ) -> Iterator[str]:
        """Ask about images (and audio clips, if the model takes audio). Later questions are about the same ones.

        If a question cannot be answered, the answer is one sentence that gives the reason.

        Args:
            message: the question as `text` and uploaded `files`; without files, it is about the latest ones.
            follow_up: if true, the model also reads the earlier questions and answers.
            new_tokens: maximum length of the answer, in tokens.
        """
        yield from stream_answer(
            asker, lambda: (conversation(asker, message, history, bool(follow_up)), new_tokens), request
        )

    def ask(
        question: str, picture: Any = None, sound: Any = None, new_tokens: Any = 64, request: gr.Request | None = None
    ) -> Iterator[str]:
        """Ask a question about an image (or an audio clip, if the model takes audio).

        If the question cannot be answered, the answer is one sentence that gives the reason.

        Args:
            question: the question, as text.
            picture: an uploaded image, or none.
            sound: an uploaded audio clip, or none.
            new_tokens: maximum length of the answer, in tokens.
        """
        message = {"text": question, "files": [file for file in (picture, sound) if file]}
        yield from stream_answer(asker, lambda: (conversation(asker, message, [], False), new_tokens), request)

    return chat, ask


def ask_tab(asker: Asker) -> None:
    """Draw the tab and register its endpoints."""
    takes_audio = asker.loaded.takes_audio
    media = "images or audio clips" if takes_audio else "one or several images"
    examples = [
        {"text": "what shape is in the image?", "files": [example_media.shape("red", "circle")]},
        {"text": "what is the color of the shape?", "files": [example_media.shape("teal", "triangle")]},
        {"text": "does the image contain a rectangle?", "files": [example_media.shape("yellow", "rectangle")]},
    ]
    follow_up = gr.Checkbox(False, label="Follow up: the model also reads earlier questions and answers", render=False)
    new_tokens = gr.Slider(1, MAX_NEW_TOKENS, 64, step=1, label="Maximum answer length, in tokens", render=False)
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
            placeholder=f"Attach {media}, then ask.",
        ),
        textbox=gr.MultimodalTextbox(
            placeholder=f"Attach {media} and ask",
            file_types=["image", "audio"] if takes_audio else ["image"],
            file_count="multiple",
            sources=["upload"],
            max_plain_text_length=MAX_CHARACTERS,
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
        api_visibility="undocumented",  # MCP clients do not accept the schema of its message
        show_progress="minimal",
    )
    with gr.Column(visible=False):  # the same for programs, with a separate input for each value
        question = gr.Textbox(label="question")
        picture, sound = gr.Image(label="picture", type="filepath"), gr.Audio(label="sound", type="filepath")
        length = gr.Number(64, label="new_tokens")
        gr.Button().click(
            ask, [question, picture, sound, length], gr.Textbox(label="answer"), api_name="ask", preprocess=False
        )
