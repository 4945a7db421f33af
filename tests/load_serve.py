"""Load an endpoint on this machine: beside its engine alone, with ten times too much, and as it grows.

    python -m tests.load_serve saturation [--seconds 20] [--turns 3]
    python -m tests.load_serve overload [--seconds 600] [--proxy haproxy]
    python -m tests.load_serve curve

`saturation`: requests a second (pictures and texts, half of each) of a bare engine and over HTTP, through Serve,
in turns. `overload`: the latency of what is admitted at saturation, and when ten times as many requests arrive as
are answered there; refusals, and the memory of replica, engine and proxy. `curve`: a load that rises and falls;
replicas follow, each on a machine that Ray's autoscaler starts for it and stops again (processes here, by Ray's
own provider for tests), and no request fails; how long each part of a replica's start took.
Callers have a process of their own, as in life.
"""

import argparse
import json
import logging
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import torch

from tests.callers import TOKENS, Apart, bodies, load, offer
from tests.growing_cluster import growing_cluster
from tests.s3 import free_port
from tests.tiny import LATENT, package_config, tiny_autoencoder, tiny_tokenizer
from transfusion.model.config import ModelConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.package.write import write_package
from transfusion.resources import ServeResources
from transfusion.runner.cluster import start_ray, stop_ray
from transfusion.sample.engine import Engine
from transfusion.sample.events import Ended, Event
from transfusion.sample.memory import keep_freed_memory
from transfusion.sample.params import params_with
from transfusion.sample.sampler import Sampler
from transfusion.sequence.layout import SequenceLayout
from transfusion.serve.config import EndpointConfig

BATCH, QUEUED = 8, 16
STEPS, SIDE = 20, 8
OVERLOAD = 10


def make_package(folder: Path) -> Path:
    """Random weights of width 256 and depth 4, images of 64 patches."""
    tokenizer = tiny_tokenizer()
    config = package_config(
        name="load",
        num_pieces=tokenizer.num_pieces,
        model=ModelConfig(dim=256, depth=4, num_heads=4, num_kv_heads=4, patch_size=1),
        layout=SequenceLayout(patch_size=1),
        latent_height=SIDE,
        latent_width=SIDE,
        image_size_px=4 * SIDE,
        sequence_length=192,
        sampling=SamplingDefaults(solver="dpm++", num_inference_steps=STEPS),
    )
    model = TransfusionModel(
        config.model, vocab_size=config.special.vocab_size, latent_channels=LATENT[0]
    )
    model.init_weights(0)
    with torch.no_grad():
        # Texts have one length: the end is as likely as any other of the pieces.
        model.head.weight[config.special.eos] = 0
    write_package(
        folder / "package",
        config=config,
        weights={"raw": model.state_dict(), "ema": model.state_dict()},
        tokenizer=tokenizer.model,
        autoencoder=tiny_autoencoder(folder / "autoencoder"),
    )
    return folder / "package"


def engine_rate(package: Path, seconds: float) -> float:
    """Requests a second of the bare engine, its batch always full."""
    torch.set_num_threads(1)
    keep_freed_memory()
    sampler = Sampler(load_package(package))
    config = sampler.package.config
    engine = Engine(sampler.package.model, config, max_rows=BATCH)
    chosen = {
        "/v1/images/generations": {"modalities": ("image",)},
        "/v1/completions": {"modalities": ("text",), "max_tokens": TOKENS},
    }
    done, at_start, began = 0, 0, 0.0

    def listen(_: int, event: Event) -> None:
        nonlocal done
        done += isinstance(event, Ended)

    source = bodies()
    while True:
        while engine.num_waiting < BATCH:
            path, body = next(source)
            params = params_with(
                config.sampling, schedule=config.schedule, seed=body["seed"], **chosen[path]
            )
            engine.submit([sampler.request([body["prompt"]], params)], listen)
        engine.step()
        now = time.perf_counter()
        if not began and done >= 2 * BATCH:
            began, at_start = now, done
        if began and now - began > seconds:
            return (done - at_start) / (now - began)


def start(package: Path, resources: ServeResources) -> str:
    """The endpoint on Ray Serve."""
    from transfusion.serve.app import AppArgs, start_endpoint

    endpoint = EndpointConfig(
        port=free_port(), max_batch_size=BATCH, max_queued_samples=QUEUED, retry_after_s=1
    )
    return start_endpoint(AppArgs(model=str(package), endpoint=endpoint, resources=resources))


SERVING = ("ServeReplica", "transfusion.serve.engine_process", "ProxyActor", "haproxy")
"""In the names of what an answer passes: the replica, its engine, Serve's proxy and the one before it."""


def serving_rss_mib() -> float:
    """Memory of all processes that an answer passes: what waits may wait in any of them."""
    import psutil

    found = 0
    for one in psutil.process_iter():
        named = " ".join(one.cmdline() or [one.name()])
        if any(part in named for part in SERVING):
            found += one.memory_info().rss
    return found / 2**20


