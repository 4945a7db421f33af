"""The engine against a scripted model: modes, caps and stops; no weights involved."""

import torch

from tests.tiny import LATENT, NUM_PIECES, QUICK, model_config, package_config
from transfusion.model.images import EncodedImages
from transfusion.model.transformer import TransfusionModel
from transfusion.sample.engine import generate
from transfusion.sample.events import Result
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(NUM_PIECES)


class Scripted(TransfusionModel):
    """The next token follows from the last one alone; images come out at once."""

    def __init__(self, after: dict[int, int]) -> None:
        super().__init__(model_config(), vocab_size=SPECIAL.vocab_size, latent_channels=LATENT[0])
        self.after = after
        self.clean_reads = 0

    def embed_tokens(self, token_ids):
        hidden = torch.zeros(*token_ids.shape, self.config.dim)
        hidden[..., 0] = token_ids
        return hidden

    def encode_images(self, noisy, timesteps):
        self.clean_reads += int((timesteps == 0).sum())
        patches = torch.full((len(noisy), 4, self.config.dim), -1.0)
        return EncodedImages(patches=patches, skips=(), grid=(2, 2))

    def transform(self, hidden, *, position_ids, attention, images=None):
        return hidden

    def decode_images(self, hidden, timesteps, encoded):
        return torch.zeros(len(hidden), *LATENT)

    def logits(self, hidden):
        scores = torch.zeros(len(hidden), SPECIAL.vocab_size)
        for row, last in enumerate(hidden[:, 0].round().long().tolist()):
            scores[row, self.after.get(last, 0)] = 10.0
            scores[row, SPECIAL.eos] += 5.0  # second choice, where the first is forbidden
        return scores


def run(after: dict[int, int], *prompts: list[int], **params) -> list[Result]:
    chosen = SamplingParams(**(QUICK | {"temperature": 0.0} | params))
    requests = [Request((TextPart(tuple(prompt)),), chosen) for prompt in prompts]
    return generate(Scripted(after), package_config(), requests)


def shape_of(result: Result) -> list:
    return [list(p.ids) if isinstance(p, TextPart) else "image" for p in result.parts]


def test_text_image_text_switches_modes_at_boi_and_after_eoi() -> None:
    after = {1: 2, 2: SPECIAL.boi, SPECIAL.eoi: 7, 7: SPECIAL.eos}
    (result,) = run(after, [1])
    assert shape_of(result) == [[2], "image", [7]]
    assert result.finish_reason == "stop"
    assert result.num_tokens == 2


def test_later_text_reads_the_clean_image_at_time_zero() -> None:
    after = {1: SPECIAL.boi, SPECIAL.eoi: SPECIAL.eos}
    model = Scripted(after)
    params = SamplingParams(**QUICK, temperature=0.0)
    generate(model, package_config(), [Request((TextPart((1,)),), params)] * 3)
    assert model.clean_reads == 3


def test_rows_in_different_modes_keep_their_own_course() -> None:
    after = {
        1: SPECIAL.boi,
        SPECIAL.eoi: 9,
        9: SPECIAL.eos,
        2: 3,
        3: 4,
        4: SPECIAL.eos,
        5: SPECIAL.eos,
    }
    results = run(after, [1], [2], [2, 2, 2, 5])
    assert [shape_of(r) for r in results] == [["image", [9]], [[3, 4]], []]
    assert [r.prompt_length for r in results] == [2, 2, 5]


def test_endless_images_stop_at_the_cap() -> None:
    (result,) = run({1: SPECIAL.boi, SPECIAL.eoi: SPECIAL.boi}, [1], max_images=3)
    assert shape_of(result) == ["image"] * 3
    assert result.finish_reason == "stop"


def test_endless_text_stops_at_the_cap() -> None:
    (result,) = run({1: 1}, [1], max_tokens=5)
    assert shape_of(result) == [[1] * 5]
    assert result.finish_reason == "length"


def test_no_tokens_wanted_none_written() -> None:
    (result,) = run({1: 1}, [1], max_tokens=0)
    assert result.parts == ()
    assert result.finish_reason == "length"


def test_the_context_is_never_exceeded() -> None:
    (text,) = run({1: 1}, [1] * 50, max_tokens=1000)
    assert text.prompt_length + text.num_tokens == package_config().sequence_length
    (images,) = run({1: SPECIAL.boi, SPECIAL.eoi: SPECIAL.boi}, [1] * 50, max_images=1000)
    assert shape_of(images) == ["image"] * 2  # 51 positions, then 6 an image, of 64
    assert images.finish_reason == "stop"


def test_forbidden_modalities_are_never_entered() -> None:
    (text,) = run({1: SPECIAL.boi}, [1], modalities=("text",))
    assert shape_of(text) == []
    (image,) = run({1: 1, SPECIAL.eoi: 1}, [1], modalities=("image",))
    assert shape_of(image) == ["image"]


def test_control_tokens_are_never_sampled() -> None:
    for token in (SPECIAL.pad, SPECIAL.bos, SPECIAL.eoi):
        (result,) = run({1: token}, [1])
        assert shape_of(result) == []


def test_an_image_in_the_prompt_is_read_and_not_answered_with_itself() -> None:
    model = Scripted({SPECIAL.eoi: 8, 8: SPECIAL.eos})
    request = Request((ImagePart(torch.zeros(LATENT)),), SamplingParams(**QUICK, temperature=0.0))
    (result,) = generate(model, package_config(), [request])
    assert shape_of(result) == [[8]]
    assert model.clean_reads == 1
    assert result.prompt_length == 7  # BOS BOI 4 patches EOI
