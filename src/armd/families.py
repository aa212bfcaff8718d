"""Order families: orders by name, and their mixture over a training run.

A family of the user's own is a function (batch, length, argument, generator) -> Order, named by its file or module
(`plugins`); it stands wherever a name of `FAMILIES` may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from armd import plugins
from armd.errors import UserError
from armd.fields import check_types, is_number
from armd.orders import Order, generator

OrderFamily = Callable[[int, int, int, torch.Generator], Order]

# name -> (batch, length, argument, generator) -> Order. A new family is one line here.
FAMILIES: dict[str, OrderFamily] = {
    "left_to_right": lambda batch, length, _, g: Order.left_to_right(batch, length),
    "reinsert": lambda batch, length, rho, g: Order.reinsert(batch, length, rho, generator=g),
    "subset": lambda batch, length, rho, g: Order.subset(batch, length, rho, generator=g),
    "uniform": lambda batch, length, _, g: Order.uniform(batch, length, generator=g),
    "strided": lambda batch, length, streams, g: Order.strided(batch, length, streams),
    "strided_sequential": lambda batch, length, streams, g: Order.strided(batch, length, streams).sequential(),
    "infill": lambda batch, length, _, g: Order.infill(batch, length, generator=g),
    "spans": lambda batch, length, size, g: Order.spans(batch, length, size, generator=g),
}
TAKES_ARGUMENT = ("reinsert", "subset", "strided", "strided_sequential", "spans")


@dataclass(frozen=True)
class Family:
    """An order family with its argument, written `name` or `name:argument`: `uniform`, `reinsert:8`, `strided:4`.

    Or `file.py:function`, `package.module:function:3`: a function of the user's own, whose argument is 0 if not given.
    """

    name: str
    argument: int = 0

    @classmethod
    def parse(cls, text: str) -> Family:
        head, colon, tail = text.partition(":")
        own = None if head in FAMILIES else plugins.split(text)
        name, argument = own or (head, tail if colon else None)
        if not own and name not in FAMILIES:
            raise UserError(f"order family {text!r} is unknown; known: {', '.join(FAMILIES)}, {plugins.SPELLED}")
        if not own and (name in TAKES_ARGUMENT) != bool(colon):
            wanted = f"needs a number, as in {name}:4" if name in TAKES_ARGUMENT else f"takes no number: write {name}"
            raise UserError(f"order family {text!r} {wanted}")
        if argument is not None and not (argument.isdecimal() and int(argument) >= 1):
            raise UserError(f"order family {text!r}: the number after the colon must be an integer >= 1")
        return cls(name, int(argument or 0))

    @property
    def own(self) -> bool:
        """Whether it is a function of the user's own."""
        return self.name not in FAMILIES

    def order(self, batch: int, length: int, generator: torch.Generator) -> Order:
        if not self.own:
            return FAMILIES[self.name](batch, length, self.argument, generator)
        order = plugins.call(self.name, batch, length, self.argument, generator)
        if not isinstance(order, Order):
            raise UserError(f"{self} returned a {type(order).__name__}; it must return an armd.Order")
        if order.positions.shape != (batch, length) or order.positions.device.type != "cpu":
            found = f"an order {tuple(order.positions.shape)} on {order.positions.device}"
            raise UserError(f"{self} returned {found}; it must be (batch, length) = {(batch, length)} on cpu")
        return order

    def orders(self, length: int, generators: Iterable[torch.Generator]) -> Order:
        """One order a generator: the order of a text then depends on no other text of its batch."""
        return Order.concatenate([self.order(1, length, generator) for generator in generators])

    def check(self, length: int, where: str = "order") -> None:
        """Refuse an argument that texts of this length do not allow; `where` begins the message.

        A function of the user's own is loaded and tried: its orders must be whole, and the same in a second try.
        """
        if self.own:
            first, again = (self.order(2, length, generator(0)) for _ in range(2))
            if not (torch.equal(first.positions, again.positions) and torch.equal(first.blocks, again.blocks)):
                raise UserError(f"{where} {self}: its orders differ from call to call; draw from its generator alone")
            return
        if self.name in ("reinsert", "subset") and self.argument > length:
            raise UserError(f"{where} {self}: rho={self.argument} exceeds the {length} tokens of a text")
        if self.name == "spans" and self.argument > length:
            raise UserError(f"{where} {self}: size={self.argument} exceeds the {length} tokens of a text")
        if self.name.startswith("strided") and length % self.argument:
            raise UserError(f"{where} {self}: streams={self.argument} does not divide the {length} tokens of a text")

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name


