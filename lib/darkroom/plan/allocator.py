"""A model of PyTorch's caching allocator: what it reserves for a sequence of births and deaths.

After c10/cuda/CUDACachingAllocator.cpp of torch 2.x: sizes are rounded, blocks are taken from
cached segments by best fit, split, and joined again when freed. `expandable` is
PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True. Written from the algorithm; a GPU decides.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

SMALLEST = 512  # bytes; sizes are multiples of it
SMALL = 2**20  # largest size served from the small pool
SMALL_SEGMENT = 2 * 2**20
LARGE_SEGMENT = 20 * 2**20
OWN_SEGMENT = 10 * 2**20  # from this size on a segment is made to measure
ROUNDED = 2 * 2**20  # to multiples of this
ENDLESS = 2**60  # bytes of addresses an expandable segment may grow into


class OutOfMemory(RuntimeError):
    """The budget is too small, also after every cached block was given back."""


class Block:
    """A piece of a segment: in use, free, or (of expandable segments) without memory behind it."""

    __slots__ = ("address", "before", "behind", "large", "segment", "size", "state")

    def __init__(self, segment: int, address: int, size: int, large: bool, state: str) -> None:
        self.segment, self.address, self.size = segment, address, size
        self.large, self.state = large, state
        self.before: Block | None = None
        self.behind: Block | None = None


class Allocator:
    """Allocations by number; `reserved` and `peak` in bytes, `limit` the budget or None."""

    def __init__(self, *, expandable: bool = False, limit: int | None = None) -> None:
        self.expandable, self.limit = expandable, limit
        self.reserved = self.peak = self.allocated = self.retries = 0
        self._held: dict[int, Block] = {}
        self._free: dict[bool, list] = {
            False: [],
            True: [],
        }  # pool -> (size, order, address, block)
        self._unmapped: dict[bool, list] = {False: [], True: []}
        self._segments = 0

    # --- what PyTorch calls ---------------------------------------------------------------------

    def allocate(self, number: int, size: int) -> None:
        """Serve a request; raises OutOfMemory beyond the limit."""
        size = max(SMALLEST, -(-size // SMALLEST) * SMALLEST)
        large = size > SMALL
        block = self._cached(size, large) or self._new(size, large)
        if block is None:
            self.retries += 1
            self._give_back()
            block = self._cached(size, large) or self._new(size, large)
            if block is None:
                raise OutOfMemory(f"{size} bytes beyond a budget of {self.limit}")
        self._take_off(block)
        rest = block.size - size
        smallest = SMALLEST - 1 if self.expandable or not large else SMALL
        if rest > smallest:
            self._split(block, size)
        block.state = "used"
        self.allocated += block.size
        self._held[number] = block

    def free(self, number: int) -> None:
        """Take a block back; it is joined with free neighbours and stays reserved."""
        block = self._held.pop(number)
        self.allocated -= block.size
        block.state = "free"
        for other in (block.before, block.behind):
            if other is not None and other.state == "free":
                self._take_off(other)
                block = self._join(block, other)
        self._put_on(block)

    # --- segments -------------------------------------------------------------------------------

    def _grow(self, size: int) -> bool:
        if self.limit is not None and self.reserved + size > self.limit:
            return False
        self.reserved += size
        self.peak = max(self.peak, self.reserved)
        return True

    def _new(self, size: int, large: bool) -> Block | None:
        """Return a free block of new memory; None beyond the limit."""
        if self.expandable:
            return self._extended(size, large)
        if not large:
            wanted = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            wanted = LARGE_SEGMENT
        else:
            wanted = -(-size // ROUNDED) * ROUNDED
        if not self._grow(wanted):
            return None
        self._segments += 1
        block = Block(self._segments, 0, wanted, large, "free")
        self._put_on(block)
        return block

    def _extended(self, size: int, large: bool) -> Block | None:
        """Put memory behind addresses of the pool's segment, if possible next to a free block."""
        page = LARGE_SEGMENT if large else SMALL_SEGMENT
        unmapped = self._unmapped[large]
        if not unmapped:
            self._segments += 1
            unmapped.append(Block(self._segments, 0, ENDLESS, large, "unmapped"))
        found = before = None
        for block in sorted(unmapped, key=lambda b: (b.size, b.address)):
            free = block.before if block.before and block.before.state == "free" else None
            if block.size + (free.size if free else 0) >= size:
                found, before = block, free
                break
        if found is None:
            return None
        missing = size - (before.size if before else 0)
        mapped = min(found.size, -(-missing // page) * page)
        if not self._grow(mapped):
            return None
        if mapped < found.size:
            self._split(found, mapped)  # the rest stays unmapped
        unmapped.remove(found)
        found.state = "free"
        if before is not None:
            self._take_off(before)
            found = self._join(found, before)
        behind = found.behind
        if behind is not None and behind.state == "free":
            self._take_off(behind)
            found = self._join(found, behind)
        self._put_on(found)
        return found

    def _give_back(self) -> None:
        """Return every cached segment, or page of an expandable one, that nothing uses."""
        for large, blocks in self._free.items():
            for *_, block in list(blocks):
                if self.expandable:
                    self._unmap(block, LARGE_SEGMENT if large else SMALL_SEGMENT)
                elif block.before is None and block.behind is None:
                    self._take_off(block)
                    self.reserved -= block.size

    def _unmap(self, block: Block, page: int) -> None:
        start = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if end <= start:
            return
        self._take_off(block)
        if start > block.address:
            block, rest = self._cut(block, start - block.address)
            self._put_on(block)
            block = rest
        if block.size > end - start:
            block, rest = self._cut(block, end - start)
            self._put_on(rest)
        self.reserved -= block.size
        block.state = "unmapped"
        unmapped = self._unmapped[block.large]
        for other in (block.before, block.behind):
            if other is not None and other.state == "unmapped":
                unmapped.remove(other)
                block = self._join(block, other)
        unmapped.append(block)

    # --- blocks ---------------------------------------------------------------------------------

    def _key(self, block: Block) -> tuple[int, int, int]:
        return block.size, block.segment, block.address

    def _cached(self, size: int, large: bool) -> Block | None:
        blocks = self._free[large]
        place = bisect.bisect_left(blocks, (size, -1, -1))
        return blocks[place][3] if place < len(blocks) else None

    def _put_on(self, block: Block) -> None:
        bisect.insort(self._free[block.large], (*self._key(block), block))

    def _take_off(self, block: Block) -> None:
        blocks = self._free[block.large]
        del blocks[bisect.bisect_left(blocks, self._key(block))]

    def _cut(self, block: Block, size: int) -> tuple[Block, Block]:
        address, state = block.address + size, block.state
        rest = Block(block.segment, address, block.size - size, block.large, state)
        rest.before, rest.behind = block, block.behind
        if rest.behind is not None:
            rest.behind.before = rest
        block.behind, block.size = rest, size
        return block, rest

    def _split(self, block: Block, size: int) -> None:
        rest = self._cut(block, size)[1]
        if rest.state == "unmapped":
            self._unmapped[rest.large].append(rest)
        else:
            self._put_on(rest)

    def _join(self, block: Block, other: Block) -> Block:
        """Join two neighbours; returns the first, which has their size."""
        first, second = (other, block) if other.address < block.address else (block, other)
        first.size += second.size
        first.behind = second.behind
        if first.behind is not None:
            first.behind.before = first
        first.state = block.state
        return first


def replay(
    events: Iterable[tuple[int, int]], *, expandable: bool = False, limit: int | None = None
) -> Allocator:
    """Allocate (number, bytes) where bytes > 0, else free the number; returns the allocator."""
    allocator = Allocator(expandable=expandable, limit=limit)
    for number, size in events:
        if size > 0:
            allocator.allocate(number, size)
        else:
            allocator.free(number)
    return allocator


def smallest_budget(
    events: list[tuple[int, int]], *, expandable: bool = False, share: float = 0.005
) -> int:
    """Return the smallest budget, in bytes and to this share, in which the sequence fits.

    Cached blocks are given back and the request tried again before it is out of memory. Whether it
    fits is taken to be monotone in the budget, which it nearly is.
    """
    high = replay(events, expandable=expandable).peak
    live = low = 0
    for _, size in events:
        live += size
        low = max(low, live)
    while high - low > share * high:
        middle = (low + high) // 2
        try:
            replay(events, expandable=expandable, limit=middle)
            high = middle
        except OutOfMemory:
            low = middle
    return high
