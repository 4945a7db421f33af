"""Keys and values of what was already read, one row for each branch of each request.

A row is a sequence of its own: its length is the caller's knowledge, told by `lo` and `hi` of the
queries. A step writes its keys at the slots it is given and then reads. So a denoising step overwrites
the patches of the step before it by using the same slots again, and rows of different lengths run in
one batch: padding queries write to `dummy_slot`.
Axes: l = layers, b = rows, q = queries, s = slots, g = key and value heads, e = head width.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from transfusion.model.attention import Attend
from transfusion.model.blockwise import Second, sees
from transfusion.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyValueCache:
    """Preallocated; the last slot is a dummy that no query sees."""

    keys: Float[Tensor, "l b g s e"]
    values: Float[Tensor, "l b g s e"]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        *,
        num_rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "KeyValueCache":
        """Room for `capacity` positions in each of `num_rows` rows."""
        shape = (config.depth, num_rows, config.kv_heads, capacity + 1, config.head_dim)
        return cls(
            keys=torch.zeros(shape, device=device, dtype=dtype),
            values=torch.zeros(shape, device=device, dtype=dtype),
        )

    @property
    def capacity(self) -> int:
        """Positions that a row can hold."""
        return self.keys.shape[3] - 1

    @property
    def dummy_slot(self) -> int:
        """Where padding queries write."""
        return self.capacity

    def rows(self, index: Int[Tensor, " b"]) -> "KeyValueCache":
        """A copy of some rows, in the order given; a row may be named twice."""
        return KeyValueCache(keys=self.keys[:, index], values=self.values[:, index])

    def put_rows(self, index: Int[Tensor, " b"], rows: "KeyValueCache") -> None:
        """Writes rows back, such as those that `rows` gave."""
        self.keys[:, index] = rows.keys
        self.values[:, index] = rows.values


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStep:
    """One step over a cache: where its queries write, and what they see."""

    cache: KeyValueCache
    slots: Int[Tensor, "b q"]
    mask: Tensor
    num_keys: int

    @classmethod
    def plan(
        cls,
        cache: KeyValueCache,
        *,
        slots: Int[Tensor, "b q"],
        lo: Int[Tensor, "b q"],
        hi: Int[Tensor, "b q"],
        num_keys: int | None = None,
        second: Second | None = None,
    ) -> "CacheStep":
        """The mask of a step, once for all layers.

        Args:
            slots: Where each query's key and value are written; `dummy_slot` for padding.
            lo: First slot that each query sees.
            hi: One past the last slot that each query sees; padding must see some slot too.
            num_keys: One past the last slot that any query sees. When left out it is looked up, except on CUDA,
                where looking would wait for the device: there it is the whole capacity.
            second: Slots that each query sees besides, from and to; none past `num_keys`.
        """
        if num_keys is None:
            num_keys = cache.capacity if hi.is_cuda else int(hi.max())
        return cls(
            cache=cache,
            slots=slots,
            mask=sees(lo, hi, first=0, last=num_keys, second=second),
            num_keys=num_keys,
        )

    def layer(self, index: int) -> Attend:
        """Attention of one layer: writes its keys and values, then reads."""
        keys, values = self.cache.keys[index], self.cache.values[index]
        rows = torch.arange(keys.shape[0], device=keys.device)
        where = rearrange(rows, "b -> b 1")

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys[where, :, self.slots] = rearrange(k, "b g q e -> b q g e").to(keys.dtype)
            values[where, :, self.slots] = rearrange(v, "b g q e -> b q g e").to(values.dtype)
            return scaled_dot_product_attention(
                q,
                keys[:, :, : self.num_keys].to(q.dtype),
                values[:, :, : self.num_keys].to(q.dtype),
                attn_mask=self.mask,
                enable_gqa=q.shape[1] != keys.shape[1],
            )

        return attend
