"""Speed and memory of training steps: ARMD beside our autoregressive baseline and nanoGPT, all on the same terms.

Every contestant has the same shape, batch, precision and optimiser (fused AdamW, gradients clipped) and random weights
and texts. Compiled, each is as its own training compiles it: nanoGPT whole by torch.compile, ours by `compile_layers`,
which on a CPU asks for torch's random numbers. Where arithmetic is all, ARMD has the share `limit` of the speed of AR;
`of_limit` is how much of it it has.
`mfu` is the share of the device's peak in the precision timed, where a data sheet says that peak.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from armd.baselines import Autoregressive
from armd.bench.timing import Job, Timing, Work, alternate, provenance
from armd.errors import UserError
from armd.files import write_text
from armd.flops import total, training_flops, two_stream_ratio
from armd.gpus import peak_of
from armd.heap import keep_freed_memory
from armd.model import Armd, ArmdConfig, Transformer
from armd.objective import loss
from armd.orders import Order
from armd.train import OptimConfig
from armd.train import optim as optimisers

NANOGPT, AR = "nanoGPT", "AR"


@dataclass(frozen=True)
class TrainBench:
    """Time training steps, random weights: ARMD with one and L/2 two-stream layers, AR, and nanoGPT, all in turn."""

    preset: str = "tiny"
    """Preset whose shape is timed."""
    vocab_size: int = 257
    """Tokens in the vocabulary."""
    hidden_size: int = 0
    """Another width; 0: that of the preset. The heads keep their size as far as they divide it."""
    layers: int = 0
    """Another number of layers; 0: that of the preset."""
    query: str = "kernel"
    """Where G^0 comes from."""
    length: int = 0
    """Tokens N of a text; 0: the longest of the preset."""
    batch: int = 8
    """Texts in a step."""
    dropout: float | None = None
    """Another dropout than that of the preset."""
    dtype: tuple[Literal["bf16", "fp32"], ...] = ("bf16",)
    """bf16 (autocast, float32 weights) or fp32."""
    mode: tuple[Literal["eager", "compiled"], ...] = ("eager",)
    """Without and with torch.compile."""
    nanogpt: Path | None = None
    """Checkout of nanoGPT, whose model.py is timed as well."""
    steps: int = 2
    """Steps in a round."""
    repeats: int = 3
    """Rounds after the first, which warms up."""
    memory: bool = True
    """Also measure the largest memory of a step, each in a process of its own."""
    seed: int = 0
    """Of weights, texts and orders."""
    device: str = "auto"
    """cpu, cuda or auto."""
    out: Path | None = None
    """Write the record here, after every group of (dtype, mode)."""
    profile: Path | None = None
    """Write here, as text, in which operations a step of each contestant spends its time."""
    json: bool = False
    """Print the record as one JSON object."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "batch", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("hidden_size", "layers", "length"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0")
        if self.profile and self.profile.is_dir():
            raise UserError(f"profile={self.profile} is a folder; name a file")
        for name in ("dtype", "mode"):
            if not getattr(self, name):
                raise UserError(f"{name} needs at least one value")
        if self.nanogpt and not (self.nanogpt / "model.py").is_file():
            raise UserError(f"nanogpt={self.nanogpt} holds no model.py; it must be a checkout of karpathy/nanoGPT")

    def shape(self, preset: ArmdConfig) -> ArmdConfig:
        """The shape of the preset with the changes asked for."""
        hidden = self.hidden_size or preset.hidden_size
        head = preset.hidden_size // preset.num_attention_heads
        return dataclasses.replace(
            preset,
            hidden_size=hidden,
            num_attention_heads=hidden // head if hidden % head == 0 else preset.num_attention_heads,
            num_hidden_layers=self.layers or preset.num_hidden_layers,
            num_two_stream_layers=1,
            max_position_embeddings=self.length or preset.max_position_embeddings,
            query=self.query,
            dropout=preset.dropout if self.dropout is None else self.dropout,
            eos_token_id=None,
        )


