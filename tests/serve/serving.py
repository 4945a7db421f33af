"""A service behind a real port, in this process."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

from tests.s3 import free_port
from transfusion.serve.http import make_app
from transfusion.serve.service import Service


@contextlib.contextmanager
def serving(service: Service) -> Iterator[str]:
    """Its address."""
    port = free_port()
    config = uvicorn.Config(make_app(service), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        service.close()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something to hold.

    Raises:
        TimeoutError: It did not in that time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come to hold in {seconds:g} s")
        time.sleep(0.02)
