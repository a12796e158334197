# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Our own checks of `generate`, in place of transformers' generation suite, which its sdist leaves out.

They ask for the same: two ways to generate that should be equal are equal, in tokens and in logits.
"""

import copy

import pytest
import torch
from testers import IMAGE_ID, LlamaTester
from transformers import StaticCache, set_seed
from transformers.generation import CompileConfig, GenerationMixin

from modeling_mm import MMForConditionalGeneration

pytestmark = pytest.mark.conformance
NEW, ROWS = 4, 2
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@torch.no_grad()
def build(config):
    """A model with open gates and weights so large that the tokens' logits differ."""
    model = MMForConditionalGeneration._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(0.5) if name.endswith("_gate") else parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


@pytest.fixture
def model():
    """A model that never stops early."""
    config = LlamaTester().get_config()
    config.text_config.eos_token_id = None
    return build(config)


@pytest.fixture
def inputs():
    """Rows of text that begin with an image."""
    _, inputs = LlamaTester().prepare_config_and_inputs_for_common()
    return {name: value[:ROWS] for name, value in inputs.items()}


@torch.no_grad()
def run(model, inputs, **options):
    """Generate NEW tokens, never a marker, and keep the logits."""
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "use_cache": True, **options}
    never = {"bad_words_ids": [[IMAGE_ID]], "pad_token_id": 0}
    return model.generate(**inputs, **never, **options, return_dict_in_generate=True, output_logits=True)


def new_tokens(output):
    """(B, NEW), without the prompt."""
    return output.sequences[:, -len(output.logits) :]


def first(inputs):
    """The first row alone."""
    return {name: value[:1] for name, value in inputs.items()}


def padded_left(inputs, columns):
    """The same rows behind `columns` of padding."""
    text = {name: torch.nn.functional.pad(inputs[name], (columns, 0)) for name in ("input_ids", "attention_mask")}
    return {**inputs, **text}


def assert_same(output, expected, **tolerance):
    """The same tokens from logits that are close."""
    assert new_tokens(output).tolist() == new_tokens(expected).tolist()
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), **{**CLOSE, **tolerance})


def test_the_class_inherits_generation_directly():
    assert GenerationMixin in MMForConditionalGeneration.__bases__


def test_output_is_the_prompt_and_the_new_tokens(model, inputs):
    output, length = run(model, inputs), inputs["input_ids"].shape[1]
    assert output.sequences.shape == (ROWS, length + NEW) and len(output.logits) == NEW
    assert torch.equal(output.sequences[:, :length], inputs["input_ids"])


def test_greedy_search_is_deterministic(model, inputs):
    assert_same(run(model, inputs), run(model, inputs), atol=0, rtol=0)


def test_first_logits_are_those_of_forward(model, inputs):
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    torch.testing.assert_close(run(model, inputs).logits[0], logits, **CLOSE)


def test_a_row_stops_at_its_end_token(model, inputs):
    end = new_tokens(run(model, inputs))[0, 1].item()
    row = new_tokens(run(model, inputs, min_new_tokens=0, max_new_tokens=8, eos_token_id=end))[0].tolist()
    assert end in row and not any(row[row.index(end) + 1 :])


def test_a_streamer_gets_every_token(model, inputs):
    class Collect:
        tokens, ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collect()
    output = run(model, first(inputs), streamer=streamer)
    assert streamer.ended and streamer.tokens == output.sequences[0].tolist()


def test_greedy_search_is_the_same_without_a_cache(model, inputs):
    assert_same(run(model, inputs), run(model, inputs, use_cache=False))


def test_sampling_is_the_same_without_a_cache(model, inputs):
    outputs = []
    for use_cache in (True, False):
        set_seed(1)
        outputs.append(run(model, inputs, do_sample=True, top_k=10, use_cache=use_cache))
    assert_same(*outputs)


def test_beam_search_is_the_same_without_a_cache(model, inputs):
    cached, plain = [run(model, inputs, num_beams=2, use_cache=flag, output_scores=True) for flag in (True, False)]
    assert cached.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(cached.sequences_scores, plain.sequences_scores, **CLOSE)


def test_several_sequences_are_returned_for_each_row(model, inputs):
    beams = run(model, inputs, num_beams=4, num_return_sequences=2, do_sample=True)
    samples = run(model, inputs, num_return_sequences=3, do_sample=True)
    assert (len(beams.sequences), len(samples.sequences)) == (2 * ROWS, 3 * ROWS)


def test_a_row_alone_is_the_row_in_a_batch(model, inputs):
    both, alone = run(model, inputs), run(model, first(inputs))
    assert new_tokens(both)[0].tolist() == new_tokens(alone)[0].tolist()
    torch.testing.assert_close(torch.stack(both.logits)[:, :1], torch.stack(alone.logits), **CLOSE)


def test_padding_on_the_left_changes_nothing(model, inputs):
    assert_same(run(model, inputs), run(model, padded_left(inputs, 5)))


