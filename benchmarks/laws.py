"""Laws of multimodal models, checked on comparable models of transformers and on ours.

    python benchmarks/laws.py        # seconds on a CPU; writes benchmarks/LAWS.md

All models are tiny and random, with gates set to 1, so that effects of fusion are visible. Released weights have
other gates, which changes the size of the effects, but not the mechanism. Each row is one check, run on a peer and on
a model of ours with the same kind of towers.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import peft
import torch
import transformers as T
from peft import LoraConfig, get_peft_model

from modeling_mm import MMConfig, MMForConditionalGeneration, MMModel

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**SIZES, **SPECIAL, "vocab_size": 99, "max_position_embeddings": 64}
VISION = {**SIZES, "image_size": 16, "patch_size": 8, "initializer_range": 0.2}
IMAGE, MARKER_COLUMN = 98, 3
WAYS = {
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "a static cache": {"cache_implementation": "static", "disable_compile": True},
}
GATES = ("_gate", "alpha_cross_attn", "alpha_dense")


@torch.no_grad()
def opened(model: torch.nn.Module) -> torch.nn.Module:
    """The model in evaluation mode, with gates at 1 and weights large enough for logits to differ."""
    for name, parameter in model.named_parameters():
        if name.endswith(GATES):
            parameter.fill_(1.0)
        elif parameter.dim() > 1:
            parameter.normal_(std=0.2)
    return model.eval()


def text_config(kind: str = "llama") -> T.PreTrainedConfig:
    extra = {"cls_token_id": 1, "sep_token_id": 2} if kind == "modernbert" else {}
    extra |= {"num_key_value_heads": 2, "head_dim": 8} if kind == "qwen3" else {}
    return T.AutoConfig.for_model(kind, **TEXT, **extra)


def vision_config(kind: str = "vit") -> T.PreTrainedConfig:
    if kind == "convnext":
        return T.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=16)
    return T.AutoConfig.for_model(kind, **VISION)


def ours(text: str = "llama", vision: str = "vit", head: type = MMForConditionalGeneration) -> torch.nn.Module:
    config = MMConfig(
        text_config=text_config(text), vision_config=vision_config(vision), fusion_layers=[0, 2], image_token_id=IMAGE
    )
    return opened(head(config))


def mllama() -> torch.nn.Module:
    text = {**TEXT, "num_key_value_heads": 2, "cross_attention_layers": [1]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4, "image_size": 8,
        "intermediate_size": 37, "patch_size": 4, "max_num_tiles": 2, "vision_output_dim": 64,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "intermediate_layers_indices": [1],
    }  # fmt: skip
    config = T.MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return opened(T.MllamaForConditionalGeneration(config))


def idefics() -> torch.nn.Module:
    vision = {
        "embed_dim": 32, "image_size": 16, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48,
    }  # fmt: skip
    config = T.IdeficsConfig(**TEXT, vision_config=vision, use_resampler=False, cross_layer_interval=1)
    return opened(T.IdeficsForVisionText2Text(config))


def llava() -> torch.nn.Module:
    vision = T.CLIPVisionConfig(**VISION)
    config = T.LlavaConfig(vision_config=vision, text_config=text_config(), image_token_index=IMAGE)
    return T.LlavaForConditionalGeneration(config)


def rows(markers: list[bool]) -> torch.Tensor:
    """Token ids (B, 8), the same in each row, with an image marker in the rows that have one."""
    ids = torch.arange(10, 18).repeat(len(markers), 1)
    ids[torch.tensor(markers), MARKER_COLUMN] = IMAGE
    return ids


def media_inputs(model: torch.nn.Module, has_image: list[bool], seed: int = 0) -> dict[str, torch.Tensor]:
    """Text and images of a batch in the format of the model; rows without image as documented by the peer."""
    generator = torch.Generator().manual_seed(seed)
    count, real = len(has_image), torch.tensor(has_image)
    ids = rows(has_image)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if isinstance(model, T.MllamaForConditionalGeneration):
        pixels = torch.randn(count, 1, 2, 3, 8, 8, generator=generator) * real.view(-1, 1, 1, 1, 1, 1)
        visible = ((torch.arange(8) >= MARKER_COLUMN) & real[:, None]).long()  # (B, T)
        inputs["aspect_ratio_ids"] = 2 * real.long()[:, None]
        inputs["aspect_ratio_mask"] = torch.stack([torch.ones(count).long(), real.long()], dim=1)[:, None]
        inputs["cross_attention_mask"] = visible[:, :, None, None].repeat(1, 1, 1, 2)
        return {**inputs, "pixel_values": pixels}
    if isinstance(model, T.IdeficsForVisionText2Text):
        pixels = torch.randn(count, 1, 3, 16, 16, generator=generator)
        visible = ((torch.arange(8) >= MARKER_COLUMN) & real[:, None]).long()
        return {**inputs, "pixel_values": pixels, "image_attention_mask": visible[..., None]}
    pixels = torch.randn(int(real.sum()), 3, 16, 16, generator=generator)
    index = torch.where(real, real.cumsum(0) - 1, -1)[:, None]
    return {**inputs, "pixel_values": pixels, "image_index": index} if len(pixels) else inputs


@torch.no_grad()
def leak(model: torch.nn.Module) -> str:
    """Largest change of logits when the image changes: before its marker, where it must be 0, and after it."""
    first, second = (model(**media_inputs(model, [True], seed)).logits[0] for seed in (0, 1))
    change = (first - second).abs().amax(dim=-1)
    return f"{change[:MARKER_COLUMN].max():.2g} before, {change[MARKER_COLUMN:].max():.2g} after"


@torch.no_grad()
def neighbour(model: torch.nn.Module) -> float:
    """Largest change of a text-only row's logits when a row with an image joins the batch; 0 except for rounding."""
    alone = model(input_ids=rows([False]), attention_mask=torch.ones(1, 8, dtype=torch.long)).logits
    beside = model(**media_inputs(model, [False, True])).logits[:1]
    return (alone - beside).abs().max().item()


