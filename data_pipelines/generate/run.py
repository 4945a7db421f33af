"""Draws every prompt of a listing, a shard at a time."""

import functools
from collections.abc import Mapping

from data_pipelines.generate.config import GenerateConfig
from data_pipelines.generate.shard import GenerateShard, params_of
from data_pipelines.shards import Launch, on_ray, plan_tasks, run_shards
from transfusion.artifacts.artifact import Artifact
from transfusion.errors import SpecError
from transfusion.package.format import TOKENIZER
from transfusion.package.verify import package_digest, verify_package
from transfusion.sample.rows import Request, check_request
from transfusion.stage import Made, StageContext
from transfusion.tokenizer.tokenizer import Tokenizer


def run(
    config: GenerateConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage.

    Raises:
        SpecError: The options do not fit the model.
    """
    listing, model = inputs["prompts"], inputs["model"]
    package = verify_package(model.folder())
    digest = package_digest(model.folder())
    negative = Tokenizer.load(model.folder() / TOKENIZER).encode(config.negative_prompt).tolist()
    try:
        check_request(Request((), params_of(config, package), tuple(negative)), package)
    except ValueError as error:
        raise SpecError(f"{context.name}: config.negative_prompt: {error}") from error
    tasks = plan_tasks(
        listing,
        version=context.version,
        config=config.shard_identity(),
        upstream={"model": digest},
        with_metadata=True,
    )
    done = run_shards(
        context,
        tasks=tasks,
        factory=functools.partial(
            GenerateShard,
            listing,
            model,
            config,
            store=context.store,
            pool=context.pool,
            resources=context.resources.pool,
        ),
        unit="prompts drawn",
        launch=launch,
        max_quarantined=config.max_quarantined_shards,
    )
    return done.made(
        {
            "model": digest,
            "image_size_px": package.image_size_px,
            "num_samples": config.num_samples,
        }
    )
