"""The worker that captions shards: images are decoded ahead of the model.

Of a shard there are in memory its captions, what `load_images` holds ahead, and some batches of latents.
"""

from collections.abc import Iterable, Iterator

from data_pipelines.caption.config import CaptionConfig
from data_pipelines.decoders import running_decoders
from data_pipelines.document_images import distinct
from data_pipelines.documents import Document, Image, Rejected
from data_pipelines.encode_images.encoder import threads
from data_pipelines.images import LoadedImage, load_images
from data_pipelines.preparation import Preparation
from data_pipelines.shard_sampler import ShardSampler, in_groups, seed_of
from data_pipelines.shards import ShardTask
from data_pipelines.sources.source import open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.captions import CaptionRow, captions_table
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.resources import PoolResources
from transfusion.sample.params import SamplingParams
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sample
from transfusion.storage.store import Store


class CaptionShard:
    """Holds one model, and the decoders that feed it."""

    def __init__(
        self,
        listing: Artifact,
        model: Artifact,
        config: CaptionConfig,
        *,
        store: Store,
        pool: str,
        resources: PoolResources,
    ) -> None:
        self._listing = open_listing(listing)
        self._model = ShardSampler(model, config, resources)
        self._sampler = self._model.sampler
        self._config, self._params = config, params_of(config)
        self._prompt = self._sampler.request(config.prompt, self._params).prompt
        side_px = self._sampler.package.config.image_size_px
        self._preparation = Preparation(config.limits, ((side_px, side_px),), config.jpeg_draft)
        self._num_decoders = max(1, int(resources.cpus_per_actor))
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `CAPTIONS_SCHEMA`."""
        rejects: list[Reject] = []
        images = load_images(
            _of_one_image(self._listing.read(task.descriptor), rejects),
            preparation=self._preparation,
            decoders=running_decoders(self._num_decoders),
        )
        rows: list[CaptionRow] = []
        with threads(self._config.threads_per_actor):
            for (key, seed), sample in self._model.answers(self._requests(images, rejects)):
                row = _row(key, seed, sample)
                if isinstance(row, Reject):
                    rejects.append(row)
                else:
                    rows.append(row)
        return self._pool.commit(
            task.key,
            {ROWS: captions_table(rows), REJECTS: rejects_table(rejects)},
            outcomes=Outcomes(
                input=len(rows) + len(rejects), written=len(rows), rejected=count_reasons(rejects)
            ),
        )

    def _requests(
        self, images: Iterable[LoadedImage | Reject], rejects: list[Reject]
    ) -> Iterator[tuple[tuple[str, int], Request]]:
        """A request for each image, beside its document's key and seed."""
        for batch in in_groups(_decoded(images, rejects), self._config.batch_size):
            parts = self._sampler.encode_images([image.pixels for image in batch])
            for image, part in zip(batch, parts, strict=True):
                seed = seed_of(self._config.seed, image.key)
                params = self._params.model_copy(update={"seed": seed})
                yield (image.key, seed), Request((part, *self._prompt), params)


def params_of(config: CaptionConfig) -> SamplingParams:
    """How every caption is written, seeds apart."""
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_tokens,
        stop=config.stop,
        modalities=("text",),
    )


def _of_one_image(
    documents: Iterable[Document | Rejected], rejects: list[Reject]
) -> Iterator[Document]:
    for document in distinct(documents):
        if isinstance(document, Reject):
            rejects.append(document)
            continue
        number = sum(isinstance(segment, Image) for segment in document.segments)
        if number == 1:
            yield document
        else:
            rejects.append(Reject(document.key, "not_one_image", f"{number} images"))


def _decoded(
    images: Iterable[LoadedImage | Reject], rejects: list[Reject]
) -> Iterator[LoadedImage]:
    for image in images:
        if isinstance(image, Reject):
            rejects.append(image)
        else:
            yield image


def _row(key: str, seed: int, sample: Sample) -> CaptionRow | Reject:
    caption = sample.text.strip()
    if not caption:
        return Reject(key, "empty", "the model ended without a word")
    if "\0" in caption:
        return Reject(key, "nul_character", f"at character {caption.index(chr(0))}")
    return CaptionRow(key=key, caption=caption, finish_reason=sample.finish_reason, seed=seed)
