"""Whole images made small for a sheet, decoded in a process of its own: what is inspected is not yet trusted."""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image as Picture

from data_pipelines.decode import Reject, decode
from data_pipelines.decoders import DecoderLostError, running_decoders
from data_pipelines.inspect.sheet import TILE_PX
from data_pipelines.limits import DecodeLimits
from data_pipelines.preparation import Facts, Preparation, Prepared


@dataclass(frozen=True)
class Thumbnails(Preparation):
    """Fits the whole image into the first of the sizes; there is no crop, so its perceptual hash is 0."""

    def __call__(self, data: bytes) -> Prepared:
        """Decodes an image. Raises Reject as `Preparation` does."""
        found = decode(data, self.limits)
        small = Picture.fromarray(found.pixels)
        height, width = self.sizes_px[0]
        small.thumbnail((width, height))
        facts = Facts(hashlib.sha256(data).digest(), 0, *found.original, found.notes)
        return Prepared(np.asarray(small), facts)


THUMBNAILS: Preparation = Thumbnails(DecodeLimits(), ((TILE_PX, TILE_PX),))


def thumbnail(data: bytes) -> Prepared | Reject:
    """The image made small, its facts of the whole; or why it cannot be used.

    An image that ends the decoder's process is rejected, and the next one gets a fresh process. So is one during
    which it was killed from outside (`decoder_killed`): a look at some images need not stop for that.
    """
    try:
        (found,) = running_decoders(1).prepare(THUMBNAILS, [data])
    except DecoderLostError as error:
        return Reject("decoder_killed", str(error))
    return found
