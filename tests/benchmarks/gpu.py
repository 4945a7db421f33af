"""One GPU, one command: `python -m tests.benchmarks.gpu [--preset 1.4B] [--device cuda]`.

Plain torch: needs torch >= 2.11, numpy, einops, jaxtyping and pydantic, and diffusers for the parts that
encode and sample; neither Ray nor pyarrow. Run it in the repository's root with `PYTHONPATH=platform` where
nothing is installed. First what CUDA computes is compared with the CPU, then speed is measured. Prints a
table, writes `gpu.json`, exits with 1 when a bar does not hold. About ten minutes on one H200; with `--device cpu
--preset tiny --length 256 --sequences 2` it shows in a minute that the paths hold.
"""

import argparse
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

NEEDED = ("torch", "numpy", "einops", "jaxtyping", "pydantic")


def main() -> int:
    """Checks, then speed; a part that fails is told, and the others go on."""
    arguments = _arguments()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}; run: pip install {' '.join(missing)}")
        return 2
    import torch

    from tests.benchmarks import gpu_attention, gpu_checks, gpu_encoding, gpu_sampling, gpu_train
    from tests.benchmarks.gpu_device import Device, describe
    from tests.benchmarks.gpu_setting import Setting
    from tests.benchmarks.measure import Result
    from tests.benchmarks.table import show
    from tests.benchmarks.worlds import one_process

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --device cpu runs the same paths, slowly")
        return 2
    device = Device(arguments.device)
    setting = Setting(
        preset=arguments.preset,
        sequences=arguments.sequences,
        length=arguments.length,
        rounds=arguments.rounds,
    )
    memory = gpu_train.FITTING.get(setting.preset, gpu_train.FITTING["1.4B"])

    def training(backend: str | None) -> list[Result]:
        return list(gpu_train.measure(device, setting, memory, backend=backend))

    parts: dict[str, Callable[[], list[Result]]] = {
        "attention is right": lambda: gpu_checks.attention(device),
        "training is right": lambda: gpu_checks.losses(device),
        "updates are right": lambda: gpu_checks.moments(device),
        "roof": device.results,
        "attention": lambda: gpu_attention.attention(device, setting),
        "training": lambda: training(None),
        "training, blocks compiled": lambda: training("inductor"),
        "sampling": lambda: gpu_sampling.sampling(device, setting, counts=arguments.counts),
        "encoding": lambda: gpu_encoding.encoding(
            device, setting, image_size_px=arguments.image_size
        ),
    }
    results: list[Result] = []
    faults: dict[str, str] = {}
    with one_process("nccl" if device.is_cuda else "gloo"):
        for name, run in parts.items():
            if arguments.only and name not in arguments.only:
                continue
            try:
                results += run()
            except Exception as error:
                faults[name] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            device.forget()
            # Written after each part: a lease that ends early leaves what was measured.
            record = {
                "machine": describe(device),
                "setting": vars(arguments) | {"out": str(arguments.out)},
                "results": [result.to_json() for result in results],
                "faults": faults,
            }
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{name}: {'failed' if name in faults else 'done'}", file=sys.stderr)
    show(results, title=f"{device.name}, torch {torch.__version__}, {arguments.preset}")
    for name, fault in faults.items():
        print(f"{name}: {fault}")
    return 1 if faults or any(result.holds is False for result in results) else 0


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--preset", default="1.4B", help="of transfusion.model.presets")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--sequences", type=int, default=8, help="of a micro-batch")
    parser.add_argument("--length", type=int, default=4096, help="positions of a sequence")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument("--image-size", type=int, default=256, help="pixels, of what is encoded")
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32],
        help="images, or texts, that are sampled at a time",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="may be repeated"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
