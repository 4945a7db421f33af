"""Documents as OBELICS has them: two lists of one length, `texts` and `images`, one of which is set at each place.

Source: Laurencon et al. 2023, arXiv:2306.16527, and the data set's card.
"""

from typing import Any

from data_pipelines.documents import Image, Text
from data_pipelines.sources.cells import BadRow, Named, image_of, text_of
from data_pipelines.sources.drafts import Draft
from data_pipelines.sources.row_files import Row

COLUMNS = ("texts", "images")


def draft(row: Row, *, texts_column: str, images_column: str) -> Draft:
    """Texts and images as they alternate; texts that follow each other are paragraphs.

    Raises:
        BadRow: `not_a_list`, `uneven_lists`, or `both_or_neither` where a place has not exactly one of the two.
    """
    texts = _list(row, texts_column)
    images = _list(row, images_column)
    if len(texts) != len(images):
        raise BadRow(
            "uneven_lists",
            f"{len(texts)} in {texts_column!r} and {len(images)} in {images_column!r}",
        )
    segments: list[Text | Image | Named] = []
    for at, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            which = "neither" if text is None else "both"
            raise BadRow("both_or_neither", f"{which} of text and image at place {at}")
        if text is not None:
            segments.append(Text(text_of(text, column=f"{texts_column}[{at}]")))
        else:
            name = f"{row.where} image {at}"
            segments.append(image_of(image, column=f"{images_column}[{at}]", name=name))
    return Draft(segments, between_texts="\n\n")


def _list(row: Row, column: str) -> list[Any]:
    value = row.values.get(column)
    if not isinstance(value, list):
        raise BadRow("not_a_list", f"{column!r} is a {type(value).__name__}")
    return value
