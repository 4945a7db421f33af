"""`transfusion serve` from its start to a signal."""

import logging
import os
import signal

import pytest

import transfusion.runner.serve as serving
import transfusion.serve.app as app
from tests.tiny import tiny_package
from transfusion.resources import Resources
from transfusion.runner.serve import serve_model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_endpoint_in_order_though_ray_took_it(tmp_path, monkeypatch, number):
    """Ray's driver has a handler of its own for SIGTERM, which ends the process."""
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    done = []

    def start_ray(**_):
        signal.signal(signal.SIGTERM, lambda *_: done.append("ended by Ray's handler"))

    class Sending(logging.Handler):
        """Asks to stop once the endpoint says how."""

        def emit(self, record):
            if record.getMessage() == "stop with Ctrl-C":
                os.kill(os.getpid(), number)

    log = logging.getLogger("transfusion.test.serve")
    log.setLevel(logging.INFO)
    log.addHandler(sending := Sending())
    monkeypatch.setattr(serving, "start_ray", start_ray)
    monkeypatch.setattr(serving, "stop_ray", lambda: done.append("ray"))
    monkeypatch.setattr(app, "start_endpoint", lambda _: "http://here")
    monkeypatch.setattr(app, "stop_endpoint", lambda: done.append("endpoint"))
    try:
        serve_model(
            tiny_package(tmp_path),
            overrides=[],
            host=None,
            port=None,
            resources=Resources(),
            log=log,
        )
    finally:
        log.removeHandler(sending)
        for one, handler in before.items():
            signal.signal(one, handler)
    assert done == ["endpoint", "ray"]
