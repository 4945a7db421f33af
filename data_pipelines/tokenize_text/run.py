"""Tokenizes every document of a listing, a shard at a time.

Images are not looked at: an image that cannot be decoded is a matter of its latents. With captions a document says
what these say of its image instead of its own text; key and shard stay, so the tokens join the same latents.
"""

import functools
import hashlib
from collections.abc import Mapping

from data_pipelines.documents import Document, Text
from data_pipelines.recaptioned import Captions, captions_of, documents_of
from data_pipelines.shards import Launch, ShardTask, on_ray, plan_tasks, run_shards
from data_pipelines.sources.source import open_listing
from data_pipelines.tokenize_text.config import TokenizeTextConfig
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import INDEX, REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.artifacts.tokens import TOKENS_RAW, TokenRow, index_table, tokens_table
from transfusion.stage import Made, StageContext
from transfusion.storage.store import Store
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer


def run(
    config: TokenizeTextConfig,
    inputs: Mapping[str, Artifact],
    context: StageContext,
    *,
    launch: Launch = on_ray,
) -> Made:
    """The body of the stage."""
    tokenizer = Tokenizer(inputs["tokenizer"].read(MODEL))
    listing = inputs["documents"]
    if not tokenizer.has_byte_fallback:
        context.log.warning("the tokenizer has no byte fallback: characters it lacks become <unk>")
    captions = captions_of(inputs)
    tasks = plan_tasks(
        listing,
        version=context.version,
        config=config.identity(),
        upstream={"tokenizer": tokenizer.digest},
        with_metadata=True,
        beside=captions,
    )
    done = run_shards(
        context,
        tasks=tasks,
        factory=functools.partial(
            TokenizeShard, listing, tokenizer, captions, store=context.store, pool=context.pool
        ),
        unit="documents tokenized",
        launch=launch,
    )
    return done.made({"num_pieces": tokenizer.num_pieces})


class TokenizeShard:
    """Tokenizes one shard at a time."""

    def __init__(
        self,
        listing: Artifact,
        tokenizer: Tokenizer,
        captions: Captions | None = None,
        *,
        store: Store,
        pool: str,
    ) -> None:
        self._listing = open_listing(listing)
        self._tokenizer, self._captions = tokenizer, captions
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `TOKENS_SCHEMA`; in the index also the documents' metadata."""
        rows: list[TokenRow] = []
        rejects: list[Reject] = []
        for document in documents_of(task, self._listing, self._captions, self._pool.store):
            if isinstance(document, Reject):
                rejects.append(document)
            else:
                rows.append(tokenize(document, self._tokenizer))
        return self._pool.commit(
            task.key,
            {
                ROWS: tokens_table(rows),
                INDEX: index_table(rows),
                REJECTS: rejects_table(rejects),
            },
            outcomes=Outcomes(
                input=len(rows) + len(rejects), written=len(rows), rejected=count_reasons(rejects)
            ),
            raw_columns=TOKENS_RAW,
        )


def tokenize(document: Document, tokenizer: Tokenizer) -> TokenRow:
    """The token ids of a document's text; what spells a special token is text like other text."""
    texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
    layout = "".join("t" if isinstance(s, Text) else "i" for s in document.segments)
    return TokenRow(
        key=document.key,
        layout=layout,
        segments=tuple(tokenizer.encode_all(texts)),
        content=hashlib.sha256("\0".join(texts).encode()).digest(),
        num_bytes=sum(len(text.encode()) for text in texts),
        metadata=document.metadata,
    )
