"""Who owns which page of a cache, and sequences of slots in them.

Pages are counted, so that sequences may begin with the same ones. Only pages that are full and done with are
shared: where a common beginning ends within a page, what it holds of that page is copied. A sequence takes all
pages that it can ever need at once, so what has begun can always go on.
Axes: s = slots of a sequence.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

PAGE_SIZE = 16
"""Slots of a page: at most so many are wasted at the end of a sequence."""


class OutOfPagesError(Exception):
    """So many pages are not free."""


class Pages:
    """Counts the owners of each page."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._owners = [0] * num_pages
        # The lowest first: fresh sequences tend to lie in one run.
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Fresh pages, side by side where such are free.

        Raises:
            OutOfPagesError: Fewer are free; none was taken.
        """
        if count > len(self._free):
            raise OutOfPagesError(f"{count} pages are needed, {len(self._free)} are free")
        self._free.sort(reverse=True)
        start = _run(self._free, count)
        taken = self._free[start : start + count][::-1]
        del self._free[start : start + count]
        for page in taken:
            self._owners[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One owner more of each."""
        for page in pages:
            self._owners[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One owner less of each; those without are free."""
        for page in pages:
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)


def _run(falling: Sequence[int], count: int) -> int:
    """Where `count` pages side by side stand, from the end of the list; its end where there are none."""
    last = len(falling) - count
    for start in range(last, -1, -1):
        if count and falling[start] - falling[start + count - 1] == count - 1:
            return start
    return last


def pages_for(num_slots: int) -> int:
    """Pages that hold so many slots."""
    return -(-num_slots // PAGE_SIZE)


class PagedSequence:
    """The slots of one sequence, in order, and how many of them hold something.

    Attributes:
        length: Slots that hold what was read.
        offset: Added to a slot's number, the position id of what is read into it: the branches of guidance stand
            where the image stands.
    """

    def __init__(
        self, pages: Pages, room: int, *, beginning: "PagedSequence | None" = None
    ) -> None:
        """Takes pages for `room` slots.

        Args:
            beginning: Begins with the full pages of this one, which stay shared.

        Raises:
            OutOfPagesError: They are not free.
        """
        shared = beginning._pages[: beginning.length // PAGE_SIZE] if beginning else []
        own = pages.take(max(pages_for(room) - len(shared), 0))
        pages.share(shared)
        self._owner = pages
        self._pages: list[int] = [*shared, *own]
        self.length: int = len(shared) * PAGE_SIZE
        self.offset = 0
        first = torch.tensor(self._pages, dtype=torch.long) * PAGE_SIZE
        self.slots: Int[Tensor, " s"] = (first[:, None] + torch.arange(PAGE_SIZE)).flatten()[:room]
        steps = zip(self._pages, self._pages[1:], strict=False)
        self.is_run = all(after == before + 1 for before, after in steps)

    @property
    def room(self) -> int:
        """Slots that it can hold."""
        return len(self.slots)

    def close(self) -> None:
        """Gives its pages back; once is enough and twice does no harm."""
        self._owner.give_back(self._pages)
        self._pages = []
