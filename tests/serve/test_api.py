"""What the endpoints say, part by part and as a stream, against the sampler asked directly."""

import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from tests.tiny import hidden_behind, tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.reading import TextPart
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.http import make_app
from transfusion.serve.loop import QueueFullError
from transfusion.serve.service import Service

IMAGES, EDITS = "/v1/images/generations", "/v1/images/edits"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    quick = SamplingDefaults(solver="dpm++", num_inference_steps=10)
    sampler = Sampler(load_package(tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick)))
    special = sampler.package.config.special
    with torch.no_grad():
        # Often an image, seldom the end.
        sampler.package.model.head.weight[special.boi] *= 4
        sampler.package.model.head.weight[special.eos] = 0
    return sampler


@pytest.fixture(scope="module")
def client(sampler: Sampler) -> Iterator[TestClient]:
    with TestClient(make_app(Service(sampler, EndpointConfig()))) as client:
        yield client


def picture(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.rpartition(",")[2]))))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def events(client: TestClient, path: str, body: dict) -> list[dict]:
    with client.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    if path in (COMPLETIONS, CHAT):
        assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def user(*parts) -> dict:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(png(part)).decode()},
        }
        for part in parts
    ]
    return {"role": "user", "content": content}


def test_streamed_text_is_the_text_and_ends_with_the_usage(client: TestClient) -> None:
    body = {"prompt": "a red", "max_tokens": 12, "temperature": 0.8, "seed": 4, "n": 2}
    whole = client.post(COMPLETIONS, json=body).json()
    chunks = events(client, COMPLETIONS, body | {"stream_options": {"include_usage": True}})
    assert chunks.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    assert len(chunks) > 4


def test_a_server_that_is_full_says_so_before_it_echoes(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(sampler, EndpointConfig())

    @asynccontextmanager
    async def full(_: object) -> AsyncIterator[None]:
        raise QueueFullError
        yield

    monkeypatch.setattr(service.loop, "ask", full)
    body = {"prompt": "a red", "stream": True, "echo": True}
    answer = TestClient(make_app(service)).post(COMPLETIONS, json=body)
    assert answer.status_code == 429, answer.text
    service.close()


def test_a_streamed_echo_stands_before_each_sample(client: TestClient) -> None:
    body = {"prompt": ["a red", "blue"], "n": 2, "echo": True, "temperature": 0}
    for max_tokens in (0, 5):
        asked = body | {"max_tokens": max_tokens}
        whole = client.post(COMPLETIONS, json=asked).json()
        chunks = [chunk["choices"][0] for chunk in events(client, COMPLETIONS, asked)]
        for choice in whole["choices"]:
            mine = [one["text"] for one in chunks if one["index"] == choice["index"]]
            assert "".join(mine) == choice["text"]


@pytest.mark.parametrize(
    "more", [{}, {"echo": True}, {"stop": ["e"]}, {"max_tokens": 0, "echo": True}]
)
def test_streamed_logprobs_are_those_of_the_whole_answer_piece_by_piece(
    client: TestClient, more: dict
) -> None:
    body = {"prompt": ["a red", "blue"], "max_tokens": 12, "seed": 4, "n": 2, "logprobs": 2}
    whole = client.post(COMPLETIONS, json=body | more).json()
    chunks = [chunk["choices"][0] for chunk in events(client, COMPLETIONS, body | more)]
    for choice in whole["choices"]:
        mine = [one["logprobs"] for one in chunks if one["index"] == choice["index"]]
        told = [one for one in mine if one is not None]
        assert len(told) > 1 or more.get("max_tokens") == 0 or more.get("stop")
        for name in ("tokens", "text_offset"):
            assert [v for one in told for v in one[name]] == choice["logprobs"][name]
        for name in ("token_logprobs", "top_logprobs"):
            values = [v for one in told for v in one[name]]
            for one, other in zip(values, choice["logprobs"][name], strict=True):
                assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (IMAGES, {"prompt": "a", "partial_images": 2}, "partial_images"),
        (IMAGES, {"prompt": "a", "partial_images": 2, "stream": False}, "partial_images"),
        (CHAT, {"messages": [user("a")], "previews": 2}, "previews"),
    ],
)
def test_what_comes_in_a_stream_only_is_refused_without_one(client, path, body, param) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert "stream" in answer.json()["error"]["message"]
    assert client.post(path, json=body | {param: 0}).status_code == 200


