"""What hostile callers send: each is refused by name, and nothing of it is found where it does not belong.

Addresses of pictures are in `test_fetching`, sizes and dawdling of bodies in `test_http`.
"""

import base64
import hmac
import io
import json
import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.serving import until
from tests.tiny import QUICK, tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.endpoints.tokens import MAX_CHARS
from transfusion.serve.guards import KEYS, key_digests
from transfusion.serve.http import make_app
from transfusion.serve.service import Service

IMAGES, EDITS = "/v1/images/generations", "/v1/images/edits"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
INJECTED = "x\r\nSet-Cookie: stolen=1\r\n\r\nINFO forged line"


@pytest.fixture
def service(sampler: Sampler) -> Iterator[Service]:
    service = Service(sampler, EndpointConfig(max_input_images=2))
    yield service
    service.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(content: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def chat(*urls: str, **fields) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    text = {"type": "text", "text": "a"}
    return {"messages": [{"role": "user", "content": [*parts, text]}], "max_tokens": 2, **fields}


def refused(answer, param: str | None) -> None:
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-0.1", "20.1"])
@pytest.mark.parametrize(
    ("path", "name"),
    [(IMAGES, "guidance_scale"), (CHAT, "guidance_scale"), (CHAT, "image_guidance_scale")],
)
def test_guidance_that_is_no_number_in_range_is_refused(client, path, name, number) -> None:
    body = json.dumps(chat() if path == CHAT else {"prompt": "x"})
    content = f'{body[:-1]}, "{name}": {number}}}'
    refused(client.post(path, content=content, headers={"content-type": "application/json"}), name)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 1.5, "1", True])
def test_a_seed_that_is_no_integer_of_63_bits_is_refused(client, seed) -> None:
    for path, body in [(IMAGES, {"prompt": "x"}), (COMPLETIONS, {"prompt": "x"}), (CHAT, chat())]:
        refused(client.post(path, json=body | {"seed": seed}), "seed")


def test_too_many_pictures_in_or_out_and_too_many_parts_are_refused(client) -> None:
    url = data_url(png())
    assert client.post(CHAT, json=chat(url, url)).status_code == 200
    refused(client.post(CHAT, json=chat(url, url, url)), "messages")
    parts = [{"type": "text", "text": "a"}] * 101
    refused(client.post(CHAT, json={"messages": [{"role": "user", "content": parts}]}), "messages")
    uploads = [("image", ("a.png", png()))] * 3
    refused(client.post(EDITS, files=uploads, data={"prompt": "x"}), "image")
    drawn = {"modalities": ["text", "image"], "n": 6, "max_images": 2}
    refused(client.post(CHAT, json=chat(**drawn)), "n")


@pytest.mark.parametrize(
    "url",
    [
        data_url(png(), "text/html"),
        data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "data:image/png;base64,", "data:image/png;base64,!!!", "data:image/png;base64,AAA",
        "data:image/png,AAAA", "data:", data_url(b"no picture"), data_url(png()[:-30]),
        data_url(b"GIF89a" + bytes(20)),
    ],
)  # fmt: skip
def test_a_data_url_that_holds_no_picture_is_refused(client, url: str) -> None:
    refused(client.post(CHAT, json=chat(url)), "messages")


def test_a_small_file_that_would_fill_memory_is_refused_in_a_data_url_too(client) -> None:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, format="PNG")
    answer = client.post(CHAT, json=chat(data_url(buffer.getvalue())))
    refused(answer, "messages")
    assert "pixels" in answer.json()["error"]["message"]


def test_what_an_upload_asks_for_is_not_silently_ignored(client) -> None:
    files = {"image": ("a.png", png()), "mask": ("b.png", png())}
    refused(client.post(EDITS, files=files, data={"prompt": "x"}), "mask")


