"""Pictures from other hosts: no address leads a request inside, and nothing is fetched that was not allowed."""

import asyncio
import base64
import contextlib
import functools
import http.server
import io
import ssl
import threading
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import trustme
from PIL import Image
from starlette.testclient import TestClient

from tests.tiny import tiny_package
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.errors import ApiError
from transfusion.serve.fetching import PictureFetcher, is_public
from transfusion.serve.http import make_app
from transfusion.serve.service import Service

HOST, PUBLIC = "pictures.example", "93.184.215.14"

INSIDE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1",
    "192.0.0.8", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::7f00:1",
    "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:4136::1",
]  # fmt: skip

ELSEWHERE = [
    "http://127.0.0.1/a.png", "http://2130706433/a.png", "http://0x7f000001/a.png",
    "http://0x7f.1/a.png", "http://017700000001/a.png", "http://127.1/a.png", "http://0/a.png",
    "http://[::1]/a.png", "http://[::ffff:127.0.0.1]/a.png", "http://[64:ff9b::7f00:1]/a.png",
    "http://169.254.169.254/latest/meta-data", "http://localhost/a.png",
    f"http://{HOST}.evil.example/a.png", f"http://evil-{HOST}/a.png", f"http://{HOST}./a.png",
    f"http://{HOST}:8080/a.png", f"https://{HOST}:80/a.png",
    f"http://{HOST}@evil.example/a.png", f"http://user@{HOST}/a.png", f"http://a:b@{HOST}/a.png",
    f"http://evil.example\\@{HOST}/a.png", f"http://{HOST}\\@evil.example/",
    f"http://evil.example#{HOST}", f"http://evil.example?{HOST}",
    f"http://{HOST}/a.png\r\nX-Header: 1", f"http://{HOST}/a\tb", f" http://{HOST}/a.png",
    f"file://{HOST}/etc/passwd", "file:///etc/passwd", f"ftp://{HOST}/a.png", f"s3://{HOST}/a.png",
    f"gopher://{HOST}/a", f"//{HOST}/a.png", f"{HOST}/a.png", "", "http://", "http://[::1", "a.png",
    f"http://{HOST}:99999/a.png", f"javascript://{HOST}/a.png",
]  # fmt: skip


def png() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers))
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while True:
                    self.wfile.write(b"x" * 10_000)
        elif self.path == "/never":
            self.server.go.wait(30)
        else:
            body = png() if self.path == "/a.png" else b"GIF89a no picture"
            self.send_response(200 if self.path != "/missing" else 404)
            self.send_header("Content-Type", "image/png")
            self.send_header("Set-Cookie", "a=b")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.asked, server.go = [], threading.Event()
    # Looked at often: a shutdown waits for the next look.
    serve = functools.partial(server.serve_forever, poll_interval=0.02)
    threading.Thread(target=serve, daemon=True).start()
    yield server
    server.go.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def connected(server, monkeypatch) -> list[str]:
    """Addresses that were connected to; what goes to the public one comes to the server instead."""
    seen: list[str] = []
    connect = BaseSelectorEventLoop.sock_connect

    async def redirected(loop, sock, address):
        seen.append(address[0])
        assert address[0] == PUBLIC
        await connect(loop, sock, ("127.0.0.1", server.server_port))

    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", redirected)
    return seen


