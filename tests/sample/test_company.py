"""Requests that join, leave and are cancelled between steps: none of it is seen in what the others get."""

import random
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import LATENT, NUM_PIECES, package_config, tiny_model
from transfusion.sample.batch import StepBatch, bucket_of
from transfusion.sample.engine import Engine, generate
from transfusion.sample.events import Begun, Ended, ImageDrawn, ImagePreview
from transfusion.sample.pages import PAGE_SIZE, PagedSequence, Pages
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, TextPart, length_of
from transfusion.sample.rows import Request

CONFIG = package_config()
SPECIAL = CONFIG.special
CLOSE = {"atol": 1e-3, "rtol": 1e-3}


@lru_cache(maxsize=1)
def model():
    built = tiny_model()
    with torch.no_grad():
        built.head.weight[SPECIAL.boi] *= 3  # drawn often, not always
    return built


def spelled(ids) -> str:
    """A letter a token."""
    return "".join(chr(ord("A") + one) for one in ids)


def any_request(seed: int) -> Request:
    """Text, an image, both as the model likes, or an edit; each with its own of whatever there is to set."""
    rng = random.Random(seed)
    ids = tuple(rng.randrange(NUM_PIECES) for _ in range(rng.randint(1, 20)))
    latent = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed % 5))
    kind = rng.choice(["text", "image", "both", "edit", "described"])
    prompt = {
        "edit": (ImagePart(latent), TextPart(ids)),
        "described": (TextPart(ids[:3]), ImagePart(latent)),
    }.get(kind, (TextPart(ids),))
    params = {
        "solver": rng.choice(["dpm++", "unipc"]),
        "num_inference_steps": rng.choice([10, 12]),
        "guidance_interval": rng.choice([(0.0, 1.0), (0.2, 0.8)]),
        "preview_every": rng.choice([0, 4]),
        "stop": rng.choice([(), ("c",), ("dE", "k")]),
        "logprobs": rng.choice([None, 2]),
        "top_k": rng.choice([0, 5]),
        "guidance_scale": rng.choice([1.0, 3.0]),
        "temperature": rng.choice([0.0, 0.7, 1.0]),
        "top_p": rng.choice([1.0, 0.9]),
        "max_tokens": rng.randint(0, 12),
        "max_images": 2,
        "seed": seed,
        "modalities": {
            "text": ("text",), "described": ("text",), "both": ("text", "image"),
        }.get(kind, ("image",)),
    }  # fmt: skip
    if kind == "edit":
        params["image_guidance_scale"] = rng.choice([None, 1.5])
    negative = (1, 2) if kind == "image" and rng.random() < 0.3 else ()
    return Request(prompt, SamplingParams(**params), negative)


@lru_cache(maxsize=256)
def alone(seed: int):
    (result,) = generate(model(), CONFIG, [any_request(seed)], decode=spelled)
    return result


def same(one, other) -> None:
    assert one.finish_reason == other.finish_reason
    assert [score.token for score in one.scores] == [score.token for score in other.scores]
    for a, b in zip(one.scores, other.scores, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert len(one.parts) == len(other.parts)
    for a, b in zip(one.parts, other.parts, strict=True):
        if isinstance(a, TextPart):
            assert a == b
        else:
            torch.testing.assert_close(a.latent, b.latent, **CLOSE)


def test_two_hundred_requests_get_alone_what_they_get_in_random_company(
    unchecked_shapes: None,
) -> None:
    engine = Engine(model(), CONFIG, max_rows=12, decode=spelled)
    order = list(range(200))
    random.Random(0).shuffle(order)
    jobs = {}
    rng = random.Random(1)
    while order or engine.num_active or engine.num_waiting:
        for _ in range(min(len(order), rng.choice([0, 0, 1, 3]))):
            seed = order.pop()
            (jobs[seed],) = engine.submit([any_request(seed)])
        engine.step()
    for seed, job in jobs.items():
        assert job.result is not None
        same(job.result, alone(seed))
    assert engine.pages.num_free == engine.pages.num_pages


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.integers(0, 39)),
            st.tuples(st.just("cancel"), st.integers(0, 5)),
            st.tuples(st.just("step"), st.integers(1, 4)),
        ),
        max_size=25,
    ),
    max_rows=st.integers(1, 5),
)
def test_whoever_comes_goes_or_is_cancelled_the_rest_is_not_moved(events, max_rows: int) -> None:
    engine = Engine(model(), CONFIG, max_rows=max_rows, decode=spelled)
    jobs = []
    for what, number in events:
        if what == "join":
            jobs.extend((number, job) for job in engine.submit([any_request(number)]))
        elif what == "cancel" and number < len(jobs):
            engine.cancel(jobs[number][1])
        elif what == "step":
            for _ in range(number):
                engine.step()
    while engine.step():
        pass
    for seed, job in jobs:
        if job.result is not None:
            same(job.result, alone(seed))
        else:
            assert job.is_cancelled
    assert engine.pages.num_free == engine.pages.num_pages
    assert engine.num_active == engine.num_waiting == 0