def test_a_fault_before_the_first_word_is_an_error_and_no_stream(client: TestClient) -> None:
    answer = client.post(COMPLETIONS, json={"prompt": " ", "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


@torch.no_grad()
def test_echoed_logprobs_are_those_of_the_model_token_by_token(
    client: TestClient, sampler: Sampler
) -> None:
    """As lm-evaluation-harness asks: the whole text as the prompt, echoed, one token more."""
    package, model = sampler.package, sampler.package.model
    text = "a red circle"
    ids = package.tokenizer.encode(text).tolist()
    body = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    of_text = client.post(COMPLETIONS, json=body | {"prompt": text}).json()["choices"][0]
    of_ids = client.post(COMPLETIONS, json=body | {"prompt": [ids]}).json()["choices"][0]
    assert of_text == of_ids
    scores = of_text["logprobs"]
    assert len(scores["token_logprobs"]) == len(ids) + 1
    for index, token in enumerate(ids):
        before = TextPart((package.config.special.bos, *ids[:index]))
        hidden = hidden_behind(model, package.config, [before])
        expected = model.logits(hidden[None]).log_softmax(-1)[0]
        assert scores["token_logprobs"][index] == pytest.approx(expected[token].item(), abs=1e-4)
        best = max(scores["top_logprobs"][index].values())
        assert best == pytest.approx(expected.max().item(), abs=1e-4)
        is_greedy = int(expected.argmax()) == token
        assert (scores["token_logprobs"][index] == pytest.approx(best, abs=1e-6)) == is_greedy
    assert of_text["text"].startswith(text)


def test_a_chat_is_answered_with_text_and_pictures_in_their_order(client: TestClient) -> None:
    body = {
        "messages": [user("a story")], "modalities": ["text", "image"], "max_images": 2,
        "max_tokens": 12, "temperature": 1.0,
    }  # fmt: skip
    kinds = set()
    for seed in range(12):
        answer = client.post(CHAT, json=body | {"seed": seed}).json()
        message = answer["choices"][0]["message"]
        if isinstance(message["content"], str):
            continue
        kinds.add(tuple(part["type"] for part in message["content"]))
        drawn = [part for part in message["content"] if part["type"] == "image_url"]
        assert message["images"] == drawn
        assert picture(drawn[0]["image_url"]["url"]).shape == (16, 16, 3)
        chunks = events(client, CHAT, body | {"seed": seed, "previews": 2})
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        text = "".join(delta.get("content", "") for delta in deltas)
        told = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        assert text == told
        pictures = [one["image_url"]["url"] for delta in deltas for one in delta.get("images", ())]
        for streamed, whole in zip(pictures, drawn, strict=True):
            off = picture(streamed).astype(int) - picture(whole["image_url"]["url"]).astype(int)
            assert np.abs(off).max() <= 1
        assert sum("preview" in delta for delta in deltas) == 2 * len(drawn)
    assert any(len(kind) > 1 for kind in kinds)


def test_a_picture_in_a_message_is_what_the_answer_is_about(
    client: TestClient, sampler: Sampler
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    body = {"messages": [user("look:", pixels, "what is it?")], "temperature": 0, "max_tokens": 8}
    answer = client.post(CHAT, json=body).json()
    from transfusion.sample.params import params_with

    params = params_with(
        sampler.package.config.sampling, temperature=0.0, max_tokens=8, modalities=("text",)
    )
    (sample,) = sampler.sample([sampler.request(["look:", pixels, "what is it?"], params)])
    assert answer["choices"][0]["message"]["content"] == sample.text
    assert answer["usage"]["prompt_tokens"] == sample.prompt_tokens


def test_pictures_stream_with_previews_and_then_whole(client: TestClient) -> None:
    body = {"prompt": "a red circle", "seed": 3}
    (whole,) = client.post(IMAGES, json=body).json()["data"]
    told = events(client, IMAGES, body | {"partial_images": 2})
    assert [one["type"] for one in told] == [
        *["image_generation.partial_image"] * 2,
        "image_generation.completed",
    ]
    off = picture(told[-1]["b64_json"]).astype(int) - picture(whole["b64_json"]).astype(int)
    assert np.abs(off).max() <= 1


def test_pictures_that_stream_together_are_told_apart(client: TestClient) -> None:
    body = {"prompt": "a red circle", "seed": 3, "n": 2}
    whole = client.post(IMAGES, json=body).json()["data"]
    told = events(client, IMAGES, body | {"partial_images": 2})
    for index, one in enumerate(whole):
        mine = [event for event in told if event["index"] == index]
        assert [event.get("partial_image_index") for event in mine] == [0, 1, None]
        off = picture(mine[-1]["b64_json"]).astype(int) - picture(one["b64_json"]).astype(int)
        assert np.abs(off).max() <= 1


def test_a_picture_is_edited_by_what_was_uploaded(client: TestClient) -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(2))

    def edited(pixels: np.ndarray, **fields) -> np.ndarray:
        answer = client.post(
            EDITS, files={"image": ("a.png", png(pixels))},
            data={"prompt": "make it blue", "seed": "1", **fields},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        return picture(answer.json()["data"][0]["b64_json"])

    assert edited(first).shape == (16, 16, 3)
    assert (edited(first) == edited(first)).all()
    assert (edited(first) != edited(second)).any()
    assert (edited(first) != edited(first, image_guidance_scale="8")).any()


def test_an_edit_takes_what_a_drawing_does_and_streams(client: TestClient) -> None:
    upload = {"image": ("a.png", png(np.full((16, 16, 3), 200, np.uint8)))}
    form = {"prompt": "make it blue", "seed": "1", "n": "2"}

    def edited(**fields) -> list[dict]:
        answer = client.post(EDITS, files=upload, data=form | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    whole, interval = edited(solver="unipc"), edited(guidance_interval="0.1, 0.5")
    assert whole != interval != edited()
    assert interval == edited(guidance_interval=["0.1", "0.5"])
    assert interval == edited(**{"guidance_interval[]": ["0.1", "0.5"]})

    answer = client.post(
        EDITS,
        files=upload,
        data=form | {"solver": "unipc", "stream": "true", "partial_images": "1"},
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    told = [json.loads(line.removeprefix("data: ")) for line in lines]
    for index, one in enumerate(whole):
        mine = [event for event in told if event["index"] == index]
        assert [event["type"] for event in mine] == [
            "image_edit.partial_image",
            "image_edit.completed",
        ]
        off = picture(mine[-1]["b64_json"]).astype(int) - picture(one["b64_json"]).astype(int)
        assert np.abs(off).max() <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_interval", "0.1"), ("guidance_interval", "0.9,0.1"), ("guidance_interval", "a,b"),
        ("guidance_interval", "nan,1"), ("guidance_interval", ""), ("solver", "euler"),
        ("stream", "perhaps"), ("partial_images", "2"), ("partial_images", "two"),
    ],
)  # fmt: skip
def test_a_field_of_an_edit_that_is_wrong_is_named(client: TestClient, field, value) -> None:
    upload = {"image": ("a.png", png(np.zeros((16, 16, 3), np.uint8)))}
    answer = client.post(EDITS, files=upload, data={"prompt": "x", field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ({}, {"prompt": "x"}, "image"),
        ({"image": ("a.png", b"no picture")}, {"prompt": "x"}, "image"),
        ({"image": ("a.gif", b"GIF89a")}, {"prompt": "x"}, "image"),
        ({"image": ("a.png", png(np.zeros((4, 4, 3), np.uint8)))}, {}, "prompt"),
        ({"image": ("a.png", png(np.zeros((4, 4, 3), np.uint8)))}, {"prompt": "x", "n": "99"}, "n"),
    ],
)
def test_a_bad_upload_is_told_what_and_where(client: TestClient, files, data, param) -> None:
    answer = client.post(EDITS, files=files or {"other": ("b", b"")}, data=data)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_small_file_that_holds_a_huge_picture_is_refused(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, format="PNG")
    assert len(buffer.getvalue()) < 100_000
    answer = client.post(
        EDITS, files={"image": ("bomb.png", buffer.getvalue())}, data={"prompt": "x"}
    )
    assert answer.status_code == 400
    assert "pixels" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png;base64,!!!",
    ],
)
def test_no_address_is_fetched(client: TestClient, url: str) -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    answer = client.post(CHAT, json={"messages": [message]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


def test_what_was_done_is_counted_for_prometheus_and_answers_name_the_model(
    client: TestClient, sampler: Sampler
) -> None:
    def counted(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    before = counted("transfusion_images_total"), counted("transfusion_tokens_total")
    answer = client.post(IMAGES, json={"prompt": "blue", "n": 2})
    client.post(COMPLETIONS, json={"prompt": "blue", "max_tokens": 5, "temperature": 0})
    assert counted("transfusion_images_total") == before[0] + 2
    assert counted("transfusion_tokens_total") == before[1] + 5
    assert answer.headers["x-model-digest"] == sampler.package.digest
    other = client.get("/health")
    assert other.headers["x-request-id"] != answer.headers["x-request-id"]
