"""The Python docs as a source: every topic once, identified by what it says."""

import pydoc_data.topics

import pytest

from data_pipelines.documents import Document, Text
from data_pipelines.sources.python_docs import PythonDocsConfig, identities, list_shards, read
from transfusion.errors import ArtifactError


def test_every_topic_is_one_document_word_for_word() -> None:
    config = PythonDocsConfig(topics_per_shard=20)
    rows = [row for shard in list_shards(config) for row in read(config, shard)]
    assert all(isinstance(row, Document) for row in rows)
    texts = {row.key: row.segments for row in rows if isinstance(row, Document)}
    topics = pydoc_data.topics.topics
    assert texts == {f"python_docs/{name}": (Text(topics[name]),) for name in topics}
    assert [row.key for row in rows] == sorted(texts)


def test_the_identity_follows_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PythonDocsConfig(topics_per_shard=20)
    before, shards = identities(config), list_shards(config)
    assert before == identities(config)
    name = sorted(pydoc_data.topics.topics)[25]
    monkeypatch.setitem(pydoc_data.topics.topics, name, "other words")
    after = identities(config)
    assert [a == b for a, b in zip(after, before, strict=True)].count(False) == 1
    with pytest.raises(ArtifactError, match="another Python"):
        list(read(config, shards[1]))
