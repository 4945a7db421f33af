"""The body of the evaluate stage."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels
from transfusion.artifacts.publish import publish_folder
from transfusion.evaluate.batches import one_thread_each
from transfusion.evaluate.config import EvaluateConfig
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
from transfusion.evaluate.shapes.prompts import Prompt, make_prompts
from transfusion.evaluate.validation import validation_losses
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.stage import Made, StageContext

DRAWN_WORLD = "data_pipelines.sources.shapes"
"""Images of this source are scored by the detector."""

HEADLINES = (
    "single_object.color_accuracy",
    "single_object.color_shape_accuracy",
    "caption.color_accuracy",
    "edits.accuracy",
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
    wanted = max(config.num_captions, config.num_caption_prompts, config.num_paired)
    images = held_out_images(mixture, limit=wanted)
    drawn_world = any(entry.uses == DRAWN_WORLD for entry in package.config.lineage)
    prompts = _prompts(config, images, package.tokenizer.decode, drawn_world=drawn_world)
    edits = held_out_edits(mixture, limit=config.num_edits)
    total = len(prompts) + min(len(images), config.num_captions) + len(edits)
    with context.progress(total=total, unit="images") as progress:
        evaluation = Evaluation(
            config=config,
            sampler=Sampler(package),
            mixture=mixture,
            pixels=rows[: config.num_pixels],
            drawn_world=drawn_world,
            folder=folder,
            workers=workers,
            advance=progress.advance,
            log=context.log,
        )
        judge_drawings(evaluation, prompts)
        judge_captions(evaluation, images[: config.num_captions])
        judge_edits(evaluation, edits)
    judge_autoencoder(evaluation)
    judge_text(evaluation)
    with evaluation.timed("validation"):
        evaluation.metrics |= validation_losses(package, mixture)
    with evaluation.timed("paired"):
        evaluation.metrics |= paired_losses(package, images[: config.num_paired])
    metrics = evaluation.metrics
    told = [f"{name} {metrics[name]:.3f}" for name in HEADLINES if name in metrics]
    context.log.info(", ".join(told))
    evaluation.write("metrics.json", metrics)
    return Made(
        files=publish_folder(context.store, context.folder, folder),
        metadata={"drawn_world": drawn_world, "weights": config.weights},
        metrics=metrics,
        timings=evaluation.timings,
    )


def _prompts(
    config: EvaluateConfig,
    images: Sequence[CaptionedImage],
    decode: Callable[[Sequence[int]], str],
    *,
    drawn_world: bool,
) -> list[Prompt] | list[str]:
    if not drawn_world:
        return [decode(image.caption_ids).strip() for image in images[: config.num_caption_prompts]]
    return [
        prompt
        for task in config.tasks
        for prompt in make_prompts(
            task,
            config.num_single_object if task == "single_object" else config.num_per_task,
            config.seed,
        )
    ]
