"""Every backend against a dense reference, forwards and backwards."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from tests.model.dense import dense
from transfusion.model import attention, blockwise
from transfusion.model.attention import BACKENDS, BackendName, plan_attention


def inputs(*, positions=40, heads=4, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(positions)
    lo = torch.stack(
        [(torch.rand(positions, generator=generator) * (index + 1)).long() for _ in range(3)]
    )
    room = positions - index
    hi = index + 1 + (torch.rand(3, positions, generator=generator) * room).long()
    q, k, v = (
        torch.randn(3, h, positions, 8, generator=generator, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    )
    return q, k, v, lo, hi


def second_ranges(lo, *, seed=2):
    """Before the first range, or none: a half each."""
    generator = torch.Generator().manual_seed(seed)
    low = (torch.rand(lo.shape, generator=generator) * (lo + 1)).long()
    high = low + (torch.rand(lo.shape, generator=generator) * (lo - low + 1)).long()
    none = torch.rand(lo.shape, generator=generator) < 0.5
    return torch.where(none, lo, low), torch.where(none, lo, high)


def test_every_choice_has_its_row():
    assert set(get_args(BackendName)) == set(BACKENDS)


@pytest.mark.parametrize("query_block", [1, 7, 16, 40, 64])
@pytest.mark.parametrize("max_kept_keys", [512, 0], ids=["kept", "computed-again"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("ranges", [1, 2])
def test_blocks_agree_with_dense_attention_and_its_gradients(
    query_block, max_kept_keys, kv_heads, ranges, monkeypatch
):
    monkeypatch.setattr(blockwise, "MAX_KEPT_KEYS", max_kept_keys)
    monkeypatch.setattr(blockwise, "LONG_BLOCK", 24)
    q, k, v, lo, hi = inputs(kv_heads=kv_heads)
    lo2, hi2 = second_ranges(lo) if ranges == 2 else (None, None)
    attend = plan_attention(lo, hi, query_block=query_block, backend="blocks", lo2=lo2, hi2=hi2)
    ours, reference = attend(q, k, v), dense(q, k, v, lo, hi, lo2, hi2)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for got, expected in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((reference * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_kept_keys", [512, 0], ids=["kept", "computed-again"])
def test_the_written_out_derivative_passes_a_numerical_check(max_kept_keys, monkeypatch):
    monkeypatch.setattr(blockwise, "MAX_KEPT_KEYS", max_kept_keys)
    monkeypatch.setattr(blockwise, "LONG_BLOCK", 4)
    q, k, v, lo, hi = (x.double() if x.is_floating_point() else x for x in inputs(positions=9))
    given = [x[:1].detach().requires_grad_() for x in (q, k, v)]
    attend = plan_attention(lo[:1], hi[:1], query_block=4, backend="blocks")
    assert torch.autograd.gradcheck(attend, given)


def test_a_block_reads_only_the_slice_of_keys_that_its_queries_see():
    index = torch.arange(256)[None]
    lo, hi = index // 32 * 32, index + 1  # documents of 32
    blocks = blockwise.query_blocks(lo, hi, size=32)
    assert [(b.keys.start, b.keys.stop) for b in blocks] == [(s, s + 32) for s in range(0, 256, 32)]


def test_of_a_long_text_only_the_end_of_each_slice_is_masked():
    """All queries of a block see all keys before it: what is masked grows with the positions, not their pairs."""
    index = torch.arange(4096)[None]
    attend = plan_attention(torch.zeros_like(index), index + 1, query_block=32, backend="blocks")
    assert not attend.keeps
    masked = [sum(part.stop - part.start for part in block.partial) for block in attend.blocks]
    assert masked == [blockwise.LONG_BLOCK - 1] * (4096 // blockwise.LONG_BLOCK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_long_slices_agree_with_dense_attention_in_each_precision(dtype):
    """One text of 1,500 with images: longer than what is kept. Held against fp64."""
    index = torch.arange(1500)
    hi = index + 1
    for start in range(40, 1400, 130):
        hi[start : start + 64] = start + 64
    lo, hi = torch.zeros_like(index)[None], hi[None]
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(1, 2, 1500, 16, generator=generator).to(dtype).requires_grad_()
        for _ in range(3)
    ]
    exact = [x.detach().double().requires_grad_() for x in given]
    attend = plan_attention(lo, hi, query_block=32, backend="blocks")
    assert not attend.keeps
    ours, reference = attend(*given), dense(*exact, lo, hi)
    weight = torch.randn(ours.shape, generator=generator)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(ours.double(), reference, rtol=tolerance, atol=tolerance)
    for got, expected in zip(
        torch.autograd.grad((ours * weight).sum(), given),
        torch.autograd.grad((reference * weight).sum(), exact),
        strict=True,
    ):
        worst = (got.double() - expected).abs().max() / expected.abs().max()
        assert worst < tolerance


_PEAK = """
import re, sys, torch
from pathlib import Path
from transfusion.model.attention import plan_attention
n = int(sys.argv[1])
index = torch.arange(n)[None]
q, k, v = (torch.randn(1, 2, n, 16, requires_grad=True) for _ in range(3))
def peak():
    # Of this program alone: getrusage also counts the process that it was forked from.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
