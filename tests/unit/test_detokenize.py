"""Detokenizers: invented sentences, spelled as each data set spells its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from armd.evals.detokenize import DETOKENIZERS

CASES = {
    "wikitext": [
        (" = = Early work = = \n", " == Early work ==\n"),
        (
            ' The well @-@ known mill sold 1 @,@ 250 sacks ( or 2 @.@ 5 tons ) , then it closed . " It is over " , she '
            "said ; nobody 's heir came . \n",
            ' The well-known mill sold 1,250 sacks (or 2.5 tons), then it closed. "It is over", she said; nobody\'s '
            "heir came.\n",
        ),
        (" the millers ' guild [ a union ] at 40 ° C \n", " the millers' guild [a union] at 40°C\n"),
        (" a <unk> mill \n", " a <unk> mill\n"),  # left as it is: the published numbers keep it
        ("", ""),
    ],
    "ptb": [
        ("the mill did n't pay $ N or # N N a year", "the mill didn't pay $1 or #1 1 a year"),
        ("N N N and <unk> 's owners ' share", "N 1 1 and ?'s owners' share"),
        ("either\\/or is what it 's about", "either/or is what it's about"),
    ],
    "lm1b": [
        (
            'It cost $ 5 or £ 4 , he said , and it wasn \'t " a lot " ( for once ) .',
            'It cost $5 or £4, he said, and it wasn\'t "a lot" (for once) .',
        ),
        ("Who paid ? Nobody . Why not ?", "Who paid? Nobody. Why not?"),
        ("See http : / / a / b : it closed .", "See http://a/b: it closed."),
        ("Stop ! It is [ so to speak ] over !", "Stop! It is [so to speak] over!"),
    ],
    "lambada": [("  “ Go , ” he said .\n\n“ Now ”  ", '\n" Go , " he said .\n\n" Now "')],
    "scientific": [
        ("the value ( p = 0.05 ) was low , see [ 3 ] .", "the value (p = 0.05) was low, see [3] ."),
        ("a low - dose arm . it failed .", "a low - dose arm. it failed."),
    ],
    "none": [("left ( as it ) is , 's", "left ( as it ) is , 's")],
}


def test_every_detokenizer_has_cases() -> None:
    assert CASES.keys() == DETOKENIZERS.keys()


@pytest.mark.parametrize("name, spelled, written", [(n, *case) for n, cases in CASES.items() for case in cases])
def test_golden(name: str, spelled: str, written: str) -> None:
    assert DETOKENIZERS[name](spelled) == written


def test_real_wikitext_loses_its_marks(shared: Path) -> None:
    lines = (shared / "wikitext-2" / "wiki.test.raw").read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(map(DETOKENIZERS["wikitext"], lines))
    assert not [mark for mark in (" @-@ ", " @,@ ", " @.@ ", " , ", " ; ", " 's", " \n") if mark in text]
    assert len(lines) == 4358 and 0.94 < len(text) / sum(map(len, lines)) < 0.99
