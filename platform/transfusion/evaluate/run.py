"""The body of the evaluate stage."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels
from transfusion.artifacts.publish import publish_folder
from transfusion.evaluate.batches import one_thread_each
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.copies import judge_copies
from transfusion.evaluate.edits import judge_edits
from transfusion.evaluate.held_out import (
    CaptionedImage,
    held_out_edits,
    held_out_images,
    held_out_pixels_first,
)
from transfusion.evaluate.judges import (
    Evaluation,
    judge_autoencoder,
    judge_captions,
    judge_drawings,
    judge_text,
)
from transfusion.evaluate.paired import paired_losses
from transfusion.evaluate.shapes import world as shapes
from transfusion.evaluate.textures import world as textures
from transfusion.evaluate.validation import validation_losses
from transfusion.evaluate.world import World
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.stage import Made, StageContext

WORLDS: Mapping[str, World[Any]] = MappingProxyType(
    {
        "data_pipelines.sources.shapes": shapes.WORLD,
        "data_pipelines.sources.textures": textures.WORLD,
    }
)
"""Images of these sources are judged by what they show."""

HEADLINES = (
    "single_object.color_accuracy",
    "single_object.color_shape_accuracy",
    "caption.color_accuracy",
    "textures.hue_error_deg",
    "textures.direction_error_deg",
    "edits.accuracy",
    "nearest.copies",
    "autoencoder.psnr_db",
    "text.bits_per_byte",
    "text.unigram_bits_per_byte",
)
"""Metrics that the log names; the artifact holds all."""


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """Draws, describes, reads and reconstructs; every score goes into the metrics."""
    num_workers = min(context.resources.num_cpus or os.cpu_count() or 1, 16)
    with one_thread_each(1 if torch.cuda.is_available() else num_workers) as workers:
        return _run(config, inputs, context, workers)


def _run(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    workers: ThreadPoolExecutor,
) -> Made:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    package = load_package(inputs["model"].folder(), weights=config.weights, device=device)
    folder = context.scratch / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    mixture = inputs["mixture"]
    rows = (
        held_out_pixels_first(read_pixels(inputs["pixels"]), mixture) if "pixels" in inputs else []
    )
    wanted = max(
        config.num_captions, config.num_caption_prompts, config.num_paired, config.num_nearest
    )
    images = held_out_images(mixture, limit=wanted)
    sources = {entry.uses for entry in package.config.lineage}
    world = next((world for uses, world in WORLDS.items() if uses in sources), None)
    if world is not None:
        prompts = world.make_prompts(config)
    else:
        prompts = _captions(images[: config.num_caption_prompts], package.tokenizer.decode)
    edits = held_out_edits(mixture, limit=config.num_edits)
    total = len(prompts) + min(len(images), config.num_captions) + len(edits)
    with context.progress(total=total, unit="images") as progress:
        evaluation = Evaluation(
            config=config,
            sampler=Sampler(package),
            mixture=mixture,
            pixels=rows[: config.num_pixels],
            world=world,
            folder=folder,
            workers=workers,
            advance=progress.advance,
            log=context.log,
        )
        judge_drawings(evaluation, prompts)
        judge_captions(evaluation, images[: config.num_captions])
        judge_edits(evaluation, edits)
    if config.num_nearest:
        judge_copies(
            evaluation, images=images[: config.num_nearest], edits=edits[: config.num_nearest]
        )
    judge_autoencoder(evaluation)
    judge_text(evaluation)
    with evaluation.timed("validation"):
        evaluation.metrics |= validation_losses(package, mixture)
    if config.num_paired and package.config.num_codes:
        context.log.warning("num_paired: images are tokens, which have no diffusion loss")
    else:
        with evaluation.timed("paired"):
            evaluation.metrics |= paired_losses(package, images[: config.num_paired])
    metrics = evaluation.metrics
    told = [f"{name} {metrics[name]:.3f}" for name in HEADLINES if name in metrics]
    context.log.info(", ".join(told))
    evaluation.write("metrics.json", metrics)
    return Made(
        files=publish_folder(context.store, context.folder, folder),
        metadata={"drawn_world": world is not None, "weights": config.weights},
        metrics=metrics,
        timings=evaluation.timings,
    )


def _captions(
    images: Sequence[CaptionedImage], decode: Callable[[Sequence[int]], str]
) -> list[str]:
    return [decode(image.caption_ids).strip() for image in images]
