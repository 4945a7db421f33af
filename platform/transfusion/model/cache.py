"""Keys and values of what was already read, in pages; and one ragged step of attention over them.

A sequence owns slots of the cache, one for each of its positions, in pages that need not lie side by side and may
be another's too (a common prompt). A step brings queries of many sequences, any number of each: they are laid
behind each other as one row, so that every product runs over all of them at once, and only attention knows who is
whose. A step writes its keys at its slots and then reads. So a denoising step overwrites the patches of the step
before it by taking the same slots again.
Axes: l = layers, s = slots, g = key and value heads, e = head width, n = queries of a step, b = sequences,
q = queries of a sequence, k = keys of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from transfusion.model.attention import Attend
from transfusion.model.config import ModelConfig

FEW_QUERIES = 64
"""Of a sequence. Up to so many, gathering keys for one padded call costs a CPU less than a call for each."""


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
class _Group:
    """Sequences whose attention is one call."""

    rows: slice
    """Their queries in the step."""
    size: int
    num: int
    keys: Int[Tensor, " bk"] | slice
    mask: Bool[Tensor, "b 1 q k"] | None


@dataclass(frozen=True, slots=True)
class RaggedStep:
    """One step over a cache: where its queries write, and what they see. Planned once for all layers."""

    cache: PagedCache
    write: Int[Tensor, " n"]
    groups: tuple[_Group, ...]

    @classmethod
    def plan(
        cls, cache: PagedCache, queries: Sequence[Queries], *, together: bool | None = None
    ) -> "RaggedStep":
        """The step of some sequences, their queries in the order given.

        Args:
            together: Neighbours with equally many queries attend in one padded call, rather than one by one. When
                left out: on CUDA, where a call costs more than padding; on CPU where each has few queries.
        """
        device = cache.keys.device
        write = torch.cat([one.slots[len(one.slots) - one.num :] for one in queries])
        groups: list[_Group] = []
        start = index = 0
        while index < len(queries):
            num, until = queries[index].num, index + 1
            if (device.type == "cuda" or num <= FEW_QUERIES) if together is None else together:
                while until < len(queries) and queries[until].num == num:
                    until += 1
            members = queries[index:until]
            rows = slice(start, start + num * len(members))
            groups.append(_alone(members[0], rows) if len(members) == 1 else _padded(members, rows))
            start, index = rows.stop, until
        return cls(
            cache=cache,
            write=write.to(device),
            groups=tuple(_on(group, device) for group in groups),
        )

    def layer(self, index: int) -> Attend:
        """Attention of one layer: writes its keys and values, then reads."""
        keys, values = self.cache.keys[index], self.cache.values[index]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.index_copy_(0, self.write, rearrange(k, "1 g n e -> n g e").to(keys.dtype))
            values.index_copy_(0, self.write, rearrange(v, "1 g n e -> n g e").to(values.dtype))
            seen = [_attend(q, keys, values, group) for group in self.groups]
            return torch.cat(seen, dim=2) if len(seen) > 1 else seen[0]

        return attend


def _attend(q: Tensor, keys: Tensor, values: Tensor, group: _Group) -> Tensor:
    """What a group's queries see: 1 h n e."""
    of_group = rearrange(q[:, :, group.rows], "1 h (b q) e -> b h q e", b=group.size)
    k, v = (
        rearrange(_stored(stored, group.keys), "(b k) g e -> b g k e", b=group.size).to(q.dtype)
        for stored in (keys, values)
    )
    seen = scaled_dot_product_attention(
        of_group, k, v, attn_mask=group.mask, enable_gqa=k.shape[1] != of_group.shape[1]
    )
    return rearrange(seen, "b h q e -> 1 h (b q) e")


def _stored(stored: Tensor, keys: Tensor | slice) -> Tensor:
    return stored[keys] if isinstance(keys, slice) else stored.index_select(0, keys)


def _alone(one: Queries, rows: slice) -> _Group:
    length = len(one.slots)
    mask = None
    if one.hi is not None:
        mask = rearrange(_below(length, rearrange(one.hi, "q -> 1 q")), "1 q k -> 1 1 q k")
    keys: Tensor | slice = one.slots
    if one.is_run:
        first = int(one.slots[0])
        keys = slice(first, first + length)
    return _Group(rows=rows, size=1, num=one.num, keys=keys, mask=mask)


def _padded(members: Sequence[Queries], rows: slice) -> _Group:
    """Padding is slot 0 of the cache, whatever it holds: no query sees it."""
    num, longest = members[0].num, max(len(one.slots) for one in members)
    keys = torch.zeros((len(members), longest), dtype=torch.long)
    hi = torch.empty((len(members), num), dtype=torch.long)
    for index, one in enumerate(members):
        keys[index, : len(one.slots)] = one.slots
        hi[index] = len(one.slots) if one.hi is None else one.hi
    mask = (
        None if bool((hi == longest).all()) else rearrange(_below(longest, hi), "b q k -> b 1 q k")
    )
    return _Group(rows=rows, size=len(members), num=num, keys=keys.flatten(), mask=mask)


def _below(length: int, hi: Int[Tensor, "b q"]) -> Bool[Tensor, "b q k"]:
    return torch.arange(length) < rearrange(hi, "b q -> b q 1")


def _on(group: _Group, device: torch.device) -> _Group:
    if device.type == "cpu":
        return group
    keys = group.keys if isinstance(group.keys, slice) else group.keys.to(device)
    mask = None if group.mask is None else group.mask.to(device)
    return _Group(rows=group.rows, size=group.size, num=group.num, keys=keys, mask=mask)
