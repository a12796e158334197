"""Every audio encoder returns states in one layout, and a clip has the same states alone and in any batch."""

import numpy as np
import pytest
import torch
from helpers.builders import TRANSFORMER
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_mm.model.audio_mm import audio_features, window_seconds
from modeling_mm.model.audio_towers_mm import audio_half, audio_tower_from_config, audio_width, run_audio_tower

RATE = 8000
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WAVES = {
    **SMALL,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [40, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
CLAP = {
    "hidden_size": 16,
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "num_hidden_layers": 2,
    "spec_size": 32,
    "num_mel_bins": 16,
    "window_size": 4,
    "projection_dim": 8,
}
WHISPER = {
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "vocab_size": 50,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
AST = {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 64, "num_mel_bins": 16}
TOWERS = {
    "whisper": ("whisper", WHISPER),
    "ast": ("audio-spectrogram-transformer", {**SMALL, **AST}),
    "wav2vec2": ("wav2vec2", WAVES),
    "wav2vec2 layer": ("wav2vec2", {**WAVES, **LAYER}),
    "wav2vec2 adapter": ("wav2vec2", {**WAVES, **LAYER, "add_adapter": True, "output_hidden_size": 20}),
    "hubert": ("hubert", WAVES),
    "hubert layer": ("hubert", {**WAVES, **LAYER}),
    "wavlm": ("wavlm", WAVES),
    "wavlm layer": ("wavlm", {**WAVES, **LAYER}),
    "data2vec": ("data2vec-audio", {**WAVES, "conv_pos_kernel_size": 5}),
    "unispeech-sat": ("unispeech-sat", WAVES),
    "wav2vec2-conformer": ("wav2vec2-conformer", {**WAVES, **LAYER}),
    "wav2vec2-bert": ("wav2vec2-bert", {**SMALL, "feature_projection_input_dim": 32}),
    "clap": ("clap_audio_model", CLAP),
    "clap fused": ("clap_audio_model", {**CLAP, "enable_fusion": True}),
    "resnet": ("resnet", {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "resnet rgb": ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
}
# Parameters of towers in transformers that are unused here: CLAP's fusion of long clips, a Conformer convolution.
UNREACHED = {
    "clap fused": ("mel_conv2d", "fusion_model"),
    "wav2vec2-conformer": ("pos_conv_embed",),
    "unispeech-sat": ("masked_spec_embed",),
}


def tower_of(name):
    kind, fields = TOWERS[name]
    return audio_tower_from_config(AutoConfig.for_model(kind, **fields)).eval()


def extractor_of(name):
    """The feature extractor that belongs to a tower, for clips of at most a second."""
    kind, fields = TOWERS[name]
    if kind in ("whisper", "resnet"):
        return WhisperFeatureExtractor(feature_size=16, sampling_rate=RATE, hop_length=80, n_fft=200, chunk_length=1)
    if kind == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(num_mel_bins=16, sampling_rate=RATE, max_length=64)
    if kind == "clap_audio_model":
        truncation = "fusion" if fields.get("enable_fusion") else "rand_trunc"
        settings = {"hop_length": 160, "fft_window_size": 256, "max_length_s": 1, "frequency_max": 4000}
        return ClapFeatureExtractor(feature_size=16, sampling_rate=RATE, truncation=truncation, **settings)
    if kind == "wav2vec2-bert":
        return SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, sampling_rate=RATE)
    knows_padding = fields.get("feat_extract_norm") == "layer" or kind == "data2vec-audio"
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=knows_padding)


def clips(*seconds):
    """Noisy tones of these lengths in seconds."""
    generator = np.random.default_rng(0)
    tones = [np.sin(np.arange(int(s * RATE)) * (0.2 + 0.1 * i)) for i, s in enumerate(seconds)]
    return [(0.3 * tone + 0.1 * generator.standard_normal(len(tone))).astype(np.float32) for tone in tones]


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_clip_alone_has_the_states_it_has_in_any_batch(name):
    tower, extractor = tower_of(name), extractor_of(name)
    batch = clips(0.31, 0.9, 0.02, 1.4)
    heard = run_audio_tower(tower, *audio_features(extractor, batch, max_seconds=1.0))
    states, present = heard.pooler_output, heard.attention_mask
    assert states.shape[0] == 4 and states.shape[2] == audio_width(tower.config)
    assert states.std(dim=1).max() > 1e-3  # the states differ, so that the equality below is not trivial
    for row, clip in enumerate(batch):
        output = run_audio_tower(tower, *audio_features(extractor, [clip], max_seconds=1.0))
        alone, there = output.pooler_output, output.attention_mask
        if present is None:
            torch.testing.assert_close(alone[0], states[row])
        else:
            assert present[row].sum() == there[0].sum() >= 1
            torch.testing.assert_close(alone[0][there[0]], states[row][present[row]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_every_weight_of_a_trained_tower_gets_a_gradient(name):
    tower = tower_of(name).train()
    heard = run_audio_tower(tower, *audio_features(extractor_of(name), clips(0.5, 1.0), max_seconds=1.0))
    (heard.pooler_output**2).sum().backward()
    trained = {n: p for n, p in tower.named_parameters() if p.requires_grad}
    unreached = {n for n, p in trained.items() if p.grad is None}
    parts = UNREACHED.get(name, ())
    assert len(unreached) < len(trained) and all(any(part in n for part in parts) for n in unreached), unreached


@pytest.mark.parametrize("name", ["whisper", "wav2vec2", "wav2vec2 layer", "resnet"])
@torch.no_grad()
def test_states_behind_a_clip_are_not_present(name):
    tower, extractor = tower_of(name), extractor_of(name)
    present = run_audio_tower(tower, *audio_features(extractor, clips(0.25, 1.0), max_seconds=1.0)).attention_mask
    assert present[1].float().mean() > 0.95 and 0.2 < present[0].float().mean() < 0.4


@torch.no_grad()
def test_a_grid_is_flattened_by_rows_of_mel_bins():
    tower = tower_of("resnet")
    features, mask = audio_features(extractor_of("resnet"), clips(0.5, 1.0))
    heard = run_audio_tower(tower, features, mask)
    states, present = heard.pooler_output, heard.attention_mask
    grid = tower(features[:, None]).last_hidden_state  # (A, V, f, t)
    assert torch.equal(states.transpose(1, 2).view_as(grid), grid)
    rows = present.view(2, *grid.shape[2:])
    assert torch.equal(rows[0], rows[0, :1].expand_as(rows[0])) and not rows[0, 0, -1] and rows[1].all()


def test_of_whisper_and_clap_the_audio_half_is_taken():
    whisper = AutoModel.from_config(AutoConfig.for_model("whisper", **WHISPER))
    assert isinstance(tower_of("whisper"), WhisperEncoder)
    assert audio_half(whisper) is whisper.encoder is audio_half(whisper.encoder)
    config = ClapConfig(audio_config=CLAP, text_config={**SMALL, "vocab_size": 50}, projection_dim=8)
    clap = ClapModel(config)
    assert audio_half(clap) is clap.audio_model
    assert type(audio_tower_from_config(config)) is type(clap.audio_model)
    assert audio_width(config) == 16


def test_a_tower_that_hears_nothing_is_refused():
    bert = AutoConfig.for_model("bert", **SMALL, vocab_size=50)
    with pytest.raises(ValueError, match="type 'bert' takes `input_ids`, not audio; use a Whisper"):
        audio_tower_from_config(bert)
    vit = AutoModel.from_config(AutoConfig.for_model("vit", **TRANSFORMER, num_channels=1))
    assert audio_half(vit) is vit


@pytest.mark.parametrize("name", ["whisper", "ast", "clap"])
def test_the_window_of_an_extractor_is_what_it_fills(name):
    extractor = extractor_of(name)
    window = window_seconds(extractor)
    long = clips(window + 0.2)[0]
    whole, _ = audio_features(extractor, [long], max_seconds=9.0)
    cut, _ = audio_features(extractor, [long[: int(round(window * RATE))]], max_seconds=9.0)
    assert torch.equal(whole, cut)
    assert window_seconds(extractor_of("wav2vec2")) is None
