# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""MMConfig: the towers of a model, and the fusion that joins them.

- Any vision, text and audio config of transformers can be a sub-config; the sizes of the fusion follow from them.
- Fields left at None are filled in at construction, so that a saved config.json is complete.
- `auto_map` always names every class, so that a folder saved from one head loads through every Auto class.
- peft looks up LoRA's default layers by a config's model type; `to_dict` registers ours.
- A retrieval model is saved with the files from which `SentenceTransformer(folder)` opens it: they configure the
  library's own `Transformer` module with the methods to call.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

AUTO_MAP = {
    "AutoConfig": "configuration_mm.MMConfig",
    "AutoModel": "modeling_mm.MMModel",
    "AutoModelForImageTextToText": "generation_mm.MMForConditionalGeneration",
    "AutoModelForMultimodalLM": "generation_mm.MMForConditionalGeneration",
    "AutoModelForSequenceClassification": "classification_mm.MMForSequenceClassification",
    "AutoModelForZeroShotImageClassification": "retrieval_mm.MMForImageTextRetrieval",
    "AutoProcessor": "processing_mm.MMProcessor",
}

CUSTOM_PIPELINES = {
    "multimodal-classification": {
        "impl": "pipeline_mm.MultimodalClassificationPipeline",
        "pt": ["AutoModelForSequenceClassification"],
    }
}

# Config fields that hold the width of a tower's last hidden states; a list has one width per stage.
WIDTH_FIELDS = ("hidden_size", "neck_hidden_sizes", "hidden_sizes", "embed_dims", "hidden_dim")

# Common names of the query and value projections of a text backbone, which peft adapts by default.
DEFAULT_LORA_TARGETS = (
    r"(model\.)?text_model\..*\.(q_proj|v_proj|query|value|q_lin|v_lin|qkv_proj|query_key_value|c_attn|Wqkv)"
)


def tower_width(config: PreTrainedConfig) -> int:
    """Width of a tower's last hidden states, those of the last stage if it has several.

    Raises:
        ValueError: no field of the config holds the width.
    """
    for name in WIDTH_FIELDS:
        if hasattr(config, name):
            width = getattr(config, name)
            return width if isinstance(width, int) else width[-1]
    raise ValueError(
        f"the config of a tower of type '{config.model_type}' holds its width in none of {', '.join(WIDTH_FIELDS)}; "
        "use a CLIP, SigLIP, ViT, DINOv2, Swin, ResNet or ConvNeXt tower"
    )