def test_a_static_cache_changes_nothing(model, inputs):
    static = run(model, inputs, cache_implementation="static", disable_compile=True)
    assert type(static.past_key_values) is StaticCache
    assert_same(run(model, inputs), static)


def test_sdpa_is_eager(model, inputs):
    fused = MMForConditionalGeneration._from_config(copy.deepcopy(model.config), attn_implementation="sdpa").eval()
    fused.load_state_dict(model.state_dict())
    assert fused.config._attn_implementation == "sdpa" and model.config._attn_implementation == "eager"
    assert_same(run(model, inputs), run(fused, inputs))


@torch.no_grad()
def test_embeddings_stand_for_ids(model, inputs):
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    without_ids = {name: value for name, value in inputs.items() if name != "input_ids"}
    for beams in (1, 2):
        plain = run(model, inputs, num_beams=beams)
        both = run(model, {**inputs, "inputs_embeds": embeddings}, num_beams=beams)
        alone = run(model, {**without_ids, "inputs_embeds": embeddings}, num_beams=beams)
        assert plain.sequences.tolist() == both.sequences.tolist()
        assert new_tokens(plain).tolist() == alone.sequences.tolist()


def test_generation_goes_on_from_a_cache(model, inputs):
    whole = run(model, inputs)
    begun = run(model, inputs, max_new_tokens=NEW - 1, min_new_tokens=NEW - 1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW - 1), value=1)
    rest = {**inputs, "input_ids": begun.sequences, "attention_mask": mask}  # images are not in that cache
    last = run(model, rest, past_key_values=begun.past_key_values, max_new_tokens=1, min_new_tokens=1)
    assert whole.sequences.tolist() == last.sequences.tolist()
    torch.testing.assert_close(whole.logits[-1], last.logits[-1], **CLOSE)


def test_positions_follow_from_the_mask(model, inputs):
    inputs = padded_left(inputs, 3)
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert_same(run(model, inputs), run(model, {**inputs, "position_ids": position_ids}))


def test_assisted_decoding_is_greedy_search(model, inputs):
    plain = run(model, first(inputs))
    for assistant in (model, build(model.config)):
        assistant.generation_config.num_assistant_tokens = 2
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        output = run(model, first(inputs), assistant_model=assistant)
        assert plain.sequences.tolist() == output.sequences.tolist()


def test_prompt_lookup_is_greedy_search(model, inputs):
    plain, output = run(model, first(inputs)), run(model, first(inputs), prompt_lookup_num_tokens=2)
    assert plain.sequences.tolist() == output.sequences.tolist()


def test_generate_compiles_without_a_graph_break(model, inputs):
    plain = run(model, inputs)
    torch.compiler.reset()
    config = CompileConfig(fullgraph=True, dynamic=False, backend="eager", mode=None)
    config._compile_all_devices = True
    compiled = run(model, inputs, cache_implementation="static", compile_config=config)
    torch.compiler.reset()
    assert hasattr(model, "_compiled_call")
    assert_same(plain, compiled)


def test_saved_is_loaded(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert_same(run(model, inputs), run(loaded, inputs), atol=0, rtol=0)


def test_outputs_hold_every_layer_of_every_step(model, inputs):
    output = run(model, inputs, output_scores=True, output_hidden_states=True, output_attentions=True)
    layers = model.config.text_config.num_hidden_layers
    assert len(output.scores) == len(output.hidden_states) == len(output.attentions) == NEW
    assert all(len(step) == layers + 1 for step in output.hidden_states)
    assert all(len(step) == layers and all(attention is not None for attention in step) for step in output.attentions)


@torch.no_grad()
def test_logits_to_keep_are_the_last(model, inputs):
    every, last = model(**inputs).logits, model(**inputs, logits_to_keep=1).logits
    assert every.shape[1] == inputs["input_ids"].shape[1] and last.shape[1] == 1
    torch.testing.assert_close(every[:, -1:], last, **CLOSE)


def test_unknown_arguments_reach_the_forward(model):
    ids, positions = torch.tensor([[30, 40, 50]]), torch.arange(3)[None]
    prepared = model.prepare_inputs_for_generation(ids, position_ids=positions, custom="x", use_cache=True)
    assert prepared["custom"] == "x"


@torch.no_grad()
def test_the_cache_holds_the_text_only(model, inputs):
    cache = model(**inputs, use_cache=True).past_key_values
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_the_picture_reaches_the_logits(model, inputs):
    other = {**inputs, "pixel_values": torch.rand_like(inputs["pixel_values"]) * 4}
    assert (run(model, inputs).logits[0] - run(model, other).logits[0]).abs().max() > 1e-3


def test_pictures_are_encoded_once(model, inputs):
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    run(model, inputs)
    assert len(calls) == 1


def test_text_alone_is_answered(model, inputs):
    text = {"input_ids": inputs["input_ids"].clamp(min=30), "attention_mask": inputs["attention_mask"]}
    assert_same(run(model, text), run(model, text, use_cache=False))
