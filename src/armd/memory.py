"""Bytes of memory of a training step on one device, by part, before anything is run.

Weights, gradients, optimiser state and average are float32 and counted exactly. Activations are what the backward pass
keeps, tensor by tensor; r = 4 bytes for the residual stream, which stays float32, and a for what autocast makes of a
row: 2 in bfloat16, 4 in float32. Per token:

    a row updated       (2 r + 4 a) D + 2 a F    rows into both norms; inputs of query and MLP, q, attended; MLP twice
    its keys, values    3 a D                    keys before and after rotation, values
    the last X          (r + a) D                its norm, and the input of its keys and values, are all of it
    G^0                 by kind                  as a rule the table of embeddings, r D
    last norm           (r + a) D                and the gradient of its rows, which the loss takes at once
    rotations           6 D / H a stream

Baselines have no last X, and no G^0 but `mdlm+prefix` and `ar+prefix`, which is a model of orders held to one. Masked
and block diffusion turn all texts by the same rotations, which count for nothing. Block diffusion takes two rows of a
token through the layers, and keeps both at the last norm.

Left out: statistics of norms, masks of dropout (on a CPU the weights of attention too, if there is dropout), dense
masks of blocks, gradients of activations, which live for a layer, the allocator's gaps and the CUDA context.
"""

from __future__ import annotations

from dataclasses import dataclass

from armd.baselines import Denoiser, PrefixMaskedDiffusion
from armd.checkpoint import ARCHITECTURES
from armd.flops import shapes_only
from armd.model import Armd, ArmdConfig
from armd.objective import CHUNK_LOGITS, GPU_CHUNK_LOGITS
from armd.train import TrainConfig
from armd.train.optim import muon_matrices

FLOAT = 4  # bytes of float32

SHARDINGS = ("none", "ddp", "fsdp")
"""One device; a copy on each of several; weights, gradients, optimiser state and average divided among them."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    """Float32 weights and tables."""
    gradients: float
    """Float32 gradients."""
    optimiser: float
    """AdamW's two moments of every weight it has, Muon's one."""
    average: float
    """Moving average of the weights."""
    copies: float
    """Weights in bfloat16 for autocast; what fsdp gathers of them and, over several passes, of their gradients."""
    activations: float
    """What the backward pass keeps of a micro batch."""
    logits: float
    """The chunk of logits in work, and the head's gradient, which is summed over the chunks before all others."""

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def training_memory(
    config: TrainConfig,
    texts: int,
    sharding: str = "none",
    devices: int = 1,
    *,
    passes: int = 1,
    recompute: bool = False,
    gpu: bool = False,
) -> Memory:
    """Memory of a step on one of `devices`.

    Args:
        texts: texts in a forward pass on this device.
        sharding: one of `SHARDINGS`.
        passes: forward passes of a step; with more than one, fsdp sums the gradients of whole weights before it shares.
        recompute: whether layers keep only the rows that enter them, and are computed again in the backward pass.
        gpu: whether it is one, which takes more of the logits at once.
    """
    model = shapes_only(config.model, config.architecture)
    weights = FLOAT * model.num_parameters()
    tables = sum(buffer.nbytes for buffer in model.buffers())
    inner = muon_matrices(model, config.optim)
    optimiser = 2 * weights + FLOAT * len(list(model.parameters()))  # AdamW: two moments, and a count a tensor
    optimiser -= FLOAT * (sum(p.numel() for p in inner) + len(inner))  # Muon: one moment, no count
    layer = sum(p.numel() for p in model.layers[0].parameters() if p.ndim == 2)
    half = 2 if config.precision == "bf16" else 0
    copies = half * (layer * len(model.layers) + model.head_weight.numel())
    share = devices if sharding == "fsdp" else 1
    if sharding == "fsdp":  # gathered before their first use in a step, dropped after its last backward pass
        copies = (half or FLOAT) * model.num_parameters() + (weights if passes > 1 else 0)
    rows = texts * config.text_length
    return Memory(
        weights=weights / share + tables,
        gradients=weights / share,
        optimiser=optimiser / share,
        average=weights / share if config.optim.ema else 0,
        copies=copies,
        activations=rows * activation_bytes(config, recompute),
        logits=min(rows, max((GPU_CHUNK_LOGITS if gpu else CHUNK_LOGITS) // config.model.vocab_size, 1))
        * config.model.vocab_size
        * 8  # float32 logits and their log-softmax
        + FLOAT * model.head_weight.numel(),
    )


def activation_bytes(config: TrainConfig, recompute: bool = False) -> float:
    """Bytes per token that the backward pass keeps, the head's left out; with `recompute`, of checkpointed layers."""
    c, r, a = config.model, FLOAT, 2 if config.precision == "bf16" else FLOAT
    D, F, L = c.hidden_size, c.intermediate_size or 4 * c.hidden_size, c.num_hidden_layers
    kind, copies = ARCHITECTURES[config.architecture], 2 if config.architecture == "bd3lm" else 1
    ours = issubclass(kind, Armd)
    twice = c.num_two_stream_layers - 1 if ours else 0
    update = (2 * r + 4 * a) * D + 2 * a * F + FLOAT * c.num_attention_heads  # with the attention's log-sum-exp
    keys_values = 3 * a * D
    layers = (L + twice) * update + L * keys_values + ((r + a) * D if ours else 0)
    if recompute:  # the rows that enter a layer, and all of the largest one
        layers = (L + twice) * r * D + (2 if twice else 1) * update + keys_values
    first = _prefix(c, config.text_length, a) if ours or issubclass(kind, PrefixMaskedDiffusion) else 0
    rotations = 0 if issubclass(kind, Denoiser) else (2 if ours else 1) * 6 * D / c.num_attention_heads
    return copies * layers + first + (copies * r + a) * D + rotations


def _prefix(c: ArmdConfig, length: int, a: int) -> float:
    row, narrow = FLOAT * c.hidden_size, a * c.hidden_size
    aggregate = row + a * (length + 1)  # its sum before the norm, and its line of (P P^T) * M
    kinds = {
        "aggregate": narrow + aggregate,  # the table as autocast casts it
        "anchor+aggregate": row + (narrow if narrow < row else 0) + aggregate + row,
        "kernel": row + row + FLOAT * (2 * c.kernel_width + 1),  # its sum before the norm, which neighbours are known
        "position": 0,  # which reads no table
    }
    return kinds.get(c.query, row)
