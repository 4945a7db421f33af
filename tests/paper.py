"""The jobs of jobs/paper begun on this machine: `python -m tests.paper jobs/paper/0.16b.yaml [key=value ...]`.

Buckets, autoencoder and tokenizer are stand-ins, made anew: two dozen drawings of 256 px, a reference manual, an
autoencoder of the right shape that was never trained. All else is the job's own, the model at its size too, but
for what says how much: length and number of sequences, steps, drawings.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.documents import Image, Text
from data_pipelines.sources import python_docs, shapes
from tests.data_pipelines.tars import Member, write_tar

NUM_IMAGES = 24


@dataclass(frozen=True)
class Places:
    """Where the stand-ins lie."""

    folder: Path

    @property
    def overrides(self) -> dict[str, list[str]]:
        """What points a stage at its stand-in, by what the stage uses."""
        here = self.folder
        return {
            "data_pipelines.sources.webdataset": [f"path={here}/pairs/*.tar"],
            "data_pipelines.sources.parquet_images": [f"path={here}/classes/*.parquet"],
            "data_pipelines.sources.text": [f"path={here}/web/*.jsonl"],
            "transfusion.autoencoder": [f"path={here}/autoencoder"],
            "data_pipelines.tokenizer": [f"path={here}/tokenizer.model"],
            "data_pipelines.pixels": [f"max_images={NUM_IMAGES}"],
            "data_pipelines.encode_images": ["precision=fp32", "micro_batch=8"],
            "data_pipelines.mix": [
                "sequence_length=2048",
                "sequences_per_micro_batch=1",
                "lanes=2",
                "num_steps=2",
                "held_out_fraction=0.2",
                "validation_micro_batches=1",
            ],
            "transfusion.evaluate": [
                "num_inference_steps=100",
                "num_caption_prompts=1",
                "num_captions=1",
                "max_caption_tokens=4",
                "num_text_documents=1",
                "max_document_tokens=64",
                "num_pixels=2",
                "num_shown=1",
                "batch_size=1",
            ],
        }


def make_places(
    folder: Path, *, latent_channels: int, codes: int | None, vocab_size: int
) -> Places:
    """Writes all stand-ins but the Llama.

    Args:
        codes: Of the autoencoder's codebook; None for one without.
        vocab_size: Of the tokenizer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = shapes.ShapesConfig(num_images=NUM_IMAGES, seed=0, image_size_px=256)
    members: list[Member] = []
    rows = []
    for index in range(NUM_IMAGES):
        caption, image = shapes.document(config, index).segments
        assert isinstance(caption, Text)
        assert isinstance(image, Image)
        # What the jobs filter by: half of the images are above the limit.
        sidecar = {"caption": caption.text, "AESTHETIC_SCORE": 5.0 + 2.0 * (index % 2)}
        members += [
            (f"{index:06d}.png", image.data),
            (f"{index:06d}.json", json.dumps(sidecar).encode()),
            (f"{index:06d}.txt", caption.text.encode()),
        ]
        rows.append({"image": image.data, "label": index % 2})
    write_tar(folder / "pairs" / "00000.tar", members)
    (folder / "classes").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "classes" / "train.parquet")
    texts = _manual()
    (folder / "web").mkdir()
    (folder / "web" / "0.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    _write_autoencoder(folder / "autoencoder", latent_channels=latent_channels, codes=codes)
    from transfusion.tokenizer.training import train_tokenizer

    tokenizer = train_tokenizer(
        texts, vocab_size=vocab_size, algorithm="bpe", character_coverage=1.0
    )
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    return Places(folder)


def _manual() -> list[str]:
    config = python_docs.PythonDocsConfig()
    texts = []
    for shard in python_docs.list_shards(config):
        for row in python_docs.read(config, shard):
            texts += [part.text for part in getattr(row, "segments", ()) if isinstance(part, Text)]
    return texts


def _write_autoencoder(folder: Path, *, latent_channels: int, codes: int | None) -> None:
    import torch

    from transfusion.autoencoder.config import AutoencoderConfig
    from transfusion.autoencoder.network import build_network, save_network

    torch.manual_seed(0)
    shape = AutoencoderConfig(
        block_channels=(8, 8, 8, 8),
        layers_per_block=0,
        latent_channels=latent_channels,
        codebook_size=codes,
    )
    network = build_network(shape, sample_size_px=256)
    save_network(folder, config=network.config, weights=network.state_dict())


def overrides(job: Path, places: Places, store: Path) -> list[str]:
    """What a job of jobs/paper is to be read with: its stages pointed at the stand-ins, in small numbers."""
    from transfusion.spec.job import read_job

    given = [f"store={store}"]
    for stage in read_job(job).stages:
        changes = places.overrides.get(stage.uses, [])
        if stage.name == "train":
            changes = ["steps=2", "warmup_steps=1", "checkpoint_every_steps=1"]
        given += [f"stages.{stage.name}.config.{change}" for change in changes]
    return given


def main(given: Sequence[str] | None = None) -> int:
    """Runs it through to the report."""
    from transfusion.resources import Resources
    from transfusion.runner.cluster import start_ray, stop_ray
    from transfusion.runner.run import run_job
    from transfusion.spec.job import read_job

    parser = argparse.ArgumentParser(prog="python -m tests.paper")
    parser.add_argument("job", type=Path)
    parser.add_argument("override", nargs="*", metavar="key=value")
    arguments = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)-28s %(message)s")
    log = logging.getLogger("transfusion.job")
    with tempfile.TemporaryDirectory() as folder:
        places = make_places(Path(folder), latent_channels=8, codes=None, vocab_size=8000)
        changed = overrides(arguments.job, places, Path(folder) / "store")
        job = read_job(arguments.job, [*changed, *arguments.override])
        start_ray(num_cpus=2, log=log)
        results = run_job(job, resources=Resources(), log=log)
        stop_ray()
    for result in results:
        metrics = dict(result.artifact.manifest.content.metrics)
        print(result.planned.stage.name, f"{result.seconds:.1f} s", json.dumps(metrics)[:300])
    return 0


if __name__ == "__main__":
    sys.exit(main())
