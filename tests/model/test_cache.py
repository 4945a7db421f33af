"""Attention over pages against a softmax written out, wherever the pages lie; and paths of inference alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.model.blocks import SwiGLU, rotate, rotation
from transfusion.model.cache import PagedCache, Queries, RaggedStep
from transfusion.model.config import ModelConfig
from transfusion.model.norm import RMSNorm

CONFIG = ModelConfig(dim=32, depth=2, num_heads=4, num_kv_heads=2)
SLOTS = 160


def written_out(q, keys, values, slots, hi):
    """One query after the other; q: h e."""
    share = CONFIG.num_heads // CONFIG.kv_heads
    seen = slots[:hi]
    rows = []
    for head in range(CONFIG.num_heads):
        k, v = keys[seen, head // share], values[seen, head // share]
        weights = torch.softmax(k @ q[head] / CONFIG.head_dim**0.5, dim=0)
        rows.append(weights @ v)
    return torch.stack(rows)


@st.composite
def steps(draw):
    """Sequences: their slots, how many queries, whether these see only what is before them."""
    free = list(range(SLOTS))
    kind = draw(st.sampled_from(["runs", "even", "anywhere"]))
    if kind == "anywhere":
        free = draw(st.permutations(free))
    found, start = [], 0
    length, num = draw(st.integers(4, 12)), draw(st.integers(1, 4))
    for _ in range(draw(st.integers(1, 6))):
        if kind != "even":
            length, num = draw(st.integers(4, 12)), draw(st.sampled_from([1, 2, 4]))
        gap = 3 if kind == "even" else draw(st.integers(0, 9))
        slots = torch.tensor(free[start + gap : start + gap + length])
        start += gap + length
        found.append((slots, num, draw(st.booleans()), kind != "anywhere"))
    return found


@settings(max_examples=100, deadline=None)
@given(sequences=steps(), together=st.sampled_from([None, True, False]), seed=st.integers(0, 99))
@torch.inference_mode()
def test_every_query_sees_its_own_keys_and_no_others(sequences, together, seed: int) -> None:
    torch.manual_seed(seed)
    cache = PagedCache.allocate(CONFIG, num_slots=SLOTS)
    cache.keys.normal_()
    cache.values.normal_()
    queries, ends = [], []
    for slots, num, is_causal, is_run in sequences:
        hi = len(slots) - num + 1 + torch.arange(num) if is_causal else None
        queries.append(Queries(slots=slots, num=num, is_run=is_run, hi=hi))
        ends.append([len(slots)] * num if hi is None else hi.tolist())
    n = sum(one.num for one in queries)
    q = torch.randn(1, CONFIG.num_heads, n, CONFIG.head_dim)
    k, v = torch.randn(2, 1, CONFIG.kv_heads, n, CONFIG.head_dim)
    keys, values = cache.keys[1].clone(), cache.values[1].clone()
    plan = RaggedStep.plan(cache, queries, together=together)
    seen = plan.layer(1)(q, k, v)
    assert seen.shape == q.shape
    row = 0
    for one in queries:
        own = one.slots[len(one.slots) - one.num :]
        keys[own] = k[0, :, row : row + one.num].transpose(0, 1)
        values[own] = v[0, :, row : row + one.num].transpose(0, 1)
        row += one.num
    assert torch.equal(cache.keys[1], keys)
    assert torch.equal(cache.values[1], values)
    row = 0
    for one, until in zip(queries, ends, strict=True):
        for hi in until:
            expected = written_out(q[0, :, row], keys, values, one.slots, hi)
            torch.testing.assert_close(seen[0, :, row], expected, atol=1e-5, rtol=1e-5)
            row += 1


def test_sequences_in_runs_as_far_from_each_other_are_read_where_they_lie() -> None:
    cache = PagedCache.allocate(CONFIG, num_slots=SLOTS)

    def plan(*firsts: int):
        slots = [torch.arange(first, first + 10) for first in firsts]
        return RaggedStep.plan(cache, [Queries(slots=one, num=2, is_run=True) for one in slots])

    def copies(step) -> bool:
        (group,) = step.groups
        stored = group.keys.of(cache.keys[0])
        return stored.untyped_storage().data_ptr() != cache.keys.untyped_storage().data_ptr()

    assert not copies(plan(0, 20, 40))
    assert not copies(plan(7))
    assert copies(plan(0, 20, 50))
    assert copies(plan(40, 20, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_only_infers_computes_what_training_does(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, ffn = RMSNorm(32, eps=1e-5).to(dtype), SwiGLU(CONFIG).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
    x = torch.randn(1, 7, 32).to(dtype)
    heads = torch.randn(1, 4, 7, 8).to(dtype)
    by = rotation(torch.arange(7)[None], head_dim=8, theta=1e4, dtype=dtype)
    trained = norm(x), ffn(x), rotate(heads, by)
    before = x.clone(), heads.clone()
    with torch.inference_mode():
        inferred = norm(x), ffn(x), rotate(heads, by)
        given = x.clone(), heads.clone()
        ffn(given[0]), norm(given[0]), rotate(given[1], by)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    close = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    for one, other in zip(inferred, trained, strict=True):
        torch.testing.assert_close(one, other.detach(), **close)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(inferred[0].double(), exact * norm.weight.double(), **close)
    gate, up = F.linear(x, ffn.gate_up.weight).chunk(2, dim=-1)
    torch.testing.assert_close(
        inferred[1], F.linear(gate * gate.sigmoid() * up, ffn.out.weight).detach(), **close
    )
