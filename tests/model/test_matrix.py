# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Laws 1, 4, 6 and 7 for every text backbone and vision tower of which a small model can be built.

The result for each type is its row in docs/backbones.md; a test fails if the two differ. To rewrite the tables:

    python -m pytest tests/model/test_matrix.py --write-tables
"""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.builders import (
    COMMON,
    IMAGE_ID,
    OLD_LIBRARY,
    ROWS,
    TRANSFORMER,
    open_gates,
    pictures,
    text_config,
    token_row,
    vision_config,
)
from helpers.builders import DECODERS as CORE_DECODERS
from helpers.builders import ENCODERS as CORE_ENCODERS
from helpers.builders import OTHERS as CORE_OTHERS
from helpers.builders import VISION as CORE_VISION
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_mm import MMConfig, MMForConditionalGeneration, MMModel
from modeling_mm.model.fusion_mm import FusionContext, text_layers

TABLES = Path(__file__).parents[2] / "docs" / "backbones.md"
REFUSED = (ValueError, StrictDataclassError)

HEADLESS = {name: value for name, value in COMMON.items() if name != "num_attention_heads"}
GROUPED = {**COMMON, "num_key_value_heads": 2}
NARROW = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
LATENT = {**COMMON, **LATENT, "num_key_value_heads": 4}
GROUPS = {**ROUTED, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
DELTA = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
DELTA = {**NARROW, **DELTA, "num_hidden_layers": 4, "head_dim": 16}
MAMBA = {**GROUPED, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
PER_LAYER = {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
OWN_NAMES = {"vocab_size": 99, "d_model": 32, "n_layer": 3, "n_head": 4, "d_head": 8, "d_inner": 48}
TEXT = {
    **CORE_DECODERS,
    **CORE_ENCODERS,
    **CORE_OTHERS,
    # decoders
    **dict.fromkeys(
        ["apertus", "arcee", "bitnet", "cohere", "cwm", "diffllama", "doge", "ernie4_5", "exaone4"], GROUPED
    ),
    **dict.fromkeys(["glm", "glm4", "hyperclovax", "internlm3", "jais2", "mistral", "nanochat", "nemotron"], GROUPED),
    **dict.fromkeys(["olmo", "olmo2", "olmo3", "qwen2", "seed_oss", "stablelm", "starcoder2", "vaultgemma"], GROUPED),
    **dict.fromkeys(["granitemoe", "granitemoeshared", "minimax", "mixtral", "phimoe"], GROUPED),
    **dict.fromkeys(["biogpt", "bloom", "falcon", "gpt_bigcode", "gpt_neox_japanese", "mpt"], COMMON),
    **dict.fromkeys(["persimmon", "xglm", "bert-generation"], COMMON),
    **dict.fromkeys(["codegen", "gptj"], {**COMMON, "rotary_dim": 8}),
    **dict.fromkeys(["gemma", "gemma3_text", "helium", "hunyuan_v1_dense", "ministral"], NARROW),
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "cohere2": {**GROUPED, "logit_scale": 0.5},
    "ctrl": {**COMMON, "dff": 48},
    "deepseek_v2": {**LATENT, **GROUPS, "head_dim": 8, "n_shared_experts": 1},
    "deepseek_v3": {**LATENT, **GROUPS},
    "ernie4_5_moe": {**GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_chunk_size": 16},
    "gemma3n_text": {
        **NARROW,
        **PER_LAYER,
        "num_hidden_layers": 4,
        "layer_types": ["full_attention"] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {**NARROW, **PER_LAYER, "global_head_dim": 8},
    "glm4_moe": {**NARROW, **ROUTED},
    "gpt_neo": {
        **ROWS,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
    },
    "gpt_oss": {**NARROW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {**GROUPED, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "granitemoehybrid": {
        **MAMBA,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "jamba": {
        **GROUPED,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
    },
    "lfm2_moe": {**GROUPED, **EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "minicpm3": LATENT,
    "modernbert-decoder": {**COMMON, "cls_token_id": 1, "sep_token_id": 1},
    "olmo_hybrid": GROUPED,
    "olmoe": {**GROUPED, **EXPERTS},
    "openai-gpt": {**COMMON, "n_positions": 64},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": DELTA,
    "recurrent_gemma": {**GROUPED, "attention_window_size": 8},
    "youtu": LATENT,
    "zamba2": {
        **GROUPED,
        "layer_types": ["mamba", "hybrid", "mamba"],
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "hybrid_layer_ids": [1],
        "mamba_ngroups": 1,
    },
    # encoders
    **dict.fromkeys(["big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "ernie"], COMMON),
    **dict.fromkeys(["esm", "eurobert", "fnet", "gte", "ibert", "jina_embeddings_v3", "layoutlm", "mpnet"], COMMON),
    **dict.fromkeys(["megatron-bert", "mobilebert", "mra", "nomic_bert", "nystromformer", "rembert"], COMMON),
    **dict.fromkeys(["roberta-prelayernorm", "roc_bert", "roformer", "splinter", "tapas"], COMMON),
    **dict.fromkeys(["xlm-roberta-xl", "yoso"], COMMON),
    "clip_text_model": {**COMMON, "eos_token_id": 2},
    "esmc": {**COMMON, "num_key_value_heads": 4},
    "luke": {**COMMON, "entity_vocab_size": 10, "entity_emb_size": 16},
    "squeezebert": {**COMMON, "embedding_size": 32},
    "xmod": {**COMMON, "default_language": "en_XX", "languages": ["en_XX"]},
    # other architectures: recurrent, encoder-decoder, one shared layer, no layers, pooled or padded tokens
    **dict.fromkeys(["albert", "canine", "flaubert", "longformer", "xlm"], COMMON),
    **dict.fromkeys(["falcon_mamba", "mamba", "rwkv"], HEADLESS),
    **dict.fromkeys(["bart", "t5"], {}),
    "funnel": {**OWN_NAMES, "architectures": ["FunnelModel"], "block_sizes": [2, 2, 2]},
    "mamba2": {**HEADLESS, "num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8},
    "reformer": {
        **COMMON,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local"] * 3,
        "is_decoder": True,
    },
    "xlnet": OWN_NAMES,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
PYRAMID = {"num_encoder_blocks": 2, "num_attention_heads": [1, 2], "sr_ratios": [1, 1], "mlp_ratios": [2, 2]}
PYRAMID = {**STAGES, **PYRAMID, "patch_sizes": [3, 3], "strides": [2, 2], "image_size": 16}
WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
SQUARE = {**TRANSFORMER, "image_size": [16, 16], "patch_size": [8, 8]}
HIERA = {"patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "depths": [1, 1], "num_heads": [1, 2]}
HIERA = {**HIERA, "embed_dim": 8, "image_size": [16, 16], "num_query_pool": 1, "masked_unit_size": [2, 2]}
ONE_BLOCK = {"in_channels": [8], "out_channels": [8], "kernel_sizes": [3], "strides": [2], "num_block_repeats": [1]}
ONE_BLOCK = {**ONE_BLOCK, "expand_ratios": [1], "width_coefficient": 0.1, "hidden_dim": 128, "depthwise_padding": []}
EYES = {
    **CORE_VISION,
    **dict.fromkeys(
        ["aimv2_vision_model", "beit", "chinese_clip_vision_model", "data2vec-vision", "deit"], TRANSFORMER
    ),
    **dict.fromkeys(["dinov2_with_registers", "dinov3_vit", "dpt", "idefics3_vision", "ijepa"], TRANSFORMER),
    **dict.fromkeys(["mlcd_vision_model", "pixio", "pixtral", "sam_vision_model", "smolvlm_vision"], TRANSFORMER),
    **dict.fromkeys(["tipsv2_vision_model", "vit_msn", "vitdet"], TRANSFORMER),
    **dict.fromkeys(["internvl_vision"], SQUARE),
    **dict.fromkeys(["donut-swin", "maskformer-swin", "swinv2"], WINDOWS),
    **dict.fromkeys(["glpn", "pvt_v2", "segformer"], PYRAMID),
    "convnextv2": {**STAGES, "num_stages": 2},
    "dinov3_convnext": STAGES,
    "bit": {**STAGES, "embedding_size": 8, "num_groups": 2},
    "efficientnet": ONE_BLOCK,
    "focalnet": {**WINDOWS, **STAGES, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "hiera": HIERA,
    "levit": {
        "image_size": 16,
        "hidden_sizes": [8, 16, 24],
        "depths": [1] * 3,
        "num_attention_heads": [1, 2, 2],
        "key_dim": [4] * 3,
    },
    "mobilenet_v2": {"depth_multiplier": 0.1},
    "mobilevit": {
        "hidden_sizes": [8, 12, 16],
        "neck_hidden_sizes": [4, 4, 8, 8, 12, 16, 24],
        "num_attention_heads": 2,
    },
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4},
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "swiftformer": {"depths": [1] * 4, "embed_dims": [8, 8, 16, 16]},
    "yolos": {**SQUARE, "patch_size": 8},
    "vit_mae": {**TRANSFORMER, "mask_ratio": 0.0},  # its pretrained ratio, 0.75, hides most of the image
}
TITLES = {
    "Text backbones": ("| type | composed as | fusion enters by | result |", TEXT),
    "Vision towers": ("| type | states of a small image | result |", EYES),
}
INTRODUCTION = """# Which towers work

