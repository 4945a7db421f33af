"""What a report shows, and how much of it."""

from pydantic import Field

from transfusion.config import Config


class ReportConfig(Config):
    """One page; everything on it is bounded, whatever the size of the run."""

    title: str = Field("Transfusion run", min_length=1)
    """The headline: the job's name, or what the run was about."""

    max_images: int = Field(200, ge=0)
    """Images embedded in the page, over all sections; the first ones of each, never chosen ones."""

    max_image_px: int = Field(256, ge=8)
    """Longer side of an embedded image; larger ones are scaled down."""

    max_previews: int = Field(6, ge=0)
    """Strips of pictures that the run drew on the way, evenly spread over it, the last among them."""

    max_points: int = Field(1000, ge=10)
    """Points a curve is thinned to; peaks survive it."""

    max_listed: int = Field(20, ge=0)
    """Rejected rows, shards and files named a stage; all of them are counted."""
