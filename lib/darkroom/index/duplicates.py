"""Near duplicates among pictures: difference hashes a few bits apart, confirmed by thumbnails.

Found are copies that were encoded again, resized or slightly cropped; not mirrored, rotated or
strongly brightened ones. Flat pictures are left alone: their hashes are noise.
"""
# N pictures, P pairs

from __future__ import annotations

import numpy as np

NUM_BITS = 3  # hashes of near duplicates differ in at most these, so one of 4 bands is equal
THUMBNAIL_STEPS = 6.0  # and thumbnails in at most this, on average, of 255
THUMBNAIL_CORRELATION = 0.98
FLAT_STEPS = 4.0  # a thumbnail with a smaller deviation is flat
NUM_NEIGHBOURS = 64  # pictures with one and the same hash are compared with so many others
NUM_ACROSS = 8  # and of each of two neighbouring hashes, so many are compared


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Return the near duplicates among N pictures as (P, 2) indices, the smaller first.

    `hashes` is (N,) uint64, `thumbnails` (N, D) uint8. The search goes band by band through the
    hashes that share 16 bits, so it grows with the number of candidates, not with N squared.
    """
    if len(hashes) < 2:
        return np.empty((0, 2), np.int64)
    candidates = [_same_hash(hashes, thumbnails)]
    values, inverse = np.unique(hashes, return_inverse=True)
    order, sizes = np.argsort(inverse, kind="stable"), np.bincount(inverse)
    starts = np.cumsum(sizes) - sizes
    members = np.split(order, starts[1:])
    for shift in (0, 16, 32, 48):
        for a, b in _same_band((values >> np.uint64(shift)) & np.uint64(0xFFFF)):
            close = np.bitwise_count(values[a] ^ values[b]) <= NUM_BITS
            a, b = a[close], b[close]
            alone = (sizes[a] == 1) & (sizes[b] == 1)
            candidates.append(np.stack([order[starts[a[alone]]], order[starts[b[alone]]]], 1))
            for i, j in zip(a[~alone], b[~alone], strict=True):
                candidates.append(_across(members[i], members[j]))
    pairs = np.concatenate(candidates)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    return pairs[near(thumbnails, pairs[:, 0], pairs[:, 1])]


def _across(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return every pair of the first few pictures of two hashes."""
    return np.array([(i, j) for i in a[:NUM_ACROSS] for j in b[:NUM_ACROSS]], np.int64)


def _same_band(band: np.ndarray):
    """Yield index arrays (a, b) that together hold every pair of equal values of `band`."""
    order = np.argsort(band, kind="stable")
    ranked, start, step = band[order], np.arange(len(band)), 1
    while len(start):
        start = start[start + step < len(band)]
        start = start[ranked[start + step] == ranked[start]]
        yield order[start], order[start + step]
        step += 1


def _same_hash(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    order = np.lexsort((thumbnails.mean(1), hashes))
    ranked, found = hashes[order], [np.empty((0, 2), np.int64)]
    for step in range(1, min(NUM_NEIGHBOURS, len(hashes) - 1) + 1):
        start = np.flatnonzero(ranked[step:] == ranked[:-step])
        if len(start) == 0:
            break
        found.append(np.stack([order[start], order[start + step]], 1))
    return np.concatenate(found)


def near(thumbnails: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Say of the pictures a[i] and b[i] whether their thumbnails agree; (P,) bool."""
    agree = np.zeros(len(a), bool)
    for start in range(0, len(a), 2**16):
        at = np.arange(start, min(start + 2**16, len(a)))
        x, y = (thumbnails[i[at]].astype(np.int16) for i in (a, b))
        close = np.abs(x - y).mean(1, dtype=np.float32) <= THUMBNAIL_STEPS
        x, y = (z[close].astype(np.float32) for z in (x, y))
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
        deviations = x.std(1) * y.std(1)
        correlation = (x * y).mean(1) / np.maximum(deviations, 1e-6)
        agree[at[close]] = (correlation >= THUMBNAIL_CORRELATION) & (deviations >= FLAT_STEPS**2)
    return agree


def components(num: int, pairs: np.ndarray) -> np.ndarray:
    """Return, for N pictures, the smallest index each is linked to through any chain of pairs."""
    roots = list(range(num))

    def root(i: int) -> int:
        while roots[i] != i:
            roots[i] = roots[roots[i]]
            i = roots[i]
        return i

    for a, b in pairs.tolist():
        a, b = root(a), root(b)
        roots[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(num)], np.int64)
