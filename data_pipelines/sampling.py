"""Options of the stages that run a model over a source."""

from typing import Any, Literal

from pydantic import Field

from transfusion.config import Config


class SamplesConfig(Config):
    """What decides, beside the model and the documents, what a model makes of them."""

    seed: int = Field(ge=0, lt=2**63)
    """Of all that is drawn; a document's own seeds follow from it and the document's key."""

    weights: Literal["ema", "raw"] = "ema"
    """Which of the package's weights are sampled."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the transformer."""

    batch_size: int = Field(default=32, ge=1)
    """Captions or pictures under way at once: another number may flip last bits."""

    threads_per_actor: int = Field(default=1, ge=1)
    """Threads of the model on a CPU: another number may round otherwise."""

    max_quarantined_shards: int = Field(default=0, ge=0)
    """As in `data_pipelines.encode_images`."""

    def shard_identity(self) -> dict[str, Any]:
        """The part that a shard depends on: how many others may fail is not in it."""
        return {k: v for k, v in self.identity().items() if k != "max_quarantined_shards"}
