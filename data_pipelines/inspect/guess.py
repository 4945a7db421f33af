"""Which source reads it, with which config, and why: rules in the order in which they are tried."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from posixpath import dirname, normpath, splitext
from types import MappingProxyType
from typing import Any

from data_pipelines.inspect.look import TAR_SUFFIXES, TEXT_SUFFIXES, Look, counted, listed
from data_pipelines.sources.files import path_of
from data_pipelines.sources.image_folder import IMAGE_SUFFIXES, METADATA_NAMES
from data_pipelines.sources.places import open_place
from data_pipelines.sources.row_files import JSONL_SUFFIXES, PARQUET_SUFFIXES
from transfusion.config import suggestion
from transfusion.errors import ArtifactError, SpecError

CAPTION_NAMES = (
    "text", "caption", "TEXT", "captions", "prompt", "description", "alt", "alt_text", "label",
)  # fmt: skip
TEXT_NAMES = ("text", "content", "body", "document", "raw_content", "markdown", "story")
INSTRUCTION_NAMES = ("instruction", "edit_prompt", "edit", "prompt", "edit_instruction", "text")
_SOURCE_WORDS = ("source", "original", "input", "before")
_TARGET_WORDS = ("target", "edited", "output", "after", "result")


@dataclass(frozen=True, slots=True)
class Guess:
    """A source, what its config must say beside the path, and what speaks for it."""

    source: str
    config: Mapping[str, Any]
    why: tuple[str, ...]


def guess(look: Look, *, source: str | None = None) -> Guess:
    """The first source whose rule fits, or the config for the source that is said to be right.

    Raises:
        ArtifactError: No rule fits.
        SpecError: There is no such source.
    """
    if source is not None:
        if source not in _RULES:
            raise SpecError(
                f"--as {source}: is no source of files{suggestion(source, list(_RULES))}"
            )
        found = _RULES[source](look)
        return found or Guess(source, {}, ("you said so; nothing here speaks for it",))
    for rule in _RULES.values():
        found = rule(look)
        if found is not None:
            return found
    endings = listed(
        f"{count:,} {ending or 'without ending'}" for ending, count in look.endings.items()
    )
    columns = f"; columns: {listed(column.name for column in look.columns)}" if look.columns else ""
    raise ArtifactError(
        f"{look.path}: no source is known that reads this: {endings}{columns}; name one with --as, of "
        f"{', '.join(_RULES)}"
    )


def _webdataset(look: Look) -> Guess | None:
    tars = look.having(TAR_SUFFIXES)
    if not tars or not any(ending.endswith(IMAGE_SUFFIXES) for ending in look.members):
        return None
    shown = listed(f"{count} {ending}" for ending, count in look.members.items())
    why = [f"{counted(len(tars), 'tar')}; the first members of {look.columns_of}: {shown}"]
    config: dict[str, Any] = {}
    if ".txt" not in look.members:
        caption = _first(look.of_kind("text"), CAPTION_NAMES)
        if caption is not None:
            config["caption_field"] = caption
            why.append(f"captions: no .txt, but {caption!r} in the .json sidecars")
    return Guess("webdataset", config, tuple(why))


def _image_folder(look: Look) -> Guess | None:
    images = look.having(IMAGE_SUFFIXES)
    metadata = look.having(METADATA_NAMES)
    if not images or (look.columns and not metadata):
        return None
    why = [counted(len(images), "image file")]
    if metadata:
        why.append(f"{listed(metadata, 3)} beside them, as imagefolder has it")
        caption = _first(look.of_kind("text"), CAPTION_NAMES)
        if caption is None:
            why.append(
                f"no column of it looks like a caption: {listed(c.name for c in look.columns)}"
            )
            return Guess("image_folder", {"without_caption": "image_only"}, tuple(why))
        why.append(f"captions in its column {caption!r}")
        config = {} if caption == "text" else {"caption_column": caption}
        return Guess("image_folder", config, tuple(why))
    stems = {splitext(key)[0] for key in images}
    beside = [key for key in look.having((".txt",)) if splitext(key)[0] in stems]
    if beside:
        why.append(f"{len(beside):,} of them with a .txt file of the same name")
        return Guess("image_folder", {}, tuple(why))
    why.append("nothing beside them that could be a caption")
    return Guess("image_folder", {"without_caption": "image_only"}, tuple(why))


def _interleaved(look: Look) -> Guess | None:
    infos = look.of_kind("image_infos")
    texts = look.of_kind("texts")
    names = {column.name for column in look.columns}
    if infos or {"text_list", "image_info"} <= names:
        images = infos[0] if infos else "image_info"
        text = _first(texts, ("text_list",)) or "text_list"
        layout = "mmc4"
        why = [f"{images!r} lists images with the sentence each belongs to, as MMC4 has it"]
        own = ("text_list", "image_info")
    else:
        pair = _alternating(look)
        if pair is None:
            return None
        text, images = pair
        layout = "obelics"
        why = [
            f"{text!r} and {images!r} are lists of one length that take turns, as OBELICS has it"
        ]
        own = ("texts", "images")
    config: dict[str, Any] = {"layout": layout}
    if text != own[0]:
        config["texts_column"] = text
    if images != own[1]:
        config["images_column"] = images
    return Guess("interleaved", *_with_folder(look, config, _named_in(look, images), why))


def _alternating(look: Look) -> tuple[str, str] | None:
    """Two columns of lists of which exactly one is set at most places: the texts and the images."""
    lists = [column.name for column in look.columns if column.kind in ("texts", "images", "other")]
    for text in _preferring(lists, "texts"):
        for images in _preferring(lists, "images"):
            rows = [(row.get(text), row.get(images)) for row in look.rows]
            even = [
                (left, right)
                for left, right in rows
                if isinstance(left, list) and isinstance(right, list) and len(left) == len(right)
            ]
            places = [pair for left, right in even for pair in zip(left, right, strict=True)]
            turns = sum((left is None) != (right is None) for left, right in places)
            words = all(isinstance(left, str) for left, _ in places if left is not None)
            shown = any(right is not None for _, right in places)
            if text != images and places and words and shown and turns > 0.8 * len(places):
                return text, images
    return None


def _preferring(names: Sequence[str], first: str) -> list[str]:
    return sorted(names, key=lambda name: name != first)


def _edits(look: Look) -> Guess | None:
    images = look.of_kind("image", "image_name")
    source = _with_word(images, _SOURCE_WORDS)
    target = _with_word(images, _TARGET_WORDS)
    texts = look.of_kind("text")
    instruction = _first(texts, INSTRUCTION_NAMES)
    if source is None or target is None or instruction is None or source == target:
        return None
    columns = {
        "source_column": (source, "source_image"),
        "instruction_column": (instruction, "instruction"),
        "target_column": (target, "target_image"),
    }
    config: dict[str, Any] = {key: found for key, (found, own) in columns.items() if found != own}
    why = [f"two columns of images, {source!r} and {target!r}, and the text {instruction!r}"]
    named = [str(row[source]) for row in look.rows if isinstance(row.get(source), str)]
    return Guess("edits", *_with_folder(look, config, named, why))


def _parquet_images(look: Look) -> Guess | None:
    images = look.of_kind("image")
    if not images or not look.columns_of.endswith(PARQUET_SUFFIXES):
        return None
    image = _first(images, ("image", "jpg", "png", "img", "picture")) or images[0]
    caption = _first(look.of_kind("text"), CAPTION_NAMES)
    why = [
        f"{counted(len(look.having(PARQUET_SUFFIXES)), 'Parquet file')}; {image!r} holds image bytes"
    ]
    config: dict[str, Any] = {} if image == "image" else {"image_column": image}
    if caption is None:
        why.append("no column that looks like a caption")
        config["caption_column"] = None
    else:
        why.append(f"captions in {caption!r}")
        config |= {} if caption == "text" else {"caption_column": caption}
    return Guess("parquet_images", config, tuple(why))


def _text(look: Look) -> Guess | None:
    plain = look.having(TEXT_SUFFIXES)
    if look.columns:
        texts = look.of_kind("text")
        column = _first(_longest_first(look, texts), TEXT_NAMES)
        tables = look.having((*PARQUET_SUFFIXES, *JSONL_SUFFIXES))
        if column is None or not tables:
            return None
        why = [f"{counted(len(tables), 'file')} of rows with text in {column!r}"]
        urls = [name for name in look.of_kind("image_name") if "url" in name.lower()]
        if urls:
            why.append(
                f"{urls[0]!r} holds URLs of images, which nothing here fetches: img2dataset does, and its "
                "tars are read as webdataset"
            )
        return Guess("text", {} if column == "text" else {"text_column": column}, tuple(why))
    if not plain:
        return None
    return Guess("text", {}, (f"{counted(len(plain), 'plain text file')}; a document a line",))


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first wanted name that is there; else the only one, or the first of several."""
    return next((name for name in wanted if name in names), names[0] if names else None)


