"""What a number was measured under. No number of an evaluation is shown without it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from armd.data import Tokenizer


@dataclass(frozen=True)
class Protocol:
    """The terms of a measurement, in words.

    Attributes:
        task: what is measured, and in whose way.
        data: which texts, and how many of them.
        text: what was done to the text before the model saw it.
        scoring: what was computed, over which tokens, windows or samples.
        departures: where this differs from the published protocol; empty if nothing is known to.
    """

    task: str
    data: str
    text: str
    scoring: str
    departures: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The protocol as one line, to stand under every table."""
        parts = [self.task, self.data, self.text, self.scoring]
        return (
            "protocol: "
            + "; ".join(parts)
            + (f"; NOT as published: {', '.join(self.departures)}" if self.departures else "")
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The protocol for JSON, the line included."""
        return {**dataclasses.asdict(self), "line": self.line}


def is_gpt2(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer, whatever its file is called, is that of the published numbers."""
    return tokenizer.vocab_size == 50257 and tokenizer.encode("Hello world") == [15496, 995]


def vocabulary(tokenizer: Tokenizer) -> str:
    """What a protocol calls a tokenizer."""
    return "tokenizer gpt2" if is_gpt2(tokenizer) else f"tokenizer of {tokenizer.vocab_size:,} tokens, not GPT-2's"
