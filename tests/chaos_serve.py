"""Ask an endpoint without a pause while its replicas are killed and its model is exchanged; check every answer.

    python -m tests.chaos_serve [--requests 1000] [--kills 10] [--swaps 10] [--callers 6]

Two replicas of a tiny model on a local Ray. Callers ask for texts and pictures under seeds; each answer names its
model, and must be what that model says when asked alone: an answer that is lost, torn or another's shows. A
request whose replica is killed may fail with a 5xx, and is asked again.
"""

import argparse
import base64
import io
import itertools
import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from tests.s3 import free_port
from tests.serve.serving import until
from tests.tiny import tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.http import make_app
from transfusion.serve.service import Service

QUICK = SamplingDefaults(solver="dpm++", num_inference_steps=10)
MAX_TRIES = 5

AFTERWARDS = 10
"""Answers of the last model at least that are waited for when all has happened."""


class Question(NamedTuple):
    """A request with a seed, and how to read what matters of its answer."""

    path: str
    body: Mapping[str, Any]

    def answer(self, got: httpx.Response) -> str | np.ndarray:
        """What the model said: a text, or the numbers of a picture."""
        if self.path.endswith("completions"):
            return str(got.json()["choices"][0]["text"])
        png = base64.b64decode(got.json()["data"][0]["b64_json"])
        return np.asarray(Image.open(io.BytesIO(png)), dtype=np.int16)

    def is_answered_by(self, got: httpx.Response, expected: str | np.ndarray | None) -> bool:
        """Whether the model says the same alone; company moves the last bits, which may round a pixel."""
        answer = self.answer(got)
        if isinstance(answer, str) or expected is None or isinstance(expected, str):
            return isinstance(answer, str) and answer == expected
        return answer.shape == expected.shape and bool(np.abs(answer - expected).max() <= 1)


QUESTIONS = tuple(
    Question(path, {"prompt": f"a {colour} circle", "seed": seed, **more})
    for colour, seed in itertools.product(("red", "green", "blue"), (1, 2))
    for path, more in (
        ("/v1/completions", {"max_tokens": 12, "temperature": 1.0}),
        ("/v1/images/generations", {}),
    )
)

Expected = Mapping[tuple[str, Any], str | np.ndarray]
"""The answer of each model, by its digest, to each question."""


@dataclass
class Tally:
    """What the callers saw."""

    answers: dict[str, int] = field(default_factory=dict)
    """Right ones, by the model's digest."""
    failures: list[str] = field(default_factory=list)
    """Tries that failed and were repeated."""
    wrong: list[str] = field(default_factory=list)

    @property
    def num_answers(self) -> int:
        """Of all models."""
        return sum(self.answers.values())


def alone(packages: Sequence[Path]) -> dict[tuple[str, Any], str | np.ndarray]:
    """Every answer of every model, from an application in this process."""
    expected = {}
    for folder in packages:
        sampler = Sampler(load_package(folder))
        service = Service(sampler, EndpointConfig())
        with TestClient(make_app(service)) as client:
            for question in QUESTIONS:
                got = client.post(question.path, json=question.body)
                expected[sampler.package.digest, _key(question)] = question.answer(got)
        service.close()
    return expected