class Names:
    """A resolver that answers each time with the next of its addresses."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.asked = list(answers), []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0)


def fetch(url: str, names: Names, *, hosts=(HOST,), max_bytes=100_000, timeout_s=5.0) -> bytes:
    fetcher = PictureFetcher(hosts, timeout_s=timeout_s, lookup=names)
    return asyncio.run(fetcher.fetch(url, max_bytes=max_bytes, param="messages"))


def refusal(url: str, names: Names, **limits) -> str:
    with pytest.raises(ApiError) as refused:
        fetch(url, names, **limits)
    assert (refused.value.status, refused.value.param) == (400, "messages")
    return refused.value.message


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_leads_inside_is_not_connected_to(address: str, connected) -> None:
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address]):
        names = Names(addresses)
        assert "no public host" in refusal(f"http://{HOST}/a.png", names)
        assert names.asked == [HOST]
    assert connected == []


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_what_is_public_is_taken_for_it(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_no_other_host_user_or_scheme_is_asked(url: str, connected) -> None:
    names = Names()
    refusal(url, names)
    assert (names.asked, connected) == ([], [])


def test_nothing_is_fetched_where_no_host_is_allowed(connected) -> None:
    names = Names()
    assert "fetches no addresses" in refusal(f"http://{HOST}/a.png", names, hosts=())
    assert (names.asked, connected) == ([], [])


def test_a_picture_is_fetched_from_the_address_that_was_checked_and_no_later_one(
    server, connected
) -> None:
    """DNS rebinding: a name that leads elsewhere when it is asked again is not asked again."""
    names = Names([PUBLIC], ["127.0.0.1"])
    assert fetch(f"http://{HOST}/a.png", names) == png()
    assert connected == [PUBLIC]
    assert names.asked == [HOST]
    ((_, headers),) = server.asked
    assert headers["Host"] == HOST
    assert "Cookie" not in headers
    assert "Authorization" not in headers


def test_over_https_the_host_must_prove_its_name(
    server, connected, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to an address; what must be proven is the name that was asked for."""
    authority, told = trustme.CA(), []
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: told.append(name)
    authority.issue_cert(HOST).configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    assert fetch(f"https://{HOST}/a.png", Names([PUBLIC])) == png()
    assert told == [HOST]
    authority.issue_cert("other.example").configure_cert(context)
    assert "did not send it" in refusal(f"https://{HOST}/a.png", Names([PUBLIC]))
    trustme.CA().issue_cert(HOST).configure_cert(context)
    assert "did not send it" in refusal(f"https://{HOST}/a.png", Names([PUBLIC]))
    assert len(server.asked) == 1
    assert connected == [PUBLIC] * 3


def test_redirects_are_not_followed(server, connected) -> None:
    assert "302" in refusal(f"http://{HOST}/redirect", Names([PUBLIC]))
    assert [path for path, _ in server.asked] == ["/redirect"]


def test_a_file_without_end_is_left_and_one_that_never_comes_given_up(server, connected) -> None:
    assert "too long" in refusal(f"http://{HOST}/endless", Names([PUBLIC]), max_bytes=50_000)
    assert "did not send" in refusal(f"http://{HOST}/never", Names([PUBLIC]), timeout_s=0.3)
    assert "404" in refusal(f"http://{HOST}/missing", Names([PUBLIC]))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f.1", "*.example.com", "https://a.example", "LOCAL", "::1"],
)
def test_only_full_names_of_hosts_can_be_allowed(host: str) -> None:
    with pytest.raises(ValueError, match="image_hosts"):
        EndpointConfig(image_hosts=(host,))
    assert EndpointConfig(image_hosts=["a.example:8443"]).image_hosts == ("a.example:8443",)


def test_a_picture_from_an_allowed_host_is_read_as_one_in_the_request(
    tmp_path, connected, monkeypatch
) -> None:
    sampler = Sampler(load_package(tiny_package(tmp_path)))
    service = Service(sampler, EndpointConfig(image_hosts=(HOST,)))

    async def names(host: str) -> list[str]:
        return [PUBLIC]

    monkeypatch.setattr("transfusion.serve.fetching.look_up", names)
    data = "data:image/png;base64," + base64.b64encode(png()).decode()
    with TestClient(make_app(service)) as client:

        def ask(url: str):
            part = {"type": "image_url", "image_url": {"url": url}}
            body = {"messages": [{"role": "user", "content": [part]}], "temperature": 0}
            return client.post("/v1/chat/completions", json=body | {"max_tokens": 5})

        fetched, inline = ask(f"http://{HOST}/a.png"), ask(data)
        assert fetched.status_code == inline.status_code == 200
        assert fetched.json()["choices"] == inline.json()["choices"]
        assert ask(f"http://{HOST}/no.png").json()["error"]["param"] == "messages"
    service.close()
