"""The command line, as a user meets it: one line and exit status 2 for a mistake, JSON on standard output."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from armd import demo
from armd.cli import main
from armd.cli.generate import parse_template
from armd.data import get_tokenizer

SMALL = [
    "--model.hidden-size", "32", "--model.num-hidden-layers", "2", "--model.num-attention-heads", "2",
    "--model.max-position-embeddings", "32", "--batch-size", "2", "--max-steps", "3", "--eval-texts", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, prepared data, and a trained run."""
    folder = tmp_path_factory.mktemp("cli")
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"def f{i}(x):\n    return x + {i}\n" * 30)
    (folder / "empty.txt").write_text("")
    (folder / "binary.bin").write_bytes(b"\0\1\2" * 50)
    assert main(["prepare", "--input", *(str(folder / f"{i}.txt") for i in range(4)), "--tokenizer", "byte",
                 "--held-out", "0.3", "--out", str(folder / "data")]) == 0  # fmt: skip
    assert main(["train", "tiny", "--data", str(folder / "data"), "--out", str(folder / "run"), *SMALL]) == 0
    assert (
        main(["prepare", "--input", str(folder / "?.txt"), "--tokenizer", "bpe:300", "--out", str(folder / "bpe")]) == 0
    )
    shutil.copytree(folder / "run", folder / "bare")
    (folder / "bare" / "tokenizer.json").unlink()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


