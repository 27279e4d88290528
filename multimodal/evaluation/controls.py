"""Which medium a sample gets when it gets the wrong one."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from multimodal.evaluation.captioning import References, as_lists, plain


def wrong_medium(references: References) -> list[int]:
    """For each sample, the number of the sample whose medium it gets: a permutation, never one with its own reference.

    Samples are grouped by reference, the groups stand in the order of a hash of their words (so that neighbours have
    nothing in common), and the line is turned by the size of the largest group. ValueError where more than half of the
    samples have one and the same reference: then no such permutation exists.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, sample in enumerate(as_lists(references)):
        groups["\n".join(sorted(" ".join(plain(text)) for text in sample))].append(number)
    n, largest = len(references), max(map(len, groups.values()), default=0)
    if n < 2 or 2 * largest > n:
        raise ValueError(
            f"{largest} of {n} samples have one and the same reference; a wrong medium for each needs at most half"
        )
    line = [number for name in sorted(groups, key=_scatter) for number in groups[name]]
    turned = line[largest:] + line[:largest]
    return [other for _, other in sorted(zip(line, turned, strict=True))]


def _scatter(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