class Callers:
    """Threads that ask without a pause until they are stopped."""

    def __init__(self, address: str, expected: Expected, *, seed: int) -> None:
        self._address, self._expected = address, expected
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._draws = random.Random(seed)
        self._lock = threading.Lock()
        self.tally = Tally()

    def start(self, num_callers: int) -> None:
        """They begin."""
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_callers)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """They end what they have begun."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _questions(self) -> Iterator[Question]:
        while not self._stopped.is_set():
            with self._lock:
                question = self._draws.choice(QUESTIONS)
            yield question

    def _ask(self) -> None:
        with httpx.Client(base_url=self._address, timeout=120) as client:
            for question in self._questions():
                self._once(client, question)

    def _once(self, client: httpx.Client, question: Question) -> None:
        for _ in range(MAX_TRIES):
            try:
                got = client.post(question.path, json=question.body)
            except httpx.HTTPError as error:
                told = f"{type(error).__name__}: {error}"
            else:
                if got.is_success:
                    self._check(question, got)
                    return
                told = f"{got.status_code}: {got.text[:200]}"
                if got.status_code < 500:
                    break
            with self._lock:
                self.tally.failures.append(told)
            time.sleep(0.2)
        with self._lock:
            self.tally.wrong.append(f"never answered: {question}: {told}")

    def _check(self, question: Question, got: httpx.Response) -> None:
        digest = got.headers["x-model-digest"]
        is_right = question.is_answered_by(got, self._expected.get((digest, _key(question))))
        with self._lock:
            if is_right:
                self.tally.answers[digest] = self.tally.answers.get(digest, 0) + 1
            else:
                self.tally.wrong.append(f"{digest[:8]} {question}: {got.text[:200]}")


def _key(question: Question) -> Any:
    return question.path, json.dumps(question.body, sort_keys=True)


class Deployment:
    """The application as a Serve config file has it: its model is what is exchanged."""

    def __init__(self, *, replicas: int) -> None:
        from ray import serve

        self.port = free_port()
        self._replicas = replicas
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def serve(self, model: Path, *, wait: bool = True) -> None:
        """Deploys a model, or exchanges it."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        application = {
            "name": "transfusion",
            "route_prefix": "/",
            "import_path": "transfusion.serve.app:build_app",
            "args": {
                "endpoint": {"max_batch_size": 4},
                "resources": {
                    "min_replicas": self._replicas,
                    "max_replicas": self._replicas,
                    "cpus_per_replica": 0.2,
                },
            },
            "deployments": [{"name": "Sampler", "user_config": {"model": str(model)}}],
            "logging_config": {"log_level": "ERROR", "enable_access_log": False},
        }
        _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]))
        if wait:
            until(self.is_ready, 120)

    def is_ready(self) -> bool:
        """Whether all replicas run, with nothing left to change."""
        from ray import serve

        told = serve.status().applications.get("transfusion")
        if told is None or told.status != "RUNNING" or "Sampler" not in told.deployments:
            return False
        states = told.deployments["Sampler"].replica_states
        return states == {"RUNNING": self._replicas}

    def kill_one(self, draws: random.Random) -> None:
        """The process of a replica dies."""
        import ray
        from ray.util import list_named_actors

        def alive() -> list[str]:
            names = [one["name"] for one in list_named_actors(all_namespaces=True)]
            return sorted(name for name in names if name.startswith("SERVE_REPLICA::"))

        # Serve learns of a death some seconds later than it happens.
        until(lambda: len(alive()) == self._replicas, 120)
        ray.kill(ray.get_actor(draws.choice(alive()), namespace="serve"), no_restart=False)


def rounds(
    folder: Path, *, requests: int, kills: int, swaps: int, callers: int, seed: int
) -> tuple[Tally, list[str]]:
    """Kills and swaps, spread over so many requests and some more; needs a Ray.

    Returns:
        What was seen, and the models' digests.
    """
    from ray import serve

    packages = [
        tiny_package(folder / name, seed=at, name=name, sampling=QUICK)
        for name, at in (("old", 0), ("new", 7))
    ]
    digests = [load_package(package).digest for package in packages]
    expected = alone(packages)
    draws = random.Random(seed)
    deployment, asked = Deployment(replicas=2), None
    try:
        deployment.serve(packages[0])
        asked = Callers(deployment.address, expected, seed=seed)
        asked.start(callers)
        happenings = ["kill"] * kills + ["swap"] * swaps
        draws.shuffle(happenings)
        model, tally = 0, asked.tally
        for number, happening in enumerate(happenings):
            due = (number + 1) * requests // (len(happenings) + 1)
            until(lambda due=due: tally.num_answers >= due, 600)
            until(deployment.is_ready, 120)
            if happening == "kill":
                deployment.kill_one(draws)
            else:
                model = 1 - model
                deployment.serve(packages[model], wait=False)
        # A slow machine answers much before the last model is there.
        last, before = digests[model], tally.answers.get(digests[model], 0)
        until(lambda: tally.answers.get(last, 0) >= before + AFTERWARDS, 600)
        until(lambda: tally.num_answers >= requests, 600)
        return tally, digests
    finally:
        if asked is not None:
            asked.stop()
        serve.shutdown()


def main() -> int:
    """Tells what was seen; 1 when an answer was lost or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos_serve", description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()

    from transfusion.runner.cluster import start_ray, stop_ray

    start_ray(num_cpus=2, log=logging.getLogger("chaos"))
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            tally, digests = rounds(
                Path(folder),
                requests=chosen.requests,
                kills=chosen.kills,
                swaps=chosen.swaps,
                callers=chosen.callers,
                seed=chosen.seed,
            )
    finally:
        stop_ray()
    of_each = [tally.answers.get(digest, 0) for digest in digests]
    print(
        f"{tally.num_answers} right answers ({of_each[0]} of the old model, {of_each[1]} of the new), "
        f"{len(tally.failures)} tries failed and were repeated, {len(tally.wrong)} lost or wrong; "
        f"{time.monotonic() - began:.0f} s"
    )
    for told in sorted(set(tally.failures)):
        print(f"  {tally.failures.count(told)} x {told}")
    print(*tally.wrong, sep="\n")
    return int(bool(tally.wrong) or tally.num_answers < chosen.requests)


if __name__ == "__main__":
    sys.exit(main())