def test_a_cancelled_request_is_gone_before_the_next_step_and_hears_nothing_more() -> None:
    told = []
    engine = Engine(model(), CONFIG, max_rows=2)
    params = SamplingParams(solver="ddim", num_inference_steps=50, modalities=("image",))
    (job,) = engine.submit(
        [Request((TextPart((1,)),), params)], lambda _, event: told.append(event)
    )
    for _ in range(5):
        engine.step()
    used = engine.pages.num_pages - engine.pages.num_free
    assert used > 0
    engine.cancel(job)
    assert not engine.step()
    assert engine.pages.num_free == engine.pages.num_pages
    assert told == [Begun()]


def test_no_position_passes_the_transformer_that_need_not() -> None:
    """Prompt once, BOI a branch, every step both branches, the image once more clean, a token a token."""
    patches = CONFIG.num_patches
    steps, ids = 10, (1, 2, 3)
    quick = {"solver": "dpm++", "num_inference_steps": steps}
    for scale, branches in ((3.0, 2), (1.0, 1)):
        params = SamplingParams(**quick, guidance_scale=scale, modalities=("image",))
        (result,) = generate(model(), CONFIG, [Request((TextPart(ids),), params)])
        assert result.num_read == (1 + len(ids)) + branches + steps * patches * branches
    params = SamplingParams(
        **quick, temperature=0.0, modalities=("text",), max_tokens=9, ignore_eos=True
    )
    (result,) = generate(model(), CONFIG, [Request((TextPart(ids),), params)])
    assert result.num_read == 1 + len(ids) + 9 - 1
    found = 0
    for seed in range(40):
        params = SamplingParams(**quick, seed=seed, guidance_scale=3.0, max_tokens=8, max_images=1)
        (result,) = generate(model(), CONFIG, [Request((TextPart(ids),), params)])
        kinds = [isinstance(part, ImagePart) for part in result.parts]
        if kinds != [False, True, False] or result.finish_reason != "length":
            continue
        found += 1
        image = 2 + steps * patches * 2 + patches + 1
        # The last token is written and not read.
        assert result.num_read == 1 + len(ids) + result.num_tokens - 1 + image
    assert found


def test_samples_of_one_prompt_read_it_once_and_are_those_that_each_gets_alone() -> None:
    prompt = (TextPart(tuple(range(1, 30))),)
    for modalities in (("image",), ("text",)):
        many = [
            Request(prompt, SamplingParams(
                solver="dpm++", num_inference_steps=10, seed=seed, modalities=modalities, max_tokens=5,
            ))
            for seed in range(4)
        ]  # fmt: skip
        engine = Engine(model(), CONFIG, max_rows=3)
        jobs = engine.submit(many)
        while engine.step():
            pass
        apart = [generate(model(), CONFIG, [one])[0] for one in many]
        for job, one in zip(jobs, apart, strict=True):
            same(job.result, one)
        saved = sum(one.num_read for one in apart) - sum(job.result.num_read for job in jobs)
        assert saved == 3 * (1 + length_of(prompt, CONFIG))
        assert engine.pages.num_free == engine.pages.num_pages


