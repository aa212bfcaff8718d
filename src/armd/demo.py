"""`armd demo`: the whole of the method on the text every Python carries, in a few minutes, on one page."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from armd import checkpoint, decode, report
from armd.data import TokenDataset, Tokenizer, prepare, python_documents
from armd.errors import UserError
from armd.evals import Score, evaluate
from armd.files import write_json
from armd.model import Armd
from armd.objective import nll
from armd.orders import Order
from armd.presets import tiny, with_steps
from armd.train import TrainConfig, train
from armd.train.log import read_metrics

CORPUS = "the Python language reference and the source of its standard library"
TOKENIZER = "bpe:2048"
HELD_OUT = 0.03
STEPS = 500
TEXTS = 96  # held-out texts that are scored
STREAMS = (1, 2, 4, 8)
PROMPT_TOKENS = 16
NEW_TOKENS = 224
PICTURE = 12  # tokens in the pictures of orders

console = Console(stderr=True, highlight=False)


def run(out: Path, *, max_steps: int | None = None, seed: int = 0) -> Path:
    """Prepare, train, score, write, fill, report; returns the path of report.html.

    A demo that was stopped goes on where it was. Raises UserError if `out` holds something else.
    """
    if max_steps is not None and max_steps < 1:
        raise UserError(f"max_steps={max_steps} must be at least 1")
    began = time.monotonic()
    data, model_folder = out / "data", out / "run"
    if not (data / "manifest.json").exists():
        say("1/5  Reading the language reference and the standard library of this Python")
        prepare(python_documents, TOKENIZER, data, held_out=HELD_OUT)
    manifest_note = describe(data)
    say(f"     {manifest_note}")

    config = demo_config(data, STEPS if max_steps is None else max_steps, seed)
    say(
        f"2/5  Training `tiny` for {config.max_steps} steps: left to right first, then ever more shuffled, then strided"
    )
    resume = (model_folder / "run.json").exists()
    result = train(config, data, model_folder, resume=resume)
    model, tokenizer = checkpoint.load(model_folder)
    assert isinstance(model, Armd) and tokenizer is not None  # written by the lines above
    valid = TokenDataset(data, "valid", config.text_length)

    say("3/5  Scoring held-out files in several orders")
    names = ("left_to_right", "reinsert:8", "infill", "strided:2", "strided:4", "strided:8", "uniform:4")
    scores = []
    for score in evaluate(model, valid.spread(TEXTS), names, texts=TEXTS):
        say(f"     {score.order:<14} {score.blocks:<11} {score.bits_per_byte:.3f} bits/byte")
        scores.append(score)

    say("4/5  Writing with 1, 2, 4 and 8 streams, then filling holes in a real function")
    speed, samples = write(model, tokenizer, valid, scores, seed)
    samples += fill(model, tokenizer, valid, seed)

    records = [record for record in read_metrics(model_folder) if "tokens_per_second" in record]
    results = {
        "title": "armd demo",
        "summary": {
            "preset": "tiny",
            "parameters": model.num_parameters(),
            "corpus": CORPUS,
            "train_tokens": config.max_steps * config.batch_size * config.text_length,
            "train_seconds": records[-1].get("seconds", result.seconds),
            "tokens_per_second": records[-1]["tokens_per_second"],
            "bits_per_byte": scores[0].bits_per_byte,
            "hardware": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "seed": seed,
            "command": "armd demo"
            + (f" --max-steps {max_steps}" if max_steps else "")
            + (f" --seed {seed}" if seed else ""),
            "version": version("armd"),
        },
        "curves": curves(model_folder),
        "scores": [score_row(score) for score in scores],
        "orders": order_pictures(),
        "speed": speed,
        "samples": samples,
    }
    say("5/5  Writing the report")
    write_json(out / "results.json", results)
    report.write(results, out / "report.html")
    bits = f"{scores[0].bits_per_byte:.3f} bits per byte on held-out files, left to right"
    say(f"done in {time.monotonic() - began:.0f} s: {bits}")
    say(f"     open {out / 'report.html'}")
    return out / "report.html"


def say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def demo_config(data: Path, steps: int, seed: int) -> TrainConfig:
    """`tiny`, with the phases of its order schedule stretched to the number of steps."""
    dataset = TokenDataset(data, "train", 1)
    config = with_steps(tiny(dataset.vocab_size, dataset.eos_id), steps)
    every = max(steps // 8, 1)
    return replace(config, eval_every=every, save_every=every, eval_texts=32, seed=seed)


def describe(data: Path) -> str:
    train_set, valid_set = (TokenDataset(data, split, 1) for split in ("train", "valid"))
    return (
        f"{train_set.bytes / 1e6:.1f} MB to train on, {valid_set.bytes / 1e6:.2f} MB in held-out files, "
        f"{train_set.bytes_per_token:.2f} bytes a token ({TOKENIZER})"
    )


# ---- what the page shows ---------------------------------------------------------------------------------------------


def curves(run_folder: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Training and held-out loss by order family: name -> [[step, nats per token], ...]."""
    result: dict[str, dict[str, list[list[float]]]] = {"train": {}, "valid": {}}
    for record in read_metrics(run_folder):
        if "loss" in record:
            family = record["family"].partition(":")[0]
            result["train"].setdefault(family, []).append([record["step"], record["loss"]])
        for family, value in record.get("valid", {}).items():
            result["valid"].setdefault(family, []).append([record["step"], value])
    return result


