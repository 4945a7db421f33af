"""Captioned images that the program draws: 1 to 3 objects, six colours, three shapes; unlimited.

Image i is a pure function of (seed, i): a shard can be read anywhere, and a longer listing begins as a
shorter one.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from data_pipelines.documents import Document, Image, Rejected, Text
from data_pipelines.sources.class_prompts import ClassPrompt
from data_pipelines.sources.source import ShardDescriptor, identify
from transfusion.config import Config
from transfusion.stage import Stage

if TYPE_CHECKING:
    from data_pipelines.shapes_world.scene import Scene

DRAWING_VERSION = 1
"""Raised whenever a scene, a caption or a pixel changes for the same seed."""


class SceneWeights(Config):
    """How often each kind of scene is drawn, relative to the others."""

    single: float = Field(default=0.65, ge=0)
    """One object."""

    count: float = Field(default=0.1, ge=0)
    """Two or three that are alike: "two green squares"."""

    group: float = Field(default=0.1, ge=0)
    """Two or three that differ: "a red circle and a blue square"."""

    relation: float = Field(default=0.15, ge=0)
    """Two of which one stands left of, right of, above or below the other."""

    @model_validator(mode="after")
    def _some(self) -> "SceneWeights":
        if self.single + self.count + self.group + self.relation <= 0:
            raise ValueError("at least one of single, count, group and relation must be above 0")
        return self


class ShapesConfig(Config):
    """Captioned drawings from a seed."""

    num_images: int = Field(ge=1)

    seed: int = Field(ge=0)

    first_image: int = Field(default=0, ge=0)
    """Index of the first image: another range of the same seed shares no image with this one."""

    image_size_px: int = Field(default=32, ge=16, le=1024)

    images_per_shard: int = Field(default=2048, ge=1)

    max_objects: int = Field(default=3, ge=1, le=3)
    """Most objects in a scene; with 1 every scene is a single object, whatever the weights."""

    weights: SceneWeights = SceneWeights()

    class_prompt: ClassPrompt | None = None
    """Makes the drawings a class-conditional set of 18 classes: `{label}` is "red circle". Needs max_objects 1."""

    @model_validator(mode="after")
    def _drawable(self) -> "ShapesConfig":
        if self.max_objects == 1 and self.weights.single <= 0:
            raise ValueError(
                "max_objects 1 leaves only single objects, but weights.single is 0; raise it"
            )
        if self.class_prompt is not None and self.max_objects != 1:
            raise ValueError(
                f"class_prompt names one object an image, but max_objects is {self.max_objects}; set it to 1"
            )
        return self


STAGE = Stage(
    config=ShapesConfig,
    inputs={},
    output="listing",
    body="data_pipelines.sources.source:run",
    version=DRAWING_VERSION,
    needs_ray=False,
    summary="Captioned drawings of coloured shapes, from a seed.",
)


def list_shards(config: ShapesConfig) -> list[ShardDescriptor]:
    """Runs of consecutive images."""
    drawn = config.model_dump(
        mode="json", exclude={"num_images", "first_image", "images_per_shard", "class_prompt"}
    )
    if config.class_prompt is not None:
        drawn["class_prompt"] = config.class_prompt.identity()
    end = config.first_image + config.num_images
    shards = []
    for start in range(config.first_image, end, config.images_per_shard):
        count = min(config.images_per_shard, end - start)
        identity = identify("shapes", [DRAWING_VERSION, drawn, start, count])
        shards.append(ShardDescriptor(identity=identity, spec={"start": start, "count": count}))
    return shards


def identities(config: ShapesConfig) -> list[str]:
    """The identities of all shards."""
    return [shard.identity for shard in list_shards(config)]


def read(config: ShapesConfig, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
    """Draws the images of a shard."""
    start = descriptor.spec["start"]
    for index in range(start, start + descriptor.spec["count"]):
        yield document(config, index)


def document(config: ShapesConfig, index: int) -> Document:
    """Caption and image number `index`; its metadata holds the scene."""
    from data_pipelines.shapes_world.drawing import draw, png

    scene, caption = describe(config, index)
    key = f"shapes/{config.seed}/{index:08d}"
    data = png(draw(scene, config.image_size_px))
    return Document(
        key=key, segments=(Text(caption), Image(data, f"{key}.png")), metadata=scene.to_json()
    )


def describe(config: ShapesConfig, index: int) -> tuple["Scene", str]:
    """Scene and caption number `index`, not drawn."""
    from data_pipelines.shapes_world.captions import draw_caption
    from data_pipelines.shapes_world.draws import Draws
    from data_pipelines.shapes_world.scene import KINDS, draw_scene

    weights = {kind: getattr(config.weights, kind) for kind in KINDS}
    scene = draw_scene(
        Draws("scene", config.seed, index), kind_weights=weights, max_objects=config.max_objects
    )
    if config.class_prompt is not None:
        (one,) = scene.objects
        return scene, config.class_prompt.worded(f"{one.color} {one.shape}")
    return scene, draw_caption(Draws("caption", config.seed, index), scene)