def same_tokens(**way) -> Callable[[torch.nn.Module], str]:
    """A check that a generation option gives the same tokens as plain greedy decoding."""

    def check(model: torch.nn.Module) -> str:
        inputs = media_inputs(model, [True])
        greedy = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "bad_words_ids": [[IMAGE]]}
        plain = model.generate(**inputs, **greedy)
        return "equal" if torch.equal(plain, model.generate(**inputs, **greedy, **way)) else "other tokens"

    return check


def dual_encoder(text: str, vision: str = "vit") -> str:
    config = T.VisionTextDualEncoderConfig.from_vision_text_configs(vision_config(vision), text_config(text))
    ids = rows([False])
    mask, pixels = torch.ones_like(ids), torch.randn(1, 3, 16, 16)
    T.VisionTextDualEncoderModel(config)(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    return "works"


def encoder_decoder(text: str) -> str:
    config = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision_config(), text_config(text))
    model = T.VisionEncoderDecoderModel(config)
    model(pixel_values=torch.randn(1, 3, 16, 16), decoder_input_ids=rows([False]))
    return "works"


def composed(text: str, vision: str = "vit", head: type = MMModel) -> str:
    model = ours(text, vision, head)
    model(**media_inputs(model, [True]))
    return "works"


def checkpointing(model: torch.nn.Module) -> str:
    model.gradient_checkpointing_enable()
    return "works"


def default_lora(model: torch.nn.Module) -> str:
    return f"{count_adapters(get_peft_model(model, LoraConfig()))} adapters"


def count_adapters(model: torch.nn.Module, part: str = "") -> int:
    """Number of layers with an adapter whose name contains `part`."""
    return sum(name.endswith("lora_A") and part in name for name, _ in model.named_modules())


