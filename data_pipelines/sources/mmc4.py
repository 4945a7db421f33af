"""Documents as MMC4 has them: a list of sentences, and images that each belong to one of them.

An image stands before its sentence, as the data set's card says; several of one sentence keep their order.
Sentences are joined by a space.

Source: Zhu et al. 2023, arXiv:2304.06939, and github.com/allenai/mmc4.
"""

from collections import defaultdict
from typing import Any

from data_pipelines.documents import Image, Text
from data_pipelines.sources.cells import BadRow, Named, image_of, text_of
from data_pipelines.sources.drafts import Draft
from data_pipelines.sources.row_files import Row

COLUMNS = ("text_list", "image_info")


def draft(row: Row, *, texts_column: str, images_column: str) -> Draft:
    """Sentences with their images before them.

    Raises:
        BadRow: `not_a_list`; `bad_image_info` for an image that is no object or belongs to no sentence.
    """
    texts, infos = row.values.get(texts_column), row.values.get(images_column)
    for column, value in ((texts_column, texts), (images_column, infos)):
        if not isinstance(value, list):
            raise BadRow("not_a_list", f"{column!r} is a {type(value).__name__}")
    assert isinstance(texts, list)
    assert isinstance(infos, list)
    before: dict[int, list[Image | Named]] = defaultdict(list)
    for number, info in enumerate(infos):
        where = f"{images_column}[{number}]"
        before[_sentence(info, where, len(texts))].append(_image(info, where, row))
    segments: list[Text | Image | Named] = []
    for at, text in enumerate(texts):
        segments += before[at]
        segments.append(Text(text_of(text, column=f"{texts_column}[{at}]")))
    return Draft(segments, between_texts=" ")


def _sentence(info: Any, where: str, num_texts: int) -> int:
    """The sentence that an image belongs to."""
    if not isinstance(info, dict):
        raise BadRow("bad_image_info", f"{where} is a {type(info).__name__}")
    at = info.get("matched_text_index")
    if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < num_texts:
        raise BadRow(
            "bad_image_info",
            f"{where}: matched_text_index is {at!r}"[:100] + f"; there are {num_texts} sentences",
        )
    return at


def _image(info: dict[str, Any], where: str, row: Row) -> Image | Named:
    """The image's bytes where there are any, else its name."""
    inline = info.get("bytes")
    value = info.get("image_name") if inline is None else inline
    if value is None:
        # Of a download that failed, the set keeps the URL: an image that is not there, by whatever name.
        value = info.get("raw_url")
    return image_of(value, column=where, name=f"{row.where} {where}")
