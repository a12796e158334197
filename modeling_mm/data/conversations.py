# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Conversations as people have them, read to turns and media.

| columns                 | format                                                                                 |
|-------------------------|----------------------------------------------------------------------------------------|
| `messages`              | OpenAI's and TRL's: `role`, and `content` as a string or a list of parts               |
| `conversations`         | LLaVA's: `from` (human, gpt, system) and `value`, in which `<image>` stands for one     |
| `texts` and `images`    | The Cauldron's: a list of `user` and `assistant` about the images                      |
| `prompt`, `completion`  | TRL's: strings or messages; only the completion is learned                             |

Media are parts with a source of their own, or come from a column of media in the order of the parts and markers
without one; if there is none of these either, they stand before the first question. Any cell may be JSON text.
"""

import base64
import binascii
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..model.media_mm import MODALITIES
from .media import BadRow
from .text_files import as_meant, parse_json

ROLES = {name: name for name in ("system", "user", "assistant", "tool")}
ROLES |= {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system", "function": "tool"}
FORMATS = {"messages": "messages", "conversations": "LLaVA", "texts": "The Cauldron", "prompt,completion": "prompts"}
KINDS = {"image": "image", "image_url": "image", "input_image": "image", "audio": "audio", "video": "video"}
KINDS |= {"audio_url": "audio", "input_audio": "audio", "video_url": "video"}
SOURCES = ("url", "path", "bytes", "base64", "data")  # keys of a part with a source, beside its type and its kind
MARKERS = {name: f"<{name}>" for name in MODALITIES}  # in the texts of data sets, whatever the processor's are


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Args:
        role: system, user, assistant or tool.
        content: parts as chat templates take them: `{"type": "text", "text": ...}`, or `{"type": "image"}` and the
            like, which stand for the row's media in their order.
        learned: True for an assistant's turn, unless it is only context, as in a prompt.
        more: other keys for the template, such as `tool_calls`.
        kind: groups answers in the report, from the key `kind`.
    """

    role: str
    content: tuple[dict[str, str], ...]
    learned: bool = False
    more: dict[str, Any] = field(default_factory=dict)
    kind: str = ""

    @property
    def text(self) -> str:
        """The words, without media."""
        return "".join(part["text"] for part in self.content if part["type"] == "text")

    @property
    def message(self) -> dict[str, Any]:
        """The turn for a chat template."""
        return {"role": self.role, "content": list(self.content), **self.more}

    def count(self, modality: str) -> int:
        """The number of its images, audio clips or videos."""
        return sum(part["type"] == modality for part in self.content)

    def without(self, modalities: Collection[str]) -> "Turn":
        """The turn without its media of these modalities."""
        return replace(self, content=tuple(part for part in self.content if part["type"] not in modalities))


def conversation_column(names: Collection[str]) -> str:
    """The column of conversations of a table, or two of them, by the names of its columns; "" if there is none."""
    if {"prompt", "completion"} <= set(names):
        return "prompt,completion"
    if "texts" in names and "images" in names:
        return "texts"
    return next((name for name in ("messages", "conversations") if name in names), "")


def media_column(names: Collection[str], modality: str) -> str:
    """The usual column of a modality beside conversations; "" if there is none."""
    return next((name for name in (f"{modality}s", modality) if name in names), "")


def transcript(turns: Sequence[Turn]) -> str:
    """The words of turns, a line `role: words` for each."""
    return "\n".join(f"{turn.role}: {turn.text}" for turn in turns)


def read_conversation(
    cells: Sequence[tuple[str, Any]], media: Mapping[str, Sequence[Any]], source: Callable[[str, Any], Any]
) -> tuple[list[Turn], dict[str, list[Any]]]:
    """The turns of a row, and its media by modality, in their order.

    Args:
        cells: name and value of one column, or those of prompt and completion.
        media: the media of the row's other columns, by modality.
        source: what a row holds for the source of a part, by modality.

    Raises:
        BadRow: names the turn and what was expected.
    """
    turns: list[Turn] = []
    # the names of HTML's elements stand for media only where the row has some
    sources: dict[str, list[Any]] = {name: [] for name in MODALITIES if name == "image" or media.get(name)}
    for place, (name, cell) in enumerate(cells):
        roles = ("user", "assistant")[place] if len(cells) > 1 else ""
        for item in listed(name, cell, roles):
            for role, content, more in exchanges(item, len(turns) + 1):
                turns.append(read_turn(role, content, more, len(turns) + 1, sources))
        if len(cells) > 1 and place == 0:
            turns = [replace(turn, learned=False) for turn in turns]
    check_order(turns)
    filled = {name: fill(name, sources.get(name, []), media.get(name, ()), source) for name in MODALITIES}
    for name in reversed(MODALITIES):  # in front of the first question: images, then audio clips, then videos
        if not sources.get(name) and filled[name]:
            first = next(i for i, turn in enumerate(turns) if turn.role == "user")
            parts = ({"type": name},) * len(filled[name])
            turns[first] = replace(turns[first], content=(*parts, *turns[first].content))
    for number, turn in enumerate(turns, 1):
        if not turn.content and not turn.more:
            raise BadRow(f"turn {number} ({turn.role}) is empty; expected words or media")
    return turns, filled


def listed(name: str, cell: Any, role: str) -> list[Any]:
    """The items of a cell: a list, its JSON text, or the words of one turn of a `role`.

    Raises:
        BadRow: the cell holds no turns.
    """
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            parsed = as_meant(parse_json(cell))
            items = parsed if isinstance(parsed, list) else [parsed]
            turns = [isinstance(item, dict) and bool({"role", "from", "user"} & set(item)) for item in items]
            if not role or (turns and all(turns)):
                cell = items
        except ValueError as error:
            if not role:
                raise BadRow(f"'{name}' is no conversation in JSON: {error}") from None
    if isinstance(cell, str) and role:
        return [{"role": role, "content": cell}]
    if not isinstance(cell, list) or not cell:
        found = "empty" if cell in (None, "", []) else f"{cell!r:.60}"
        raise BadRow(f"'{name}' is {found}; expected a list of turns")
    return cell


