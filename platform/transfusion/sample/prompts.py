"""A file of prompts, a line each, to numbered files: what is there already is not made again."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from transfusion.errors import SpecError
from transfusion.sample.infill import infill, with_places
from transfusion.sample.params import SamplingParams
from transfusion.sample.pictures import write_png
from transfusion.sample.sampler import Sampler, Segment

Answer = Callable[[Sampler, Sequence[str], Sequence[SamplingParams]], list[tuple[Segment, ...]]]
"""What is written for each of some prompts."""

AT_ONCE = 32
"""Prompts that are answered together."""


def continued(
    sampler: Sampler, prompts: Sequence[str], params: Sequence[SamplingParams]
) -> list[tuple[Segment, ...]]:
    """What comes behind each prompt."""
    requests = [sampler.request(*one) for one in zip(prompts, params, strict=True)]
    return [sample.segments for sample in sampler.sample(requests)]


def infilled(
    sampler: Sampler, prompts: Sequence[str], params: Sequence[SamplingParams]
) -> list[tuple[Segment, ...]]:
    """Each prompt itself, with images where it marks places for them."""
    return infill(sampler, [with_places(prompt) for prompt in prompts], params)


def sample_prompts(
    sampler: Sampler,
    prompts: Path,
    out_dir: Path,
    params: SamplingParams,
    *,
    answer: Answer = continued,
) -> Iterator[str]:
    """Answers every line; the files of line 7 (from 0) are `00007-0` and on. The seed is counted up by the line.

    A line is done when its first file is there, which comes last; otherwise all its files are made again.

    Yields:
        A line for each batch, when its files are written.

    Raises:
        SpecError: There is no such file, it is not UTF-8, or a prompt does not fit; all such lines are named.
    """
    try:
        lines = prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{prompts}: cannot be read as lines of UTF-8: {error}") from error
    there = {place.name.partition("-")[0] for place in out_dir.glob("[0-9]*-0.*")}
    wanted = [
        (number, line)
        for number, line in enumerate(lines)
        if line.strip() and f"{number:05}" not in there
    ]
    out_dir.mkdir(parents=True, exist_ok=True)
    for left in out_dir.glob(".[0-9]*-[0-9]*.*"):
        left.unlink()
    done = 0
    for start in range(0, len(wanted), AT_ONCE):
        batch = wanted[start : start + AT_ONCE]
        seeded = [params.model_copy(update={"seed": params.seed + number}) for number, _ in batch]
        try:
            answers = answer(sampler, [line for _, line in batch], seeded)
        except ValueError as error:
            first, last = batch[0][0] + 1, batch[-1][0] + 1
            raise SpecError(f"{prompts}: lines {first} to {last}: {error}") from error
        for (number, _), segments in zip(batch, answers, strict=True):
            _write(out_dir, number, segments or ("",))
        done += len(batch)
        yield f"{done}/{len(wanted)} prompts"


def _write(folder: Path, number: int, segments: Sequence[Segment]) -> None:
    """The first file, which says that the line is done, takes its name last."""
    for left in folder.glob(f"{number:05}-[0-9]*.*"):
        # Of an interrupted run, which may have written more.
        left.unlink()
    written = []
    for index, segment in enumerate(segments):
        suffix = "txt" if isinstance(segment, str) else "png"
        place = folder / f".{number:05}-{index}.{suffix}"
        if isinstance(segment, str):
            place.write_text(segment, encoding="utf-8")
        else:
            write_png(place, segment)
        written.append(place)
    for place in reversed(written):
        place.rename(place.with_name(place.name.removeprefix(".")))
