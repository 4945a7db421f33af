"""The worker that draws the prompts of shards.

Of a shard there are in memory its pictures as PNG, about four times where it is committed (as a table, as a
Parquet file, and what is digested), and some batches of them as pixels.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from data_pipelines.document_images import distinct
from data_pipelines.documents import Document, Text
from data_pipelines.encode_images.encoder import threads
from data_pipelines.generate.config import GenerateConfig
from data_pipelines.shard_sampler import ShardSampler, seed_of
from data_pipelines.shards import ShardTask
from data_pipelines.sources.source import open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.images import IMAGES_RAW, ImageRow, images_table
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.package.format import PackageConfig
from transfusion.resources import PoolResources
from transfusion.sample.params import SamplingParams, params_with
from transfusion.sample.pictures import png_bytes
from transfusion.sample.rows import Request, check_request
from transfusion.storage.store import Store


class Asked(NamedTuple):
    """A picture that is to be drawn."""

    document: Document
    sample: int
    seed: int


class GenerateShard:
    """Holds one model."""

    def __init__(
        self,
        listing: Artifact,
        model: Artifact,
        config: GenerateConfig,
        *,
        store: Store,
        pool: str,
        resources: PoolResources,
    ) -> None:
        self._listing = open_listing(listing)
        self._model = ShardSampler(model, config, resources)
        self._config = config
        self._params = params_of(config, self._model.sampler.package.config)
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `IMAGES_SCHEMA`. Outcomes count prompts."""
        rejects: list[Reject] = []
        rows: list[ImageRow] = []
        with threads(self._config.threads_per_actor):
            for asked, sample in self._model.answers(self._requests(task, rejects)):
                rows.append(
                    ImageRow(
                        prompt_key=asked.document.key,
                        sample=asked.sample,
                        prompt=_prompt(asked.document),
                        metadata=asked.document.metadata,
                        seed=asked.seed,
                        image=png_bytes(sample.images[0]),
                    )
                )
        written = len(rows) // self._config.num_samples
        table = images_table(rows)
        del rows
        return self._pool.commit(
            task.key,
            {ROWS: table, REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(
                input=written + len(rejects), written=written, rejected=count_reasons(rejects)
            ),
            raw_columns=IMAGES_RAW,
        )

    def _requests(self, task: ShardTask, rejects: list[Reject]) -> Iterator[tuple[Asked, Request]]:
        """The samples of a prompt one after the other: the engine reads it once for all of them."""
        for document in distinct(self._listing.read(task.descriptor)):
            if isinstance(document, Reject):
                rejects.append(document)
                continue
            request = self._request(document)
            if isinstance(request, Reject):
                rejects.append(request)
                continue
            for number in range(self._config.num_samples):
                seed = seed_of(self._config.seed, document.key, number)
                params = self._params.model_copy(update={"seed": seed})
                yield Asked(document, number, seed), replace(request, params=params)

    def _request(self, document: Document) -> Request | Reject:
        if sum(isinstance(segment, Text) for segment in document.segments) != 1:
            return Reject(document.key, "not_one_text", "a prompt is one text")
        request = self._model.sampler.request(
            _prompt(document), self._params, negative_prompt=self._config.negative_prompt
        )
        try:
            check_request(request, self._model.sampler.package.config)
        except ValueError as error:
            return Reject(document.key, "too_long", str(error))
        return request


def params_of(config: GenerateConfig, package: PackageConfig) -> SamplingParams:
    """How every picture is drawn, seeds apart.

    Raises:
        SpecError: The options do not fit the model.
    """
    return params_with(
        package.sampling,
        schedule=package.schedule,
        solver=config.solver,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        modalities=("image",),
    )


def _prompt(document: Document) -> str:
    return "".join(s.text for s in document.segments if isinstance(s, Text))
