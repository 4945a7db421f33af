"""A small run as its stages would have left it: artifacts committed through the real protocol, drawn images."""

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFilter

from transfusion.artifacts.artifact import Artifact, open_artifact
from transfusion.artifacts.canonical import canonical_json, fingerprint
from transfusion.artifacts.manifest import (
    Content,
    FileEntry,
    InputRef,
    Manifest,
    Outcomes,
    artifact_path,
    manifest_path,
)
from transfusion.artifacts.publish import publish_folder
from transfusion.artifacts.shards import REJECTS, ROWS, Reject, rejects_table
from transfusion.artifacts.tables import store_table
from transfusion.storage.store import Store
from transfusion.train.pictures import png_row

COLORS = {
    "red": (225, 40, 40), "yellow": (240, 200, 30), "green": (40, 165, 60),
    "cyan": (30, 190, 225), "blue": (45, 65, 225), "purple": (170, 45, 205),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
HOSTILE = '<script>alert("x")</script> & <b>bold</b>'
PROVENANCE = {
    "created": "2026-03-01T10:20:30+00:00",
    "commit": "0123456789ab",
    "python": "3.11.9",
    "machine": "x86_64, 2 cores",
    "versions": {"torch": "2.13.0", "ray": "2.60.0"},
}


class FakeRun:
    """Commits artifacts into a store and keeps them by name."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.made: dict[str, Artifact] = {}

    def commit(
        self,
        name: str,
        uses: str,
        kind: str,
        *,
        inputs: tuple[str, ...] | dict[str, str] = (),
        files: list[FileEntry] | None = None,
        seconds: float = 1.0,
        config: dict[str, Any] | None = None,
        timings: dict[str, float] | None = None,
        **content: Any,
    ) -> Artifact:
        roles = inputs if isinstance(inputs, dict) else {each: each for each in inputs}
        payload = {"uses": uses, "name": name, "config": config or {}, "raw": "f" * 64}
        identity = fingerprint(payload)
        made = Content(kind=kind, files=files or [], **content)
        manifest = Manifest(
            stage=name,
            uses=uses,
            version=1,
            fingerprint=identity,
            payload=payload,
            config=config or {},
            inputs={
                role: InputRef(
                    fingerprint=self.made[other].manifest.fingerprint, path=self.made[other].path
                )
                for role, other in roles.items()
            },
            content=made,
            digest=made.digest(),
            timings={"seconds": seconds, **(timings or {})},
            provenance=PROVENANCE,
        )
        path = manifest_path(uses, identity)
        self.store.create(path, canonical_json(manifest.model_dump(mode="json")).encode())
        self.made[name] = open_artifact(self.store, path)
        return self.made[name]

    def folder(self, uses: str, source: Path) -> list[FileEntry]:
        return publish_folder(self.store, artifact_path(uses, "0" * 64), source)

    def table(self, uses: str, name: str, table: pa.Table) -> FileEntry:
        return store_table(self.store, f"{uses}/pool/data", name, table)


def make_run(
    store: Store, scratch: Path, *, judged: bool = True, nearest: bool = False, steps: int = 1250
) -> FakeRun:
    """A whole run; `judged` is False for real images, which nothing scores; `nearest` has training images too."""
    run = FakeRun(store)
    for name, uses, count in (
        ("images", "data_pipelines.sources.image_folder", 6),
        ("prose", "data_pipelines.sources.python_docs", 1),
    ):
        listing = pa.table(
            {
                "identity": [f"file:{index:02}" * 3 for index in range(count)],
                "spec": [f'{{"path":"{name}/part-{index:02}.parquet"}}' for index in range(count)],
            }
        )
        files = [run.table(uses, "listing", listing)]
        run.commit(name, uses, "listing", files=files, seconds=0.4, config={"path": f"raw/{name}"})
    rejects = [
        Reject(key="bomb.png", reason="too_many_pixels", detail="1.2e9 pixels, at most 5e7"),
        Reject(key="page.jpg", reason="not_an_image", detail=HOSTILE),
        Reject(key="short.jpg", reason="truncated", detail="image file is truncated"),
    ]
    shards = "data_pipelines.pixels"
    run.commit(
        "pixels", shards, "pixels", inputs={"images": "images"}, seconds=6.5,
        files=[
            run.table(shards, f"s0/{ROWS}", pa.table({"key": [f"k{i}" for i in range(4000)]})),
            run.table(shards, f"s0/{REJECTS}", rejects_table(rejects)),
        ],
        outcomes=Outcomes(
            input=4006, written=4000, filtered={"over_budget": 3},
            rejected={"too_many_pixels": 1, "not_an_image": 1, "truncated": 1},
        ),
        timings={"images_per_s": 812.0}, metadata={"image_size_px": 32},
    )  # fmt: skip
    _autoencoder(run, scratch / "autoencoder")
    run.commit(
        "latents", "data_pipelines.encode_images", "latents",
        inputs=("images", "autoencoder"), seconds=31.0, timings={"images_per_s": 640.2},
        outcomes=Outcomes(input=20003, written=20000, rejected={"truncated": 3}),
    )  # fmt: skip
    run.commit("tokenizer", "data_pipelines.tokenizer", "tokenizer",
               inputs=("images", "prose"), seconds=3.9, metadata={"num_pieces": 2048})  # fmt: skip
    run.commit("tokens", "data_pipelines.tokenize_text", "tokens", seconds=4.2,
               inputs={"documents": "prose", "tokenizer": "tokenizer"},
               outcomes=Outcomes(input=82, written=82))  # fmt: skip
    run.commit(
        "mixture", "data_pipelines.mix", "mixture", inputs=("latents", "tokens"), seconds=2.2,
        metrics={"padding": 0.002232, "image_slots_used": 0.971, "share.pairs": 0.7517,
                 "largest_ratio_error_in_64": 0.0041},
        metadata={
            "sequence_length": 256, "lanes": 2, "sequences_per_micro_batch": 7, "steps": 5000,
            "image_slots": 40, "text_rows": 900, "seed": 0, "layout": {"patch_size": 2},
            "sources": {"pairs": {"weight": 3.0, "tokens": "x"}, "prose": {"weight": 1.0}},
            "statistics": {
                "pairs": {"documents": 20_000, "held_out": 410, "positions": 13_440_000,
                          "caption_tokens": 3_100_000, "patch_tokens": 9_800_000,
                          "prose_tokens": 0, "epochs": 41.2},
                "prose": {"documents": 82, "held_out": 2, "positions": 4_440_000,
                          "caption_tokens": 0, "patch_tokens": 0, "prose_tokens": 4_400_000,
                          "epochs": 9.7},
            },
        },
    )  # fmt: skip
    _training(run, scratch / "run", steps)
    run.commit("export", "transfusion.package", "model", seconds=0.8,
               inputs={"run": "train", "tokenizer": "tokenizer", "autoencoder": "autoencoder",
                       "mixture": "mixture"})  # fmt: skip
    _evaluation(run, scratch / "evaluation", judged=judged, nearest=nearest)
    return run


def drawn(color: str, shape: str, size_px: int = 32, *, softness: float = 0.0) -> bytes:
    """An object on a light ground, as PNG."""
    image = Image.new("RGB", (size_px * 4, size_px * 4), (247, 247, 245))
    draw, low, high = ImageDraw.Draw(image), size_px, size_px * 3
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=COLORS[color])
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=COLORS[color])
    else:
        draw.polygon([(low, high), (high, high), (size_px * 2, low)], fill=COLORS[color])
    image = image.resize((size_px, size_px), Image.Resampling.BOX)
    sink = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(softness)).save(sink, "PNG")
    return sink.getvalue()


def _autoencoder(run: FakeRun, folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = [
        {"step": 50 * i, "kind": "validation", "values": {"psnr_db": 33 - 14 * math.exp(-i / 4)},
         "timing": {}}
        for i in range(1, 20)
    ]  # fmt: skip
    rows += [
        {"step": i, "kind": "train", "values": {"loss": 0.02 + 0.3 * math.exp(-i / 60), "lr": 1e-3},
         "timing": {"step_s": 0.05}}
        for i in range(1, 951)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text("{}")
    uses = "transfusion.train.autoencoder"
    run.commit("autoencoder", uses, "autoencoder", inputs={"images": "pixels"}, seconds=64.0,
               files=run.folder(uses, folder), metrics={"psnr_db": 32.8})  # fmt: skip


def _training(run: FakeRun, folder: Path, steps: int) -> None:
    (folder / "previews").mkdir(parents=True)
    with Image.open(io.BytesIO(drawn("red", "circle"))) as image:
        strip_png = png_row(np.stack([np.asarray(image.convert("RGB"))] * 8))
    every = max(1, steps // 10)
    for step in range(every, steps + 1, every):
        strip = folder / "previews" / f"step-{step:06d}"
        strip.with_suffix(".png").write_bytes(strip_png)
        strip.with_suffix(".json").write_text(json.dumps({"prompts": ["a red circle", HOSTILE]}))
    draw, rows = random.Random(0), []
    for step in range(1, steps + 1):
        at = step / steps
        lm = 2.1 + 5.4 * math.exp(-at * 9) + draw.gauss(0, 0.12)
        diffusion = 0.16 + 0.85 * math.exp(-at * 14) + draw.gauss(0, 0.02)
        values = {
            "loss": lm + 5 * diffusion, "lm_loss": lm, "diffusion_loss": diffusion,
            "grad_norm": 0.6 + 4 * math.exp(-at * 20) + abs(draw.gauss(0, 0.2)),
            "lr": 1e-3 * min(step / 80, 0.5 + 0.5 * math.cos(math.pi * at)),
        }  # fmt: skip
        values |= _measured(at, diffusion, draw)
        busy = draw.gauss(0, 0.004)
        if step == 700:
            values |= {"spike": 1.0, "rewound_steps": 120.0}
        timing = {
            "step_s": 0.16, "data_s": 0.004, "forward_s": 0.047 + busy, "backward_s": 0.094 - busy,
            "optimizer_s": 0.015, "checkpoint_s": 0.4 if step % 100 == 1 < step else 0.0,
            "validation_s": 0.7 if step % 100 == 1 < step else 0.0, "preview_s": 0.0,
            "other_s": 0.002 + abs(draw.gauss(0, 0.0005)),
            "tokens_per_s": 21_500 + draw.gauss(0, 600), "images_per_s": 402 + draw.gauss(0, 12),
            "tflops_per_s": 0.21 + draw.gauss(0, 0.004), "mfu": 0.43 + draw.gauss(0, 0.008),
            "peak_memory_bytes": 1.6e9 + (2.4e8 if at > 0.1 else 0.0),
        }  # fmt: skip
        rows.append({"step": step, "kind": "train", "values": values, "timing": timing})
        if step % 100 == 0 or step == steps:
            held_out = {"lm_loss": lm + 0.2, "diffusion_loss": diffusion + 0.01}
            held_out |= {f"ema_{name}": value - 0.06 for name, value in held_out.items()}
            rows.append({"step": step, "kind": "validation", "values": held_out, "timing": {}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.commit("train", "transfusion.train", "run", inputs=("mixture",), seconds=213.0,
               files=run.folder("transfusion.train", folder), config={"steps": steps, "lr": 1e-3},
               metadata={"num_parameters": 2_412_880},
               timings={"tokens_per_s": 21_500.0, "images_per_s": 402.1})  # fmt: skip


def _measured(at: float, diffusion: float, draw: random.Random) -> dict[str, float]:
    """What the training stage measures beside its losses."""
    found = {}
    for level, part in enumerate((2.6, 0.9, 0.35, 0.15)):
        found[f"images_t{level}"] = 16.0
        found[f"diffusion_loss_t{level}"] = diffusion * part * math.exp(draw.gauss(0, 0.12))
    for name, size in (
        ("embeddings", 0.2), ("attention", 0.5), ("ffn", 0.7), ("adapter", 0.9), ("head", 0.3)
    ):  # fmt: skip
        found[f"grad_norm_{name}"] = size * (0.3 + 2 * math.exp(-at * 20)) * draw.uniform(0.8, 1.3)
    found["stream_rms_text"] = 1.1 + 2.0 * at**0.5 + draw.gauss(0, 0.03)
    found["stream_rms_image"] = 1.4 + 3.1 * at**0.5 + draw.gauss(0, 0.05)
    return found


def _evaluation(run: FakeRun, folder: Path, *, judged: bool, nearest: bool) -> None:
    (folder / "samples").mkdir(parents=True)
    draw, samples, captions, pairs = random.Random(1), [], [], []

    def save(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        return name

    tasks = {"single_object": 128, "colors": 32, "two_objects": 32} if judged else {"captions": 24}
    for task, count in tasks.items():
        for index in range(count):
            color, shape = draw.choice(list(COLORS)), draw.choice(SHAPES)
            right = draw.random() < 0.85
            shown = shape if right else draw.choice([other for other in SHAPES if other != shape])
            sample: dict[str, Any] = {
                "prompt": f"a {color} {shape}" if judged or index else HOSTILE,
                "file": save(f"samples/{task}-{index:03}.png", drawn(color, shown, softness=0.6)),
            }
            if judged:
                reason = "" if right else f"shows {color} {shown}"
                sample |= {"task": task, "correct": right, "reason": reason}
            samples.append(sample)
    for index in range(40):
        color, shape = draw.choice(list(COLORS)), draw.choice(SHAPES)
        caption: dict[str, Any] = {
            "key": f"k{index}", "reference": f"one {color} {shape}",
            "caption": f"a {color} {shape}" if index % 9 else HOSTILE,
        }  # fmt: skip
        if judged:
            caption |= dict.fromkeys(("color_correct", "shape_correct", "exact"), index % 9 > 0)
        if index < 16:
            original = save(f"samples/{index:04}-original.png", drawn(color, shape))
            copy = save(f"samples/{index:04}-copy.png", drawn(color, shape, softness=0.5))
            caption["file"] = copy
            pairs.append({"original": original, "reconstruction": copy, "key": f"k{index}",
                          "caption": HOSTILE})  # fmt: skip
        captions.append(caption)
    found = {"samples": samples, "captions": captions, "reconstructions": pairs}
    if judged:
        found["edits"] = [
            {"key": f"e{i}", "instruction": f"make it {color}", "correct": i > 0, "nearest": HOSTILE,
             **{kind: save(f"samples/edit-{i}-{kind}.png", drawn(color, "square"))
                for kind in ("source", "made", "true")}}
            for i, color in enumerate(COLORS)
        ]  # fmt: skip
    if nearest:
        drawings = [sample["file"] for sample in samples]
        made = [*drawings, *(edit["made"] for edit in found.get("edits", []))]
        found["nearest"] = [
            {"of": of, "file": save(f"near-{i:04}.png", drawn("red", "circle", softness=0.4)),
             "source": "pairs", "key": HOSTILE if i == 2 else f"train-{i}", "image_index": i % 2,
             "distance": 0.62 * ratio, "ratio": ratio, "copy": ratio < 0.3}
            for i, of in enumerate(made)
            for ratio in [draw.uniform(0.2, 1.4)]
        ]  # fmt: skip
    for name, rows in found.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    metrics = {"text.bits_per_byte": 2.31, "text.unigram_bits_per_byte": 3.02,
               "autoencoder.psnr_db": 32.8}  # fmt: skip
    if nearest:
        metrics |= {
            "nearest.images": 18_960.0, "nearest.copies": 0.083, "nearest.distance_median": 0.489,
            "nearest.held_out_distance_median": 0.62, "nearest.distance_ratio": 0.789,
        }  # fmt: skip
    if judged:
        metrics |= {
            "single_object.accuracy": 0.82, "single_object.color_accuracy": 0.977,
            "single_object.color_shape_accuracy": 0.836, "caption.color_accuracy": 0.961,
            "edits.accuracy": 0.713, "edits.chance": 0.2, "edits.unchanged_accuracy": 0.221,
            "colors.accuracy": 0.81, "two_objects.accuracy": 0.31,
            "ceiling.real.accuracy": 1.0, "ceiling.real.color_accuracy": 1.0,
            "ceiling.real.color_shape_accuracy": 0.998,
            "ceiling.real.several_objects.accuracy": 0.995,
            "ceiling.reconstruction.accuracy": 0.97, "ceiling.reconstruction.color_accuracy": 1.0,
            "ceiling.reconstruction.color_shape_accuracy": 0.97,
            "ceiling.reconstruction.several_objects.accuracy": 0.91,
        }  # fmt: skip
    uses = "transfusion.evaluate"
    run.commit("evaluate", uses, "evaluation", inputs={"model": "export", "mixture": "mixture"},
               files=run.folder(uses, folder), metrics=metrics, seconds=58.0)  # fmt: skip