def test_newlines_forge_neither_headers_nor_lines_of_the_log(client, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [
        client.post(IMAGES, json={"prompt": "x", "user": INJECTED}),
        client.post(IMAGES, json={"prompt": "x", "model": INJECTED}),
        client.post(IMAGES, json={"prompt": "x", INJECTED: 1}),
        client.get("/v1/models/x%0d%0aSet-Cookie:%20stolen=1"),
        client.get("/none%0d%0aSet-Cookie:%20stolen=1"),
        client.get("/health", headers={"x-request-id": "chosen"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 400, 404, 404, 200]
    for answer in answers:
        assert "set-cookie" not in answer.headers
        assert not any("stolen" in value for value in answer.headers.values())
        assert answer.headers["x-request-id"] != "chosen"
    ours = [one.getMessage() for one in caplog.records if not one.name.startswith("httpx")]
    assert not any("forged" in line or "stolen" in line for line in ours)


@pytest.mark.parametrize("name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "."])
def test_a_model_is_a_name_and_no_path(client, name: str) -> None:
    answer = client.post(IMAGES, json={"prompt": "x", "model": name})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
    for path in (f"/v1/models/{name}", f"/playground/{name}"):
        answer = client.get(path)
        assert answer.status_code in (200, 404)
        assert "root:" not in answer.text


def test_no_page_elsewhere_may_ask_and_no_documentation_is_shown(client) -> None:
    there = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for answer in (client.get("/v1/models", headers=there), client.options(IMAGES, headers=there)):
        assert not any(name.startswith("access-control-") for name in answer.headers)
    assert client.options(IMAGES, headers=there).status_code == 405
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert client.get(path).status_code == 404


def test_every_key_is_compared_in_constant_time_whichever_is_right(service, monkeypatch) -> None:
    monkeypatch.setenv(KEYS, "first,second,third")
    client, compared = TestClient(make_app(service, digests=key_digests())), []
    compare = hmac.compare_digest

    def seen(given: str, known: str) -> bool:
        compared.append(known)
        return compare(given, known)

    monkeypatch.setattr(hmac, "compare_digest", seen)
    for key, status in [("first", 200), ("third", 200), ("fourth", 401), ("", 401)]:
        compared.clear()
        answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status
        assert compared == list(key_digests())
    for path in ("/metrics", "/openapi.json", "/v1/models", "/tokenizer_info"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    ("path", "edge"),
    [
        (path, edge)
        for path in (COMPLETIONS, CHAT)
        for edge in (
            {"top_p": 5e-324}, {"temperature": 5e-324}, {"temperature": 1e-38, "top_p": 1e-46},
            {"top_k": 10**30}, {"seed": 2**53 - 1},
        )
    ]
    + [(path, edge) for path in (IMAGES, CHAT)
       for edge in ({"guidance_scale": 5e-324}, {"guidance_interval": [5e-324, 1]})],
)  # fmt: skip
def test_numbers_at_the_edge_of_their_range_are_answered(client, path: str, edge: dict) -> None:
    """A step that they broke would fail for all who are in it."""
    asked = chat() if path == CHAT else {"prompt": "a"}
    answer = client.post(path, json=asked | edge)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_deadline_that_is_no_time_is_refused(client, timeout: str) -> None:
    headers = {"x-timeout-seconds": timeout}
    answer = client.post(IMAGES, json={"prompt": "x"}, headers=headers)
    refused(answer, "x-timeout-seconds")


@pytest.mark.parametrize(
    ("limit_s", "asked", "told"), [(120.0, "0.5", "0.5 s"), (0.5, "1000", "0.5 s")]
)
def test_a_deadline_is_only_shortened_and_ends_the_work_within_a_step(
    sampler, monkeypatch, limit_s, asked, told
) -> None:
    service = Service(sampler, EndpointConfig(request_timeout_s=limit_s))
    engine, go = service.loop.runner.engine, threading.Event()
    step = engine.step

    def held() -> bool:
        # The second step stands still until the caller has been told.
        if engine.counts.steps:
            go.wait(60)
        return step()

    monkeypatch.setattr(engine, "step", held)
    headers = {"x-timeout-seconds": asked}
    with TestClient(make_app(service)) as client:
        body = {"prompt": "x", "num_inference_steps": 250, "n": 3}
        answer = client.post(IMAGES, json=body, headers=headers)
        assert answer.status_code == 408
        assert told in answer.json()["error"]["message"]
        steps = engine.counts.steps
        go.set()
        until(lambda: not (engine.num_active or engine.num_waiting))
        assert engine.counts.steps <= steps + 1
        assert engine.counts.images == 0
        assert engine.pages.num_free == engine.pages.num_pages
    service.close()


def test_the_server_answers_while_an_upload_is_read(service, client, monkeypatch) -> None:
    begun, go, answers, order = threading.Event(), threading.Event(), [], []
    encode = service.processor.encode_images

    def held(images):
        begun.set()
        order.append("released" if go.wait(60) else "gave up")
        return encode(images)

    monkeypatch.setattr(service.processor, "encode_images", held)

    def edit() -> None:
        files = {"image": ("a.png", png())}
        answers.append(client.post(EDITS, files=files, data={"prompt": "x"}))

    thread = threading.Thread(target=edit)
    thread.start()
    assert begun.wait(60)
    assert client.get("/health").status_code == 200
    order.append("health")
    go.set()
    thread.join(60)
    assert order == ["health", "released"]
    assert answers[0].status_code == 200


def test_what_cannot_fit_is_refused_before_it_is_cut_into_tokens(
    service, client, monkeypatch
) -> None:
    tokenizer = service.processor.package.tokenizer
    longest = tokenizer.max_piece_chars * service.package.sequence_length
    encoded: list[str] = []
    monkeypatch.setattr(
        type(tokenizer), "encode", lambda _, text: encoded.append(text) or np.zeros(9, np.int32)
    )
    long, fits = "x" * (longest + 1), "x" * longest
    for path, body, param in [
        (IMAGES, {"prompt": long}, "prompt"),
        (IMAGES, {"prompt": "x", "negative_prompt": long}, "negative_prompt"),
        (COMPLETIONS, {"prompt": ["x", long]}, "prompt"),
        (CHAT, {"messages": [{"role": "user", "content": one} for one in (fits, "x")]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "negative_prompt": long},
         "negative_prompt"),
        ("/tokenize", {"prompt": "x" * (MAX_CHARS + 1)}, "prompt"),
    ]:  # fmt: skip
        answer = client.post(path, json=body)
        refused(answer, param)
        most = MAX_CHARS if path == "/tokenize" else longest
        assert f"must be at most {most}" in answer.json()["error"]["message"]
    for fields in ({"prompt": long}, {"prompt": "x", "negative_prompt": long}):
        answer = client.post(EDITS, files={"image": ("a.png", png())}, data=fields)
        refused(answer, "negative_prompt" if "negative_prompt" in fields else "prompt")
    refused(client.post("/detokenize", json={"tokens": [5] * (MAX_CHARS + 1)}), "tokens")
    assert max(map(len, encoded), default=0) <= 1
    assert client.post("/tokenize", json={"prompt": fits}).status_code == 200
    assert encoded[-1] == fits


def test_a_key_and_a_refused_prompt_are_found_in_no_log_answer_metric_file_or_argument(
    tmp_path, monkeypatch, caplog, capfd
) -> None:
    from transfusion.serve.app import AppArgs, build_app

    key, wrong, prompt = "canary-key-5d1f", "canary-wrong-9a0c", "canary-prompt-e77b"
    canaries = (key, wrong, prompt)
    monkeypatch.setenv(KEYS, f"other,{key}")
    caplog.set_level(logging.DEBUG)
    folder = tiny_package(tmp_path, sampling=SamplingDefaults(**QUICK))
    service = Service(Sampler(load_package(folder)), EndpointConfig())
    app = make_app(service, digests=key_digests())
    with TestClient(app, raise_server_exceptions=False) as client:
        right = {"Authorization": f"Bearer {key}"}
        answers = [
            client.post(IMAGES, json={"prompt": "x"}, headers={"Authorization": f"Bearer {wrong}"}),
            client.post(IMAGES, json={"prompt": prompt, "n": 99, "user": prompt}, headers=right),
            client.post(IMAGES, json={"prompt": prompt * 99}, headers=right),
            client.post(IMAGES, content=prompt, headers=right),
            client.post(IMAGES, json={"prompt": "x", "user": prompt}, headers=right),
            client.post(CHAT, json=chat(f"http://{prompt}.example/a.png"), headers=right),
            client.get("/openapi.json", headers=right),
        ]
        assert [answer.status_code for answer in answers] == [401, 400, 400, 400, 200, 400, 200]
        with monkeypatch.context() as patch:
            patch.setattr(service.loop.runner.engine, "_advance_images", lambda *_, **__: 1 / 0)
            answers.append(client.post(IMAGES, json={"prompt": prompt}, headers=right))
        assert answers[-1].status_code == 500
        answers += [client.get(path, headers=right) for path in ("/metrics", "/health")]
    service.close()
    deployment = build_app(AppArgs(model=str(folder)))._bound_deployment
    assert key_digests()[1] in str(deployment.init_args)
    places = {
        "log": caplog.text,
        "output": "".join(capfd.readouterr()),
        "answers": "".join(f"{answer.headers}{answer.text}" for answer in answers),
        "arguments": f"{deployment.init_args} {deployment.init_kwargs} {deployment}",
        "files": b"".join(
            path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
        ).decode("latin-1"),
    }
    assert "division by zero" in places["log"]
    for canary in canaries:
        assert [place for place, text in places.items() if canary in text] == []
