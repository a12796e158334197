# Copyright 2026 The modeling_mm team. Licensed under the Apache License, Version 2.0.
"""Features of frozen towers for images and audio, computed once and cached on disk for all epochs, runs and processes.

- Entries are keyed by the medium's content, in a folder for this tower, its weights, its processor and the precision;
  a change of any of them leads to another folder, so that stale entries are never used.
- A batch then has `image_states` in place of `pixel_values`, `audio_states` in place of `input_features`. All that
  comes after the tower trains as usual, and the saved model does not depend on the cache.

Shapes: I distinct images or clips, P states each, V tower width.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..model.dealing_mm import distinct_items
from ..model.media_mm import MODALITIES
from ..model.processing_mm import MMProcessor
from ..version import __version__
from .augmentation import Augmentation
from .dataset import MMDataset
from .feature_store import FeatureStore, buckets_of
from .fingerprint import NAMES, digest_of_weights
from .media import MediaRef, open_image

logger = logging.getLogger(__name__)

FORMAT = 2  # 2: transparency on the processor's background, 16-bit greys by 65535
MADE_BY = "made_by.json"  # the fingerprint, for people to read
CACHED = ("image", "audio")  # modalities whose towers' states can be kept
SHARD_BYTES = 128 * 2**20
SHARD_SECONDS = 30  # of work are lost at most if the process is killed
HASHED = 512  # media that are hashed at a time; an interruption waits for these
TOLERANCE = 0.05  # largest difference beside another medium, in standard deviations; rounding is far below


@dataclass
class CachedMedia:
    """The entries of one modality; `keys` are those of the store, by `MediaRef.key`."""

    modality: str
    store: FeatureStore
    keys: dict[str, str]

    def batch(self, rows: Sequence[Sequence[MediaRef]]) -> dict[str, torch.Tensor]:
        """The features of the rows' distinct media, by the names of model inputs, and their index (B, N).

        Raises:
            ValueError: a medium is not in the cache.
        """
        names, index = distinct_items([[medium.key for medium in row_media] for row_media in rows])
        if unknown := [name for name in names if name not in self.keys]:
            raise ValueError(f"'{unknown[0]}' is not in the cache '{self.store.folder}', which was made without it")
        return {**self.store.read([self.keys[name] for name in names]), f"{self.modality}_index": index}


@dataclass
class FrozenTower:
    """A frozen tower and the processor that prepares its media.

    Args:
        model: the `MMModel` that the tower is part of.
        dtype: dtype of the cached states.
        autocast: makes the context in which training will run the model.
        precision: the name of that context.
        pooled: also cache the tower's pooled output.
    """

    modality: str
    model: PreTrainedModel
    processor: MMProcessor
    dtype: torch.dtype
    autocast: Any
    precision: str
    pooled: bool = False
    sizes: list[tuple[int, ...]] | None = None  # shapes of the first medium's tensors

    def fingerprint(self) -> dict[str, Any]:
        """Everything that entries depend on besides the media, as JSON can hold it."""
        tower = getattr(self.model, MODALITIES[self.modality].tower)
        settings = self.processor.image_processor
        if self.modality == "audio":
            settings = self.processor.feature_extractor
        return {
            "format": FORMAT,
            "libraries": [__version__, transformers.__version__],
            "modality": self.modality,
            "tower": {name: value for name, value in tower.config.to_dict().items() if name != "_name_or_path"},
            "attention": tower.config._attn_implementation,
            "weights": digest_of_weights(tower),
            "processor": type(settings).__name__,
            "settings": {name: value for name, value in settings.to_dict().items() if name not in NAMES},
            "max_seconds": self.processor.max_seconds if self.modality == "audio" else None,
            "background": self.processor.image_background if self.modality == "image" else None,
            "kept": [str(self.dtype), self.precision, self.pooled],
        }

    def prepare(self, medium: MediaRef) -> dict[str, torch.Tensor]:
        """The tower's inputs for one medium, exactly as a batch would have them."""
        if self.modality == "image":
            inputs = self.processor.flat_images([[open_image(medium.source, self.processor.image_background)]])
        else:
            inputs = self.processor.flat_audio([[medium.source]])
        return {name: tensor for name, tensor in inputs.items() if name != f"{self.modality}_index"}

    @torch.no_grad()
    def run(self, prepared: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The entries of several media, by the names of model inputs.

        Raises:
            ValueError: the media are prepared in different sizes.
        """
        for sizes in ([tuple(tensor.shape) for tensor in tensors.values()] for tensors in prepared):
            self.sizes = self.sizes or sizes
            if sizes != self.sizes:
                raise ValueError(
                    f"--cache_features needs {MODALITIES[self.modality].items} that are prepared in one size, but "
                    f"this processor gives {self.sizes[0]} and {sizes[0]}"
                )
        device = getattr(self.model, MODALITIES[self.modality].tower).device
        inputs = {name: torch.cat([tensors[name] for tensors in prepared]).to(device) for name in prepared[0]}
        with self.autocast():
            if self.modality == "image":
                output = self.model.get_image_features(**inputs, return_dict=True)
                mask = inputs.get("pixel_attention_mask")
                entries = {"image_states": output.pooler_output, "pixel_attention_mask": mask}
                entries["image_pooled"] = output.pooled.flatten(1) if self.pooled else None
            else:
                output = self.model.get_audio_features(**inputs, return_dict=True)
                entries = {"audio_states": output.pooler_output, "input_features_mask": output.attention_mask}
        return {
            name: (tensor.to(self.dtype) if tensor.is_floating_point() else tensor).cpu()
            for name, tensor in entries.items()
            if tensor is not None
        }

    def check(self, prepared: Sequence[Mapping[str, torch.Tensor]]) -> int:
        """Bytes per entry, from one or two media as a trial.

        Raises:
            ValueError: the tower's output for a medium differs the second time or beside another medium.
        """
        alone, beside = self.run(prepared[:1]), self.run(prepared)
        name = f"{self.modality}_states"
        first, again = alone[name].float(), beside[name][:1].float()
        if first.shape != again.shape or (first - again).square().mean().sqrt() > TOLERANCE * first.std():
            tower = MODALITIES[self.modality].tower
            kind = getattr(self.model, tower).config.model_type
            raise ValueError(
                f"the {tower.removesuffix('_tower')} tower '{kind}' gives other states for the same medium beside "
                "another or at another time, though it is frozen, so they cannot be cached; leave out --cache_features"
            )
        return sum(tensor.nbytes for tensor in alone.values())


@dataclass
class Source:
    """The place of a medium in its dataset, so that embedded media need not all be held in memory."""

    dataset: MMDataset
    number: int
    modality: str
    place: int
    key: str  # of its `MediaRef`: the path, or the digest of embedded bytes
    embedded: bool

    def medium(self) -> MediaRef:
        """The medium, read from its row."""
        return self.dataset.row(self.number).media[self.modality][self.place]

    def content_key(self) -> str:
        """A digest of the medium's bytes."""
        return self.key if self.embedded else hashlib.sha256(Path(self.key).read_bytes()).hexdigest()


def sources_of(datasets: Sequence[MMDataset], modality: str) -> dict[str, Source]:
    """The places of the distinct media of a modality, by `MediaRef.key`."""
    sources: dict[str, Source] = {}
    for dataset in datasets:
        for number in dataset.kept:
            for place, medium in enumerate(dataset.row(number).media[modality]):
                source = Source(dataset, number, modality, place, medium.key, medium.path is None)
                sources.setdefault(medium.key, source)
    return sources


def content_keys(sources: Mapping[str, Source], pool: ThreadPoolExecutor, bar: tqdm) -> dict[str, str]:
    """The digest of each medium's bytes."""
    names, keys = list(sources), dict[str, str]()
    with bar:
        for start in range(0, len(names), HASHED):
            chunk = names[start : start + HASHED]
            keys.update(zip(chunk, pool.map(lambda name: sources[name].content_key(), chunk), strict=True))
            bar.update(len(chunk))
    return keys


def check_cacheable(
    model: PreTrainedModel, sources: Mapping[str, dict[str, Source]], videos: bool, augmentation: Augmentation | None
) -> list[str]:
    """The modalities that can be cached: their towers are frozen; a warning gives the reasons for the others.

    Raises:
        ValueError: there is no such modality, or training would augment its media.
    """
    cached, reasons = list[str](), list[str]()
    for modality, media in sources.items():
        tower, items = getattr(model, MODALITIES[modality].tower), MODALITIES[modality].items
        part = MODALITIES[modality].tower.removesuffix("_tower")
        if media and any(parameter.requires_grad for parameter in tower.parameters()):
            reasons.append(f"the {part} tower trains (--{part}_trainable, or LoRA in it)")
        elif media:
            cached.append(modality)
        changed = augmentation is not None and {"image": augmentation.images, "audio": augmentation.audio}[modality]
        if modality in cached and changed:
            flag = {"image": "--augment_images", "audio": "--augment_audio"}[modality]
            raise ValueError(
                f"--cache_features keeps one view of the {items}, but {flag} draws others; give only one of the two"
            )
    if videos:
        reasons.append("the features of videos are not cached")
    if not cached:
        raise ValueError(f"--cache_features has nothing to cache: {'; '.join(reasons) or 'the rows have no media'}")
    for reason in reasons:
        logger.warning(f"not in the feature cache: {reason}")
    return cached


def build_cache(
    tower: FrozenTower, sources: Mapping[str, Source], folder: Path, batch_size: int, quiet: bool
) -> CachedMedia:
    """Compute the missing entries of these media, together with other processes that do the same.

    Raises:
        ValueError: the disk is or will be full, or the tower's output cannot be cached.
    """
    getattr(tower.model, MODALITIES[tower.modality].tower).eval()
    made_by = json.dumps(tower.fingerprint(), sort_keys=True, indent=1, default=str).encode()
    store = FeatureStore(folder / f"{tower.modality}-{hashlib.sha256(made_by).hexdigest()[:16]}")
    if not (store.folder / MADE_BY).exists():
        store.put(MADE_BY, made_by)
    items = MODALITIES[tower.modality].items
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        keys = content_keys(sources, pool, tqdm(desc=f"Hashing {items}", total=len(sources), disable=quiet))
        by_key = {key: sources[name] for name, key in keys.items()}
        store.look()
        missing = [key for key in by_key if key not in store.places]
        if missing:
            trial = [tower.prepare(by_key[key].medium()) for key in (missing * 2)[:2]]
            announce(store, len(by_key), len(missing), tower.check(trial), items, quiet)
        waiting = buckets_of(missing, len(by_key))
        with tqdm(desc=f"Caching {items}", total=len(missing), disable=quiet or not missing) as bar:
            for wait in (False, True):
                for bucket in list(waiting):
                    with store.claimed(bucket, wait) as claimed:
                        if claimed:
                            bucket_keys = waiting.pop(bucket)
                            todo = [key for key in bucket_keys if key not in store.places]
                            bar.update(len(bucket_keys) - len(todo))
                            fill(store, bucket, todo, tower, by_key, batch_size, pool, bar)
    store.look()
    return CachedMedia(tower.modality, store, keys)


def announce(store: FeatureStore, total: int, missing: int, size: int, items: str, quiet: bool) -> None:
    """Log how much will be written.

    Raises:
        ValueError: the disk has not enough room.
    """
    free = shutil.disk_usage(store.folder).free
    if not quiet:
        logger.warning(
            f"feature cache: {missing} of {total} {items} are to be computed, {in_bytes(size)} each, "
            f"{in_bytes(missing * size)} together, in '{store.folder}', where {in_bytes(free)} are free"
        )
    if missing * size > free:
        raise ValueError(
            f"the feature cache of {missing} {items} takes {in_bytes(missing * size)} in '{store.folder}', where "
            f"{in_bytes(free)} are free; make room, or halve it by --cache_dtype bfloat16"
        )


def in_bytes(count: float) -> str:
    """A number of bytes with its unit, to three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def fill(
    store: FeatureStore,
    bucket: str,
    keys: Sequence[str],
    tower: FrozenTower,
    sources: Mapping[str, Source],
    batch_size: int,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> None:
    """Compute the entries of these keys and write them in shards; an interruption still writes what is computed."""
    held: list[tuple[Sequence[str], dict[str, torch.Tensor]]] = []
    started = time.monotonic()

    def write() -> None:
        batches, held[:] = list(held), []
        names = [key for batch_keys, _ in batches for key in batch_keys]
        tensors = {name: torch.cat([entries[name] for _, entries in batches]) for name in batches[0][1]}
        store.write(bucket, names, tensors)

    try:
        for batch_keys, prepared in prefetched(keys, tower, sources, batch_size, pool):
            held.append((batch_keys, tower.run(prepared)))
            bar.update(len(batch_keys))
            size = sum(tensor.nbytes for _, entries in held for tensor in entries.values())
            if size > SHARD_BYTES or time.monotonic() - started > SHARD_SECONDS:
                write()
                started = time.monotonic()
    finally:
        if held:
            write()


def prefetched(
    keys: Sequence[str],
    tower: FrozenTower,
    sources: Mapping[str, Source],
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Sequence[str], list[dict[str, torch.Tensor]]]]:
    """Batches of keys and the tower's inputs for them; the next batch is prepared while one is used."""
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]

    def begin(batch_keys: Sequence[str]) -> list[Any]:
        return [pool.submit(lambda key: tower.prepare(sources[key].medium()), key) for key in batch_keys]

    ahead = begin(batches[0]) if batches else []
    for place, batch_keys in enumerate(batches):
        current, ahead = ahead, begin(batches[place + 1]) if place + 1 < len(batches) else []
        yield batch_keys, [future.result() for future in current]
