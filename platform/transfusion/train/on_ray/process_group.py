"""Ray Train's torch trainer and backend, where signals mean what they do elsewhere here."""

from typing import Any

from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

from transfusion.train import stop


class InterruptibleTrainer(TorchTrainer):
    """As `TorchTrainer`, without a handler of its own on the driver.

    That one ends the process with 0 and no word, and stays when training has ended.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leaves Ctrl-C to the program."""


class StoppableTorch(TorchConfig):
    """As `TorchConfig`, with workers that take SIGTERM as a request to stop.

    The training function runs in a thread, where no signal can be taken: the handler has to be set from a
    task of the actor, which a backend's start is.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train makes on the controller."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Joins the process group, then listens."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(stop.listen)
