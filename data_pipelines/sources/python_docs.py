"""The Python language reference as prose, from the interpreter itself: `pydoc_data.topics`, no download.

One document a topic, in the order of the topics' names.
"""

import hashlib
from collections.abc import Iterator

from pydantic import Field

from data_pipelines.documents import Document, Rejected, Text
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config
from transfusion.errors import ArtifactError
from transfusion.stage import Stage


class PythonDocsConfig(Config):
    """Topics of the Python language reference."""

    topics_per_shard: int = Field(default=32, ge=1)
    """Topics a shard holds; there are about 80 of 9 kB each."""


STAGE = Stage(
    config=PythonDocsConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=1,
    raw="data_pipelines.sources.python_docs:identities",
    needs_ray=False,
    summary="The Python language reference, from the interpreter.",
)


def list_shards(config: PythonDocsConfig) -> list[ShardDescriptor]:
    """Runs of topics by name, identified by what they say.

    Raises:
        ArtifactError: This interpreter was built without its topics.
    """
    hashes = {name: _sha256(text) for name, text in sorted(_topics().items())}
    rows = [[name, digest] for name, digest in hashes.items()]
    size = config.topics_per_shard
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        ShardDescriptor(identity=identify("python_docs", [*group]), spec={"topics": group})
        for group in groups
    ]


def identities(config: PythonDocsConfig) -> list[str]:
    """What stands for the topics in the listing's fingerprint."""
    return [shard.identity for shard in list_shards(config)]


def read(config: PythonDocsConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """One document a topic.

    Raises:
        ArtifactError: This interpreter's topics are not those that were listed.
    """
    del config
    topics = _topics()
    for name, digest in descriptor.spec["topics"]:
        text = topics.get(name, "")
        if _sha256(text) != digest:
            raise ArtifactError(
                f"pydoc_data.topics[{name!r}] is not the text that was listed: the workers run another "
                "Python than the planner; run both on one version"
            )
        yield Document(key=f"python_docs/{name}", segments=(Text(text),), metadata={"topic": name})


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ArtifactError(
            "python_docs: this interpreter has no pydoc_data.topics; install Python's documentation "
            "topics, or use data_pipelines.sources.text"
        ) from error
    return dict(topics)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
