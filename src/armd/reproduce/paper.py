"""What papers print, to stand beside ours: perplexities of arXiv 2601.16971, and Sudoku of Kim et al., 2025."""

from __future__ import annotations

ZERO_SHOT_SETS = ("lambada", "wikitext2", "ptb", "wikitext103", "lm1b")

ZERO_SHOT_SMALL = {  # trained on OpenWebText, GPT-2 small shape, protocol `sedd`
    "GPT-2": (45.04, 42.43, 138.43, 41.60, 75.20),
    "D3PM": (93.47, 77.28, 200.82, 75.16, 138.92),
    "PLAID, 600K": (57.28, 51.80, 142.60, 50.86, 91.12),
    "SEDD-Uniform, 400K": (65.40, 50.27, 140.12, 49.60, 101.37),
    "SEDD, 400K": (50.92, 41.84, 114.24, 40.62, 79.29),
    "RADD, 400K": (51.70, 39.98, 107.85, 37.98, 72.99),
    "ARMD, 180K": (44.66, 36.25, 130.31, 35.66, 53.18),
    "ARMD, 400K": (45.35, 35.64, 123.43, 35.15, 52.94),
}

ZERO_SHOT_MEDIUM = {
    "GPT-2": (35.66, 31.80, 123.14, 31.39, 55.72),
    "SEDD, 400K": (42.77, 31.04, 87.12, 29.98, 61.19),
    "RADD, 400K": (44.10, 30.60, 82.08, 29.29, 60.32),
    "ARMD, 120K": (40.62, 27.57, 105.09, 27.09, 45.49),
    "ARMD, 300K": (39.08, 26.06, 97.75, 25.55, 43.91),
}

GENERATION = {  # generative perplexity and "mean token entropy", not defined, at T = 1024, 512, 256 steps; N = 1024
    "AR": ("36 (8.1)", "", ""),
    "SEDD": ("106 (8.1)", "110 (8.1)", ""),
    "MDLM": ("103 (8.1)", "113 (8.1)", ""),
    "ARMD, rho 32, i_SBP 10K": ("38.7 (8.0)", "43.2 (8.0)", "47.8 (8.1)"),
    "ARMD, rho 32, i_SBP 50K": ("39.1 (8.0)", "40.1 (8.1)", "43.2 (8.1)"),
    "ARMD, rho 32, i_SBP 80K": ("36.5 (7.9)", "37.8 (8.0)", "39.4 (8.0)"),
    "ARMD, rho 16, i_SBP 10K": ("50.0 (8.1)", "54.6 (8.1)", "64.7 (8.2)"),
    "ARMD, rho 16, i_SBP 80K": ("39.4 (8.0)", "40.5 (8.1)", "43.7 (8.1)"),
}

LM1B = {
    "Transformer-XL base": 23.5,
    "Transformer": 22.83,
    "D3PM-absorb": 82.34,
    "Diffusion-LM": 118.62,
    "DiffusionBert": 63.78,
    "SEDD, 1M": 32.68,
    "MDLM, 1M": 31.78,
    "BD3-LM, blocks of 16, 1M": 30.60,
    "BD3-LM, blocks of 4, 1M": 28.23,
    "ARMD, 300K": 23.64,
    "ARMD, 1M": 22.36,
}

SUDOKU = {  # per cent solved (Kim et al., 2025), on their puzzles
    "masked diffusion of 6M parameters, random order": ("6.9", ""),
    "the same, margin order": ("89.5", "49.9"),
    "a larger AR model that was taught the right order": ("", "32.6"),
}