def exchanges(item: Any, number: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Role, content and other keys of the turns of an item, of which a `user` with an `assistant` makes two.

    Raises:
        BadRow: the item is in no known format.
    """
    found = {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else {}
    if "role" in found:
        role, content = found.pop("role"), found.pop("content", [])
    elif "from" in found and "value" in found:
        role, content = found.pop("from"), found.pop("value")
    elif "user" in found and "assistant" in found:
        yield "user", found["user"], {}
        yield "assistant", found["assistant"], {}
        return
    else:
        what = f"has the keys {', '.join(found)}" if found else f"is {item!r:.60}"
        raise BadRow(f"turn {number} {what}; expected role and content, from and value, or user and assistant")
    if role not in ROLES:
        raise BadRow(f"turn {number} has the role '{role!s:.30}'; expected one of {', '.join(ROLES)}")
    more = {name: found[name] for name in ("tool_calls", "tool_call_id", "name", "kind") if found.get(name)}
    yield ROLES[role], content, more


def read_turn(role: str, content: Any, more: dict[str, Any], number: int, sources: dict[str, list[Any]]) -> Turn:
    """One turn; the sources of its media, None for those without, are added to `sources`."""
    parts: list[dict[str, str]] = []
    where = f"turn {number} ({role})"
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise BadRow(f"{where} holds {part!r:.60}; expected a string or a list of parts")
        part = {name: value for name, value in part.items() if value is not None}
        kind = part.get("type") or next((name for name in ("text", *KINDS) if name in part), None)
        if kind in ("text", "input_text", "output_text"):
            parts += split_text(str(part.get("text", "")), where, role, sources)
        elif kind in KINDS:
            parts.append({"type": KINDS[kind]})
            sources.setdefault(KINDS[kind], []).append(part_source(part, kind, where))
        else:
            raise BadRow(f"{where} has a part of the type '{kind!s:.30}'; expected text, {', '.join(KINDS)}")
    kind = str(more.pop("kind", ""))
    return Turn(role, tuple(parts), role == "assistant", more, kind)


def split_text(text: str, where: str, role: str, sources: dict[str, list[Any]]) -> list[dict[str, str]]:
    """The parts of a text, whose markers stand for media without a source.

    Raises:
        BadRow: an answer has a marker.
    """
    parts: list[dict[str, str]] = []
    markers = {name: MARKERS[name] for name in sources}
    while found := min(((text.find(mark), name) for name, mark in markers.items() if mark in text), default=None):
        at, name = found
        if role == "assistant":
            raise BadRow(f"{where} has the marker '{MARKERS[name]}'; expected media in questions only")
        parts += [{"type": "text", "text": text[:at]}] if at else []
        parts.append({"type": name})
        sources[name].append(None)
        text = text[at + len(MARKERS[name]) :]
    return [*parts, {"type": "text", "text": text}] if text.strip() or (text and parts) else parts


def part_source(part: dict[str, Any], kind: str, where: str) -> Any:
    """The source of a medium that a part names or embeds; None if it has none.

    Raises:
        BadRow: it is not base64.
    """
    value = next((part[key] for key in (kind, KINDS[kind], *SOURCES) if key in part and part[key] != kind), None)
    if isinstance(value, dict) and not value.get("bytes"):
        value = next((value[key] for key in SOURCES if value.get(key) is not None), None)
    if not isinstance(value, str):
        return value
    is_data = value.startswith("data:")
    if is_data or kind == "input_audio" or "base64" in part:
        try:
            return base64.b64decode(value.partition(",")[2] if is_data else value, validate=True)
        except binascii.Error:
            raise BadRow(f"{where} embeds {KINDS[kind]} data that are not base64") from None
    return value.removeprefix("file://")


def check_order(turns: Sequence[Turn]) -> None:
    """Refuse turns that do not alternate, from a user's to an assistant's.

    Raises:
        BadRow: names the turn.
    """
    expected, previous = "user", "start"
    if not any(turn.role == "user" for turn in turns):
        raise BadRow(f"none of the {len(turns)} turns is the user's; expected at least one")
    for number, turn in enumerate(turns, 1):
        if turn.role == "system" and previous in ("start", "system"):
            previous = "system"
            continue
        is_tool = turn.role == "tool" and previous in ("assistant", "tool")
        if turn.role != expected and not is_tool:
            before = "at the beginning" if previous in ("start", "system") else f"after one of the {previous}'s"
            raise BadRow(f"turn {number} is the {turn.role}'s, {before}; expected the {expected}'s")
        previous, expected = turn.role, "assistant" if turn.role in ("user", "tool") else "user"
    if previous != "assistant":
        raise BadRow(f"the last of {len(turns)} turns is the {previous}'s; expected the assistant's")


def fill(modality: str, places: Sequence[Any], items: Sequence[Any], source: Callable[[str, Any], Any]) -> list[Any]:
    """The media of a modality in their order: those of the parts, whose places without a source the column's fill.

    Raises:
        BadRow: there are more or fewer items than places.
    """
    empty = sum(place is None for place in places)
    if not places:
        return list(items)
    if empty != len(items):
        nouns = MODALITIES[modality].items
        raise BadRow(
            f"the turns leave {empty} places for {nouns}, but the row's columns hold {len(items)}; expected as many"
        )
    rest = iter(items)
    return [next(rest) if place is None else source(modality, place) for place in places]
