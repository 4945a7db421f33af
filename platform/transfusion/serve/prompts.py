"""What a prompt may be, as far as that is seen before it is read."""

from collections.abc import Sequence

from transfusion.serve.errors import ApiError


def check_length(length: int, most: int, param: str, why: str) -> None:
    """Raises ApiError for more characters, or token ids, than are looked at."""
    if length > most:
        raise ApiError(
            400, f"{param}: has a length of {length}: must be at most {most} ({why})",
            param=param, code="context_length_exceeded",
        )  # fmt: skip


def check_unicode(texts: Sequence[str], param: str) -> None:
    """Raises ApiError for what JSON can spell and UTF-8 cannot."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ApiError(
            400, f"{param}: is not valid Unicode (a lone surrogate)", param=param
        ) from error


def check_token_ids(ids: Sequence[int], num_pieces: int, *, param: str) -> None:
    """Raises ApiError for what stands for no text: special tokens are placed by us."""
    if not ids or not all(0 <= one < num_pieces for one in ids):
        raise ApiError(
            400, f"{param}: must be token ids from 0 to {num_pieces - 1}, at least one", param=param
        )
