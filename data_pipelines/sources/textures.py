"""Captioned images that the program draws: one object of any hue, with stripes of any direction; unlimited.

Values that no small codebook lists, unlike the six flat colours of `shapes`. Image i is a pure function of
(seed, i): a shard can be read anywhere, and a longer listing begins as a shorter one.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from data_pipelines.documents import Document, Image, Rejected, Text
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config
from transfusion.stage import Stage

if TYPE_CHECKING:
    from data_pipelines.textures_world.scene import Texture

DRAWING_VERSION = 1
"""Raised whenever a scene, a caption or a pixel changes for the same seed."""


class TexturesConfig(Config):
    """Captioned drawings from a seed."""

    num_images: int = Field(ge=1)

    seed: int = Field(ge=0)

    first_image: int = Field(default=0, ge=0)
    """Index of the first image: another range of the same seed shares no image with this one."""

    image_size_px: int = Field(default=32, ge=16, le=1024)

    images_per_shard: int = Field(default=2048, ge=1)


STAGE = Stage(
    config=TexturesConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=DRAWING_VERSION,
    needs_ray=False,
    summary="Captioned drawings of striped shapes of continuous hue, from a seed.",
)


def list_shards(config: TexturesConfig) -> list[ShardDescriptor]:
    """Runs of consecutive images."""
    end = config.first_image + config.num_images
    shards = []
    for start in range(config.first_image, end, config.images_per_shard):
        count = min(config.images_per_shard, end - start)
        drawn = [DRAWING_VERSION, config.seed, config.image_size_px, start, count]
        spec = {"start": start, "count": count}
        shards.append(ShardDescriptor(identity=identify("textures", drawn), spec=spec))
    return shards


def identities(config: TexturesConfig) -> list[str]:
    """The identities of all shards."""
    return [shard.identity for shard in list_shards(config)]


def read(config: TexturesConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """Draws the images of a shard."""
    start = descriptor.spec["start"]
    for index in range(start, start + descriptor.spec["count"]):
        yield document(config, index)


def document(config: TexturesConfig, index: int) -> Document:
    """Caption and image number `index`; its metadata holds the exact values."""
    from data_pipelines.shapes_world.drawing import png
    from data_pipelines.textures_world.drawing import draw
    from data_pipelines.textures_world.scene import caption

    texture = describe(config, index)
    key = f"textures/{config.seed}/{index:08d}"
    data = png(draw(texture, config.image_size_px))
    return Document(
        key=key,
        segments=(Text(caption(texture)), Image(data, f"{key}.png")),
        metadata=texture.to_json(),
    )


def describe(config: TexturesConfig, index: int) -> "Texture":
    """Scene number `index`, not drawn."""
    from data_pipelines.shapes_world.draws import Draws
    from data_pipelines.textures_world.scene import draw_texture

    return draw_texture(Draws("texture", config.seed, index))
