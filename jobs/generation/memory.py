"""How many sequences go through the model at once, from free memory. Pure arithmetic; knows no torch.

Follows what transformers 5.23 keeps for continuous batching (generation/continuous_batching/cache.py): pages of keys and values,
the copy that one layer's attention reads, the mask from every token of a step to every token of the cache, the scores of each
sequence. The same numbers bound a padded batch, which has less of some and more of others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Part = Literal["kv_cache", "activations", "logits"]

#: More at once make no GPU faster, and no CPU (measured: 32 at once were not faster than 16, and took more memory).
MOST_ON_GPU, MOST_ON_CPU = 256, 16
#: Tokens of prompts that go through the model in one step.
STEP_TOKENS_ON_GPU, STEP_TOKENS_ON_CPU = 2048, 256
#: Of the memory that is free so much is used; on a CPU it is everybody's, and little is enough.
SHARE_OF_GPU, SHARE_OF_CPU = 0.85, 0.25
MOST_BYTES_ON_CPU = 4 * 2**30
#: FlashAttention reads pages of 256 tokens; small ones waste less where nothing asks for large ones.
PAGE_TOKENS, PAGE_TOKENS_FLASH = 32, 256
#: float32 scores of a sequence: as they are; and sorted, added up, drawn from.
SCORES, SCORES_DRAWN = 2, 8


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The numbers of a model that memory depends on."""

    layers: int
    hidden: int
    #: Query heads and key/value heads times their width.
    attention: int
    key_value: int
    feed_forward: int
    vocabulary: int
    #: Bytes of a number.
    width: int
    #: Attention that needs no mask and no copy of keys and values for every query head (FlashAttention).
    flash: bool = False


@dataclass(frozen=True, kw_only=True)
class Room:
    """What may be used. `most`: sequences at once, as the job or the machine bounds them."""

    bytes: int
    most: int
    step_tokens: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sequences at once, pages of the cache, and tokens of one step."""

    sequences: int
    pages: int
    step_tokens: int
    page_tokens: int = PAGE_TOKENS

    def halved(self, longest: int) -> "Size | None":
        """Half of it, with a cache that still holds the longest sequence; None when there is nothing to halve."""
        least = pages_of(longest, self.page_tokens)
        if self.sequences == 1 and self.step_tokens <= PAGE_TOKENS and self.pages <= least:
            return None
        return replace(
            self,
            sequences=max(1, self.sequences // 2),
            pages=max(least, self.pages // 2),
            step_tokens=max(min(PAGE_TOKENS, self.step_tokens), self.step_tokens // 2),
        )


def room(free_bytes: int, *, on_gpu: bool, most: int | None) -> Room:
    """What a job may use of memory that is free. `most`: its own batch_size."""
    limit = MOST_ON_GPU if on_gpu else MOST_ON_CPU
    share = free_bytes * (SHARE_OF_GPU if on_gpu else SHARE_OF_CPU)
    return Room(
        bytes=int(share if on_gpu else min(share, MOST_BYTES_ON_CPU)),
        most=limit if most is None else most,
        step_tokens=STEP_TOKENS_ON_GPU if on_gpu else STEP_TOKENS_ON_CPU,
    )


def continuous(widths: Widths, room: Room, lengths: Sequence[int], *, drawn: bool) -> Size | None:
    """The size for sequences of these lengths (tokens of prompt and answer at most). None when not even the longest fits.

    The cache holds the longest of them to their ends, so that none is ever thrown out and begun again.
    """
    longest_first = sorted(lengths, reverse=True)
    most = room.most if widths.flash else min(room.most, _worth_it(widths, sum(lengths) / len(lengths)))
    page = PAGE_TOKENS_FLASH if widths.flash else PAGE_TOKENS
    sequences, step = min(most, len(lengths)), room.step_tokens
    while True:
        pages = sum(pages_of(length, page) for length in longest_first[:sequences])
        size = Size(sequences=sequences, pages=pages, step_tokens=max(step, sequences), page_tokens=page)
        if needs(widths, size, drawn=drawn) <= room.bytes:
            return size
        if sequences > 1:
            sequences //= 2
        elif step > PAGE_TOKENS:
            step //= 2
        else:
            return None


def padded(widths: Widths, room: Room, longest_prompt: int, longest: int, *, drawn: bool) -> int:
    """Rows of a padded batch, all as long as the longest; 1 when not even that fits: its own row will say so."""
    rows = room.most
    while rows > 1 and _padded_bytes(widths, rows, longest_prompt, longest, drawn=drawn) > room.bytes:
        rows //= 2
    return rows


def needs(widths: Widths, size: Size, *, drawn: bool) -> int:
    """Bytes beside the weights, for continuous batching."""
    return sum(parts(widths, size, drawn=drawn).values())


def parts(widths: Widths, size: Size, *, drawn: bool) -> dict[Part, int]:
    """What they are made of."""
    w, cached = widths.width, size.pages * size.page_tokens
    copies = 2 * (widths.key_value if widths.flash else widths.attention) + widths.key_value
    read = (cached + size.step_tokens) * copies * w + cached * 8
    mask = 0 if widths.flash else size.step_tokens * (cached + size.step_tokens) * w
    return {
        "kv_cache": cached * 2 * widths.layers * widths.key_value * w,
        "activations": read + mask + _layer(widths, size.step_tokens),
        "logits": size.sequences * _scores(widths, drawn=drawn),
    }


def pages_of(tokens: int, page_tokens: int) -> int:
    """Pages that hold so many tokens of one sequence, and the one that it grows into."""
    return math.ceil(tokens / page_tokens) + 1


def _worth_it(widths: Widths, mean: float) -> int:
    """Sequences beyond which attention costs more than all the rest, where each token's looks at the whole cache behind a mask.

    Of one layer and one token: 4 FLOP for each number of the queries and each cached token, 2 FLOP for each weight.
    """
    weights = widths.hidden * (2 * widths.attention + 2 * widths.key_value + 3 * widths.feed_forward)
    return max(1, int(weights / (2 * widths.attention) / mean))


def _layer(widths: Widths, tokens: int) -> int:
    """What one layer holds at once on the way forward."""
    numbers = 4 * widths.hidden + 2 * widths.feed_forward + widths.attention + 2 * widths.key_value
    return tokens * widths.width * numbers


def _scores(widths: Widths, *, drawn: bool) -> int:
    return widths.vocabulary * 4 * (SCORES_DRAWN if drawn else SCORES) + widths.hidden * widths.width


def _padded_bytes(widths: Widths, rows: int, prompt: int, longest: int, *, drawn: bool) -> int:
    w = widths.width
    cache = rows * longest * 2 * widths.layers * widths.key_value * w
    grown = rows * longest * widths.key_value * w  # a layer's keys are copied when a token is added
    repeated = rows * longest * 2 * widths.attention * w
    mask = rows * prompt * longest * 3 if rows > 1 else 0
    return cache + grown + repeated + _layer(widths, rows * prompt) + mask + rows * _scores(widths, drawn=drawn)