def score_row(score: Score) -> dict[str, Any]:
    row = asdict(score)
    row["order"] = f"{score.order}, {score.blocks}" if score.order.startswith("strided") else score.order
    return row


def order_pictures() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(1)
    holes = torch.tensor([False] * 2 + [True] * 4 + [False] * 2 + [True] * 3 + [False])
    pictures = [
        ("left to right", "One token a step, as a GPT writes.", Order.left_to_right(1, PICTURE)),
        ("reinsert, rho = 3", "Three tokens taken out and put back anywhere: the progressive schedule.",
         Order.reinsert(1, PICTURE, 3, generator=g)),
        ("strided, S = 3", "Three stream heads one by one, then one token of each stream at once.",
         Order.strided(1, PICTURE, 3)),
        ("template", "Two holes: what is known comes first, then both holes side by side.", Order.template(holes)),
    ]  # fmt: skip
    return [
        {"name": name, "caption": text, "positions": order.positions[0].tolist(), "blocks": order.blocks[0].tolist()}
        for name, text, order in pictures
    ]


def write(
    model: Armd, tokenizer: Tokenizer, valid: TokenDataset, scores: list[Score], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Continue a held-out text with every number of streams: time, passes, likelihood, and the text itself."""
    prompt = valid.eval_batch(1, 1)[0, :PROMPT_TOKENS]
    held_out = {(s.order, s.blocks): s.nats_per_token for s in scores}
    speed, samples = [], []
    for streams in STREAMS:
        texts = {}
        for mode in ("sequential",) if streams == 1 else ("sequential", "exact", "parallel"):
            options: dict[str, Any] = {
                "prompt": prompt,
                "streams": streams,
                "mode": mode,
                "seed": seed,
                "stop": False,
                "top_p": 0.9,
            }
            decode.generate(model, length=8 * streams, **options)  # warm up
            began = time.perf_counter()
            out = decode.generate(model, length=NEW_TOKENS, **options)
            seconds = time.perf_counter() - began
            texts[mode] = out
            with torch.inference_mode():
                likelihood = nll(model, out.tokens, Order.left_to_right(*out.tokens.shape))[0, PROMPT_TOKENS:].mean()
            order = "left_to_right" if streams == 1 else f"strided:{streams}"
            row = {
                "streams": streams,
                "mode": mode,
                "batch": 1,
                "seconds": seconds,
                "forward_passes": out.forward_passes,
                "tokens": NEW_TOKENS,
                "tokens_per_second": NEW_TOKENS / seconds,
                "nats_per_token": held_out[order, "parallel" if mode == "parallel" else "sequential"],
                "nats_left_to_right": likelihood.item(),
            }
            pace = f"{seconds:.2f} s, {NEW_TOKENS / seconds:.0f} tokens/s"
            say(f"     S = {streams} {mode:<10} {NEW_TOKENS} tokens in {out.forward_passes:3} passes, {pace}")
            speed.append(row)
        if streams == 1:
            title, caption = "1 stream", f"{NEW_TOKENS} passes for {NEW_TOKENS} tokens, top-p 0.9."
            samples.append(sample(tokenizer, texts["sequential"], title, caption))
            continue
        same = int((texts["exact"].tokens == texts["sequential"].tokens)[0, PROMPT_TOKENS:].sum())
        say(f"     S = {streams}: exact and sequential agree in {same} of {NEW_TOKENS} tokens")
        caption = f"Exact: {texts['exact'].forward_passes} passes for {NEW_TOKENS} tokens, top-p 0.9; "
        caption += f"{same} of them are those that one token at a time gives for the same seed."
        samples.append(sample(tokenizer, texts["exact"], f"{streams} streams", caption))
    return speed, samples


def fill(model: Armd, tokenizer: Tokenizer, valid: TokenDataset, seed: int) -> list[dict[str, Any]]:
    """Take a function from a held-out file, cut pieces out of its lines, and fill them in, all at once."""
    source = next(functions(tokenizer, valid), None)
    if source is None:
        say("     no short function in the held-out files: the infilling example is left out")
        return []
    template, original = cut_holes(tokenizer, source)
    out = decode.generate(model, template=template, temperature=0.5, seed=seed)
    holes = sum(t < 0 for t in template)
    caption = (
        f"{holes} tokens in {len(original)} holes, {out.forward_passes} passes. Cut out were: {'   '.join(original)}"
    )
    return [sample(tokenizer, out, "Holes filled in a held-out function", caption)]


def functions(tokenizer: Tokenizer, valid: TokenDataset) -> Iterator[str]:
    """Whole functions of 6 to 14 lines in the held-out text."""
    for window in range(valid.eval_windows()):
        text = tokenizer.decode(valid.eval_batch(window, 1)[0].tolist())
        for found in re.finditer(r"^( *)def .*\n((?:\1 +.*\n|\n(?=\1 ))+)(?=\1\S|\n)", text, re.MULTILINE):
            lines = found.group().rstrip().splitlines()
            if 6 <= len(lines) <= 14 and sum(bool(line.strip()) for line in lines) >= 6 and '"""' not in found.group():
                yield "\n".join(lines) + "\n"


def cut_holes(tokenizer: Tokenizer, source: str) -> tuple[list[int], list[str]]:
    """Cut the second half of three lines out of a function; returns the template and what was cut."""
    lines = source.splitlines()
    body = [i for i, line in enumerate(lines) if i and len(line.strip()) > 8]
    chosen = {body[len(body) * k // 6] for k in (1, 3, 5)}
    template, cut = [], []
    for i, line in enumerate(lines):
        at = len(line) - len(line.lstrip()) + len(line.strip()) // 2 if i in chosen else len(line)
        template += tokenizer.encode(line[:at]) + [-1] * len(tokenizer.encode(line[at:])) + tokenizer.encode("\n")
        cut += [line[at:]] if line[at:] else []
    return template, cut


def sample(tokenizer: Tokenizer, out: decode.Generation, title: str, caption: str) -> dict[str, Any]:
    """The first text of a generation, piece by piece, with the pass that wrote each."""
    pieces = tokenizer.pieces(out.tokens[0].tolist())
    steps = out.steps[0].tolist()
    return {
        "title": title,
        "caption": caption,
        "steps": out.forward_passes,
        "pieces": [{"text": text, "step": step, "given": step == 0} for text, step in zip(pieces, steps, strict=True)],
    }
