"""Starting the Ray that a job runs on, quietly, and stopping it."""

import logging
import os
import warnings

QUIET = {
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What Ray prints by default buries what a job has to say; failures come back as exceptions."""


def start_ray(*, num_cpus: int | None, log: logging.Logger) -> None:
    """Connects to the cluster that this process runs on, or starts a local one; once."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
    import ray

    if ray.is_initialized():
        return
    # Inside a submitted job Ray sets the address; the environment is the job's, and is not given again.
    inside = os.environ.get("RAY_ADDRESS")
    log.info("connecting to the Ray cluster" if inside else "starting a local Ray")
    ray.init(
        address=inside or "local",
        num_cpus=None if inside else num_cpus,
        include_dashboard=None if inside else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def stop_ray() -> None:
    """Leaves or stops Ray, if it was started."""
    import sys

    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()