Written by `python -m pytest tests/model/test_matrix.py --write-tables`; the tests fail if the tables differ from their
results. Each type is built small, with random weights, and composed with CLIP or Llama. *ok* means: with gates at
zero, the output is the text backbone's bit for bit, with and without images; with open gates, every token after the
images attends to them; every fusion weight, each text layer and the vision tower get gradients, and no frozen
parameter does; the output is the same bit for bit after saving and loading; a decoder generates the same with and
without its cache.

Fusion enters a backbone by a *keyword* argument that the backbone passes down to its layers, or else by the *context*
of the forward pass. With *context*, a model trains and generates as usual, but cannot be compiled or exported."""


def output(model, **inputs):
    """Logits or states, with a fixed seed for towers that draw at random."""
    torch.manual_seed(5)
    with torch.no_grad():
        return model(**inputs)[0]


def used_to_pictures(tower, kind):
    """The tower with batch norm statistics of images; with initial statistics, the states of some hardly vary."""
    for module in tower.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        for _ in range(10):  # the norms of one layer after those before it
            tower.train()(**pictures(2, kind))
    return tower.eval()


def gradients(model, inputs):
    """Gradients by parameter name of a random projection of the output, in training mode."""
    model.train().zero_grad()
    output = model(**inputs)[0]
    (output * torch.randn_like(output)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_laws(head, backbone, vision, kind, folder):
    """Assert laws 1, 4, 6 and 7 for one pair of towers, and return the model."""
    ids, images = token_row(9, [1, 3])[None], {**pictures(2, kind), "image_index": torch.tensor([[0, 1]])}
    expected = output(backbone, input_ids=ids)
    fields = {"image_token_id": IMAGE_ID, "fusion_layers": [0, 2], "initializer_range": 0.2}
    model = head.from_towers(vision=vision, text=backbone, **fields).eval()
    assert torch.equal(output(model, input_ids=ids), expected)
    assert torch.equal(output(model, input_ids=ids, **images), expected)
    seen = output(open_gates(model, 0.5), input_ids=ids, **images)
    assert (seen - expected).abs().amax(-1)[0, 3:].min() > 1e-4
    model.save_pretrained(folder)
    # copied, because some kernels round differently for weights in the memory layout of the file
    loaded = deepcopy(head.from_pretrained(folder).eval())
    assert torch.equal(output(loaded, input_ids=ids, **images), seen)
    if head is MMForConditionalGeneration:
        options = {"max_new_tokens": 5, "do_sample": False, **images}
        torch.manual_seed(5)
        cached = model.generate(ids, **options)
        torch.manual_seed(5)
        assert torch.equal(model.generate(ids, **options, use_cache=False), cached)
    assert_gradients(model, {"input_ids": ids, **images})
    return loaded


def assert_gradients(model, inputs):
    """Assert that all fusion weights, each text layer and the vision tower learn, and get no gradient when frozen."""
    base = model.base_model
    moved = {id(model.get_parameter(name)) for name, gradient in gradients(model, inputs).items() if gradient.any()}
    fusion, vision = ({id(p) for p in part.parameters()} for part in (base.fusion, base.vision_tower))
    assert fusion <= moved and vision & moved
    assert all({id(p) for p in layer.parameters()} & moved for layer in text_layers(base.text_model))
    base.text_model.requires_grad_(False), base.vision_tower.requires_grad_(False)
    frozen = gradients(model, inputs)
    assert not any("text_model." in name or "vision_tower." in name for name in frozen)
    assert fusion <= {id(model.get_parameter(name)) for name in frozen}


def enters_by_keyword(model):
    """True if the backbone passes the context to each fused layer by keyword, as compilers and exporters need."""
    base = model.base_model
    visible = torch.ones(1, 1, 4, 1, dtype=torch.bool)
    memory = torch.zeros(1, 2, 2, model.config.fusion_num_key_value_heads, 1, model.config.fusion_head_dim)
    call = FusionContext(base.fusion, base.text_model, tuple(model.config.fusion_layers), memory, visible)
    output(base.text_model.eval(), input_ids=token_row(4)[None], fusion_context=call)
    return call.num_layers_run == 2


def sentence(error):
    """The last line of an error, formatted for a table cell."""
    return "refused: " + str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ").replace("|", r"\|")


def rows_of(title):
    """The rows of a committed table, by type."""
    text = TABLES.read_text(encoding="utf-8").partition(f"## {title}")[2].partition("\n## ")[0]
    return {re.match(r"\| `(.*?)`", line)[1]: line for line in text.splitlines() if line.startswith("| `")}


@pytest.fixture(scope="module")
def found(request):
    """The results by title and type; written to the docs at the end of a run with `--write-tables`."""
    tables = {title: {} for title in TITLES}
    yield tables
    if request.config.getoption("--write-tables"):
        kept = {title: rows_of(title) if TABLES.exists() else {} for title in TITLES}
        ran = {
            title: {kind: row for kind, row in {**kept[title], **rows}.items() if kind in TITLES[title][1]}
            for title, rows in tables.items()
        }
        TABLES.parent.mkdir(exist_ok=True)
        TABLES.write_text(page(ran), encoding="utf-8")


def page(tables):
    """The text of docs/backbones.md: in each table supported types first, then refused ones, both by name."""
    text = [INTRODUCTION]
    for title, (head, _) in TITLES.items():
        rows = [row for _, row in sorted(tables[title].items(), key=lambda item: ("| refused" in item[1], item[0]))]
        refused = sum("| refused" in row for row in rows)
        columns = head.count("|") - 1
        text += [
            f"## {title}",
            f"{len(rows) - refused} work, {refused} are refused.",
            "\n".join([head, "|---" * columns + "|", *rows]),
        ]
    return "\n\n".join(text) + "\n"


def check_row(request, found, title, kind, *cells):
    """Record a row for `--write-tables`, or compare it with the committed one."""
    row = found[title][kind] = " | ".join([f"| `{kind}`", *cells]) + " |"
    if not request.config.getoption("--write-tables"):
        assert row == rows_of(title).get(kind), "docs/backbones.md says otherwise; run with --write-tables"


# Types missing from transformers before 5.23, or wrong there: the cache of recurrent_gemma changes the tokens.
LATER = ("internlm3", "recurrent_gemma")


@pytest.mark.parametrize("kind", [kind for kind in TEXT if not OLD_LIBRARY or kind not in LATER])
def test_text_backbones(kind, request, found, tmp_path):
    config = AutoConfig.for_model(kind, **TEXT[kind])
    head, composed_as, by, result = MMModel, "encoder", "", "ok"
    try:
        if MMConfig(text_config=AutoConfig.for_model(kind, **TEXT[kind])).is_text_decoder:
            head, composed_as = MMForConditionalGeneration, "decoder"
        auto_class = AutoModelForCausalLM if composed_as == "decoder" else AutoModel
        backbone = auto_class.from_config(config).eval()
        bias = getattr(getattr(backbone, "lm_head", None), "bias", None)
        if bias is not None:
            torch.nn.init.normal_(bias)
        model = assert_laws(head, backbone, vision_config(), "clip_vision_model", tmp_path)
        by = "keyword" if enters_by_keyword(model) else "context"
    except REFUSED as error:
        result = sentence(error)
    check_row(request, found, "Text backbones", kind, composed_as, by, result)


@pytest.mark.parametrize("kind", EYES)
def test_vision_towers(kind, request, found, tmp_path):
    states, result = "", "ok"
    try:
        vision = used_to_pictures(AutoModel.from_config(AutoConfig.for_model(kind, **EYES[kind])), kind)
        backbone = AutoModelForCausalLM.from_config(text_config("llama")).eval()
        model = assert_laws(MMForConditionalGeneration, backbone, vision, kind, tmp_path).eval()
        seen = model.get_image_features(**pictures(1, kind)).pooler_output
        states = f"{seen.shape[1]} x {seen.shape[2]}"
    except REFUSED as error:
        result = sentence(error)
    check_row(request, found, "Vision towers", kind, states, result)


def test_the_page_is_whole(request):
    if not request.config.getoption("--write-tables"):
        tables = {title: rows_of(title) for title in TITLES}
        assert {title: sorted(rows) for title, rows in tables.items()} == {t: sorted(TITLES[t][1]) for t in TITLES}
        assert page(tables) == TABLES.read_text(encoding="utf-8")
