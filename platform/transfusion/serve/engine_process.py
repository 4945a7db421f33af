"""What runs in the engine's process: `python -m transfusion.serve.engine_process FD`, started by a replica."""

import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from functools import partial
from multiprocessing.connection import Connection

import torch

from transfusion.errors import ArtifactError
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import TOKENIZER, PackageConfig, read_config
from transfusion.package.load import load_model
from transfusion.sample.compiled import compile_ahead, compile_rows
from transfusion.sample.engine import Engine
from transfusion.sample.events import Event, Failed
from transfusion.sample.jobs import Job
from transfusion.sample.memory import keep_freed_memory
from transfusion.serve.loop import Step
from transfusion.serve.messages import (
    Cancel,
    EngineArgs,
    Ready,
    Refused,
    Stepped,
    Submit,
    receive,
    send,
)
from transfusion.serve.stepping import Stepper, give_up, warm_up
from transfusion.tokenizer.tokenizer import Tokenizer


class Served:
    """The engine as the other end sees it."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._connection = connection
        self._told: deque[tuple[int, int, Event]] = deque()
        self._jobs: dict[int, list[Job]] = {}
        self.stepper = Stepper(engine, after=self._after)

    def listen(self) -> None:
        """Takes requests until nobody is there to ask; then this process ends, whatever it is at."""
        engine = self.stepper.engine
        while True:
            try:
                message = receive(self._connection)
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, Submit):
                tell = partial(self._tell, message.ticket)
                try:
                    jobs = engine.submit(message.requests, tell)
                except ValueError as error:
                    for index in range(len(message.requests)):
                        tell(index, Failed(error))
                else:
                    self._jobs[message.ticket] = jobs
            elif isinstance(message, Cancel):
                give_up(engine, self._jobs.pop(message.ticket, []))
            self.stepper.wake()

    def _tell(self, ticket: int, index: int, event: Event) -> None:
        if isinstance(event, Failed):
            # Not every error can be pickled; what it was is in this process' log.
            event = Failed(RuntimeError(f"{type(event.error).__name__}: {event.error}"))
        self._told.append((ticket, index, event))

    def _after(self, step: Step | None) -> None:
        told = [self._told.popleft() for _ in range(len(self._told))]
        for ticket, jobs in list(self._jobs.items()):
            if all(job.result is not None or job.is_cancelled for job in jobs):
                self._jobs.pop(ticket, None)
        send(self._connection, Stepped(told, step))


def make_engine(
    model: TransfusionModel, config: PackageConfig, tokenizer: Tokenizer, args: EngineArgs
) -> Engine:
    """The engine of a model, which is compiled first where it is to be.

    Raises:
        ArtifactError: The model cannot be compiled.
    """
    engine = Engine(
        model, config, max_rows=args.max_rows, decode=tokenizer.decode, in_buckets=args.is_compiled
    )
    if args.is_compiled:
        compile_rows(model, mode="reduce-overhead" if args.device == "cuda" else None)
        # Prompts, and at most every row's image in all three branches of guidance.
        drawn = 3 * args.max_rows * (config.num_patches + 2)
        try:
            compile_ahead(model, max_positions=engine.max_step_positions + drawn)
        except ValueError as error:
            raise ArtifactError(f"endpoint.compile: {error}; leave it out") from error
    return engine


def main() -> None:
    """Loads the model, says so, and serves it."""
    logging.basicConfig(level=logging.WARNING, format="engine: %(message)s")
    connection = Connection(socket.socket(fileno=int(sys.argv[1])).detach())
    args: EngineArgs = receive(connection)
    keep_freed_memory()
    try:
        config = read_config(args.folder)
        model = load_model(
            args.folder, weights=args.weights, device=args.device, precision=args.precision
        )
    except ArtifactError as error:
        send(connection, Refused(str(error)))
        return
    tokenizer = Tokenizer.load(args.folder / TOKENIZER)
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    try:
        engine = make_engine(model, config, tokenizer, args)
    except ArtifactError as error:
        send(connection, Refused(str(error)))
        return
    warm_up(engine, tokenizer)
    send(connection, Ready(time.perf_counter() - began))
    served = Served(engine, connection)
    threading.Thread(target=served.listen, name="requests", daemon=True).start()
    served.stepper.run(args.threads)


if __name__ == "__main__":
    main()
