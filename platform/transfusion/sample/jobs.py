"""What waits in an engine and what is under way: jobs, and prompts that several of them share."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from transfusion.model.cache import PagedCache
from transfusion.package.format import PackageConfig
from transfusion.sample.batch import Passed, StepBatch
from transfusion.sample.events import Begun, Event, Result
from transfusion.sample.pages import PAGE_SIZE, PagedSequence, Pages, pages_for
from transfusion.sample.reading import Part, TextPart, length_of, read
from transfusion.sample.rows import Request, Row, branches_for, check_request, room_for
from transfusion.sample.stream import Decode

Listener = Callable[[int, Event], None]
"""Told the number of a request among those that were submitted together, and what came of it."""


@dataclass(slots=True, eq=False)
class Prefix:
    """A prompt, opened by BOS; read once for all jobs that begin with it."""

    parts: tuple[Part, ...]
    users: int = 0
    """Jobs that have not begun."""
    sequence: PagedSequence | None = None
    """Where it was read for several; a job alone reads it into its own."""
    row: int | None = None
    """Its last, in the step under way."""
    hidden: Tensor | None = None

    def leave(self) -> None:
        """One user less; after the last the pages are only those of its forks."""
        self.users -= 1
        if not self.users and self.sequence is not None:
            self.sequence.close()

    def fork(self, row: Row, cache: PagedCache, passed: Passed | None) -> None:
        """Lets a row go on behind the prompt: full pages are shared, of the last one it gets a copy."""
        assert self.sequence is not None
        if self.row is not None and passed is not None:
            self.hidden, self.row = passed.hidden[self.row], None
        start, stop = row.sequence.length, self.sequence.length
        if stop > start:
            slots = slice(start, stop)
            cache.copy(self.sequence.slots[slots], row.sequence.slots[slots])
        row.sequence.length, row.hidden = stop, self.hidden
        self.leave()


@dataclass(slots=True, eq=False)
class Job:
    """A request in the engine.

    Attributes:
        is_cancelled: Set from any thread: the job takes part in no step that begins later.
    """

    request: Request
    prefix: Prefix
    index: int
    """Among the requests that were submitted together."""
    listener: Listener
    is_cancelled: bool = False
    row: Row | None = None
    result: Result | None = None


class Admission:
    """The queue, and the pages that decide who may join. Jobs join in their order: none waits for ever."""

    def __init__(
        self,
        config: PackageConfig,
        *,
        pages: Pages,
        max_rows: int,
        max_step_positions: int,
        decode: Decode | None,
        device: torch.device,
    ) -> None:
        self.config = config
        self.pages = pages
        self.max_rows = max_rows
        self.max_step_positions = max_step_positions
        self.waiting: deque[Job] = deque()
        self._decode = decode
        self._device = device

    def add(self, requests: Sequence[Request], listener: Listener) -> list[Job]:
        """Queues requests; see `Engine.submit`."""
        for request in requests:
            check_request(request, self.config)
            needed = sum(self._pages_of(request))
            if needed > self.pages.num_pages:
                raise ValueError(
                    f"the request can come to {needed} pages of {PAGE_SIZE} positions: must be at most "
                    f"{self.pages.num_pages}; lower max_tokens or max_images"
                )
        prefixes: dict[int, Prefix] = {}
        jobs = []
        for index, request in enumerate(requests):
            # Scores of a prompt are of a request that reads it itself.
            alone = request.params.prompt_logprobs is not None
            bos = TextPart((self.config.special.bos,))
            prefix = prefixes.setdefault(
                -1 - index if alone else id(request.prompt), Prefix((bos, *request.prompt))
            )
            prefix.users += 1
            jobs.append(Job(request, prefix, index, listener))
        self.waiting.extend(jobs)
        return jobs

    def drop_cancelled(self) -> int:
        """Forgets waiting jobs that were cancelled; returns how many."""
        dropped = 0
        # Others may append meanwhile: what is here is taken from the left, and put back in its order.
        if any(job.is_cancelled for job in tuple(self.waiting)):
            here = [self.waiting.popleft() for _ in range(len(self.waiting))]
            self.waiting.extendleft(reversed([job for job in here if not job.is_cancelled]))
            for job in here:
                if job.is_cancelled:
                    job.prefix.leave()
                    dropped += 1
        return dropped

    def admit(self, batch: StepBatch, *, num_active: int) -> Iterator[Job]:
        """Jobs that join this step, their rows made; prompts of several are read in the step."""
        read_now = 0
        while self.waiting and num_active < self.max_rows:
            job = self.waiting[0]
            prefix = job.prefix
            length = length_of(prefix.parts, self.config)
            is_shared = prefix.users > 1 or prefix.sequence is not None
            reads = length if prefix.sequence is None else 0
            if read_now and read_now + reads > self.max_step_positions:
                return
            own, others = self._pages_of(job.request)
            of_prefix = pages_for(length) if is_shared and prefix.sequence is None else 0
            shared = length // PAGE_SIZE if is_shared else 0
            if own - shared + others + of_prefix > self.pages.num_free:
                return
            self.waiting.popleft()
            read_now += reads
            if is_shared and prefix.sequence is None:
                prefix.sequence = PagedSequence(self.pages, length)
                prefix.row = read(batch, prefix.sequence, prefix.parts, config=self.config)
            job.row = self._row(job)
            if is_shared:
                job.row.state = "fork"
                job.row.num_read = reads
            else:
                prefix.users = 0
            num_active += 1
            job.listener(job.index, Begun())
            yield job

    def _row(self, job: Job) -> Row:
        request = job.request
        room = room_for(request, self.config)
        return Row(
            request,
            self.config,
            torch.Generator().manual_seed(request.params.seed),
            sequence=PagedSequence(self.pages, room, beginning=job.prefix.sequence),
            others=tuple(
                PagedSequence(self.pages, room) for room in branches_for(request, self.config)
            ),
            tell=partial(job.listener, job.index),
            decode=self._decode,
            device=self._device,
        )

    def _pages_of(self, request: Request) -> tuple[int, int]:
        """Pages that a request can come to need: of its sequence, and of the other branches."""
        others = sum(pages_for(room) for room in branches_for(request, self.config))
        return pages_for(room_for(request, self.config)), others