before = peak()
attend = plan_attention(torch.zeros_like(index), index + 1, query_block=32, backend="blocks")
layers = [attend(q, k, v) for _ in range(4)]
sum(layer.sum() for layer in layers).backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_with_the_length_of_a_text_and_not_with_its_square(repository):
    """Peak of a process over four layers and back, one text of 8,192 and of 16,384 positions."""

    def peak_kib(positions: int) -> int:
        found = subprocess.run(
            [sys.executable, "-c", _PEAK, str(positions)],
            cwd=repository / "platform", capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(found.stdout)

    shorter, longer = peak_kib(8_192), peak_kib(16_384)
    assert longer < 2.5 * shorter
    # One matrix of all pairs would be 2 GiB for two heads.
    assert longer < 400 * 1024


def test_second_ranges_that_are_empty_change_no_bit_and_no_slice():
    q, k, v, lo, hi = (x.detach() for x in inputs())
    one = plan_attention(lo, hi, query_block=7)
    two = plan_attention(lo, hi, query_block=7, lo2=lo, hi2=lo)
    assert torch.equal(one(q, k, v), two(q, k, v))
    assert [b.keys for b in one.blocks] == [b.keys for b in two.blocks]


@pytest.mark.parametrize("ranges", [1, 2])
def test_flex_agrees_with_dense_attention(monkeypatch, ranges):
    # Uncompiled: the same mask and call without half a minute of compilation. The backward is CUDA's.
    monkeypatch.setattr(
        attention, "_compiled_flex", lambda: (flex.create_block_mask, flex.flex_attention)
    )
    q, k, v, lo, hi = (x.detach() for x in inputs(positions=64))
    lo2, hi2 = second_ranges(lo) if ranges == 2 else (None, None)
    attend = plan_attention(lo, hi, query_block=1, backend="flex", lo2=lo2, hi2=hi2)
    reference = dense(q, k, v, lo, hi, lo2, hi2)
    torch.testing.assert_close(attend(q, k, v), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ranges", [1, 2])
def test_compiled_flex_agrees_with_dense_attention_and_its_gradients(ranges):
    q, k, v, lo, hi = inputs(positions=256)
    second = second_ranges(lo) if ranges == 2 else ()
    given = [x.detach().cuda().requires_grad_() for x in (q, k, v)]
    there = dict(zip(("lo2", "hi2"), (x.cuda() for x in second), strict=False))
    ours = plan_attention(lo.cuda(), hi.cuda(), query_block=1, **there)(*given)
    reference = dense(q, k, v, lo, hi, *second)
    torch.testing.assert_close(ours.cpu(), reference, rtol=1e-3, atol=1e-4)
    for got, expected in zip(
        torch.autograd.grad(ours.square().sum(), given),
        torch.autograd.grad(reference.square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-3)
