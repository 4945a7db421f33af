"""That the allocator can be told; what it saves is the sampler's benchmark's to show."""

import platform

from transfusion.sample.memory import keep_freed_memory


def test_glibc_takes_what_it_is_told_and_others_are_left_alone() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
