"""Everything that defines a run. It is written into the run folder, and is enough to run it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from armd import plugins
from armd.baselines import Denoiser, Draw
from armd.checkpoint import ARCHITECTURES
from armd.errors import UserError
from armd.families import Family, OrderSchedule
from armd.fields import check_types
from armd.files import read_json
from armd.model import ArmdConfig
from armd.noise import Noise
from armd.objective import check_weighting, weights
from armd.orders import generator

EXECUTION = (
    "device",
    "parallel",
    "micro_batch_size",
    "compile",
    "checkpoint_activations",
    "log_every",
    "tensorboard",
    "keep_last",
    "keep_best",
    "on_bad_step",
    "spike_factor",
    "max_skipped",
)
"""Fields that say how a run is executed and what happens to steps it cannot use. They leave the training as it is, but
for rounding and for dropout's masks, which are drawn pass by pass. --resume may change them, and no others."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: str = "adamw"
    """adamw, or muon: Muon for the matrices inside the layers, AdamW for embedding, head, prefix and vectors."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 2e-2
    """Peak learning rate of Muon; an update has this times 0.2 as its root mean square."""
    muon_momentum: float = 0.95
    """Momentum of Muon."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW momenta."""
    eps: float = 1e-8
    """AdamW epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the weight matrices."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    schedule: str = "cosine"
    """After warm-up: cosine (to a tenth of the peak), wsd (constant, then linear to zero) or constant."""
    decay_share: float = 0.3
    """Share of the run over which wsd decays."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights that is published; 0 publishes the weights themselves."""

    def __post_init__(self) -> None:
        check_types(self, "optim.")
        if self.name not in ("adamw", "muon"):
            raise UserError(f"optim.name={self.name!r} must be adamw or muon")
        if self.muon_lr <= 0 or not 0 <= self.muon_momentum < 1:
            raise UserError(
                f"optim.muon_lr={self.muon_lr} must be above 0 and optim.muon_momentum={self.muon_momentum} in [0, 1)"
            )
        if self.schedule not in ("cosine", "wsd", "constant"):
            raise UserError(f"optim.schedule={self.schedule!r} must be cosine, wsd or constant")
        if self.lr <= 0 or self.grad_clip <= 0:
            raise UserError(f"optim.lr={self.lr} and optim.grad_clip={self.grad_clip} must be above 0")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps <= 0:
            raise UserError(f"optim.betas={self.betas} must be in [0, 1) and optim.eps={self.eps} above 0")
        if not 0 <= self.ema < 1 or not 0 < self.decay_share <= 1:
            raise UserError(
                f"optim.ema={self.ema} must be in [0, 1) and optim.decay_share={self.decay_share} in (0, 1]"
            )
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise UserError(
                f"optim.warmup_steps={self.warmup_steps} and optim.weight_decay={self.weight_decay} must be >= 0"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A training run: network, orders, optimiser, budget."""

    model: ArmdConfig
    """The network."""
    orders: OrderSchedule = field(default_factory=OrderSchedule)
    """Which orders it trains on."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    architecture: str = "armd"
    """armd; or a baseline on the same layers: ar, ar+prefix, mdlm, mdlm+prefix or bd3lm."""
    weighting: str = "likelihood"
    """Re-weighting of Eq. (2): likelihood (none), per_block, late, or file.py:function, a function (order) -> gamma."""
    init: str = ""
    """Run or model folder whose weights the run starts from: fine-tuning. Empty: random ones."""
    noise: tuple[float, float] = (1e-3, 1.0)
    """Of masked and block diffusion: least and greatest share of masked tokens; 0.3 0.8 is a clipped schedule."""
    length: int = 0
    """Tokens in a training text; 0 means max_position_embeddings."""
    batch_size: int = 16
    """Texts in a step, over all processes."""
    micro_batch_size: int = 0
    """Texts in a forward pass of a process; gradients accumulate over batch_size. 0: all it has."""
    max_steps: int = 1000
    """Steps of the run."""
    seed: int = 0
    """Seed of initialisation, data windows, orders and dropout."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    precision: str = "bf16"
    """bf16 (autocast, float32 master weights), fp32, or auto: bf16 where matrix products are clearly faster in it."""
    parallel: str = "auto"
    """Several processes (torchrun): ddp (each holds the model), fsdp (each holds a share), or auto: ddp if several."""
    compile: bool = False
    """Run the layers and the loss through torch.compile: a minute at the start; on a CPU it needs g++."""
    checkpoint_activations: bool = False
    """Keep only the inputs of every layer and compute the rest again for the gradient: less memory, a third slower."""
    eval_every: int = 250
    """Steps between validations; the last step is always validated."""
    eval_texts: int = 64
    """Held-out texts in a validation."""
    eval_orders: tuple[str, ...] = ("left_to_right", "uniform")
    """Order families validated, your own file.py:function among them; of masked and block diffusion the bound."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every: int = 250
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: bool = False
    """Also keep, and at its validation save, the checkpoint best in left_to_right or else in the first eval order; its
    model lies in RUN/best."""
    on_bad_step: str = "stop"
    """A step whose loss or gradient is not finite, or whose loss is a spike: stop the run, or skip the step."""
    spike_factor: float = 0.0
    """A loss above this many times the median of the last 64 steps of its order family is a spike; 0 looks for none."""
    max_skipped: int = 10
    """Most steps skipped in a row; the next one stops the run."""
    tensorboard: bool = False
    """Write the records for TensorBoard as well, under tensorboard/ of the run folder (armd[tensorboard])."""

    def __post_init__(self) -> None:
        check_types(self)
        steps = "max_steps", "eval_every", "log_every", "save_every", "max_skipped"
        for name in ("batch_size", "eval_texts", "keep_last", *steps):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be at least 0 and below 2**32")
        if self.micro_batch_size < 0 or (self.micro_batch_size and self.batch_size % self.micro_batch_size):
            raise UserError(f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}")
        if not 0 <= self.length <= self.model.max_position_embeddings:
            limit = self.model.max_position_embeddings
            raise UserError(f"length={self.length} must be between 0 and max_position_embeddings={limit}")
        if self.precision not in ("bf16", "fp32", "auto"):
            raise UserError(f"precision={self.precision!r} must be bf16, fp32 or auto")
        if self.parallel not in ("auto", "ddp", "fsdp"):
            raise UserError(f"parallel={self.parallel!r} must be auto, ddp or fsdp")
        if self.on_bad_step not in ("stop", "skip"):
            raise UserError(f"on_bad_step={self.on_bad_step!r} must be stop or skip")
        if self.spike_factor != 0 and self.spike_factor <= 1:
            raise UserError(f"spike_factor={self.spike_factor} must be 0 (off) or above 1")
        if self.architecture not in ARCHITECTURES:
            raise UserError(f"architecture={self.architecture!r} must be one of {', '.join(ARCHITECTURES)}")
        check_weighting(self.weighting)
        if not 0 <= self.noise[0] < self.noise[1] <= 1:
            raise UserError(f"noise={self.noise} must be two times between 0 and 1, the lesser first")
        self._check_phases()
        self._check_orders()

    def _check_phases(self) -> None:
        """Phases that do not fit the run would train another method than the one they name."""
        if self.orders.schedule:
            return
        ar, perm, sbp = self.orders.ar_steps, self.orders.perm_steps, self.orders.sbp_steps
        if ar + sbp > self.max_steps or (self.orders.rho and perm + sbp > self.max_steps):
            phases = f"orders.ar_steps={ar}, orders.perm_steps={perm} and orders.sbp_steps={sbp}"
            raise UserError(f"{phases} do not fit max_steps={self.max_steps}: the last sbp_steps come after the others")

    def _check_orders(self) -> None:
        """Every order the run will meet must fit its network and its texts, now and not after hours."""
        orders = self.orders
        trains_on_orders = orders.rho or orders.sbp_steps or orders.schedule or set(orders.floors) - {"left_to_right"}
        if self._denoises:
            if self.eval_orders != ("bound",):
                raise UserError(f"architecture={self.architecture} is validated by its bound: set --eval-orders bound")
            if trains_on_orders or self.weighting != "likelihood":
                ours = "set orders.rho and orders.sbp_steps to 0, no floors, no schedule, weighting=likelihood"
                raise UserError(f"architecture={self.architecture} trains on noise, not on orders: {ours}")
            return
        for where, family in self._families():
            if not family.own:
                family.check(self.text_length, where)
        if ARCHITECTURES[self.architecture].any_order:
            return
        only = f"architecture={self.architecture} has one order only"
        if set(self.eval_orders) != {"left_to_right"}:
            raise UserError(f"{only}: set --eval-orders left_to_right")
        if trains_on_orders:
            raise UserError(f"{only}: set orders.rho and orders.sbp_steps to 0, no floors, no schedule")

    def _families(self) -> Iterator[tuple[str, Family]]:
        """The order families that the run names, and where it does."""
        orders = self.orders
        yield from (("eval_orders", Family.parse(name)) for name in self.eval_orders)
        yield from (("orders.floors", Family.parse(name)) for name, share in orders.floors.items() if share)
        if not orders.schedule:
            streams = orders.sbp_streams if orders.sbp_steps else ()
            yield from (("orders.sbp_streams", Family("strided", number)) for number in streams)
            yield "orders.rho", Family(orders.shuffle, orders.rho)

    def check_plugins(self) -> dict[str, str]:
        """Load and try the functions of the user's own: name -> SHA-256 of the file it stands in.

        Not on construction: a run may be looked at where they are not.
        """
        if self._denoises:
            return {}
        named = [(where, family) for where, family in self._families() if family.own]
        for where, family in named:
            family.check(self.text_length, where)
        families = [family for _, family in named] + self.orders.check(self.seed, self.max_steps, self.text_length)
        names = {family.name for family in families if family.own} | {self.orders.schedule} - {""}
        if plugins.is_name(self.weighting):
            names.add(self.weighting)
            order = self.orders.order(0, self.seed, self.max_steps, 2, self.text_length)
            first, again = (weights(self.weighting, order) for _ in range(2))
            if not (first.isfinite().all() and torch.equal(first, again)):
                raise UserError(f"weighting {self.weighting}: its numbers must be finite, and the same in every call")
        return {name: plugins.digest(name) for name in sorted(names)}

    @property
    def _denoises(self) -> bool:
        return issubclass(ARCHITECTURES[self.architecture], Denoiser)

    @property
    def text_length(self) -> int:
        return self.length or self.model.max_position_embeddings

    @property
    def main_order(self) -> str:
        """The eval order by which a checkpoint is the best."""
        return next((o for o in ("left_to_right", *self.eval_orders) if o in self.eval_orders), "left_to_right")

    def draw(self, step: int, batch: int, length: int) -> tuple[str, Draw]:
        """What hides the tokens of one step's batch: the name of its order family and the orders, or noise."""
        if self._denoises:
            return "noise", self._noise(batch, length, generator(self.seed, step, 1), interval=self.noise)
        family = self.orders.family(step, self.seed, self.max_steps)
        return str(family), self.orders.order(step, self.seed, self.max_steps, batch, length)

    def held_out_draw(self, name: str, texts: int) -> Draw:
        """What hides the tokens of the held-out texts, the same in every validation."""
        if name == "bound":
            return self._noise(texts, self.text_length, generator(0), counted=True)
        return Family.parse(name).orders(self.text_length, (generator(0, text) for text in range(texts)))

    def _noise(self, batch: int, length: int, draws: torch.Generator, **options: Any) -> Noise:
        kind = ARCHITECTURES[self.architecture]
        assert issubclass(kind, Denoiser)
        size = kind.noise_block(self.model)
        return Noise.draw(batch, length, block_size=size, generator=draws, **options)


def to_json(config: Any) -> Any:
    """A config as plain JSON values."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return dict(config)
    return list(config) if isinstance(config, tuple) else config


def from_json(values: dict[str, Any]) -> TrainConfig:
    """The inverse of `to_json`."""
    orders, optim = dict(values["orders"]), dict(values["optim"])
    orders["sbp_streams"] = tuple(orders["sbp_streams"])
    optim["betas"] = tuple(optim["betas"])
    rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    rest.update(model=ArmdConfig(**values["model"]), orders=OrderSchedule(**orders), optim=OptimConfig(**optim))
    return TrainConfig(**rest)


def load_config(run: Path) -> TrainConfig:
    """The config a run was started with; `run` is its folder, or a file like the run.json there."""
    path = run if run.suffix == ".json" else run / "run.json"
    try:
        return from_json(read_json(path)["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: it holds no config ({error!r})") from None
