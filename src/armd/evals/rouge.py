"""ROUGE (Lin, 2004): overlap of a text with a reference, as F1.

Words are runs of letters a to z and digits, in lower case, as in the rouge-score package without its stemmer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from armd.evals.quality import ngrams


def words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def rouge_n(text: str, reference: str, n: int) -> float:
    """F1 of n-grams, each counted as often as both texts have it; 0 if either has none."""
    found, wanted = (Counter(ngrams(words(each), n)) for each in (text, reference))
    return _f1((found & wanted).total(), found.total(), wanted.total())


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words."""
    found, wanted = words(text), words(reference)
    return _f1(longest_common_subsequence(found, wanted), len(found), len(wanted))


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The most words, not necessarily neighbours, that both have in the same order."""
    best = [0] * (len(b) + 1)  # best[j]: of the words of a so far and the first j of b
    for word in a:
        above = best[:]
        for j, other in enumerate(b, 1):
            best[j] = above[j - 1] + 1 if word == other else max(above[j], best[j - 1])
    return best[-1]


def _f1(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if common else 0.0