def text_lora(model: torch.nn.Module, targets: list[str] | None = None) -> str:
    """Locations of adapters that are meant for the text model; our model names its targets itself."""
    config = LoraConfig(target_modules=targets or model.lora_targets("text"))
    model = get_peft_model(model, config)
    vision = count_adapters(model, "vision_tower")
    return f"{count_adapters(model) - vision} in the text model, {vision} in the vision tower"


def vtde() -> torch.nn.Module:
    return T.VisionTextDualEncoderModel(
        T.VisionTextDualEncoderConfig.from_vision_text_configs(vision_config(), text_config("bert"))
    )


def on(check: Callable[[torch.nn.Module], object], build: Callable[[], torch.nn.Module]) -> object:
    return check(build())


def outcome(check: Callable[[], object]) -> str:
    """The result of a check, or its error."""
    torch.manual_seed(0)
    try:
        result = check()
    except Exception as error:  # an error of a peer is the result
        message = " ".join(str(error).split())
        return f"{type(error).__name__}: {message[:70]}"
    return f"{result:.2g}" if isinstance(result, float) else str(result)


Check = Callable[[], object]


def checks() -> Iterator[tuple[str, str, Check, Check]]:
    """Tuples of a description, the peer, the check on the peer, and the check on ours."""
    description = "largest change of logits when the image changes, before and after its marker"
    yield description, "Mllama", lambda: leak(mllama()), lambda: leak(ours())
    yield description, "Idefics", lambda: leak(idefics()), lambda: leak(ours("gpt2"))
    description = "largest change of a text-only row's logits when a row with an image joins the batch"
    yield description, "Mllama", lambda: neighbour(mllama()), lambda: neighbour(ours())
    for name, way in WAYS.items():
        same = same_tokens(**way)
        yield f"greedy decoding with {name}", "Mllama", partial(on, same, mllama), partial(on, same, ours)
    for text in ("bert", "distilbert", "modernbert", "llama"):
        yield f"vit and {text}", "VisionTextDualEncoder", partial(dual_encoder, text), partial(composed, text)
    convnext = {"text": "bert", "vision": "convnext"}
    yield (
        "convnext and bert",
        "VisionTextDualEncoder",
        partial(dual_encoder, **convnext),
        partial(composed, **convnext),
    )
    for text in ("gpt2", "llama", "qwen3"):
        generates = partial(composed, text, head=MMForConditionalGeneration)
        yield f"{text} attends to vit", "VisionEncoderDecoder", partial(encoder_decoder, text), generates
    description = "gradient checkpointing"
    yield description, "VisionTextDualEncoder", lambda: checkpointing(vtde()), lambda: checkpointing(ours())
    description = "`LoraConfig()` without targets"
    yield description, "Mllama", lambda: default_lora(mllama()), lambda: default_lora(ours())
    encoder = partial(ours, "bert", head=MMModel)
    yield description, "VisionTextDualEncoder", partial(on, default_lora, vtde), partial(on, default_lora, encoder)
    description = "LoRA meant for the text model alone"
    yield description, "LLaVA", lambda: text_lora(llava(), ["q_proj", "v_proj"]), lambda: text_lora(ours())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "LAWS.md")
    args = parser.parse_args()
    T.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    lines = [
        "# Laws of multimodal models, on comparable models and ours",
        "",
        f"`python benchmarks/laws.py` with transformers {T.__version__}, torch {torch.__version__} and peft "
        f"{peft.__version__}: tiny random models, gates at 1.",
        "",
        "| check | peer | result of the peer | modeling_mm |",
        "| --- | --- | --- | --- |",
    ]
    for description, peer, on_peer, on_ours in checks():
        lines.append(f"| {description} | {peer} | {outcome(on_peer)} | {outcome(on_ours)} |")
        print(lines[-1], flush=True)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