# ---- contestants -----------------------------------------------------------------------------------------------------


def shapes(config: ArmdConfig, nanogpt: Path | None) -> dict[str, ArmdConfig]:
    """Names and shapes of the contestants."""
    half = dataclasses.replace(config, num_two_stream_layers=max(config.num_hidden_layers // 2, 1))
    ours = {AR: config, "ARMD, L2s = 1": config, "ARMD, L2s = L/2": half}
    return {NANOGPT: config, **ours} if nanogpt else ours


def _nanogpt(path: Path, config: ArmdConfig) -> nn.Module:
    """nanoGPT's own network of the same shape, from its own file."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape = module.GPTConfig(
        block_size=config.max_position_embeddings,
        vocab_size=-(-config.vocab_size // 64) * 64,  # as its own training does
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_embd=config.hidden_size,
        dropout=config.dropout,
        bias=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        model: nn.Module = module.GPT(shape)
    return model


def make_step(
    name: str, config: ArmdConfig, options: TrainBench, dtype: str, mode: str, device: torch.device
) -> Callable[[], None]:
    """One training step of a contestant, ready to run again and again."""
    torch.manual_seed(options.seed)
    tokens = torch.randint(config.vocab_size, (options.batch, config.max_position_embeddings)).to(device)
    model, value = _objective(name, config, options.nanogpt, mode == "compiled", tokens)
    optimiser = optimisers.build(model, OptimConfig())

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            nats = value()
        nats.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _objective(
    name: str, config: ArmdConfig, nanogpt: Path | None, compiled: bool, tokens: Tensor
) -> tuple[nn.Module, Callable[[], Tensor]]:
    if name == NANOGPT:
        assert nanogpt is not None
        gpt = _nanogpt(nanogpt, config).to(tokens.device)
        slow_random = tokens.device.type == "cpu"  # the same option as ours, see `compile_layers`
        run: Callable[..., Any] = torch.compile(gpt, options={"fallback_random": slow_random}) if compiled else gpt
        return gpt, lambda: run(tokens, tokens)[1]
    model: Transformer = (Autoregressive if name == AR else Armd)(config).to(tokens.device)
    if compiled:
        model.compile_layers()
    order = Order.left_to_right(*tokens.shape) if name == AR else Order.uniform(*tokens.shape)
    order = order.to(tokens.device)
    return model, lambda: loss(model, tokens, order)


def _rounds(step: Callable[[], None], options: TrainBench, length: int) -> Job:
    def job() -> Work:
        for _ in range(options.steps):
            step()
        return Work(options.steps * options.batch * length)

    return job


def _profile(step: Callable[[], None], device: torch.device) -> str:
    """The operations of one step, on a GPU its kernels: milliseconds, share, calls, name, the longest first."""
    gpu = device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as found:
        step()
        if gpu:
            torch.cuda.synchronize(device)
    spent = {e.key: (e.self_device_time_total if gpu else e.self_cpu_time_total, e.count) for e in found.key_averages()}
    whole = sum(time for time, _ in spent.values()) or 1.0
    rows = sorted(((time, count, name) for name, (time, count) in spent.items()), reverse=True)
    lines = [f"{time / 1000:9.2f} ms {time / whole:6.1%} {count:6,}  {name[:90]}" for time, count, name in rows[:40]]
    return "\n".join([f"{whole / 1000:9.2f} ms in all", *lines, ""])


# ---- memory ----------------------------------------------------------------------------------------------------------


def _resident(field: str) -> int:
    """A size of this process in bytes: VmRSS, or VmHWM, its largest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _peak(name: str, config: ArmdConfig, options: TrainBench, dtype: str, device: torch.device) -> int:
    """The largest memory of two steps in bytes, weights and optimiser included."""
    keep_freed_memory()
    small = dataclasses.replace(config, vocab_size=8, hidden_size=64, num_attention_heads=1, max_position_embeddings=64)
    make_step(name, small, options, dtype, "eager", device)()  # loads what libraries load at their first use
    before = 0 if device.type == "cuda" else _resident("VmRSS")
    step = make_step(name, config, options, dtype, "eager", device)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM") - before


def peak_memory(name: str, config: ArmdConfig, options: TrainBench, dtype: str, device: torch.device) -> int | None:
    """`_peak` in a fresh process; None where a system does not tell."""
    if device.type != "cuda" and not Path("/proc/self/status").exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak, name, config, options, dtype, device).result()


# ---- the run ---------------------------------------------------------------------------------------------------------


def training(
    options: TrainBench,
    preset: ArmdConfig,
    device: torch.device,
    command: str,
    tell: Callable[[str], object] = lambda text: None,
) -> Iterator[dict[str, Any]]:
    """Time all contestants; yields the record so far after every group of (dtype, mode).

    Args:
        preset: the shape that the options change.
        command: what the record says it was made with.
        tell: gets a line before each job.
    """
    config = options.shape(preset)
    keep_freed_memory()  # as training does
    absent = {} if options.nanogpt else {NANOGPT: "give --nanogpt PATH, a checkout of karpathy/nanoGPT"}
    record: dict[str, Any] = {
        **provenance(command, device),
        "seed": options.seed,
        "batch": options.batch,
        "shape": dataclasses.asdict(config),
        "reference": NANOGPT if options.nanogpt else AR,
        "absent": absent,
        "memory": "CUDA's largest allocation" if device.type == "cuda" else "largest resident set of a fresh process",
        "rows": [],
    }
    profiles = []
    for dtype, mode in itertools.product(options.dtype, options.mode):
        entries = shapes(config, options.nanogpt)
        steps = {name: make_step(name, shape, options, dtype, mode, device) for name, shape in entries.items()}
        jobs = {name: _rounds(step, options, config.max_position_embeddings) for name, step in steps.items()}
        where = f"{dtype}, {mode}: "
        times = alternate(jobs, options.repeats, device, lambda name, where=where: tell(where + name))  # type: ignore[misc]
        if options.profile:
            profiles += [f"{where}{name}, one step\n{_profile(steps[name], device)}" for name in entries]
            write_text(options.profile, "\n".join(profiles))
        del jobs, steps  # and with them the networks
        peaks = {}
        for name, shape in entries.items() if options.memory and mode == "eager" else ():
            tell(f"{where}memory of {name}")
            peaks[name] = peak_memory(name, shape, options, dtype, device)
        group = {"dtype": dtype, "mode": mode}
        reference, peak = record["reference"], peak_of(device, dtype)
        record["rows"] += [_row(name, group, entries, times, peaks, reference, peak) for name in entries]
        record["machine"]["load_average_after"] = list(os.getloadavg())
        yield record


def _row(
    name: str,
    group: Mapping[str, str],
    entries: dict[str, ArmdConfig],
    times: dict[str, Timing],
    peaks: dict[str, int | None],
    reference: str,
    peak: float | None,
) -> dict[str, Any]:
    fields, to_ar = times[name].fields(times[reference]), times[name].fields(times[AR])["ratio"]
    shape = entries[name]
    ours, length = name.startswith("ARMD"), shape.max_position_embeddings
    limit = 1 / two_stream_ratio(shape, length) if ours else None
    flops = total(training_flops(shape, length, "armd" if ours else "ar"))
    own, ar = peaks.get(name), peaks.get(AR)
    return {
        "what": name,
        **group,
        **fields,
        "ratio_to_ar": to_ar,
        "limit": limit,
        "of_limit": to_ar["median"] / limit if limit else None,
        "flops_per_token": flops,
        "mfu": flops * fields["tokens_per_second"]["median"] / peak if peak else None,
        "peak_bytes": own,
        "peak_to_ar": own / ar if own and ar else None,
    }