def saturation(package: Path, *, seconds: float, turns: int) -> bool:
    """Whether HTTP reaches nine tenths of the engine alone."""
    address = start(package, ServeResources())
    alone, served = [], []
    with Apart() as engine, Apart() as callers:
        for _ in range(turns):
            alone.append(engine.do(engine_rate, package, seconds))
            seen = callers.do(load, address, callers=2 * BATCH, seconds=seconds)
            served.append(seen.rate)
            print(f"  engine alone {alone[-1]:.2f}/s, over HTTP {served[-1]:.2f}/s", flush=True)
    ratio = sorted(b / a for a, b in zip(alone, served, strict=True))[turns // 2]
    print(f"over HTTP / engine alone: {ratio:.3f} (median of {turns} turns; bar 0.9)")
    return ratio >= 0.9


def overload(package: Path, *, seconds: float) -> bool:
    """Whether what is admitted is answered as fast as at saturation, and memory stays."""
    address = start(package, ServeResources())
    with Apart() as callers:
        at_saturation = callers.do(
            load, address, callers=BATCH + QUEUED, seconds=max(30, seconds / 10)
        )
        under_way = callers.begin(
            offer, address, rate=OVERLOAD * at_saturation.rate, seconds=seconds
        )
        memory = []
        while not under_way.done():
            memory.append(serving_rss_mib())
            time.sleep(seconds / 20)
        beyond = under_way.result()
    slower = beyond.quantile(0.99) / at_saturation.quantile(0.99)
    kept = memory[2:] or memory
    print(
        f"at saturation: {at_saturation.rate:.2f}/s, p50 {at_saturation.quantile(0.5):.2f} s, "
        f"p99 {at_saturation.quantile(0.99):.2f} s; {dict(at_saturation.codes)}\n"
        f"ten times that: {beyond.rate:.2f}/s, p50 {beyond.quantile(0.5):.2f} s, "
        f"p99 {beyond.quantile(0.99):.2f} s ({slower:.2f}x; bar 1.5x); {dict(beyond.codes)}, "
        f"{beyond.without_retry_after} refusals without Retry-After\n"
        f"memory of replica, engine and proxy over {seconds:.0f} s: {kept[0]:.0f} to {kept[-1]:.0f} MiB, "
        f"at most {max(kept):.0f}"
    )
    refused_only = set(beyond.codes) <= {200, 429} and not beyond.without_retry_after
    return slower <= 1.5 and refused_only and max(kept) <= 1.05 * kept[0]


CURVE = ((2, 20.0), (24, 60.0), (2, 60.0))
"""(callers, seconds)"""


def curve(package: Path) -> bool:
    """Whether replicas follow the load up and down, and every request is answered."""
    import ray
    from ray import serve

    address = start(
        package,
        ServeResources(
            max_replicas=3, cpus_per_replica=1, upscale_delay_s=2, downscale_delay_s=5, look_back_period_s=4,
        ),
    )  # fmt: skip

    def replicas() -> int:
        status = serve.status().applications["transfusion"].deployments["Sampler"]
        return int(status.replica_states.get("RUNNING", 0))

    def machines() -> int:
        return sum(bool(node["Alive"]) for node in ray.nodes()) - 1

    codes: Counter[int] = Counter()
    starts: set[str] = set()
    seen_machines: list[int] = []
    seen_replicas: list[list[int]] = []
    began = time.monotonic()
    with Apart() as callers:
        for count, seconds in CURVE:
            under_way = callers.begin(load, address, callers=count, seconds=seconds)
            seen_replicas.append([])
            while not under_way.done():
                seen_replicas[-1].append(replicas())
                seen_machines.append(machines())
                print(
                    f"  {time.monotonic() - began:5.0f} s  {count:2d} callers  {seen_replicas[-1][-1]} replicas  "
                    f"{seen_machines[-1]} machines",
                    flush=True,
                )
                starts.add(_start_of_one(address))
                time.sleep(5)
            codes += under_way.result().codes
        limit = time.monotonic() + 120
        while machines() > 1 and time.monotonic() < limit:
            time.sleep(1)
    low, high, again = (max(seen_replicas[0]), max(seen_replicas[1]), seen_replicas[2][-1])
    print(f"replicas {low}, at most {high}, and {again} at the end; answers {dict(codes)}")
    print(f"machines {seen_machines[0]}, at most {max(seen_machines)}, and {machines()} at the end")
    for one in sorted(starts):
        print("a replica's start:", one)
    before_s = before_process_s()
    print(
        f"before it, waiting for a machine, and Ray's worker: {before_s:.1f} s in the mean of all"
    )
    followed = high > low and again == low and machines() == 1 < max(seen_machines)
    return followed and set(codes) == {200} and len(starts) > 1


def before_process_s() -> float:
    """Of replicas that Serve has started, in the mean: from when it asked for one until its first load."""
    import ray

    head = next(node for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
    at = f"http://{head['NodeManagerAddress']}:{head['MetricsExportPort']}/metrics"
    text = httpx.get(at, timeout=30).text

    def mean_ms(what: str) -> float:
        name = rf"^ray_serve_replica_{what}_latency_ms_%s\{{.*?\}} (\S+)"
        total, count = (
            sum(map(float, re.findall(name % part, text, re.MULTILINE)))
            for part in ("sum", "count")
        )
        return total / count

    return (mean_ms("startup") - mean_ms("initialization")) / 1000


def _start_of_one(address: str) -> str:
    """Of whichever replica answers."""
    text = httpx.get(f"{address}/metrics", timeout=30).text
    found = re.findall(r'^transfusion_start_seconds\{part="(\w+)"\} (\S+)', text, re.MULTILINE)
    return ", ".join(f"{part} {float(seconds):.1f} s" for part, seconds in found)


def main() -> int:
    """0 when what is promised holds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load_serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("saturation", "overload", "curve"))
    parser.add_argument("--seconds", type=float, help="of a turn (20), or of the overload (600)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--proxy", choices=("ray", "haproxy"), default="ray")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(Path(folder))
        if chosen.what == "curve":
            with growing_cluster():
                held = curve(package)
        else:
            start_ray(num_cpus=2, log=logging.getLogger("load"), proxy=chosen.proxy)
            try:
                if chosen.what == "saturation":
                    held = saturation(package, seconds=chosen.seconds or 20, turns=chosen.turns)
                else:
                    held = overload(package, seconds=chosen.seconds or 600)
            finally:
                stop_ray()
    print(json.dumps({chosen.what: "holds" if held else "does not hold"}))
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