@dataclass(frozen=True)
class OrderSchedule:
    """Which orders a run trains on: a pure function of (step, seed).

    rho |                      ____________          0 .. ar_steps       left to right only
        |                 ____/                      .. perm_steps       shuffled tokens grow from 1 to rho
      1 |            ____/                           .. - sbp_steps      rho of them
      0 |___________/____________________ S in {..}  last sbp_steps      strided, S drawn per step
    """

    ar_steps: int = 0
    """Steps of left-to-right order at the start (i_AR of the paper)."""
    perm_steps: int = 0
    """Step at which the number of shuffled tokens has grown to rho (i_perm)."""
    rho: int = 0
    """Number of shuffled tokens at the end of the growth."""
    shuffle: str = "reinsert"
    """How tokens are shuffled: reinsert (take out, put back at random ranks) or subset (permute among themselves)."""
    sbp_steps: int = 0
    """Length of the strided fine-tuning phase at the end of the run (i_SBP)."""
    sbp_streams: tuple[int, ...] = (1, 2, 4)
    """Numbers of streams drawn from in that phase, one draw per step."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """Order family -> share of the steps it gets in every phase, whatever the phase; the rest follows the phases."""
    schedule: str = ""
    """Instead of the phases: file.py:function, a function (step, seed, max_steps) -> order family; floors hold."""

    def __post_init__(self) -> None:
        check_types(self, "orders.")
        if self.ar_steps < 0:
            raise UserError(f"ar_steps={self.ar_steps} must be >= 0")
        if self.rho and self.perm_steps < self.ar_steps:
            raise UserError(f"perm_steps={self.perm_steps} must be at least ar_steps={self.ar_steps}")
        if self.rho < 0 or self.sbp_steps < 0:
            raise UserError(f"rho={self.rho} and sbp_steps={self.sbp_steps} must be >= 0")
        if self.shuffle not in ("reinsert", "subset"):
            raise UserError(f"shuffle={self.shuffle!r} must be reinsert or subset")
        if not self.sbp_streams or min(self.sbp_streams) < 1:
            raise UserError(f"sbp_streams={self.sbp_streams} must be one or more integers >= 1")
        if self.schedule and not plugins.is_name(self.schedule):
            raise UserError(f"schedule={self.schedule!r} must be empty (the phases) or {plugins.SPELLED}")
        shares = [share for name, share in self.floors.items() if Family.parse(name)]
        if not all(is_number(share) and share >= 0 for share in shares) or sum(shares) > 1:
            raise UserError(f"floors={dict(self.floors)} must be shares >= 0 that sum to at most 1")
        object.__setattr__(self, "floors", MappingProxyType(dict(self.floors)))

    def shuffled(self, step: int) -> int:
        """How many tokens the progressive schedule shuffles at `step` (section 4)."""
        if step < self.ar_steps or self.rho == 0:
            return 0
        grown = min((step - self.ar_steps) / max(self.perm_steps - self.ar_steps, 1), 1.0)
        return 1 + int((self.rho - 1) * grown)

    def family(self, step: int, seed: int, max_steps: int) -> Family:
        """The order family of one step."""
        draw, choice = torch.rand(2, generator=generator(seed, step, 0)).tolist()
        for name, share in self.floors.items():
            if draw < share:
                return Family.parse(name)
            draw -= share
        if self.schedule:
            return self.scheduled(step, seed, max_steps)
        if step >= max_steps - self.sbp_steps:
            return Family("strided", self.sbp_streams[int(choice * len(self.sbp_streams))])
        shuffled = self.shuffled(step)
        return Family(self.shuffle, shuffled) if shuffled else Family("left_to_right")

    def scheduled(self, step: int, seed: int, max_steps: int) -> Family:
        """The order family that the user's own schedule names for one step."""
        name = plugins.call(self.schedule, step, seed, max_steps)
        if not isinstance(name, str):
            raise UserError(f"{self.schedule} returned {name!r} for step {step}; it must return an order family's name")
        try:
            return Family.parse(name)
        except UserError as error:
            raise UserError(f"{self.schedule}, step {step}: {error}") from None

    def check(self, seed: int, max_steps: int, length: int) -> list[Family]:
        """Load and try the user's own schedule: every family it names, if texts of this length allow them."""
        if not self.schedule:
            return []
        first, again = ([self.scheduled(step, seed, max_steps) for step in range(max_steps)] for _ in range(2))
        if first != again:
            raise UserError(f"{self.schedule} differs from call to call; it must be a function of step and seed alone")
        families = list(dict.fromkeys(first))
        for family in families:
            family.check(length, f"orders.schedule {self.schedule} names")
        return families

    def order(self, step: int, seed: int, max_steps: int, batch: int, length: int) -> Order:
        """The orders of one step's batch."""
        return self.family(step, seed, max_steps).order(batch, length, generator(seed, step, 1))