def _longest_first(look: Look, names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: -sum(len(str(row.get(name) or "")) for row in look.rows))


def _with_word(names: Sequence[str], words: Sequence[str]) -> str | None:
    return next((name for word in words for name in names if word in name.lower()), None)


def _named_in(look: Look, column: str) -> list[str]:
    """The names and URLs of images that the column's lists hold."""
    found: list[str] = []
    for row in look.rows:
        items = row.get(column)
        for item in items if isinstance(items, list) else ():
            value = item.get("image_name") if isinstance(item, Mapping) else item
            if isinstance(value, str):
                found.append(value)
    return found


def _with_folder(
    look: Look, config: dict[str, Any], names: Sequence[str], why: list[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config with the folder in which the named image files lie, where rows name any."""
    if not names:
        return config, tuple(why)
    beside = dirname(path_of(look.columns_of))
    home = f"{look.place.url}/{beside}" if beside else look.place.url
    wanted = {normpath(name) for name in names}
    hashes = {hashlib.sha256(name.encode("utf-8", "replace")).hexdigest() for name in names}
    for folder in (home, f"{home}/images", look.place.url):
        try:
            keys = open_place(folder, where="inspect").keys()
        except ArtifactError:
            continue  # there is no such folder
        if not wanted.isdisjoint(keys):
            why.append(f"rows name image files that lie in {folder}")
            return {**config, "images": folder}, tuple(why)
        if not hashes.isdisjoint(splitext(key.rpartition("/")[2])[0] for key in keys):
            why.append(f"rows hold URLs whose sha256 names files in {folder}")
            return {**config, "images": folder, "image_files": "sha256_of_url"}, tuple(why)
    why.append(
        f"rows name image files, such as {names[0][:80]}, that lie neither beside them nor in 'images'; "
        "say where with --set images=FOLDER"
    )
    return {**config, "images": home}, tuple(why)


_RULES: Mapping[str, Callable[[Look], Guess | None]] = MappingProxyType(
    {
        "webdataset": _webdataset,
        "interleaved": _interleaved,
        "edits": _edits,
        "parquet_images": _parquet_images,
        "image_folder": _image_folder,
        "text": _text,
    }
)
"""By source, in the order in which they are tried: what says more of the data comes first."""
