"""A job file is checked whole before anything is started, and identified by what decides its results."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from transfusion.config import Config
from transfusion.errors import SpecError
from transfusion.resources import Resources
from transfusion.spec.job import check_job, read_job
from transfusion.spec.plan import plan_job
from transfusion.spec.stages import find_stage, known_stages
from transfusion.spec.sweep import SUFFIX, read_sweep
from transfusion.storage.store import open_store

JOB = """
store: STORE
seed: 3
stages:
  images: {uses: data_pipelines.sources.shapes, config: {num_images: 100, seed: "${seed}"}}
  prose: {uses: data_pipelines.sources.python_docs}
  pixels: {uses: data_pipelines.pixels, inputs: {images: images}, config: {image_size_px: 32, max_images: 10}}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("STORE", str(tmp_path / "store")))
    return file


FAULTY = """
stor: ./artifacts
stages:
  images: {uses: data_pipelines.sources.shape}
  prose: {uses: data_pipelines.sources.python_docs, config: {max_topics: 3}}
  more: {uses: data_pipelines.sources.shapes, config: {num_images: -1, seed: 0}}
  pixels: {uses: data_pipelines.pixels, inputs: {images: imagse}, config: {image_size_px: 32, max_images: 10}}
"""


def test_five_mistakes_are_five_messages_with_places_and_remedies(tmp_path: Path) -> None:
    """As a user meets them: from the command line, exit code 2, in under a second (not asserted here)."""
    file = tmp_path / "faulty.yaml"
    file.write_text(FAULTY)
    done = subprocess.run(
        [sys.executable, "-m", "transfusion.cli", "plan", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    told = done.stderr.splitlines()
    assert len(told) == 5, done.stderr
    assert all(line.startswith(f"{file}: ") for line in told)
    for start, remedy in [
        ("stor: unknown key", "did you mean 'store'?"),
        ("stages.images.uses: no stage 'data_pipelines.sources.shape'", "did you mean"),
        ("stages.prose.config.max_topics: unknown key", ""),
        ("stages.more.config.num_images: ", "got -1"),
        ("stages.pixels.inputs.images: there is no stage 'imagse'", "did you mean 'images'?"),
    ]:
        assert any(line.startswith(f"{file}: {start}") and remedy in line for line in told), (
            start,
            told,
        )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ({"a": {"uses": "os"}}, "no stage 'os'"),
        (
            {"a": {"uses": "data_pipelines.pixels", "config": {"image_size_px": 32}}},
            "needs this input",
        ),
        ({}, "at least 1"),
        ({"a": {"uses": "data_pipelines.sources.python_docs", "inputs": {"x": "a"}}}, "has no such input"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_run_is_refused(stages: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        check_job({"stages": stages}, name="job", where="job.yaml")


def test_stages_that_wait_for_each_other_are_named() -> None:
    pixels = {"uses": "data_pipelines.tokenize_text", "config": {}}
    stages = {
        "a": {**pixels, "inputs": {"documents": "b", "tokenizer": "b"}},
        "b": {**pixels, "inputs": {"documents": "a", "tokenizer": "a"}},
    }
    with pytest.raises(SpecError):
        check_job({"stages": stages}, name="job", where="job.yaml")


def plan(file: Path, *overrides: str) -> dict[str, Any]:
    job = read_job(file, overrides)
    return {item.stage.name: item for item in plan_job(job, open_store(job.file.store))}


def test_a_fingerprint_moves_what_depends_on_it_and_nothing_else(job_file: Path) -> None:
    before, after = plan(job_file), plan(job_file, "stages.images.config.num_images=101")
    assert before["prose"].fingerprint == after["prose"].fingerprint
    assert before["images"].fingerprint != after["images"].fingerprint
    assert before["pixels"].fingerprint != after["pixels"].fingerprint


def test_the_store_is_no_part_of_an_identity(job_file: Path, tmp_path: Path) -> None:
    here, there = plan(job_file), plan(job_file, f"store={tmp_path / 'elsewhere'}")
    assert [item.fingerprint for item in here.values()] == [
        item.fingerprint for item in there.values()
    ]


def test_a_default_that_is_written_out_changes_nothing(job_file: Path) -> None:
    stage = find_stage("data_pipelines.sources.shapes")
    field = next(name for name, field in stage.config.model_fields.items() if not field.is_required()
                 and isinstance(field.default, int))  # fmt: skip
    default = stage.config.model_fields[field].default
    written = plan(job_file, f"stages.images.config.{field}={default}")
    assert written["images"].fingerprint == plan(job_file)["images"].fingerprint


@pytest.mark.parametrize("uses", known_stages())
def test_every_config_field_is_identity_or_a_location_and_no_resource_is_a_config_field(
    uses: str,
) -> None:
    """Resources (workers, GPUs, memory, tracking) come from a profile; none may slip into a config."""

    def leaves(model: type[Config]) -> set[str]:
        names: set[str] = set()
        for name, field in model.model_fields.items():
            annotation = field.annotation
            nested = isinstance(annotation, type) and issubclass(annotation, Config)
            names |= leaves(annotation) if nested else {name}  # type: ignore[arg-type]
        return names

    assert not leaves(find_stage(uses).config) & leaves(Resources)


def test_until_keeps_only_what_the_stage_needs(job_file: Path) -> None:
    job = read_job(job_file)
    kept = plan_job(job, open_store(job.file.store), until="pixels")
    assert [item.stage.name for item in kept] == ["images", "pixels"]
    with pytest.raises(SpecError, match="there is no such stage"):
        plan_job(job, open_store(job.file.store), until="pixel")


def test_planning_is_quick_and_imports_neither_torch_nor_ray(job_file: Path) -> None:
    code = (
        "import sys; from transfusion.cli import main; sys.argv = ['transfusion', 'plan', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'diffusers'} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(job_file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    # Ten times the promised second: only a plan that runs something would take this long.
    assert time.monotonic() - started < 10


SHIPPED = sorted(Path(__file__).parents[2].glob("jobs/**/*.yaml"))
JOBS = [file for file in SHIPPED if not file.name.endswith(SUFFIX)]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_shipped_job_and_sweep_is_without_fault_and_says_what_it_is(file: Path) -> None:
    read = read_job if file in JOBS else read_sweep
    read(file)
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for word in ("Run:", "Needs:", "Expect:"):
        assert any(word in line for line in head), f"{file.name}: its header lacks {word}"


PAPER = [file for file in JOBS if file.parent.name == "paper"]


@pytest.mark.parametrize("file", PAPER, ids=lambda p: p.name)
def test_the_long_runs_of_the_papers_are_compiled_and_hold_few_logits_at_once(file: Path) -> None:
    stages = read_job(file).stages
    long = [s.config for s in stages if s.uses == "transfusion.train" and s.config.steps > 1]
    assert len(long) == (0 if file.name == "autoencoder.yaml" else 1)
    for config in long:
        assert config.compile
        assert config.lm_head_chunk_rows
        assert "compile" in file.read_text().partition("store:")[0]


def test_the_schema_accepts_every_shipped_job() -> None:
    import jsonschema

    from transfusion.spec.schema import job_schema

    schema = job_schema()
    for file in JOBS:
        errors = [
            error
            for error in jsonschema.Draft202012Validator(schema).iter_errors(
                yaml.safe_load(file.read_text())
            )
            if "${" not in str(error.instance)
        ]
        assert not errors, (file, errors[0])
