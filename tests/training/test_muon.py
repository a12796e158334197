"""Muon: equal singular values, its groups, its state; beside it AdamW is what it was."""

import pytest
import torch
from helpers.builders import mm_model
from torch import nn

from modeling_mm import MMForSequenceClassification
from modeling_mm.training.muon import MuonAdamW, muon_groups, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_singular_values_become_about_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(-1, 1, shape[1]))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.3 < values.min() and values.max() < 1.3
    turned = torch.linalg.svdvals(orthogonalised(matrix).T @ matrix)
    assert torch.allclose(turned.sum(), torch.linalg.svdvals(matrix).sum(), rtol=0.35)


def test_embeddings_heads_and_vectors_are_left_to_adamw():
    model = mm_model(head=MMForSequenceClassification, num_labels=3)
    for parameter in model.base_model.vision_tower.parameters():
        parameter.requires_grad_(False)
    muon, decayed, rest = ([id(p) for p in g["params"]] for g in muon_groups(model, 1e-3, 2e-3, 0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(".weight" in names[p] and "embed" not in names[p] and "vision" not in names[p] for p in muon)
    assert {"classifier.weight", "model.text_model.embed_tokens.weight"} <= {names[p] for p in decayed}
    assert len(muon) + len(decayed) + len(rest) == sum(p.requires_grad for p in model.parameters())


def test_groups_without_muon_are_adamw_to_the_bit():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [torch.optim.AdamW(layers[0].parameters(), 1e-2), MuonAdamW(layers[1].parameters(), 1e-2)]
    for _ in range(3):
        x = torch.randn(5, 4)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)


def test_a_restored_optimizer_goes_on_as_the_first():
    torch.manual_seed(0)

    def made():
        torch.manual_seed(1)
        layer = nn.Conv2d(2, 3, 3)
        return layer, MuonAdamW([{"params": [layer.weight], "lr": 1e-2, "muon": True}, {"params": [layer.bias]}], 1e-3)

    (first, optimizer), (second, restored) = made(), made()

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(1, 2, 5, 5)).square().sum().backward()
        optimizer.step()

    step(first, optimizer)
    second.load_state_dict(first.state_dict())
    restored.load_state_dict(optimizer.state_dict())
    step(first, optimizer), step(second, restored)
    assert torch.allclose(first.weight, second.weight, atol=1e-5) and torch.allclose(
        first.bias, second.bias, atol=1e-5
    )
    assert [group["lr"] for group in restored.param_groups] == [1e-2, 1e-3]
