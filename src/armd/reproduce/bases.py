"""The configs that experiments share, at every scale, so that they share trained models too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from armd.families import OrderSchedule
from armd.presets import for_architecture, paper_lm1b, paper_small, tiny, with_steps
from armd.reproduce.experiment import Model, Setting
from armd.train import OptimConfig, TrainConfig

LENGTH, SENTENCE = 256, 128
ABLATION_WIDTH = 128
CLIPPED = {16: (0.3, 0.8), 4: (0.45, 0.95)}
"""The shares of masked tokens that block diffusion trains on, by block (Arriola et al., 2025: the best of theirs)."""


@dataclass(frozen=True)
class Size:
    """A scale of our own, the same for all architectures.

    Attributes:
        shape: fields of the network.
        steps, texts: steps, and texts of `LENGTH` tokens in each.
        optim: the optimiser.
        precision: fp32 on CPUs, which differ in how fast bfloat16 is, and in how they round it.
    """

    shape: dict[str, int]
    steps: int
    texts: int
    optim: OptimConfig
    precision: str


SIZES = {
    # 3M parameters. The rates: the lowest, and best, of three Muon rates on ARMD (docs/log.md).
    "small": Size({}, 400, 16, OptimConfig(name="muon", lr=4e-3, muon_lr=1e-2, warmup_steps=50), "fp32"),
    # 15M parameters. The rates are those of preset laptop, not tried.
    "medium": Size(
        shape={"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6},
        steps=1000,
        texts=64,
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=1e-2, warmup_steps=100),
        precision="bf16",
    ),
}


def progressive(steps: int, rho: int = 8, **changes: Any) -> OrderSchedule:
    """Left to right for the first fifth, rho shuffled tokens after three fifths."""
    return OrderSchedule(ar_steps=steps // 5, perm_steps=3 * steps // 5, rho=rho, **changes)


def mixed(steps: int, rho: int = 8) -> OrderSchedule:
    """`progressive`, with some wholly random orders all along."""
    return progressive(steps, rho, floors={"uniform": 0.05})


def own(setting: Setting, **changes: Any) -> TrainConfig:
    """ARMD at a scale of our own; `changes` are fields of the network."""
    size = SIZES[setting.scale]
    changes = {"max_position_embeddings": LENGTH, **size.shape, **changes}
    steps = size.steps
    base = tiny(setting.vocab_size, setting.eos_id)
    return replace(
        base,
        model=replace(base.model, **changes),
        orders=mixed(steps),
        optim=size.optim,
        precision=size.precision,
        batch_size=max(size.texts * LENGTH // changes["max_position_embeddings"], 1),
        max_steps=steps,
        eval_texts=64,
        eval_every=max(steps // 12, 1),
        eval_orders=("left_to_right", "uniform"),
        save_every=max(steps // 4, 1),
        keep_last=1,
    )


def ablation(setting: Setting, **changes: Any) -> TrainConfig:
    """What our own questions, which take many models, are asked of: at small scale narrower, of half the batch."""
    if setting.scale == "medium":
        return own(setting, **changes)
    if setting.scale == "paper":
        base = armd(setting)
        texts = base.batch_size * base.text_length
        base = replace(base, model=replace(base.model, **changes))
        return replace(base, batch_size=max(texts // base.text_length, 1))
    base = own(setting, hidden_size=ABLATION_WIDTH, **changes)
    return replace(base, batch_size=max(base.batch_size // 2, 1))


def armd(setting: Setting) -> TrainConfig:
    """The ARMD model of the scale."""
    return paper_small(setting.vocab_size, setting.eos_id) if setting.scale == "paper" else own(setting)


def as_in_the_paper(config: TrainConfig) -> TrainConfig:
    """The same run with prefix aggregation (Eq. 6), half of the layers on both streams, and no wholly random orders."""
    shape = replace(config.model, query="aggregate", num_two_stream_layers=config.model.num_hidden_layers // 2)
    return replace(config, model=shape, orders=replace(config.orders, floors={}))


def sentences(setting: Setting) -> TrainConfig:
    """ARMD on texts of 128 tokens with the long schedule that the paper uses for LM1B."""
    if setting.scale == "paper":
        return paper_lm1b(setting.vocab_size, setting.eos_id)
    base = own(setting, max_position_embeddings=SENTENCE)
    steps = base.max_steps
    return replace(base, orders=OrderSchedule(ar_steps=steps // 3, perm_steps=steps, rho=8))


def baselines(config: TrainConfig) -> dict[str, Model]:
    """AR, AR with our prefix layer, masked and block diffusion: same shape, data, steps and optimiser."""

    def blocks(size: int) -> Model:
        found = for_architecture(config, "bd3lm")
        return Model(replace(found, model=replace(found.model, block_size=size), noise=CLIPPED[size]))

    return {
        "AR": Model(for_architecture(config, "ar")),
        "AR + prefix": Model(for_architecture(config, "ar+prefix")),
        "MDLM": Model(for_architecture(config, "mdlm")),
        "BD3-LM 16": blocks(16),
        "BD3-LM 4": blocks(4),
    }


PATIENT = "MDLM, 4 times the tokens"


def patient(config: TrainConfig) -> Model:
    """Masked diffusion, which learns late, with four times the tokens in a schedule as much longer; one seed."""
    masked = for_architecture(config, "mdlm")
    return Model(replace(with_steps(masked, 4 * masked.max_steps), eval_every=4 * masked.eval_every), seeds=1)


def strided(config: TrainConfig, steps: int) -> TrainConfig:
    """Strided fine-tuning for `steps` steps (i_SBP) from a model's weights, at a fifth of its learning rate."""
    return _longer(config, steps, OrderSchedule(sbp_steps=steps, sbp_streams=(1, 2, 4)))


def no_strided(config: TrainConfig, steps: int) -> TrainConfig:
    """What `strided` is to be compared with: as many more steps on the orders that the model's training ended with."""
    return _longer(config, steps, replace(config.orders, ar_steps=0, perm_steps=0))


def _longer(config: TrainConfig, steps: int, orders: OrderSchedule) -> TrainConfig:
    optim = replace(config.optim, lr=config.optim.lr / 5, muon_lr=config.optim.muon_lr / 5, warmup_steps=steps // 20)
    tuned = replace(config, optim=optim, orders=OrderSchedule(), max_steps=steps)
    return replace(tuned, orders=orders, eval_every=max(steps // 4, 1), save_every=max(steps // 2, 1))


def shortened(config: TrainConfig, share: float) -> TrainConfig:
    """The same run, schedules and all, in a share of the steps."""
    return with_steps(config, max(round(config.max_steps * share), 1))