def test_a_step_that_fails_as_samples_of_one_prompt_join_gives_all_pages_back(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    prompt = (TextPart(tuple(range(1, 30))),)
    engine = Engine(model(), CONFIG, max_rows=3)
    params = [SamplingParams(seed=seed, modalities=("text",), max_tokens=5) for seed in range(2)]
    engine.submit([Request(prompt, one) for one in params])
    monkeypatch.setattr(StepBatch, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    assert engine.pages.num_free < engine.pages.num_pages
    engine.abandon()
    assert engine.pages.num_free == engine.pages.num_pages


def test_pages_are_taken_side_by_side_counted_and_given_back() -> None:
    pages = Pages(8)
    first = PagedSequence(pages, 3 * PAGE_SIZE)
    assert first.is_run
    first.length = 2 * PAGE_SIZE + 3
    second = PagedSequence(pages, 4 * PAGE_SIZE, beginning=first)
    assert second.length == 2 * PAGE_SIZE
    assert second.slots[: second.length].tolist() == first.slots[: second.length].tolist()
    assert not set(second.slots[second.length :].tolist()) & set(first.slots.tolist())
    first.close()
    assert pages.num_free == 4  # the two that are shared stay
    second.close()
    second.close()
    assert pages.num_free == 8


def test_an_image_is_told_of_with_previews_that_come_to_it() -> None:
    told = []
    engine = Engine(model(), CONFIG)
    params = SamplingParams(
        solver="ddim", num_inference_steps=50, modalities=("image",), preview_every=10
    )
    engine.submit([Request((TextPart((1, 2)),), params)], lambda _, event: told.append(event))
    while engine.step():
        pass
    assert told.pop(0) == Begun()
    kinds = [type(event) for event in told]
    assert kinds == [*[ImagePreview] * 5, ImageDrawn, Ended]
    assert [event.step for event in told[:5]] == [10, 20, 30, 40, 50]
    final = told[5].part.latent
    off = [(event.latent.clamp(-5, 5) - final).abs().mean() for event in told[:5]]
    assert off[4] < off[0]


def test_guidance_outside_its_interval_is_none_at_half_the_cost() -> None:
    def drawn(**more):
        params = SamplingParams(
            solver="ddim", num_inference_steps=50, modalities=("image",), seed=3, **more
        )
        (result,) = generate(model(), CONFIG, [Request((TextPart((1, 2)),), params)])
        return result

    plain = drawn(guidance_scale=1.0)
    never = drawn(guidance_scale=3.0, guidance_interval=(1.0, 1.0))
    torch.testing.assert_close(never.images[0], plain.images[0], **CLOSE)
    always, half = (drawn(guidance_scale=3.0, guidance_interval=(0.0, top)) for top in (1.0, 0.5))
    assert plain.num_read < half.num_read < always.num_read
    assert not torch.allclose(half.images[0], always.images[0], **CLOSE)


def test_an_empty_prompt_as_the_negative_one_leaves_no_prompt_to_follow() -> None:
    """With the prompt itself as the negative one both branches are one, and any scale is none."""

    def drawn(scale: float, negative=()):
        params = SamplingParams(
            solver="dpm++", num_inference_steps=10, modalities=("image",), guidance_scale=scale
        )
        (result,) = generate(model(), CONFIG, [Request((TextPart((4, 5, 6)),), params, negative)])
        return result.images[0]

    torch.testing.assert_close(drawn(7.0, (4, 5, 6)), drawn(1.0), **CLOSE)
    assert not torch.allclose(drawn(7.0, (9, 9)), drawn(7.0), **CLOSE)


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    engine = Engine(model(), CONFIG, num_pages=3)
    with pytest.raises(ValueError, match=r"pages of 16 positions: must be at most 3"):
        engine.submit(
            [any_request(1), Request((TextPart((1,) * 40),), SamplingParams(max_tokens=20))]
        )
    assert engine.num_waiting == 0


def test_padding_to_buckets_changes_nothing_and_makes_few_shapes() -> None:
    shapes = {}
    for in_buckets in (False, True):
        engine = Engine(model(), CONFIG, max_rows=8, decode=spelled, in_buckets=in_buckets)
        seen = set()
        handle = (
            model()
            .blocks[0]
            .register_forward_pre_hook(lambda _, given, seen=seen: seen.add(given[0].shape[1]))
        )
        jobs = [engine.submit([any_request(seed)])[0] for seed in range(24)]
        while engine.step():
            pass
        handle.remove()
        for seed, job in enumerate(jobs):
            same(job.result, alone(seed))
        shapes[in_buckets] = seen
    assert shapes[True] == {bucket_of(rows) for rows in shapes[False]}
    assert len(shapes[True]) < len(shapes[False])


@given(st.integers(1, 100_000))
def test_a_bucket_is_at_most_an_eighth_larger(rows: int) -> None:
    bucket = bucket_of(rows)
    assert rows <= bucket <= rows + rows / 8
    assert bucket_of(bucket) == bucket
