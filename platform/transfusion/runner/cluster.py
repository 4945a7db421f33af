"""Starting the Ray that a job runs on, quietly, and stopping it."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator

from transfusion.resources import ServeProxy

QUIET = {
    # Errors of Ray's own processes come back as exceptions; its notices would bury what a job has to say.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def serving_environment(proxy: ServeProxy) -> dict[str, str]:
    """What an endpoint wants of the environment that Ray is started in, which Serve's processes inherit.

    Serve's switches for throughput: proxy and replica each on one event loop, gRPC between them. Every request
    costs less by them, the refused ones of an overloaded endpoint too.
    """
    return {
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        # Its 4 MiB would lose answers of several pictures.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    } | ({"RAY_SERVE_ENABLE_HA_PROXY": "1"} if proxy == "haproxy" else {})


def start_ray(*, num_cpus: int | None, log: logging.Logger, proxy: ServeProxy = "ray") -> None:
    """Connects to the cluster that this process runs on, or starts a local one; once.

    Args:
        proxy: Before endpoints, of a local one; a cluster's is chosen where that is started.
    """
    # Inside a submitted job Ray sets the address; the environment is the job's, and is not given again.
    inside = os.environ.get("RAY_ADDRESS")
    # Of a cluster that runs, Serve's processes have their environment already.
    for name, value in (QUIET | ({} if inside else serving_environment(proxy))).items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
    import ray

    if ray.is_initialized():
        return
    if inside and proxy == "haproxy":
        log.warning("what stands before replicas was chosen where the cluster was started")
    log.info("connecting to the Ray cluster" if inside else "starting a local Ray")
    with _native_stderr_kept():
        ray.init(
            address=inside or "local",
            num_cpus=None if inside else num_cpus,
            include_dashboard=None if inside else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    # With its start comes a native handler, which would dump and abort.
    take_sigterm()
    import ray.data

    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            # One that the program hangs on its root too is not Ray's.
            is_ours = handler in logging.root.handlers
            if not is_ours and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)


def take_sigterm() -> None:
    """Has SIGTERM interrupt as Ctrl-C does: with a KeyboardInterrupt."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def stop_ray() -> None:
    """Leaves or stops Ray, if it was started."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()


@contextlib.contextmanager
def _native_stderr_kept() -> Iterator[None]:
    """Keeps what native code prints to standard error, and shows it only when the block fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            kept.seek(0)
            os.write(2, kept.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
