"""Keys and values of what was already read, in pages; and one ragged step of attention over them.

A sequence owns slots of the cache, one for each of its positions, in pages that need not lie side by side and may
be another's too (a common prompt). A step brings queries of many sequences, any number of each: they are laid
behind each other as one row, so that every product runs over all of them at once, and only attention knows who is
whose. A step writes its keys at its slots and then reads. So a denoising step overwrites the patches of the step
before it by taking the same slots again. What runs in every layer names axes by hand: einops would take a tenth of
a step of one token.
Axes: l = layers, s = slots, g = key and value heads, e = head width, n = queries of a step, b = sequences,
q = queries of a sequence, k = keys of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from transfusion.model.attention import Attend
from transfusion.model.config import ModelConfig

FEW_QUERIES = 64
"""Of a sequence. Up to so many, gathering keys for one padded call costs a CPU less than a call for each."""

LIKE_LENGTH = 0.75
"""Of a sequence against the first of its call: padding costs what keys do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedCache:
    """Preallocated for all sequences together."""

    keys: Float[Tensor, "l s g e"]
    values: Float[Tensor, "l s g e"]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        *,
        num_slots: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "PagedCache":
        """Room for `num_slots` positions, of whichever sequences."""
        shape = (config.depth, num_slots, config.kv_heads, config.head_dim)
        return cls(
            # Zeros: what is masked is multiplied by 0, which no stale NaN would survive.
            keys=torch.zeros(shape, device=device, dtype=dtype),
            values=torch.zeros(shape, device=device, dtype=dtype),
        )

    def copy(self, origin: Int[Tensor, " s"], target: Int[Tensor, " s"]) -> None:
        """Copies slots, in all layers."""
        self.keys[:, target] = self.keys[:, origin]
        self.values[:, target] = self.values[:, origin]


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """What one sequence brings to a step: its last positions, which it writes and asks with."""

    slots: Int[Tensor, " k"]
    """Where all positions of the sequence lie, from its first to its last query; on CPU."""
    num: int
    """Queries: the last `num` of the slots are theirs."""
    is_run: bool = False
    """Whether the slots are side by side: then keys are read in place."""
    hi: Int[Tensor, " q"] | None = None
    """One past the last position that each query sees; all of `slots` where it is left out."""


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Slots from anywhere: they are copied."""

    slots: Int[Tensor, "b k"]

    def of(self, stored: Float[Tensor, "s g e"]) -> Float[Tensor, "b k g e"]:
        """The slots' keys or values."""
        return stored[self.slots]


@dataclass(frozen=True, slots=True)
class _InPlace:
    """Sequences that each lie in one run, as far from each other: they are read where they are."""

    first: int
    step: int
    shape: tuple[int, int]
    """Sequences, slots of each."""

    def last(self, num: int) -> "_InPlace":
        """The last slots of each."""
        count, length = self.shape
        return _InPlace(self.first + length - num, self.step, (count, num))

    def of(self, stored: Float[Tensor, "s g e"]) -> Float[Tensor, "b k g e"]:
        """The slots' keys or values; a view of them."""
        slot, *within = stored.stride()
        return stored.as_strided(
            (*self.shape, *stored.shape[1:]),
            (self.step * slot, slot, *within),
            stored.storage_offset() + self.first * slot,
        )


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences whose attention is one call."""

    rows: slice
    """Their queries in the step."""
    size: int
    num: int
    keys: _Gathered | _InPlace
    bias: Float[Tensor, "b 1 q k"] | None
    """Added to the scores."""
    write: Int[Tensor, " n"] | _InPlace
    """Where keys and values of the queries go."""

    def put(self, stored: Float[Tensor, "s g e"], new: Float[Tensor, "n g e"]) -> None:
        """Writes the keys, or the values, of this group's rows of the step."""
        rows = new[self.rows].to(stored.dtype)
        if isinstance(self.write, _InPlace):
            target = self.write.of(stored)
            target.copy_(rows.view(target.shape))
        else:
            stored.index_copy_(0, self.write, rows)


