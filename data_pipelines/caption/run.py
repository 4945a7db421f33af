"""Captions every image of a listing, a shard at a time."""

import functools
from collections.abc import Mapping

from data_pipelines.caption.config import CaptionConfig
from data_pipelines.caption.shard import CaptionShard, params_of
from data_pipelines.shards import Launch, on_ray, plan_tasks, run_shards
from transfusion.artifacts.artifact import Artifact
from transfusion.errors import SpecError
from transfusion.package.format import TOKENIZER
from transfusion.package.verify import package_digest, verify_package
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request, check_request
from transfusion.stage import Made, StageContext
from transfusion.tokenizer.tokenizer import Tokenizer


def run(
    config: CaptionConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage.

    Raises:
        SpecError: The prompt and an image do not fit the model's context.
    """
    listing, model = inputs["images"], inputs["model"]
    package = verify_package(model.folder())
    digest = package_digest(model.folder())
    prompt = Tokenizer.load(model.folder() / TOKENIZER).encode(config.prompt).tolist()
    image = (package.special.pad,) * (package.num_patches + 2)
    params = params_of(config)
    try:
        check_request(Request((TextPart((*image, *prompt)),), params), package)
    except ValueError as error:
        raise SpecError(f"{context.name}: config.prompt: {error}") from error
    tasks = plan_tasks(
        listing,
        version=context.version,
        config=config.shard_identity(),
        upstream={"model": digest},
    )
    done = run_shards(
        context,
        tasks=tasks,
        factory=functools.partial(
            CaptionShard,
            listing,
            model,
            config,
            store=context.store,
            pool=context.pool,
            resources=context.resources.pool,
        ),
        unit="images captioned",
        launch=launch,
        max_quarantined=config.max_quarantined_shards,
    )
    return done.made({"model": digest})
