"""Detokenizers: text as its data set spells it, to text as people write it.

The old sets come cut into words ("do n't", "1 @,@ 000", "<unk>"). A model of ordinary text must not pay for that, so
the published zero-shot perplexities undo it first, with rules that go back to GPT-2's evaluation. A rule less or more
moves the perplexity: these are the rules of SEDD, MDLM and their successors, oddities included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rule = tuple[str, str]  # pattern, replacement; applied one after the other

WIKITEXT: Sequence[Rule] = (
    ("s '", "s'"),
    (" @([-,.])@ ", r"\1"),  # 1 @,@ 000
    (" : ", ": "),
    (" ; ", "; "),
    (r" \. ", ". "),
    (" ! ", "! "),
    (r" \? ", "? "),
    (" , ", ", "),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)

PENN_TREEBANK: Sequence[Rule] = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    (r"\\/", "/"),
    ("(?<= )N(?= )", "1"),  # numbers are written N
    (r"\$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)

BILLION_WORDS: Sequence[Rule] = (
    (r"(https?) : / / ", r"\1://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    (r" \? ", "? "),
    (r" \?$", "?"),
    (" ! ", "! "),
    (" !$", "!"),
    (" , ", ", "),
    (" : ", ": "),
    (" ; ", "; "),
    (" / ", "/"),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"\$ ", "$"),
    ("£ ", "£"),
)


def _by_rules(*tables: Sequence[Rule]) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), replacement) for table in tables for pattern, replacement in table]

    def detokenize(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return detokenize


def _lambada(text: str) -> str:
    return "\n" + re.sub("[“”]", '"', text).strip()


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "wikitext": _by_rules(WIKITEXT),
    "ptb": _by_rules(PENN_TREEBANK),
    "lm1b": _by_rules(BILLION_WORDS),
    "lambada": _lambada,
    "scientific": _by_rules(WIKITEXT, BILLION_WORDS),
}
"""By name: str -> str, one document (a line of WikiText, a sentence, an article) at a time."""
