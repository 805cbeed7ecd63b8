"""How many sequences go at once: what fits into the memory that is free, and no more."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from jobs.generation.memory import PAGE_TOKENS, Room, Size, Widths, continuous, needs, padded, pages_of, room

GIB = 2**30
LLAMA_8B = Widths(
    layers=32, hidden=4096, attention=4096, key_value=1024, feed_forward=14336, vocabulary=128256, width=2
)
SMOL = Widths(layers=30, hidden=576, attention=576, key_value=192, feed_forward=1536, vocabulary=49152, width=4)


@given(
    free=st.integers(0, 200 * GIB),
    lengths=st.lists(st.integers(2, 8192), min_size=1, max_size=300),
    most=st.integers(1, 256) | st.none(),
    on_gpu=st.booleans(),
    drawn=st.booleans(),
    flash=st.booleans(),
)
def test_a_size_fits_and_holds_the_longest(
    free: int, lengths: list[int], most: int | None, on_gpu: bool, drawn: bool, flash: bool
) -> None:
    there = room(free, on_gpu=on_gpu, most=most)
    widths = replace(LLAMA_8B, flash=flash)
    size = continuous(widths, there, lengths, drawn=drawn)
    if size is None:
        least = Size(sequences=1, pages=pages_of(max(lengths), 256 if flash else 32), step_tokens=PAGE_TOKENS)
        assert needs(widths, replace(least, page_tokens=256 if flash else 32), drawn=drawn) > there.bytes
        return
    assert needs(widths, size, drawn=drawn) <= there.bytes <= free
    assert 1 <= size.sequences <= min(there.most, len(lengths))
    assert size.pages >= pages_of(max(lengths), size.page_tokens)
    assert size.step_tokens >= size.sequences  # each one adds a token in every step


def test_more_memory_takes_more_at_once() -> None:
    lengths = [1024] * 500
    found = [
        continuous(replace(LLAMA_8B, flash=True), room(free * GIB, on_gpu=True, most=None), lengths, drawn=False)
        for free in (2, 8, 64)
    ]
    sizes = [size.sequences for size in found if size]
    assert len(sizes) == 3
    assert sizes == sorted(set(sizes))


def test_without_flash_attention_no_more_go_at_once_than_it_is_worth() -> None:
    """Llama 8B: a token looks at 26,600 cached ones for the price of its own matrix products."""
    there = room(130 * GIB, on_gpu=True, most=None)
    masked = continuous(LLAMA_8B, there, [700] * 500, drawn=False)
    flash = continuous(replace(LLAMA_8B, flash=True), there, [700] * 500, drawn=False)
    assert masked is not None and flash is not None
    assert 30 < masked.sequences < 40
    assert flash.sequences == 256


def test_a_cpu_is_asked_for_little() -> None:
    there = room(24 * GIB, on_gpu=False, most=None)
    assert there.bytes <= 4 * GIB
    size = continuous(SMOL, there, [150] * 64, drawn=False)
    assert size is not None
    assert size.sequences == 16
    assert needs(SMOL, size, drawn=False) < GIB


def test_the_jobs_own_size_is_a_bound() -> None:
    size = continuous(SMOL, room(24 * GIB, on_gpu=False, most=3), [400] * 64, drawn=False)
    assert size is not None
    assert size.sequences == 3
    assert padded(SMOL, room(24 * GIB, on_gpu=False, most=3), 300, 400, drawn=False) == 3


def test_halving_ends_and_always_holds_the_longest() -> None:
    size: Size | None = Size(sequences=64, pages=4096, step_tokens=2048)
    seen = []
    while size is not None:
        seen.append(size)
        assert size.pages >= pages_of(1000, size.page_tokens)
        size = size.halved(1000)
    assert len(seen) > 3
    assert (seen[-1].sequences, seen[-1].step_tokens) == (1, PAGE_TOKENS)


def test_a_padded_batch_never_has_less_than_one_row() -> None:
    assert padded(LLAMA_8B, Room(bytes=0, most=64, step_tokens=1), 4000, 8000, drawn=True) == 1
    assert padded(LLAMA_8B, Room(bytes=60 * GIB, most=64, step_tokens=1), 100, 200, drawn=True) == 64