@dataclass(frozen=True, slots=True)
class RaggedStep:
    """One step over a cache: where its queries write, and what they see. Planned once for all layers."""

    cache: PagedCache
    num_rows: int
    groups: tuple[_Group, ...]
    slots: Int[Tensor, " n"] | None
    """Where all rows are written, where none go in place: one call for all groups costs what one for each does."""

    @classmethod
    def plan(
        cls, cache: PagedCache, queries: Sequence[Queries], *, together: bool | None = None
    ) -> "RaggedStep":
        """The step of some sequences, their queries in the order given.

        Args:
            together: Neighbours with equally many queries attend in one padded call, rather than one by one. When
                left out: on CUDA, where a call costs more than padding; on CPU where few queries each
                see about as many keys.
        """
        device = cache.keys.device
        if together is None and device.type == "cuda":
            together = True
        groups: list[_Group] = []
        start = index = 0
        while index < len(queries):
            until = index + 1
            while until < len(queries) and _joins(queries[until], queries[index], together):
                until += 1
            members = queries[index:until]
            rows = slice(start, start + members[0].num * len(members))
            groups.append(_group(members, rows, cache))
            start, index = rows.stop, until
        writes = [group.write for group in groups if isinstance(group.write, Tensor)]
        return cls(
            cache=cache,
            num_rows=start,
            groups=tuple(_on(group, device) for group in groups),
            slots=torch.cat(writes).to(device) if len(writes) == len(groups) else None,
        )

    def layer(self, index: int) -> Attend:
        """Attention of one layer: writes its keys and values, then reads.

        Rows behind those of the sequences are padding: they write nothing and see nothing.
        """
        keys, values = self.cache.keys[index], self.cache.values[index]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for stored, new in ((keys, k), (values, v)):
                self._put(stored, new[0].transpose(0, 1))
            by_row = q[0].transpose(0, 1)
            seen = [_attend(by_row, keys, values, group) for group in self.groups]
            if padding := by_row.shape[0] - self.num_rows:
                seen.append(seen[0].new_zeros(padding, *seen[0].shape[1:]))
            together = torch.cat(seen) if len(seen) > 1 else seen[0]
            return together[None].transpose(1, 2)

        return attend

    def _put(self, stored: Float[Tensor, "s g e"], new: Float[Tensor, "n g e"]) -> None:
        """Writes the keys, or the values, of the step."""
        if self.slots is not None:
            stored.index_copy_(0, self.slots, new[: self.num_rows].to(stored.dtype))
            return
        for group in self.groups:
            group.put(stored, new)


def _joins(one: Queries, first: Queries, together: bool | None) -> bool:
    """Whether a neighbour attends in the call of the first of them."""
    if one.num != first.num or together is not None:
        return one.num == first.num and together is True
    shorter, longer = sorted((len(one.slots), len(first.slots)))
    return one.num <= FEW_QUERIES and shorter >= LIKE_LENGTH * longer


def _attend(
    q: Float[Tensor, "n h e"],
    keys: Float[Tensor, "s g e"],
    values: Float[Tensor, "s g e"],
    group: _Group,
) -> Float[Tensor, "m h e"]:
    """What a group's queries see."""
    num_heads, head_dim = q.shape[1:]
    of_group = q[group.rows].view(group.size, group.num, num_heads, head_dim).transpose(1, 2)
    k, v = (group.keys.of(stored).transpose(1, 2).to(q.dtype) for stored in (keys, values))
    seen = scaled_dot_product_attention(
        of_group, k, v, attn_mask=group.bias, enable_gqa=k.shape[1] != num_heads
    )
    # Heads last, as attention wrote them and as the block reads them.
    return seen.transpose(1, 2).flatten(0, 1)


def _group(members: Sequence[Queries], rows: slice, cache: PagedCache) -> _Group:
    """One sequence, or several with equally many queries, padded to the longest."""
    num, lengths = members[0].num, [len(one.slots) for one in members]
    longest = max(lengths)
    bias = None
    if min(lengths) < longest or any(one.hi is not None for one in members):
        hi = repeat(torch.tensor(lengths), "b -> b q", q=num).clone()
        for index, one in enumerate(members):
            if one.hi is not None:
                hi[index] = one.hi
        bias = _bias(longest, hi, cache.keys.dtype)
    keys = _where(members, longest, num_slots=cache.keys.shape[1])
    return _Group(
        rows=rows,
        size=len(members),
        num=num,
        keys=keys,
        bias=bias,
        # A CPU copies runs in half the time.
        write=keys.last(num)
        if isinstance(keys, _InPlace)
        and keys.step >= min(lengths) == longest
        and cache.keys.device.type == "cpu"
        else torch.cat([one.slots[len(one.slots) - one.num :] for one in members]),
    )


def _where(members: Sequence[Queries], longest: int, *, num_slots: int) -> _Gathered | _InPlace:
    """Padding is what follows a sequence, or slot 0, whatever is there: no query sees it."""
    if all(one.is_run for one in members):
        firsts = [int(one.slots[0]) for one in members]
        steps = {after - before for before, after in pairwise(firsts)} or {longest}
        if len(steps) == 1 and min(steps) >= 0 and firsts[-1] + longest <= num_slots:
            return _InPlace(firsts[0], steps.pop(), (len(members), longest))
    return _Gathered(pad_sequence([one.slots for one in members], batch_first=True))


def _bias(length: int, hi: Int[Tensor, "b q"], dtype: torch.dtype) -> Float[Tensor, "b 1 q k"]:
    """0 below `hi`, -inf from there on; as numbers, since attention would make them of a mask in every layer."""
    hidden = torch.arange(length) >= rearrange(hi, "b q -> b 1 q 1")
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)


def _on(group: _Group, device: torch.device) -> _Group:
    if device.type == "cpu":
        return group
    keys = group.keys
    if isinstance(keys, _Gathered):
        keys = _Gathered(keys.slots.to(device))
    bias = None if group.bias is None else group.bias.to(device)
    # Where its rows go is the step's: on a device nothing is written in place.
    return replace(group, keys=keys, bias=bias)