def sentence_transformers_files(modalities: list[str]) -> dict[str, Any]:
    """The files, by name, that sentence-transformers reads beside a model that embeds "text", "image" or "audio"."""
    # its module loads by `AutoModel`, and MMModel has no embeddings; there alone, AutoModel is the retrieval model
    auto_map = {**AUTO_MAP, "AutoModel": AUTO_MAP["AutoModelForZeroShotImageClassification"]}
    calls = {name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"} for name in modalities}
    transformer = {
        "transformer_task": "retrieval",
        "modality_config": calls,
        "module_output_name": "sentence_embedding",
        "config_kwargs": {"auto_map": auto_map},
    }
    module = "sentence_transformers.base.modules.transformer.Transformer"
    return {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": module}],
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }


def check_table_columns(columns: list[dict[str, Any]]) -> None:
    """Refuse columns that a config cannot hold.

    Raises:
        ValueError: names the column and what was expected.
    """
    largest = float(np.finfo(np.float32).max)
    names = [column.get("name") for column in columns]
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ValueError(f"`table_columns` has the names {names}; expected one or more different ones")
    for column in columns:
        name, kind = column["name"], column.get("kind")
        if kind == "category":
            values = column.get("values")
            if not values or not all(isinstance(value, str) for value in values) or len(set(values)) < len(values):
                raise ValueError(f"the category column '{name}' needs `values`, a list of different texts")
        elif kind == "number":
            bins, statistics = column.get("bins") or [], [column.get("mean"), column.get("scale")]
            rising = (np.diff(np.array(bins, dtype=np.float32)) > 0).all()
            finite = all(isinstance(n, (int, float)) and abs(n) <= largest for n in [*bins, *statistics])
            if not (len(bins) > 1 and finite and rising and statistics[1] > 0):
                raise ValueError(
                    f"the number column '{name}' needs `bins`, two or more increasing numbers, a `mean` and a "
                    "positive `scale`, all finite in 32 bits"
                )
        else:
            raise ValueError(f"the column '{name}' has the kind {kind!r}; expected 'number' or 'category'")


@strict
class MMConfig(PreTrainedConfig):
    r"""Configuration of a text backbone that attends to media through gated cross-attention.

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*): the vision tower, default `clip_vision_model`.
        text_config (`PreTrainedConfig` or `dict`, *optional*): the text backbone, default `llama`.
        audio_config (`PreTrainedConfig` or `dict`, *optional*): the audio tower, default none: a Whisper, AST, CLAP or
            Wav2Vec2 config, or the config of an image tower over log-mel features.
        image_token_id (`int`, *optional*): id of the marker that stands for one image in the text. Without markers an
            image is visible to its whole row.
        audio_token_id (`int`, *optional*): the same for one audio clip.
        video_token_id (`int`, *optional*): the same for one video.
        num_frames (`int`, *optional*): maximum number of frames per video; None for a model without video. The
            vision tower encodes each frame alone; a learned embedding, zero at first, marks its position.
        fusion_layers (`list[int]`, *optional*): text layers that a fusion layer precedes. Default: the last layer and
            every fourth before it; none without cross-attention.
        fusion_num_attention_heads (`int`, *optional*): query heads of the fusion layers, default the backbone's,
            or its width divided by 64 if it has no attention heads.
        fusion_num_key_value_heads (`int`, *optional*): key/value heads (grouped-query attention), default the
            backbone's if they divide the query heads, otherwise one per query head.
        fusion_head_dim (`int`, *optional*): width of one head, default the backbone's.
        fusion_mlp (`bool`): whether each fusion layer ends in a gated MLP, as in Flamingo. The MLPs are then four
            fifths of the fusion's weights; they may help a frozen backbone and make every step slower.
        fusion_intermediate_size (`int`, *optional*): width of that MLP, default four times the backbone's width.
        fusion_memory_size (`int`, *optional*): width of the projected states from which keys and values are computed,
            default the vision tower's, at least 64 and at most the backbone's; with `late_fusion`, which joins these
            states with the text, the backbone's.
        fusion_dropout (`float`): dropout of the cross-attention weights in training.
        fusion_gate_init (`float`): initial value of the gates, whose tanh scales what a fusion layer adds. At 0 a
            pretrained backbone starts unchanged; an untrained one starts at 0.5, because behind a closed gate the
            towers learn nothing at first.
        recency_ranks (`int`, *optional*): how many places in the order of a row's media, counted back from the latest
            that a token sees, have attention biases of their own, learned by each head of a fusion layer; None: there
            are no such biases. Media whose markers follow each other share a place.
        image_positions (`bool`): whether image states get sinusoidal positions, for towers without positions of
            their own, such as convolutional ones. Audio states always get them.
        projector_norm (`"layer"` or `"batch"`): norm of the towers' states before their projection; batch norm suits
            towers from scratch, which otherwise learn late what tells one input from another.
        num_latents (`int`, *optional*): slots per image after a Perceiver resampler; None keeps the tower's states.
        resampler_layers (`int`): depth of the resampler.
        lm_head_bias (`bool`): whether the language modelling head of the backbone has a bias.
        pooling (`"first"`, `"last"` or `"mean"`, *optional*): how hidden states are pooled in classification and
            retrieval, default the first token for an encoder (the mean with linear late fusion) and the
            last for a decoder.
        classifier_dropout (`float`): dropout before the classification head.
        late_fusion (`"linear"`, `"concat"`, `"sum"`, `"weighted"`, `"gated"`, `"product"` or `"product_mlp"`,
            *optional*): how one embedding per modality is joined before the classification head, see `MMLateFusion`.
        cross_attention (`bool`, *optional*): whether the backbone attends to media. Default: only without
            `late_fusion`, so that each can be measured alone; True together with `late_fusion` uses both.
        label_mean, label_scale (`list[float]`, *optional*): mean and standard deviation of each label of a
            regression; the head learns (label - mean) / scale, its output is in the label's unit.
        class_weights (`list[float]`, *optional*): weight in the loss of a row of each class, or of each positive of
            several labels.
        calibration_temperature (`float`, *optional*): divisor of the class logits that makes their probabilities
            calibrated.
        matching (`bool`): whether the two classes are "text and image do not match" and "they match".
        embedding_size (`int`, *optional*): width of the embeddings for retrieval, default the backbone's, at most 512.
        image_pooling (`"mean"`, `"first"` or `"tower"`): how image features are pooled for retrieval: the mean of the
            tower's states, the first of them (class token), or the tower's own pooled output.
        contrastive_loss (`"infonce"` or `"sigmoid"`): see `losses_mm`.
        logit_scale_init (`float`, *optional*): initial logarithm of the inverse temperature, default that of CLIP
            for "infonce", ln(1 / 0.07), and of SigLIP for "sigmoid", ln(10).
        contrastive_weight, matching_weight, language_weight (`float`): weights of the parts of the retrieval loss.
            A model with a weight of 0 has no matching head, or no language modelling head.
        matching_rows (`int`, *optional*): number of texts and of media per batch, drawn at random, that the matching
            loss uses in training; negatives still come from the whole batch. Default all.
        rerank_weight (`float`): weight of the match log-odds, added to the similarity logit when candidates are
            reranked.
        columns (`dict`, *optional*): names of the columns that the model was trained on, by the fields of
            `data.rows.Columns`; rows to evaluate are read by them.
        table_columns (`list[dict]`, *optional*): number and category columns of a table that comes with each row, with
            their statistics, see `table_mm`; None for a model without a table.
        table_cell_size (`int`): width of one cell's state in the table tower.
        table_dropout (`float`): share of the cells hidden in training, and dropout of the table's embedding.
        tower_sources (`dict[str, dict[str, str]]`, *optional*): Hub `id` and `revision` of the towers that came from
            the Hub, by their names in the model.
        fetched_towers (`list[str]`, *optional*): towers whose weights are not in the checkpoint and are fetched from
            their source when it is loaded, see `towers_mm`.
        initializer_range (`float`, *optional*): standard deviation of fusion and head weights at random
            initialisation, default the backbone's.

    Raises:
        StrictDataclassError: (of `huggingface_hub.errors`, as in every config of transformers) a backbone that fusion
            cannot enter, fusion layers that it does not have, head counts that do not divide, a field's wrong type.
    """

    model_type = "modeling_mm"
    attribute_map = {"projection_dim": "embedding_size"}  # CLIP's name for it, which other libraries read
    # so that the predictions of any Trainer are the logits alone
    keys_to_ignore_at_inference = [
        "past_key_values",
        "hidden_states",
        "attentions",
        "cross_attentions",
        "media_key_values",
    ]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    video_token_id: int | None = None
    num_frames: int | None = None
    fusion_layers: list[int] | None = None
    fusion_num_attention_heads: int | None = None
    fusion_num_key_value_heads: int | None = None
    fusion_head_dim: int | None = None
    fusion_mlp: bool = False
    fusion_intermediate_size: int | None = None
    fusion_memory_size: int | None = None
    fusion_dropout: float | int = 0.0
    fusion_gate_init: float | int = 0.0
    recency_ranks: int | None = None
    image_positions: bool = False
    num_latents: int | None = None
    resampler_layers: int = 2
    lm_head_bias: bool = False
    pooling: Literal["first", "last", "mean"] | None = None
    classifier_dropout: float | int = 0.0
    projector_norm: Literal["layer", "batch"] = "layer"
    late_fusion: Literal["linear", "concat", "sum", "weighted", "gated", "product", "product_mlp"] | None = None
    cross_attention: bool | None = None
    label_mean: list[float] | None = None
    label_scale: list[float] | None = None
    class_weights: list[float] | None = None
    calibration_temperature: float | None = None
    matching: bool = False
    embedding_size: int | None = None
    image_pooling: Literal["mean", "first", "tower"] = "mean"
    contrastive_loss: Literal["infonce", "sigmoid"] = "infonce"
    logit_scale_init: float | None = None
    contrastive_weight: float | int = 1.0
    matching_weight: float | int = 1.0
    matching_rows: int | None = None
    rerank_weight: float | int = 1.0
    language_weight: float | int = 0.0
    columns: dict | None = None
    table_columns: list[dict] | None = None
    table_cell_size: int = 16
    table_dropout: float | int = 0.2
    tower_sources: dict[str, dict[str, str]] | None = None
    fetched_towers: list[str] | None = None
    initializer_range: float | None = None
    tie_word_embeddings: bool | None = None
    auto_map: dict[str, str] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        text = self.text_config
        if self.cross_attention is None:
            self.cross_attention = self.late_fusion is None
        if not self.cross_attention:
            self.fusion_layers = []
        elif self.fusion_layers is None:
            self.fusion_layers = list(range(text.num_hidden_layers - 1, -1, -4))[::-1]
        text_heads = getattr(text, "num_attention_heads", None)  # recurrent backbones have none
        if self.fusion_num_attention_heads is None:
            self.fusion_num_attention_heads = text_heads or max(1, text.hidden_size // 64)
        if self.fusion_num_key_value_heads is None:
            grouped = getattr(text, "num_key_value_heads", None)
            fits = isinstance(grouped, int) and grouped and self.fusion_num_attention_heads % grouped == 0
            self.fusion_num_key_value_heads = grouped if fits else self.fusion_num_attention_heads
        if self.fusion_head_dim is None:
            same_heads = self.fusion_num_attention_heads == text_heads
            text_head_dim = text.to_dict().get("head_dim") if same_heads else None
            self.fusion_head_dim = text_head_dim or max(1, text.hidden_size // self.fusion_num_attention_heads)
        if self.fusion_intermediate_size is None:
            self.fusion_intermediate_size = 4 * text.hidden_size
        if self.fusion_memory_size is None:
            width = text.hidden_size if self.late_fusion else tower_width(self.vision_config)
            # a layer norm over a few channels loses their information; sinusoids come in pairs
            self.fusion_memory_size = min(max(width + width % 2, 64), text.hidden_size)
        if self.initializer_range is None:
            self.initializer_range = getattr(text, "initializer_range", 0.02)
        if self.pooling is None:
            self.pooling = "last" if self.is_text_decoder else "mean" if self.late_fusion == "linear" else "first"
        if self.embedding_size is None:
            self.embedding_size = min(512, text.hidden_size)
        if self.logit_scale_init is None:
            self.logit_scale_init = math.log(1 / 0.07 if self.contrastive_loss == "infonce" else 10)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))
        self.auto_map = dict(AUTO_MAP)

    def to_dict(self) -> dict[str, Any]:
        """Extends the base method: registers the default LoRA targets, which peft looks up right after calling it."""
        if constants := sys.modules.get("peft.utils.constants"):
            table = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            table.setdefault(self.model_type, DEFAULT_LORA_TARGETS)
        return super().to_dict()

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Extends the base method: adds the files of sentence-transformers. A model's `save_pretrained` calls this
        before it pushes the new files of the folder."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self.save_for_sentence_transformers(save_directory)

    def save_for_sentence_transformers(self, folder: str | Path) -> None:
        """Write the files that `SentenceTransformer(folder)` needs, for a retrieval model or an adapter over one."""
        if "MMForImageTextRetrieval" in (self.architectures or []):
            modalities = ["text", "image"] if self.audio_config is None else ["text", "image", "audio"]
            for name, content in sentence_transformers_files(modalities).items():
                Path(folder, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """The pipeline of a classifier, which transformers loads from the checkpoint's code with `trust_remote_code`.

        Empty if the package has registered the pipeline, so that no trust is asked for. It is not saved: transformers
        writes classes into the returned dict, which JSON cannot hold.
        """
        from transformers.pipelines import SUPPORTED_TASKS

        classifies = "MMForSequenceClassification" in (self.architectures or [])
        missing = {task: info for task, info in CUSTOM_PIPELINES.items() if task not in SUPPORTED_TASKS}
        return {task: dict(info) for task, info in missing.items()} if classifies else {}

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict[str, dict]) -> None:
        """Ignore the entry that a saved pipeline assigns; the property has it already."""

    @property
    def _attn_implementation(self) -> str | None:
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None):
        self.check_attention_parts(value)
        PreTrainedConfig._attn_implementation.fset(self, value)

    def check_attention_parts(self, value: str | dict | None) -> None:
        """Refuse an attention implementation for an unknown part, which transformers would silently ignore.

        Raises:
            ValueError: a key of the dict is neither a sub-config's name nor "" (fusion).
        """
        unknown = [part for part in value if part and part not in self.sub_configs] if isinstance(value, dict) else []
        if unknown:
            raise ValueError(
                f"`attn_implementation` names {unknown}; expected {list(self.sub_configs)} or '' (fusion)"
            )

    @property
    def is_text_decoder(self) -> bool:
        """True if the text backbone generates: a causal language model that is not also a masked one."""
        kind = self.text_config.model_type
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return False
        return kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or bool(getattr(self.text_config, "is_decoder", False))

    def validate_architecture(self):
        """Part of the `@strict` validation: refuses backbones and fields over which fusion cannot be built."""
        super().validate_architecture()
        text = self.text_config
        if text.is_encoder_decoder:
            raise ValueError(
                f"the text backbone '{text.model_type}' is an encoder-decoder; use an encoder (bert, modernbert, ...) "
                "or a decoder (llama, qwen3, ...)"
            )
        wrong = [i for i in self.fusion_layers if not 0 <= i < text.num_hidden_layers]
        if not self.cross_attention and self.late_fusion is None:
            raise ValueError("`cross_attention` is False and `late_fusion` None, so that media would not be used")
        missing = self.cross_attention and not self.fusion_layers
        if wrong or missing or len(set(self.fusion_layers)) != len(self.fusion_layers):
            raise ValueError(
                f"`fusion_layers` is {self.fusion_layers}, but must name one or more different layers between 0 and "
                f"{text.num_hidden_layers - 1}, the layers of the text backbone"
            )
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(
                f"`num_frames` is {self.num_frames}; expected 1 or more, or None for a model without video"
            )
        if self.table_columns is not None:
            check_table_columns(self.table_columns)
        if self.table_cell_size < 1 or not 0 <= self.table_dropout < 1:
            raise ValueError(
                f"`table_cell_size` is {self.table_cell_size} and `table_dropout` {self.table_dropout}; expected 1 or "
                "more, and at least 0 and below 1"
            )
        if self.matching_rows is not None and self.matching_rows < 1:
            raise ValueError(f"`matching_rows` is {self.matching_rows}; expected 1 or more, or None for all")
        if self.fusion_num_attention_heads % self.fusion_num_key_value_heads:
            raise ValueError(
                f"`fusion_num_attention_heads` ({self.fusion_num_attention_heads}) must be a multiple of "
                f"`fusion_num_key_value_heads` ({self.fusion_num_key_value_heads})"
            )


__all__ = ["MMConfig"]