MISTAKES = {
    "frobnicate": "command 'frobnicate' is unknown; choose one of prepare",
    "train": "name a preset first",
    "train huge --data {f}/data --out {f}/x": "preset 'huge' is unknown; choose one of tiny",
    "train tiny --data {f}/nowhere --out {f}/x": "holds no manifest.json; make it with armd prepare",
    "train tiny --data {f}/data": "--out",
    "train tiny --data {f}/data --out {f}/x --wings 2": "--wings",
    "train tiny --data {f}/data --out {f}/x --max-steps many": "--max-steps",
    "train tiny --data {f}/data --out {f}/x --max-steps 0": "max_steps=0 must be at least 1",
    "train tiny --data {f}/data --out {f}/x --model.query magic": "query='magic' is unknown",
    "train tiny --data {f}/data --out {f}/x --model.vocab-size 100": "eos_token_id=256 must be a token below",
    "train tiny --data {f}/bpe --out {f}/x --model.vocab-size 257 --model.eos-token-id None": "vocabulary does not fit",
    "train tiny --data {f}/data --out {f}/x --device tpu7": "device='tpu7' is unknown",
    "train tiny --data {f}/data --out {f}/x --model.max-position-embeddings 9984": "too few for one text of 9984",
    "train tiny --data {f}/data --out {f}/run": "is not empty; use --resume",
    "train tiny --data {f}/data --out {f}/run --resume": "started with other values of",
    "train tiny --data {f}/data --out {f}/x --max-steps 20 --orders.sbp-steps 30": "do not fit max_steps=20",
    "train tiny --data {f}/data --out {f}/x --orders.sbp-streams 1 7": "streams=7 does not divide the 256 tokens",
    "train tiny --data {f}/data --out {f}/x --optim.lr nan": "optim.lr=nan must be a finite number",
    "train tiny --data {f}/data --out {f}/x --device mps": "device='mps' is unknown",
    "demo --out {f}/x --max-steps 0": "max_steps=0 must be at least 1",
    "prepare --out {f}/x --tokenizer byte": "give either --input FILES or --dataset NAME",
    "prepare --out {f}/x --tokenizer byte --input {f}/gone.txt": "gone.txt does not exist",
    "prepare --out {f}/x --tokenizer byte --input {f}/empty.txt": "empty.txt is empty",
    "prepare --out {f}/x --tokenizer byte --input {f}/binary.bin": "is a binary file",
    "prepare --out {f}/x --tokenizer morse --input {f}/0.txt": "tokenizer 'morse' is unknown",
    "prepare --out {f}/x --tokenizer byte --dataset moby": "data set 'moby' is unknown",
    "prepare --out {f}/data --tokenizer byte --input {f}/0.txt": "is not empty",
    "generate --model {f}/nowhere": "nowhere does not exist",
    "generate --model {f}/foreign": "was not written by this version of armd",
    "generate --model {f}/run --length 33": "prompt 0 + length 33 tokens exceed max_position_embeddings=32",
    "generate --model {f}/run --length 10 --streams 4": "streams=4 does not divide the 10 new tokens",
    "generate --model {f}/run --streams 99": "streams=99",
    "generate --model {f}/run --temperature -1": "temperature=-1",
    "generate --model {f}/run --mode slow": "--mode",
    "generate --model {f}/run --template abc": "template has no hole",
    "generate --model {f}/run --best-of 0": "--best-of needs --template",
    "generate --model {f}/run --template a<2>b --dependence 3": "--dependence needs --adaptive entropy",
    "generate --model {f}/run --budget nan": "--budget needs --streams auto",
    "generate --model {f}/run --template a<2>b --adaptive margin --rows 2": "--rows, --compiled needs no --adaptive",
    "generate --model {f}/run --template a<2>b --adaptive margin --check rejection": "needs no --adaptive",
    "generate --model {f}/run --template a<2>b --data {f}/data": "--data needs --streams auto",
    "generate --model {f}/run --template a<2>b --length 4": "needs no --template",
    "generate --model {f}/run --template a<2-4>b --samples 2": "holes like <4-12> need",
    "generate --model {f}/run --template a<2-4>": "no text behind it",
    "generate --model {f}/run --streams auto --data {f}/data --seed 99999999999999999999": "must fit in 64 bits",
    "evaluate --model {f}/run --data {f}/data --seed 99999999999999999999": "must fit in 64 bits",
    "evaluate --model {f}/run --data {f}/data --orders uniform --measure 2": "measure=2 writes texts in strided orders",
    "generate --model {f}/run --template a<0>c": "hole of 0 to 0 tokens: the length must be at least 1",
    "generate --model {f}/run --template a<40>c": "hole of 40 tokens exceeds max_position_embeddings=32",
    "generate --model {f}/run --template a<4>c --length 3": "needs no --template",
    "generate --model {f}/run --streams many": "--streams",
    "generate --model {f}/run --streams 2 --data {f}/data": "--data needs --streams auto",
    "generate --model {f}/run --streams auto": "--streams auto needs --data DIR",
    "generate --model {f}/run --streams auto --data {f}/bpe": "was made with another tokenizer",
    "generate --model {f}/run --streams auto --data {f}/data --budget -1": "budget=-1.0 must be at least 0",
    "generate --model {f}/run --streams auto --data {f}/data --template a<4>c": "needs no --template",
    "evaluate --model {f}/run --data {f}/data --measure -1": "measure=-1",
    "evaluate --model {f}/run --data {f}/data --orders spiral": "order family 'spiral' is unknown",
    "evaluate --model {f}/run --data {f}/data --orders uniform:x": "uniform:x",
    "evaluate --model {f}/run --data {f}/data --orders strided:5": "streams=5 does not divide",
    "evaluate --model {f}/run --data {f}/data --orders left_to_right,reinsert:9999": "rho=9999 exceeds the 32 tokens",
    "evaluate --model {f}/run --data {f}/data --texts 0": "texts=0",
    "evaluate --model {f}/run --data {f}/data --length 0": "length=0 must be at least 1",
    "evaluate --model {f}/bare --data {f}/bpe": "tokens, above vocab_size=257",
    "evaluate --model {f}/run --data {f}/bpe": "made with another tokenizer",
    "evaluate --model {f}/run --data {f}/data --length 64": "64 tokens exceed max_position_embeddings=32",
    "bench --preset huge": "preset 'huge' is unknown",
    "bench --length 9999": "9999",
    "bench --repeats 0": "repeats=0 must be at least 1",
    "bench decode --preset huge": "preset 'huge' is unknown",
    "bench decode --streams 3": "streams=3 does not divide length=256",
    "bench decode --batch 0": "batch=(0,) must be at least 1",
    "bench decode --tokens 300": "tokens=300 must be full or in 1..256",
    "bench decode --tokens few": "--tokens",
    "bench decode --dtype int3": "--dtype",
    "bench decode --device tpu7": "device='tpu7' is unknown",
    "bench walk": "unknown option walk",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(command.format(f=folder).split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert lines[-1].startswith("error: ") and MISTAKES[command] in lines[-1] and "Traceback" not in shown.err
    assert len(lines) == 1
    assert not (folder / "x").exists()


def test_a_mistake_from_the_shell(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "armd.cli", "generate", "--model", "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == "error: model folder nowhere does not exist\n" and done.stdout == ""


def run_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    assert main(words) == 0
    return json.loads(capsys.readouterr().out)


def test_generate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "generate",
        "--model",
        str(folder / "run"),
        "--prompt",
        "def",
        "--length",
        "24",
        "--samples",
        "2",
        "--json",
    ]
    parallel = run_json([*words, "--streams", "4", "--mode", "parallel"], capsys)
    assert 5 + 1 <= parallel["forward_passes"] <= 4 + 5 and parallel["new_tokens"] == 48 and len(parallel["texts"]) == 2
    assert all(text.startswith("def") for text in parallel["texts"])
    exact = run_json([*words, "--streams", "4"], capsys)
    assert exact["tokens"] == run_json([*words, "--streams", "4", "--mode", "sequential"], capsys)["tokens"]
    capsys.readouterr()
    assert main([*words[:-1], "--seed", "3"]) == 0
    plain = capsys.readouterr()
    assert plain.out.startswith("def") and "tokens/s" in plain.err


def test_template(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_json(["generate", "--model", str(folder / "run"), "--template", "ab<3>cd<2>", "--json"], capsys)
    given = out["tokens"][0]
    assert given[:2] == [97, 98] and given[5:7] == [99, 100] and len(given) == 9 and out["new_tokens"] == 5
    assert parse_template("a<2>b<4-12>", get_tokenizer("byte")) == [[97], (2, 2), [98], (4, 12)]
    assert parse_template("<1>if x < 3 > y", get_tokenizer("byte"))[0] == (1, 1)


def test_generate_the_best_of_several_lengths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", str(folder / "run"), "--template", "ab<2-4>cd", "--best-of", "3", "--json"]
    out = run_json(words, capsys)
    assert out["holes"][0] in (2, 3, 4) and len(out["hole_log_probs"]) == 1 and out["evidence"] < 0
    assert len(out["tokens"]) == 1 and len(out["tokens"][0]) == 4 + out["holes"][0]


def test_generate_in_an_adaptive_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", str(folder / "run"), "--template", "ab<3>cd<2>", "--adaptive", "margin", "--json"]
    out = run_json(words, capsys)
    assert out["forward_passes"] == 5 and sorted(out["order"][0]) == list(range(9)) and out["acceptance"] is None


def test_generate_options_of_decoding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--model", str(folder / "run"), "--length", "24", "--streams", "4", "--seed", "3", "--json"]
    exact = run_json([*words, "--dtype", "float32"], capsys)
    sequential = run_json([*words, "--dtype", "float32", "--mode", "sequential"], capsys)
    assert exact["texts"] == sequential["texts"] and exact["forward_passes"] < sequential["forward_passes"] == 24
    assert exact["tokens_per_pass"] == 24 / exact["forward_passes"]
    loose = run_json([*words, "--check", "rejection", "--tolerance", "0.2", "--dtype", "int8"], capsys)
    assert 0 <= loose["total_variation"][0] <= 24 * 0.2 and loose["new_tokens"] == 24


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--model", str(folder / "run"), "--data", str(folder / "data")]
    orders = "left_to_right,uniform:3,strided:4,infill"
    scores = run_json([*words, "--orders", orders, "--json"], capsys)["scores"]
    assert [(s["order"], s["blocks"]) for s in scores] == [
        ("left_to_right", "sequential"), ("uniform:3", "sequential"), ("uniform:3", "sequential"),
        ("strided:4", "sequential"), ("strided:4", "parallel"), ("infill", "sequential"),
    ]  # fmt: skip
    assert all(4 < s["nats_per_token"] < 7 and s["texts"] > 1 for s in scores)
    assert scores[2]["nats_per_token"] <= scores[1]["nats_per_token"]
    assert scores[0]["bits_per_byte"] == pytest.approx(scores[0]["nats_per_token"] / 0.6931, rel=0.02)
    assert main(words) == 0
    assert "left_to_right" in capsys.readouterr().out


def test_meter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate",
        "--model",
        str(folder / "run"),
        "--data",
        str(folder / "data"),
        "--orders",
        "strided:4,uniform",
    ]
    out = run_json([*words, "--measure", "2", "--json"], capsys)
    (meter,), scores = out["meter"], out["scores"]
    assert meter["streams"] == 4 and meter["measured"]["texts"] == 2
    assert meter["sequential"] == pytest.approx(scores[0]["nats_per_token"], abs=1e-5)
    assert meter["parallel"] == pytest.approx(scores[1]["nats_per_token"], abs=1e-5)
    for part in (meter, meter["measured"]):
        assert 0 <= part["acceptance"] <= 1 and 1 <= part["tokens_per_pass"] <= 4
    assert run_json([*words, "--json"], capsys)["meter"][0]["measured"] is None
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "decoding, predicted" in shown and "measured" not in shown
    assert main([*words, "--measure", "1"]) == 0
    assert "measured" in capsys.readouterr().out


def test_streams_auto(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text is that of the number of streams it chooses and says."""
    words = ["generate", "--model", str(folder / "run"), "--json", "--length", "24", "--streams"]
    capsys.readouterr()
    assert main([*words, "auto", "--data", str(folder / "data"), "--budget", "9"]) == 0
    shown = capsys.readouterr()
    streams = re.search(r"streams=(\d+)", shown.err)
    assert streams and "tokens/pass" in shown.err and "│ 32 " not in shown.err
    assert json.loads(shown.out)["tokens"] == run_json([*words, streams[1]], capsys)["tokens"]


def test_prepare_json_and_bench(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "prepare",
        "--input",
        str(folder / "?.txt"),
        "--tokenizer",
        "bpe:300",
        "--out",
        str(folder / "bpe2"),
        "--json",
    ]
    manifest = run_json(words, capsys)
    assert 257 < manifest["vocab_size"] <= 300 and manifest["splits"]["train"]["documents"] == 3
    bench = run_json(["bench", "--length", "16", "--streams", "1", "4", "--repeats", "1", "--json"], capsys)
    training = ["train, AR", "train, ARMD, L2s = 1", "train, ARMD, L2s = L/2"]
    names = [*training, "decode, exact, S = 1", "decode, exact, S = 4"]
    assert [row["what"] for row in bench["rows"]] == names
    assert all(row["tokens_per_second"]["median"] > 0 and row["ratio"]["median"] > 0 for row in bench["rows"])
    assert bench["rows"][0]["ratio"]["median"] == bench["rows"][3]["ratio"]["median"] == 1


def test_train_json_and_phases_in_fewer_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run2"
    words = ["train", "tiny", "--data", str(folder / "data"), "--out", str(run), *SMALL, "--orders.sbp-steps", "1"]
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    assert "3 steps instead of 1000" in shown.err and "ar_steps=0, perm_steps=1, sbp_steps=1" in shown.err
    result = json.loads(shown.out)
    assert result["run"] == str(run) and result["steps"] == 3 and set(result) == {
        "run", "steps", "parameters", "valid", "seconds",
    }  # fmt: skip
    assert 4 < result["valid"]["left_to_right"] < 7


def test_floors_are_given_as_a_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "tiny", "--data", str(folder / "data"), "--out", str(tmp_path / "run"), *SMALL, "--orders.floors"]
    assert main([*words, "strided:4", "0.5", "uniform", "0.25"]) == 0
    orders = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["orders"]
    assert orders["floors"] == {"strided:4": 0.5, "uniform": 0.25}
    for floors in ("uniform", "uniform half", "uniform 0.2 infill"):
        capsys.readouterr()
        assert main([*words, *floors.split()]) == 2
        assert f"'{floors}' must be names with numbers" in capsys.readouterr().err


def test_a_run_again_from_its_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["train", str(folder / "run" / "run.json"), "--data", str(folder / "data"), "--out"]
    assert main([*again, str(folder / "again"), "--json"]) == 0
    capsys.readouterr()
    runs = [(folder / name / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert runs[0] == runs[1]
    assert main([*again, str(folder / "other"), "--seed", "5", "--max-steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main(["train", str(folder / "none.json"), "--data", str(folder / "data"), "--out", str(folder / "x")]) == 2
    assert "none.json does not exist" in capsys.readouterr().err


def test_demo_json(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: Path, **_: object) -> Path:
        out.mkdir()
        (out / "results.json").write_text('{"summary": {"seed": 0}, "scores": [], "speed": [], "samples": []}')
        return out / "report.html"

    monkeypatch.setattr(demo, "run", run)
    shown = run_json(["demo", "--out", str(folder / "demo"), "--json"], capsys)
    assert shown == {
        "report": str(folder / "demo" / "report.html"), "summary": {"seed": 0}, "scores": [], "speed": [],
    }  # fmt: skip


def test_one_held_out_text_has_no_standard_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--model", str(folder / "run"), "--data", str(folder / "data"), "--texts", "1", "--json"]
    assert main([*words, "--orders", "left_to_right"]) == 0
    shown = capsys.readouterr().out
    assert "NaN" not in shown and json.loads(shown)["scores"][0]["stderr"] is None


def test_scores_do_not_depend_on_the_batch_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--model", str(folder / "run"), "--data", str(folder / "data"), "--texts", "5", "--json"]
    words += ["--orders", "uniform:2,infill,reinsert:4"]
    one, other = (run_json([*words, "--batch-size", size], capsys)["scores"] for size in ("5", "2"))
    for a, b in zip(one, other, strict=True):
        assert a["nats_per_token"] == pytest.approx(b["nats_per_token"], abs=1e-5)


def test_resume_of_a_finished_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "tiny", "--data", str(folder / "data"), "--out", str(folder / "run"), *SMALL, "--resume"]
    before = (folder / "run" / "model.safetensors").read_bytes()
    assert main(words) == 0
    assert (folder / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("words", ["--help", "train --help", "train tiny --help", "prepare --help", "generate --help",
                                   "evaluate --help", "bench --help", "bench decode --help",
                                   "bench train --help", "demo --help", "--version"])  # fmt: skip
def test_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert len(shown) > 4
    if words == "train tiny --help":
        for option in ("--data", "--out", "--resume", "--model.query", "--orders.rho", "--optim.lr", "--max-steps"):
            assert option in shown


def test_real_corpora(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named data sets from files: WikiText-2 with the GPT-2 vocabulary, and every passage of LAMBADA."""
    wiki = ["prepare", "--dataset", "wikitext2", "--split", "test", "--data-dir", str(shared / "wikitext-2"),
            "--tokenizer", "gpt2", "--tokenizer-dir", str(shared), 
            "--out", str(tmp_path / "wiki"), "--json"]  # fmt: skip
    manifest = run_json(wiki, capsys)
    assert sum(split["tokens"] for split in manifest["splits"].values()) > 200_000
    lambada = ["prepare", "--dataset", "lambada", "--split", "test", "--data-dir", str(shared / "lambada"),
               "--tokenizer", "byte", "--out", str(tmp_path / "lambada"), "--json"]  # fmt: skip
    assert sum(s["documents"] for s in run_json(lambada, capsys)["splits"].values()) == 5153
