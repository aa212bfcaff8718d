"""Named runs. Each preset is a function of the vocabulary that returns a complete config.

`tiny` and `laptop` are ours: query kind, norm, number of two-stream layers and optimiser are those that won in
`docs/log.md`, in short runs of small models; the rates of `laptop` are carried over. The `paper-*` presets follow the
paper: Eq. (6), L2s = L/2, its schedules. What it does not say is marked *inferred* and follows the SEDD / MDLM line it
builds on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from armd.baselines import Denoiser
from armd.checkpoint import ARCHITECTURES
from armd.errors import UserError
from armd.families import OrderSchedule
from armd.model import Armd, ArmdConfig
from armd.train import OptimConfig, TrainConfig

Preset = Callable[[int, int | None], TrainConfig]


def tiny(vocab_size: int, eos_token_id: int | None) -> TrainConfig:
    """2.7M parameters, texts of 256 tokens: minutes on 2 CPU cores."""
    return TrainConfig(
        model=ArmdConfig(
            vocab_size=vocab_size,
            hidden_size=192,
            num_hidden_layers=6,
            num_two_stream_layers=1,
            num_attention_heads=4,
            max_position_embeddings=256,
            query="kernel",
            kernel_width=2,
            norm="layernorm",
            eos_token_id=eos_token_id,
        ),
        orders=OrderSchedule(
            ar_steps=200,
            perm_steps=600,
            rho=8,
            sbp_steps=200,
            sbp_streams=(1, 2, 4, 8),
            floors={"left_to_right": 0.3, "infill": 0.15, "uniform": 0.05},
        ),
        optim=OptimConfig(name="muon", lr=4e-3, muon_lr=1e-2, warmup_steps=50, schedule="wsd"),
        precision="auto",
        batch_size=16,
        max_steps=1000,
        eval_every=200,
        eval_orders=("left_to_right", "reinsert:8", "strided:4", "infill", "uniform"),
        save_every=200,
    )


def laptop(vocab_size: int, eos_token_id: int | None) -> TrainConfig:
    """About 10M parameters, texts of 512 tokens: hours on a laptop, minutes on a GPU."""
    return TrainConfig(
        model=ArmdConfig(
            vocab_size=vocab_size,
            hidden_size=384,
            num_hidden_layers=6,
            num_two_stream_layers=1,
            num_attention_heads=6,
            max_position_embeddings=512,
            query="kernel",
            kernel_width=2,
            norm="layernorm",
            eos_token_id=eos_token_id,
        ),
        orders=OrderSchedule(
            ar_steps=1000,
            perm_steps=4000,
            rho=16,
            sbp_steps=2000,
            sbp_streams=(1, 2, 4, 8),
            floors={"left_to_right": 0.3, "infill": 0.1, "uniform": 0.05},
        ),
        optim=OptimConfig(name="muon", lr=2e-3, muon_lr=1e-2, warmup_steps=200, schedule="wsd"),
        precision="auto",
        batch_size=16,
        max_steps=10_000,
        eval_every=500,
        eval_orders=("left_to_right", "reinsert:16", "strided:4", "infill", "uniform"),
        save_every=500,
    )


def _paper(model: ArmdConfig, orders: OrderSchedule, max_steps: int) -> TrainConfig:
    return TrainConfig(
        model=model,
        orders=orders,
        # All of the optimiser is inferred: the paper gives it in an appendix that is not public.
        optim=OptimConfig(lr=3e-4, betas=(0.9, 0.999), warmup_steps=2500, schedule="constant", ema=0.9999),
        batch_size=512,
        micro_batch_size=16,
        max_steps=max_steps,
        eval_every=5000,
        eval_texts=512,
        eval_orders=("left_to_right", f"reinsert:{orders.rho}", "strided:4", "uniform"),
        log_every=100,
        save_every=2500,
    )


def paper_small(vocab_size: int, eos_token_id: int | None) -> TrainConfig:
    """The paper's small model (GPT-2 small shape, 125M) on OpenWebText, 180K iterations; 400K is --max-steps 400000."""
    model = ArmdConfig(
        vocab_size=vocab_size,
        hidden_size=768,
        num_hidden_layers=12,
        num_two_stream_layers=6,
        num_attention_heads=12,
        max_position_embeddings=1024,
        query="aggregate",
        norm="layernorm",  # inferred
        dropout=0.1,  # inferred
        eos_token_id=eos_token_id,
    )
    return _paper(model, OrderSchedule(ar_steps=9_000, perm_steps=48_000, rho=32), 180_000)


def paper_medium(vocab_size: int, eos_token_id: int | None) -> TrainConfig:
    """The paper's medium model (GPT-2 medium shape, 345M) on OpenWebText, 120K iterations; also run for 300K."""
    model = ArmdConfig(
        vocab_size=vocab_size,
        hidden_size=1024,
        num_hidden_layers=24,
        num_two_stream_layers=12,
        num_attention_heads=16,
        max_position_embeddings=1024,
        query="aggregate",
        norm="layernorm",  # inferred
        dropout=0.1,  # inferred
        eos_token_id=eos_token_id,
    )
    return _paper(model, OrderSchedule(ar_steps=9_000, perm_steps=48_000, rho=32), 120_000)


def paper_lm1b(vocab_size: int, eos_token_id: int | None) -> TrainConfig:
    """The paper's LM1B model (GPT-2 small shape, bert-base-uncased, 128 tokens), 300K iterations; also run for 1M."""
    model = ArmdConfig(
        vocab_size=vocab_size,
        hidden_size=768,
        num_hidden_layers=12,
        num_two_stream_layers=6,
        num_attention_heads=12,
        max_position_embeddings=128,  # inferred
        query="aggregate",
        norm="layernorm",  # inferred
        dropout=0.1,  # inferred
        eos_token_id=eos_token_id,
    )
    return _paper(model, OrderSchedule(ar_steps=100_000, perm_steps=300_000, rho=8), 300_000)


PRESETS: dict[str, Preset] = {
    "tiny": tiny,
    "laptop": laptop,
    "paper-small": paper_small,
    "paper-medium": paper_medium,
    "paper-lm1b": paper_lm1b,
}


def with_steps(config: TrainConfig, max_steps: int) -> TrainConfig:
    """The same run in another number of steps: the phases of its order schedule take the same shares of it.

    The warm-up stays as long as it is, but takes half of the run at most.
    """
    phases = ("ar_steps", "perm_steps", "sbp_steps")
    shares = {name: getattr(config.orders, name) * max(max_steps, 0) // config.max_steps for name in phases}
    optim = replace(config.optim, warmup_steps=min(config.optim.warmup_steps, max(max_steps, 0) // 2))
    return replace(config, orders=replace(config.orders, **shares), optim=optim, max_steps=max_steps)


def for_architecture(config: TrainConfig, architecture: str) -> TrainConfig:
    """The same run for a baseline: its one order, or its noise, in place of the orders of ARMD."""
    if architecture == config.architecture:
        return config
    denoises = issubclass(ARCHITECTURES.get(architecture, Armd), Denoiser)
    measure = ("bound",) if denoises else ("left_to_right",)
    return replace(config, architecture=architecture, orders=OrderSchedule(), eval_orders=measure)


def get_preset(name: str) -> Preset:
    """The preset of a name."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
