"""The parts of an evaluation: each makes something with the model, judges it, and leaves files and metrics."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import PixelRow
from transfusion.evaluate.batches import Advance
from transfusion.evaluate.captions import describe
from transfusion.evaluate.ceiling import mean_psnr_db, reconstruct
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.held_out import CaptionedImage, text_documents
from transfusion.evaluate.pictures import draw_prompts, save_pictures, seed_of
from transfusion.evaluate.text import HeldOutText, Unigram, bits_per_byte
from transfusion.evaluate.world import Asked, Judgement, World
from transfusion.sample.sampler import Sampler

SAMPLES = "samples.json"
"""A row a drawing."""


@dataclass(kw_only=True)
class Evaluation:
    """What the parts of an evaluation share, and what they have found."""

    config: EvaluateConfig
    sampler: Sampler
    mixture: Artifact
    pixels: list[PixelRow]
    """Those that were held out first."""
    world: World[Any] | None
    """None where the images are of no drawn world: nothing can judge them."""
    folder: Path
    workers: ThreadPoolExecutor
    advance: Advance
    log: logging.Logger
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    written: dict[str, Any] = field(default_factory=dict)
    """What the JSON files hold, by name."""

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file beside the pictures."""
        self.written[name] = value
        text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
        (self.folder / name).write_text(text + "\n", encoding="utf-8")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Records how long a part took."""
        start = time.monotonic()
        yield
        self.timings[f"{name}_s"] = round(time.monotonic() - start, 3)


def judge_drawings(evaluation: Evaluation, prompts: Sequence[Asked] | Sequence[str]) -> None:
    """Draws every prompt; those of the drawn world are scored."""
    if not prompts:
        return
    config = evaluation.config
    texts = [one if isinstance(one, str) else one.text for one in prompts]
    with evaluation.timed("drawing"):
        pictures = draw_prompts(
            evaluation.sampler,
            texts,
            how=config,
            seeds=[seed_of(config.seed, "drawing", index) for index in range(len(texts))],
            workers=evaluation.workers,
            batch_size=config.batch_size,
            advance=evaluation.advance,
        )
    names = save_pictures(evaluation.folder / "samples", pictures)
    records: list[dict[str, Any]] = [
        {"file": name, "prompt": text} for name, text in zip(names, texts, strict=True)
    ]
    if evaluation.world is not None:
        _judged(evaluation, records, evaluation.world.judge_drawings(prompts, pictures))
    evaluation.write(SAMPLES, records)


def judge_captions(evaluation: Evaluation, images: Sequence[CaptionedImage]) -> None:
    """Describes held-out images; descriptions of the drawn world are scored."""
    if not images:
        return
    config = evaluation.config
    with evaluation.timed("captioning"):
        described = describe(
            evaluation.sampler,
            images,
            max_tokens=config.max_caption_tokens,
            workers=evaluation.workers,
            batch_size=config.batch_size,
            advance=evaluation.advance,
        )
    records: list[dict[str, Any]] = [
        {"key": one.key, "reference": one.reference, "caption": one.caption} for one in described
    ]
    _show(evaluation, images, records)
    if evaluation.world is not None:
        _judged(evaluation, records, evaluation.world.judge_captions(described))
    evaluation.write("captions.json", records)


def judge_autoencoder(evaluation: Evaluation) -> None:
    """PSNR, and the scores that perfect drawings would have: of real images and of reconstructions."""
    rows = evaluation.pixels
    if not rows:
        return
    originals = [row.pixels for row in rows]
    with evaluation.timed("reconstruction"):
        back = reconstruct(
            evaluation.sampler.package.autoencoder,
            originals,
            batch_size=evaluation.config.batch_size,
        )
    evaluation.metrics["autoencoder.psnr_db"] = mean_psnr_db(originals, back)
    scenes, world = [row.metadata for row in rows], evaluation.world
    if world is not None and all(world.knows(scene) for scene in scenes):
        evaluation.metrics |= world.ceiling("real", scenes, originals)
        evaluation.metrics |= world.ceiling("reconstruction", scenes, back)
    shown = evaluation.config.num_shown
    folder = evaluation.folder / "reconstructions"
    names = zip(
        save_pictures(folder, originals[:shown], "-original"),
        save_pictures(folder, back[:shown], "-reconstruction"),
        rows,
        strict=False,
    )
    records = [
        {"original": original, "reconstruction": copy, "key": row.key, "caption": row.caption}
        for original, copy, row in names
    ]
    evaluation.write("reconstructions.json", records)


def judge_text(evaluation: Evaluation) -> None:
    """Held-out text in bits per byte, beside a unigram model of the text that was trained on."""
    config, package = evaluation.config, evaluation.sampler.package
    if not config.num_text_documents:
        return
    unigram = Unigram(package.config.num_pieces)
    texts: list[HeldOutText] = []
    learned = 0
    for document, held_out in text_documents(evaluation.mixture):
        ids = np.concatenate([*document.segments, np.zeros(0, np.int32)]).astype(np.int32)
        if not held_out:
            unigram.learn(ids)
            learned += 1
        elif len(ids) and len(texts) < config.num_text_documents:
            head = ids[: config.max_document_tokens]
            whole = len(head) == len(ids)
            size = (
                document.num_bytes
                if whole
                else len(package.tokenizer.decode(head.tolist()).encode())
            )
            texts.append(HeldOutText(head, size, whole))
    if not texts:
        if learned:
            evaluation.log.info("no text document was held out: no bits per byte")
        return
    with evaluation.timed("text"):
        evaluation.metrics["text.bits_per_byte"] = bits_per_byte(
            package.model, texts, config=package.config, batch_size=16
        )
    evaluation.metrics["text.unigram_bits_per_byte"] = unigram.bits_per_byte(texts)


def _judged(
    evaluation: Evaluation, records: Sequence[dict[str, Any]], judgement: Judgement
) -> None:
    """Each record with its verdict, and the metrics of all."""
    for record, verdict in zip(records, judgement.records, strict=True):
        record |= verdict
    evaluation.metrics |= judgement.metrics


def _show(
    evaluation: Evaluation, images: Sequence[CaptionedImage], records: list[dict[str, Any]]
) -> None:
    """Pictures of the first images described: as the model sees them, decoded from their latents."""
    shown = images[: evaluation.config.num_shown]
    if not shown:
        return
    sampler = evaluation.sampler
    pictures = sampler.pixels_of(sampler.parts_of(torch.stack([one.latent for one in shown])))
    for record, name in zip(
        records, save_pictures(evaluation.folder / "captions", pictures), strict=False
    ):
        record["file"] = name
