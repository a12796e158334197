"""An int8 text backbone with a fusion in full precision: quantised modules, LoRA, saving. Needs torchao."""

import re

import pytest
import torch
from helpers.builders import mm_model
from helpers.lora import adapted_layers, batch_for, learn, logits
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from torch import nn
from transformers import TorchAoConfig

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.checkpoint import merge_adapter

torchao = pytest.importorskip("torchao.quantization")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant parameter:UserWarning"),
]


def quantized(folder, head=MMForConditionalGeneration, **options):
    """The model of a folder with int8 weights in its text backbone."""
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    return head.from_pretrained(folder, quantization_config=config, **options).eval()


def int8_layers(model):
    """Names of the modules whose weight is quantised."""
    return {name.removesuffix(".weight") for name, p in model.named_parameters() if type(p) is not nn.Parameter}


@pytest.mark.parametrize(
    "head,text",
    [(MMModel, "llama"), (MMForConditionalGeneration, "qwen3"), (MMForSequenceClassification, "modernbert")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantisation_takes_the_text_backbone_and_nothing_else(head, text, dtype, tmp_path):
    model = mm_model(text, head=head, num_latents=2)
    model.save_pretrained(tmp_path)
    small = quantized(tmp_path, head, dtype=dtype)
    assert int8_layers(small) == {n for n, _ in model.named_modules() if re.fullmatch(model.lora_targets("text"), n)}
    assert {p.dtype for p in small.parameters()} == {dtype}
    batch = {name: value for name, value in batch_for(model).items() if name != "labels"}
    with torch.no_grad():
        exact, close = model(**batch)[0], small(**batch)[0].float()
    assert 0 < (exact - close).abs().mean() < 0.1 * exact.abs().mean()


def test_lora_over_an_int8_backbone_learns_and_reloads(tmp_path):
    mm_model().save_pretrained(tmp_path / "base")
    model = quantized(tmp_path / "base")
    batch = batch_for(model)
    config = LoraConfig(target_modules=model.lora_targets("text"), modules_to_save=["fusion"])
    model = get_peft_model(
        prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False}), config
    )
    assert len(adapted_layers(model)) == 3 * 7
    losses = learn(model, batch, steps=6)
    assert losses[-1] < 0.7 * losses[0]
    expected = logits(model, batch)
    model.save_pretrained(tmp_path / "adapter")
    assert all(
        value.is_floating_point() for value in load_file(tmp_path / "adapter/adapter_model.safetensors").values()
    )
    again = PeftModel.from_pretrained(quantized(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, batch), expected)
    exact = MMForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    merged = merge_adapter(exact, str(tmp_path / "adapter"))  # adapters of an int8 backbone work on the exact one
    assert (logits(merged, batch) - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_quantised_model_saves_and_loads(tmp_path):
    mm_model().save_pretrained(tmp_path / "exact")
    model = quantized(tmp_path / "exact")
    model.save_pretrained(tmp_path / "int8")
    again = MMForConditionalGeneration.from_pretrained(tmp_path / "int8").eval()
    assert int8_layers(again) == int8_layers(model)
    assert torch.equal(logits(again, batch := batch_for(model)), logits(model, batch))
