"""The playground's script without a browser, against a real endpoint: Playwright brings the Node that runs it."""

import ast
import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright._impl._driver import compute_driver_executable

from tests.serve.serving import serving
from tests.tiny import tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.pictures import png_bytes
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.service import Service

HARNESS = Path(__file__).with_name("playground_page.js")
SCRIPT = Path("platform/transfusion/serve/playground/script.js").resolve()
FIELDS = {"seed": "3", "steps": "10", "tokens": "4", "temperature": "0.8", "pictures": "1"}
PROMPT = """@home, a true MODEL car; null, "5 o'clock" \\ $HOME `date` \U0001f697;type=text/html
JSON
False"""
MODES = ("draw", "describe", "story", "edit")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    quick = SamplingDefaults(solver="dpm++", num_inference_steps=10)
    sampler = Sampler(load_package(tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick)))
    with serving(Service(sampler, EndpointConfig())) as address:
        yield address


@pytest.fixture(scope="module")
def upload() -> bytes:
    """A picture that is more than Linux takes as one argument."""
    content = png_bytes(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8))
    assert len(content) > 2**17
    return content


def page(
    address: str, mode: str, prompt: str, call: str, upload: bytes | None
) -> Mapping[str, Any]:
    """What the call gives on a page that is filled in like this, and what was seen on it."""
    url = upload and f"data:image/png;base64,{base64.b64encode(upload).decode()}"
    told = {
        "script": str(SCRIPT), "address": address, "mode": mode, "picture": url, "call": call,
        "fields": FIELDS | {"prompt": prompt},
    }  # fmt: skip
    node, _ = compute_driver_executable()
    ran = subprocess.run(
        [node, HARNESS],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: Mapping[str, Any] = json.loads(ran.stdout)
    return found


def prompts_in(values: Any) -> list[str]:
    """Every prompt in what was asked."""
    messages = values.get("messages", [])
    parts = [part for message in messages for part in message["content"]]
    return [part["text"] for part in parts if part["type"] == "text"] or [values["prompt"]]


@pytest.mark.parametrize("mode", MODES)
def test_a_copied_python_program_holds_the_prompt_as_it_was_written(
    address: str, upload: bytes, mode: str
) -> None:
    program = page(address, mode, PROMPT, "asPython()", upload)["answer"]
    call = ast.parse(program).body[-1]
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    literal = {k.arg: ast.literal_eval(k.value) for k in call.value.keywords if k.arg != "image"}
    assert prompts_in(literal) == [PROMPT]
    assert literal["model"] == "tiny"
    assert literal["extra_body"]["seed"] == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_copied_curl_command_sends_the_prompt_as_it_was_written(
    address: str, upload: bytes, tmp_path: Path, mode: str
) -> None:
    command = page(address, mode, PROMPT, "asCurl()", upload)["answer"]
    told = 'curl() { printf "%s\\0" "$@"; cat; }\n'
    (tmp_path / "command.sh").write_text(told + command, encoding="utf-8")
    *arguments, body = bash(tmp_path).split("\0")
    if mode == "edit":
        assert f"prompt={PROMPT}" in arguments
        assert "-F" in arguments[: arguments.index("image=@picture.png")]
        assert "-F" not in arguments[arguments.index("image=@picture.png") :]
    else:
        assert prompts_in(json.loads(body)) == [PROMPT]
        assert "@-" in arguments


def bash(folder: Path) -> str:
    ran = subprocess.run(
        ["bash", "command.sh"],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("mode", MODES)
def test_what_is_copied_runs_and_is_answered(
    address: str, upload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(upload)
    (tmp_path / "command.sh").write_text(page(address, mode, "a car", "asCurl()", upload)["answer"])
    answer = bash(tmp_path)
    assert '"error"' not in answer
    assert ('"b64_json"' if mode in ("draw", "edit") else '"choices"') in answer

    names: dict[str, Any] = {}
    exec(page(address, mode, "a car", "asPython()", upload)["answer"], names)
    if mode in ("draw", "edit"):
        assert names["answer"].data[0].b64_json
    else:
        assert names["answer"].choices[0].message.role == "assistant"


@pytest.mark.parametrize("mode", ["draw", "edit"])
def test_previews_are_seen_while_a_picture_is_drawn_and_give_it_their_place(
    address: str, upload: bytes, mode: str
) -> None:
    found = page(address, mode, "a car", "run()", upload if mode == "edit" else None)
    assert found["status"].startswith("done in")
    *previews, (last, _), (in_gallery, _) = found["shown"]
    assert {kind for kind, _ in previews} == {"preview"}
    assert 1 <= len(previews) <= 3
    assert (last, in_gallery) == ("", None)
    assert len({url for _, url in previews}) == len(previews)
    assert found["count"] == 1
