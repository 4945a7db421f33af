"""A replica's life: its start, a new model while it serves, a model that is damaged, an engine that hangs."""

import asyncio
import base64
import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import httpx
import pytest

from tests.serve.serving import until
from tests.tiny import tiny_model, tiny_package
from transfusion.errors import ArtifactError
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.engine import Engine
from transfusion.serve.config import EndpointConfig
from transfusion.serve.engine_process import make_engine
from transfusion.serve.guards import KEYS
from transfusion.serve.loop import Step
from transfusion.serve.messages import EngineArgs, Stepped
from transfusion.serve.process import EngineProcess
from transfusion.serve.replica import Replica, ReplicaConfig
from transfusion.serve.service import Service
from transfusion.serve.start import PARTS
from transfusion.serve.stepping import warm_up

SLOW = SamplingDefaults(solver="ddim", num_inference_steps=100)
DRAW = {"prompt": "a red circle", "seed": 3, "response_format": "b64_json"}
ENDPOINT = EndpointConfig(step_timeout_s=0.2)


def package(folder: Path, seed: int = 0) -> Path:
    return tiny_package(folder, seed=seed, sampling=SLOW)


def damage(folder: Path) -> Path:
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return folder


def caller(replica: Replica) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=replica.app)
    return httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60)


def engine_of(replica: Replica) -> EngineProcess:
    runner = replica.service.loop.runner
    assert isinstance(runner, EngineProcess)
    return runner


async def draw(client: httpx.AsyncClient) -> tuple[str, bytes]:
    """The digest of the model that answered, and its picture."""
    answer = await client.post("/v1/images/generations", json=DRAW)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model-digest"], base64.b64decode(answer.json()["data"][0]["b64_json"])


def test_what_is_under_way_ends_on_its_model_and_what_comes_next_is_answered_by_the_new_one(
    tmp_path: Path,
) -> None:
    old, new = package(tmp_path / "old"), package(tmp_path / "new", seed=7)
    digests = [load_package(folder).digest for folder in (old, new)]
    assert digests[0] != digests[1]

    async def scene() -> None:
        replica = Replica(ENDPOINT)
        await replica.take(ReplicaConfig(model=str(old)))
        service = replica.service
        async with caller(replica) as client:
            alone = await draw(client)
            engine, parts = engine_of(replica), weakref.ref(service.processor)
            under_way = asyncio.create_task(draw(client))
            await asyncio.to_thread(until, lambda: engine.step_age_s > 0)
            # It waits while the other is loaded.
            os.kill(engine.pid, signal.SIGSTOP)
            await replica.take(ReplicaConfig(model=str(new)))
            os.kill(engine.pid, signal.SIGCONT)
            after = await draw(client)
            assert await under_way == alone
            assert [alone[0], after[0]] == digests
            assert alone[1] != after[1]
        with pytest.raises(ProcessLookupError):
            os.kill(engine.pid, 0)
        del service
        gc.collect()
        assert parts() is None, "the old model is held by something"
        replica.service.close()

    asyncio.run(scene())


def test_a_damaged_model_is_refused_by_name_and_the_one_before_it_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = package(tmp_path / "good"), damage(package(tmp_path / "bad", seed=7))

    async def scene() -> None:
        replica = Replica(ENDPOINT)
        await replica.take(ReplicaConfig(model=str(good)))
        async with caller(replica) as client:
            before = await draw(client)
            await replica.take(ReplicaConfig(model=str(bad)))
            assert await draw(client) == before
            told = (await client.get("/health")).json()
        assert told["status"] == "ok"
        # Anybody may ask for it: where models lie is in the log.
        assert told["refused"] is True
        assert f"{bad} is refused" in caplog.text
        assert "safetensors" in caplog.text
        replica.service.close()

    asyncio.run(scene())


