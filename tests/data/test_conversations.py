# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Conversations are read as they are, in each format; what cannot be one is refused with its turn."""

import base64
import json

import datasets
import pytest
from helpers.builders import drawing
from helpers.conversations import FORMATS, dataset_of, write_conversations
from transformers import CLIPImageProcessorPil

from modeling_mm import MMProcessor
from modeling_mm.data.answer_turns import AnswerTurns
from modeling_mm.data.collator import MMCollator
from modeling_mm.data.dataset import MMDataset
from modeling_mm.data.media import BadRow
from modeling_mm.data.rows import Columns
from modeling_mm.data.tables import read_table


def rows_of(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return dataset_of(path)


def parts(row):
    """Role and content of each turn, media as `<image>`."""
    words = {"text": lambda part: part["text"]}
    return [
        (turn.role, "".join(words.get(p["type"], lambda p: f"<{p['type']}>")(p) for p in turn.content))
        for turn in row.turns
    ]


def model_processor(tokenizer):
    """A processor for 16 x 16 images."""
    size = {"height": 16, "width": 16}
    return MMProcessor(image_processor=CLIPImageProcessorPil(size=size, crop_size=size), tokenizer=tokenizer)


def user(content):
    return {"role": "user", "content": content}


def assistant(content="yes"):
    return {"role": "assistant", "content": content}


@pytest.fixture(autouse=True)
def image(tmp_path):
    drawing((200, 0, 0)).save(tmp_path / "a.png")
    drawing((0, 0, 200)).save(tmp_path / "b.png")
    return str(tmp_path / "a.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_turns(tmp_path, kind):
    row = dataset_of(write_conversations(tmp_path, kind))[0]
    question = {"llava": "<image>\nwhat colour is it"}.get(kind, "<image>what colour is it")
    expected = [("user", question), ("assistant", "red"), ("user", "is it red"), ("assistant", "yes")]
    assert parts(row) == expected
    assert [image.path for image in row.images] == [str(tmp_path / "red.png")]
    learned = [turn.learned for turn in row.turns]
    assert learned == ([False] * 3 + [True] if kind == "prompts" else [False, True] * 2)


@pytest.mark.parametrize("kind", FORMATS)
def test_parquet_and_json_text_are_read_alike(tmp_path, kind):
    path = write_conversations(tmp_path, kind)
    rows = [FORMATS[kind](("red", "red.png")) for _ in range(3)]
    if kind == "messages":  # Arrow has one type for all contents
        for row in rows:
            for turn in row["messages"]:
                turn["content"] = turn["content"] if isinstance(turn["content"], list) else [
                    {"type": "text", "text": turn["content"]}
                ]  # fmt: skip
    if kind != "prompts":
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
        assert parts(dataset_of(tmp_path / "rows.parquet")[0]) == parts(dataset_of(path)[0])
    texts = [
        {name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()} for row in rows
    ]
    for row in texts:
        row |= {"images": "red.png"} if "images" in row else {}
    datasets.Dataset.from_list(texts).to_csv(tmp_path / "rows.csv")
    assert parts(dataset_of(tmp_path / "rows.csv")[0]) == parts(dataset_of(path)[0])


def test_media_stand_where_their_parts_are(tmp_path, image):
    data = base64.b64encode((tmp_path / "b.png").read_bytes()).decode()
    turns = [
        user([{"type": "text", "text": "first "}, {"type": "image", "image": image}, {"type": "text", "text": " it"}]),
        assistant(),
        user([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}, "and"]),
        assistant([{"type": "text", "text": "no"}]),
    ]
    row = rows_of(tmp_path, {"messages": turns})[0]
    assert parts(row)[0] == ("user", "first <image> it") and parts(row)[2] == ("user", "<image>and")
    assert [media.source for media in row.images] == [image, (tmp_path / "b.png").read_bytes()]


def test_images_of_a_column_fill_the_markers_in_order(tmp_path):
    turns = [user("<image> and <image>?"), assistant(), user("plain"), assistant()]
    row = rows_of(tmp_path, {"messages": turns, "images": ["a.png", "b.png"]})[0]
    assert parts(row)[0] == ("user", "<image> and <image>?")
    assert [media.path for media in row.images] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_without_markers_images_stand_before_the_first_question(tmp_path):
    turns = [{"role": "system", "content": "be brief"}, user("what"), assistant()]
    row = rows_of(tmp_path, {"messages": turns, "images": ["a.png", "b.png"]})[0]
    assert parts(row) == [("system", "be brief"), ("user", "<image><image>what"), ("assistant", "yes")]


def test_conversations_without_media_and_tool_turns(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    turns = [user("what"), call, {"role": "tool", "content": "3", "name": "f"}, assistant("three")]
    row = rows_of(tmp_path, {"messages": turns})[0]
    assert row.turns[1].more["tool_calls"][0]["function"]["name"] == "f" and row.turns[2].role == "tool"
    assert not row.images


def test_an_answer_is_evaluated_after_the_true_turns_before_it(tmp_path):
    answers = AnswerTurns(dataset_of(write_conversations(tmp_path, "messages", 4)))
    assert len(answers) == 8
    assert [answers[i].target for i in range(2)] == ["red", "yes"]
    assert [answers.group(i) for i in range(2)] == [(1, ""), (2, "")]
    assert [len(answers[i].turns) for i in range(2)] == [2, 4] and answers[1].turns[1].learned is False
    assert len(AnswerTurns(dataset_of(write_conversations(tmp_path, "prompts", 4)))) == 4


def test_answers_in_json_and_html_are_words(tmp_path):
    rows = [
        {"prompt": "what", "completion": '{"answer": 5}'},
        {"prompt": "show <video>", "completion": "[1, 2] <video>"},
    ]
    found = rows_of(tmp_path, *rows)
    assert [found[i].turns[1].text for i in range(2)] == ['{"answer": 5}', "[1, 2] <video>"]
    assert not found[1].videos and parts(found[1])[0] == ("user", "show <video>")


def test_a_column_of_media_that_is_missing_is_refused(tmp_path):
    write_conversations(tmp_path, "messages")
    table, folder = read_table(str(tmp_path / "messages_train.jsonl"))
    with pytest.raises(ValueError, match="has no column 'pics'; it has messages, images"):
        MMDataset("rows", table, folder, Columns("pics", "", None, conversation="messages"), task="generation")


def test_late_answers_of_a_long_conversation_are_left_out_and_never_asked_wrongly(tmp_path, tokenizer, caplog):
    rows = dataset_of(write_conversations(tmp_path, "messages", 4))
    processor = model_processor(tokenizer)
    collator = MMCollator(processor, "generation")
    collator.max_length = min(collator.lengths(rows)) - 1
    collator.check_lengths(rows, skip=False)
    assert "4 conversations are cut behind an answer" in caplog.text and "0 of their media" in caplog.text
    answers = AnswerTurns(rows)
    assert len(answers) == 4 and [answers[i].target for i in range(4)] == ["red", "green", "blue", "white"]
    assert (collator([answers[i] for i in range(4)])["labels"] != -100).any(dim=1).all()


@pytest.mark.parametrize(
    "turns, expected",
    [
        ([assistant(), user("a")], "turn 1 is the assistant's, at the beginning; expected the user's"),
        ([user("a"), user("b"), assistant()], "turn 2 is the user's, after one of the user's"),
        ([user("a"), assistant(), assistant()], "turn 3 is the assistant's, after one of the assistant's"),
        ([user("a")], "the last of 1 turns is the user's; expected the assistant's"),
        ([user(""), assistant()], "turn 1 (user) is empty; expected words or media"),
        ([user("a"), assistant("")], "turn 2 (assistant) is empty"),
        ([user("a <image>"), assistant()], "leave 1 places for images, but the row's columns hold 0"),
        ([user("a"), assistant("<image>")], "turn 2 (assistant) has the marker '<image>'"),
        ([user([{"type": "hologram"}]), assistant()], "turn 1 (user) has a part of the type 'hologram'"),
        ([user([{"type": "image", "url": "https://x.org/a.png"}]), assistant()], "or give --fetch_images true"),
        (
            [user([{"type": "image", "base64": "!"}]), assistant()],
            "turn 1 (user) embeds image data that are not base64",
        ),
        ([{"role": "critic", "content": "a"}, assistant()], "turn 1 has the role 'critic'"),
        ([{"words": "a"}], "turn 1 has the keys words; expected role and content, from and value"),
        (["a"], "turn 1 is 'a'"),
        ([], "'messages' is empty; expected a list of turns"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_turn(tmp_path, turns, expected):
    with pytest.raises(BadRow) as error:
        rows_of(tmp_path, {"messages": [user("fine"), assistant()]}, {"messages": turns})
    assert expected in str(error.value) and "row 2" in str(error.value)


def test_a_missing_image_is_refused_and_bad_rows_can_be_skipped(tmp_path):
    good, bad = {"messages": [user("a"), assistant()]}, {"messages": [user("a"), assistant()], "images": ["c.png"]}
    with pytest.raises(BadRow, match=r"row 2: .*c\.png"):
        rows_of(tmp_path, good, bad)
    table, folder = read_table(str(tmp_path / "rows.jsonl"))
    columns = Columns("images", "", None, conversation="messages")
    kept = MMDataset("rows", table, folder, columns, task="generation").check(skip=True)
    assert len(kept) == 1 and kept.bad_rows[0]["row"] == 2


def test_a_long_conversation_is_one(tmp_path):
    turns = [user("a"), assistant()] * 50
    assert len(rows_of(tmp_path, {"messages": turns})[0].turns) == 100
