"""The playground in a real browser: what a visitor does, and what comes of it."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tests.serve.serving import serving
from tests.tiny import tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.service import Service

CHROMIUM = os.environ.get("TRANSFUSION_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="needs a Chromium: install one, or set TRANSFUSION_CHROMIUM to its program",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    quick = SamplingDefaults(solver="ddim", num_inference_steps=50)
    sampler = Sampler(load_package(tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick)))
    special = sampler.package.config.special
    with torch.no_grad():
        sampler.package.model.head.weight[special.boi] *= 4
        sampler.package.model.head.weight[special.eos] = 0
    with serving(Service(sampler, EndpointConfig())) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    # A refusal is an answer: the browser notes it, the page tells it.
    page.on(
        "console",
        lambda line: (
            faults.append(line.text)
            if line.type == "error" and "status of 400" not in line.text
            else None
        ),
    )
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    expect(page.locator("#model")).to_have_text("tiny")
    yield page
    assert faults == []
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    context.close()


def shot(page: Any, name: str) -> None:
    """A picture of the page for whoever wants to look: where TRANSFUSION_SCREENSHOTS says."""
    if folder := os.environ.get("TRANSFUSION_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def done(page: Any) -> None:
    expect(page.locator("#status")).to_contain_text("done in", timeout=30_000)


def test_a_prompt_is_drawn_with_the_keyboard_alone(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("a red circle")
    page.keyboard.press("Control+Enter")
    done(page)
    drawn = page.locator("#answer img")
    assert drawn.count() == 1
    assert page.evaluate("document.querySelector('#answer img').naturalWidth") == 16
    assert page.locator("#gallery img").count() == 1
    shot(page, "draw")


@pytest.fixture
def upload(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "upload.png")
    return str(tmp_path / "upload.png")


def test_an_uploaded_picture_is_described(page: Any, upload: str) -> None:
    page.get_by_text("Describe").click()
    page.click("#run")
    assert "picture first" in page.text_content("#status")
    page.set_input_files("#file", upload)
    page.fill("#prompt", "what is it?")
    page.wait_for_selector("#chosen:visible")
    page.click("#run")
    done(page)
    assert page.text_content("#answer").strip()
    shot(page, "describe")


def test_a_story_comes_as_text_and_pictures_in_order(page: Any) -> None:
    page.get_by_text("Story").click()
    page.fill("#prompt", "once there was")
    page.locator("summary").click()
    page.fill("#pictures", "2")
    kinds: set[str] = set()
    for seed in range(12):
        page.fill("#seed", str(seed))
        page.click("#run")
        done(page)
        nodes = page.evaluate(
            "[...document.getElementById('answer').childNodes].map(n => n.nodeName)"
        )
        kinds.add(" ".join(nodes))
        if "#text IMG #text" in " ".join(nodes):
            break
    assert any("#text IMG #text" in kind for kind in kinds), kinds
    shot(page, "story")


def test_a_picture_is_edited_and_a_drawn_one_can_be_used_again(page: Any, upload: str) -> None:
    page.get_by_text("Edit").click()
    page.set_input_files("#file", upload)
    page.fill("#prompt", "make it blue")
    page.click("#run")
    done(page)
    before = page.get_attribute("#chosen", "src")
    page.locator("#gallery button").first.click()
    expect(page.locator("#chosen")).not_to_have_attribute("src", before)


def test_what_is_asked_can_be_copied_and_what_runs_can_be_stopped(page: Any) -> None:
    page.fill("#prompt", "it's blue")
    # What is copied is run in test_playground_script.py; here, that the buttons do.
    for button, seen in (("#curl", "curl"), ("#python", re.compile("Python copied|openai"))):
        page.click(button)
        expect(page.locator("#status, #answer").filter(has_text=seen).first).to_be_visible()
    page.fill("#prompt", "x")
    page.locator("summary").click()
    page.fill("#steps", "250")
    page.click("#run")
    page.wait_for_selector("#stop:enabled")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("stopped")
    expect(page.locator("#run")).to_be_enabled()


def test_a_fault_is_told_in_the_servers_words(page: Any) -> None:
    page.fill("#prompt", "word " * 500)
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("must be at most")


def test_it_fits_a_phone_and_follows_the_dark(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in dark[4:-1].split(",")) < 150
    shot(page, "phone")
    context.close()