def test_a_replica_does_not_start_with_a_damaged_model(tmp_path: Path) -> None:
    bad = damage(package(tmp_path))
    with pytest.raises(ArtifactError, match="safetensors"):
        asyncio.run(Replica(ENDPOINT).take(ReplicaConfig(model=str(bad))))


def test_a_start_is_told_by_its_parts(tmp_path: Path) -> None:
    async def scene() -> str:
        replica = Replica(ENDPOINT)
        await replica.take(ReplicaConfig(model=str(package(tmp_path))))
        async with caller(replica) as client:
            text = (await client.get("/metrics")).text
        replica.service.close()
        return text

    text = asyncio.run(scene())
    told = {
        part: float(text.partition(f'transfusion_start_seconds{{part="{part}"}} ')[2].split()[0])
        for part in PARTS
    }
    # This process imported torch and collected tests before; the rest was measured within it.
    assert told["process"] > told["weights"] > 0
    assert told["warm_up"] > 0


def test_a_model_that_is_served_is_not_loaded_again_and_one_that_was_refused_is_tried_again(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        replica = Replica(ENDPOINT)
        one = ReplicaConfig(model=str(package(tmp_path / "one")))
        two = ReplicaConfig(model=str(tmp_path / "two" / "model"))
        await replica.take(one)
        first = replica.service
        await replica.take(one)
        assert replica.service is first
        await replica.take(two)
        assert replica.service is first
        assert first.is_new_model_refused
        await replica.take(one)
        assert replica.service is first
        assert not first.is_new_model_refused
        there = package(tmp_path / "there", seed=7)
        (tmp_path / "two").mkdir()
        there.rename(two.model)
        await replica.take(two)
        assert replica.service is not first
        replica.service.close()

    asyncio.run(scene())


def test_every_path_that_is_none_is_told_in_the_shape_of_errors(tmp_path: Path) -> None:
    async def scene() -> None:
        replica = Replica(ENDPOINT)
        await replica.take(ReplicaConfig(model=str(package(tmp_path))))
        async with caller(replica) as client:
            for path in ("/v1/models/a%0Ab", "/a%0Ab", "/nothing"):
                answer = await client.get(path)
                assert answer.status_code == 404
                assert answer.json()["error"]["type"] == "not_found_error"
                assert answer.headers["x-model-digest"]
        replica.service.close()

    asyncio.run(scene())


def is_well(replica: Replica) -> bool:
    try:
        replica.check()
    except RuntimeError:
        return False
    return True


def test_a_replica_whose_engine_fails_or_hangs_is_unwell_until_it_goes_on(tmp_path: Path) -> None:
    failed = Step(seconds=0.1, rows=1, positions=1, has_failed=True)

    async def scene() -> None:
        replica = Replica(ENDPOINT)
        replica.check()
        await replica.take(ReplicaConfig(model=str(package(tmp_path))))
        engine = engine_of(replica)
        for step in (failed, failed, None, failed, None):
            engine._hear(Stepped([], step))
        with pytest.raises(RuntimeError, match="3 steps of the engine have failed"):
            replica.check()
        os.kill(engine.pid, signal.SIGSTOP)
        async with caller(replica) as client:
            drawing = asyncio.create_task(draw(client))
            await asyncio.to_thread(until, lambda: engine.step_age_s > ENDPOINT.step_timeout_s)
            with pytest.raises(RuntimeError, match=r"a step of the engine takes .* at most 0.2"):
                replica.check()
            os.kill(engine.pid, signal.SIGCONT)
            await drawing
            await asyncio.to_thread(until, lambda: is_well(replica))
            # Nor does it help that those who asked have gone.
            os.kill(engine.pid, signal.SIGSTOP)
            gone = asyncio.create_task(draw(client))
            await asyncio.to_thread(until, lambda: replica.service.loop.num_queued > 0)
            gone.cancel()
            await asyncio.to_thread(until, lambda: engine.step_age_s > ENDPOINT.step_timeout_s)
            with pytest.raises(RuntimeError, match="a step of the engine takes"):
                replica.check()
        replica.service.close()

    asyncio.run(scene())


def test_a_request_whose_engine_is_killed_fails_at_once_and_the_replica_is_unwell(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        replica = Replica(ENDPOINT)
        await replica.take(ReplicaConfig(model=str(package(tmp_path))))
        engine = engine_of(replica)
        async with caller(replica) as client:
            drawing = asyncio.create_task(client.post("/v1/images/generations", json=DRAW))
            await asyncio.to_thread(until, lambda: engine.step_age_s > 0)
            os.kill(engine.pid, signal.SIGKILL)
            assert (await drawing).status_code == 503
            later = await client.post("/v1/images/generations", json=DRAW)
            assert later.status_code == 503
            assert later.headers["retry-after"]
            assert (await client.get("/health")).status_code == 503
        with pytest.raises(RuntimeError, match="the engine has died"):
            replica.check()
        replica.service.close()

    asyncio.run(scene())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_that_is_to_be_compiled_is_so_before_its_engine_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    from transfusion.serve import engine_process

    done: list[object] = []
    monkeypatch.setattr(engine_process, "compile_rows", lambda _, mode: done.append(mode))
    monkeypatch.setattr(
        engine_process, "compile_ahead", lambda _, max_positions: done.append(max_positions)
    )
    loaded = load_package(package(tmp_path))
    for is_compiled in (False, True):
        args = EngineArgs(
            folder=tmp_path, weights="ema", device=device, precision="fp32", max_rows=2, threads=1,
            is_compiled=is_compiled,
        )  # fmt: skip
        engine = make_engine(loaded.model, loaded.config, loaded.tokenizer, args)
        assert engine.is_in_buckets == is_compiled
        assert bool(done) == is_compiled
    mode, max_positions = done
    assert mode == ("reduce-overhead" if device == "cuda" else None)
    assert max_positions >= engine.max_step_positions


def test_a_model_that_cannot_be_compiled_is_refused_by_its_engine(tmp_path: Path) -> None:
    loaded = load_package(package(tmp_path))
    args = EngineArgs(
        folder=tmp_path, weights="ema", device="cpu", precision="fp32", max_rows=2, threads=1,
        is_compiled=True,
    )  # fmt: skip
    model = tiny_model(weights="by_modality", vocab_size=loaded.config.special.vocab_size)
    with pytest.raises(ArtifactError, match=r"endpoint.compile: .*by_modality.* leave it out"):
        make_engine(model, loaded.config, loaded.tokenizer, args)


def test_the_engine_gets_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, "sk-canary")
    monkeypatch.setenv("KEPT", "as-it-was")
    service = Service.load(package(tmp_path), ENDPOINT)
    assert isinstance(service.loop.runner, EngineProcess)
    environment = Path(f"/proc/{service.loop.runner.pid}/environ").read_bytes()
    service.close()
    assert b"KEPT=as-it-was" in environment
    assert b"canary" not in environment


def test_an_engine_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path\n"
        "from transfusion.serve.config import EndpointConfig\n"
        "from transfusion.serve.service import Service\n"
        f"service = Service.load(Path({str(package(tmp_path))!r}), EndpointConfig())\n"
        "print(service.loop.runner.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    until(
        lambda: not Path(f"/proc/{int(ran.stdout)}/cmdline").exists() or _is_zombie(int(ran.stdout))
    )


def _is_zombie(pid: int) -> bool:
    """Ended; whoever adopted it has not asked yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_first_steps_leave_nothing_behind(tmp_path: Path) -> None:
    loaded = load_package(package(tmp_path))
    engine = Engine(loaded.model, loaded.config)
    warm_up(engine, loaded.tokenizer)
    assert engine.counts.steps
    assert engine.num_active == engine.num_waiting == 0
    assert engine.pages.num_free == engine.pages.num_pages
