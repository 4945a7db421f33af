"""Pictures as they travel: PNG out, what people upload in."""

import base64
import binascii
import io
from collections.abc import Sequence

from PIL import Image

from transfusion.sample.pictures import png_bytes, to_square
from transfusion.sample.sampler import Pixels
from transfusion.serve.config import EndpointConfig
from transfusion.serve.errors import ApiError
from transfusion.serve.fetching import PictureFetcher

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000
"""Of an upload: a small file can hold a picture that fills memory."""


def to_png(pixels: Pixels) -> str:
    """Base64 of a PNG."""
    return base64.b64encode(png_bytes(pixels)).decode()


async def contents_of(
    urls: Sequence[str], fetcher: PictureFetcher, *, max_bytes: int, param: str
) -> list[bytes]:
    """Files out of `data:` addresses, or from where others lead.

    Args:
        max_bytes: Of all that is fetched.

    Raises:
        ApiError: One is no base64, or is not fetched.
    """
    contents = []
    for url in urls:
        if url.startswith("data:"):
            contents.append(_inline(url, param))
        else:
            content = await fetcher.fetch(url, max_bytes=max_bytes, param=param)
            max_bytes -= len(content)
            contents.append(content)
    return contents


def _inline(url: str, param: str) -> bytes:
    head, found, body = url.partition(",")
    if not (found and head.startswith("data:image/") and head.endswith(";base64")):
        raise ApiError(400, f"{param}: must be data:image/...;base64,...", param=param)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{param}: is not base64", param=param) from error


def check_count(count: int, limits: EndpointConfig, *, param: str) -> None:
    """Raises ApiError when a request brings more pictures than the endpoint allows."""
    if count > limits.max_input_images:
        raise ApiError(
            400,
            f"{param}: holds {count} pictures: must be at most {limits.max_input_images}",
            param=param,
        )


def from_bytes(content: bytes, size_px: int, *, param: str) -> Pixels:
    """A picture of the model's size: the middle square of what was uploaded, upright, on white.

    Raises:
        ApiError: It is no picture, or too large a one.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ApiError(
                    400,
                    f"{param}: has {image.width} x {image.height} pixels: must be at most {MAX_PIXELS}",
                    param=param,
                )
            return to_square(image, size_px)
    except ApiError:
        raise
    except Exception as error:
        # Pillow raises whatever a damaged file leads it to.
        raise ApiError(
            400, f"{param}: is no picture that can be read ({', '.join(FORMATS)})", param=param
        ) from error
