"""Speed and memory of a training step against the peers. `make bench` calls this.

    python -m scripts.bench                        the quick comparison: about eight minutes on two cores
    python -m scripts.bench cases=all rounds=15    every shape, every case
    python -m scripts.bench cases=minilm_128 rounds=9 threads=1 out=results/bench
    python -m scripts.bench pack rounds=9          packs of 2, 4 and 8 cells against the same cells one after another
    python -m scripts.bench padding data=<dir>     the share of padding in the batches of every GLUE task

Random weights, so it needs no network; lengths of the SST-2 and RTE cases are those of their training rows.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from propulsion.harness import files, record
from propulsion.harness.errors import UserError, ended, unknown
from propulsion.harness.speedtest import packs, padding
from propulsion.harness.speedtest.entrants import backbone, entrants
from propulsion.harness.speedtest.measure import Case, compare

# Of 250 batches of 16 training rows drawn at random, MiniLM's tokenizer, cut at 128 tokens, the one of median padding:
# 62 % on SST-2, 47 % on RTE.
SST2 = (4, 5, 6, 6, 7, 8, 10, 10, 10, 12, 18, 21, 21, 24, 36, 39)
RTE = (28, 41, 42, 46, 48, 51, 54, 56, 57, 57, 64, 64, 89, 123, 128, 128)
CASES = {
    "minilm_128": Case("minilm", (128,) * 8, "minilm shape, 8 rows of 128 tokens"),
    "minilm_sst2": Case("minilm", SST2, "minilm shape, 16 rows of SST-2's lengths"),
    "minilm_rte": Case("minilm", RTE, "minilm shape, 16 rows of RTE's lengths"),
    "base_128": Case("roberta_base", (128,) * 16, "RoBERTa-base shape, 16 rows of 128 tokens"),
    "base_sst2": Case("roberta_base", SST2, "RoBERTa-base shape, 16 rows of SST-2's lengths"),
    "base_bytes": Case("roberta_base", (128,) * 16, "RoBERTa-base shape, 16 rows of 128 tokens", timed=False),
    "deberta_128": Case("deberta", (128,) * 8, "DeBERTa-v3 shape of 6 layers, 8 rows of 128 tokens"),
    "llama_128": Case("llama", (128,) * 8, "LLaMA shape of 6 layers, 8 rows of 128 tokens"),
    "large_bytes": Case("roberta_large", (128,) * 2, "RoBERTa-large shape, 2 rows of 128 tokens", timed=False),
    "large_sst2": Case("roberta_large", SST2, "RoBERTa-large shape, 16 rows of SST-2's lengths"),
    "large_128": Case("roberta_large", (128,) * 32, "RoBERTa-large shape, 32 rows of 128 tokens"),
}
QUICK = ("minilm_128", "minilm_sst2", "minilm_rte", "base_bytes", "deberta_128", "llama_128")
ON_CUDA = (*(name for name in CASES if name.endswith("128")), "minilm_sst2", "large_sst2")
DEFAULTS = {"cases": "quick", "rounds": "9", "threads": "", "out": "results/bench", "data": ""}
MODES = ("pack", "padding")
COLUMNS = "method | trained | ms | time | quartiles | ours by it | same products | saved MB | saved | peak MB"
EXIT_BAD_INPUT = 2


def parse(arguments: list[str]) -> dict[str, str]:
    """The `key=value` words over the defaults.

    Raises:
        UserError: an unknown key.
    """
    options = dict(DEFAULTS)
    for word in arguments:
        key, found, value = word.partition("=")
        if not found or key not in options:
            raise unknown("option", word, [f"{name}=" for name in DEFAULTS])
        options[key] = value
    if not options["rounds"].isdigit() or int(options["rounds"]) < 1:
        raise UserError(f"rounds={options['rounds']}: must be 1 or more")
    return options


def chosen(cases: str) -> list[Case]:
    """The cases by name; with a GPU, those of `ON_CUDA` on it as well, in bf16.

    Raises:
        UserError: no such case.
    """
    names = list(QUICK) if cases == "quick" else list(CASES) if cases == "all" else cases.split(",")
    for name in names:
        if name not in CASES:
            raise unknown("case", name, [*CASES, "quick", "all"])
    found = [CASES[name] for name in names]
    if torch.cuda.is_available():
        found += [replace(CASES[name], device="cuda", precision="bf16") for name in ON_CUDA]
    return found


def pack_cases() -> list[Case]:
    """What packs are measured on: real lengths on a CPU; on a GPU rows of 64 tokens, on a large backbone as well."""
    if not torch.cuda.is_available():
        return [CASES["minilm_sst2"]]
    shapes = {"minilm": "minilm shape", "roberta_large": "RoBERTa-large shape"}
    return [Case(shape, (64,), f"{name}, rows of 64 tokens", "cuda", "bf16") for shape, name in shapes.items()]


def table(results: list[dict[str, Any]], env: dict[str, Any]) -> str:
    """The results as Markdown. Times are medians; ratios are medians within rounds, with their quartiles."""
    lines = ["# Speed and memory of a training step", ""]
    lines += [
        f"{env['device']}; torch {env['torch']}, transformers {env['transformers']}, peft {env['peft']}; commit "
        f"{(env['commit'] or 'unknown')[:10]}{' (changed since)' if env['dirty'] else ''}.",
        "Forward, backward and AdamW on random weights, dropout 0.1, trained head. Entrants take turns; a ratio is the "
        "median over rounds of an entrant's time by the first one's in the same round, with its quartiles; ours by it, "
        "that of our fast path's time by the entrant's. Saved: what the forward pass keeps for the backward pass, "
        "parameters left out. Same products: the fast path with torch's own matrix products in the place of oneDNN's, "
        "where those are used. On CUDA compiled modules and the fast path with attention by groups take part too; "
        "share is that of the device's peak of bf16 matrix products, by the operations counted in a step.",
    ]
    for result in results:
        count = f"{result['rounds']} rounds" if result["rounds"] else "memory alone"
        rounds = f"{count}, {result['device']}, {result['precision']}"
        padding = 1 - result["tokens"] / result["padded_tokens"]
        lines += ["", f"## {result['title']}", "", f"{rounds}; padding {padding:.0%}.", ""]
        share = "peak_flops" in result
        lines += [f"| {COLUMNS} |", "|---|" + "---:|" * COLUMNS.count("|")]
        if share:
            lines[-2:] = [f"{lines[-2]} share of {result['peak_flops'] / 1e12:,.0f} TFLOP/s |", f"{lines[-1]}---:|"]
        for name, fact in result["entrants"].items():
            lines.append(f"| {name} | {_row(fact)} |" + (f" {fact.get('peak_share', 0):.1%} |" if share else ""))
    return "\n".join(lines) + "\n"


def _row(fact: dict[str, Any]) -> str:
    if "refused" in fact:
        return f"{fact['refused']} | | | | | | | | "
    same = f"{fact['torch_products']['ratio']:.2f}" if "torch_products" in fact else ""
    times = ["", "", ""]
    if "seconds" in fact:
        spread = f"{fact['ratio_low']:.2f} to {fact['ratio_high']:.2f}"
        times = [f"{1e3 * fact['seconds']:,.0f}", f"{fact['ratio']:.2f}", spread]
    ours = f"{fact['ours_by_this']:.2f}" if "ours_by_this" in fact else ""
    peak = "" if fact["peak_bytes"] is None else f"{fact['peak_bytes'] / 1e6:,.0f}"
    saved = f"{fact['saved_bytes'] / 1e6:,.1f} | {fact['saved_ratio']:.2f}"
    return f"{fact['trained']:,} | {' | '.join(times)} | {ours} | {same} | {saved} | {peak}"


def main(arguments: list[str]) -> int:
    """Measure, print and write `bench.json` and `bench.md`. Exit codes as scripts.run."""
    try:
        options = parse([word for word in arguments if word not in MODES])
        cases = chosen(options["cases"])
        record.check_writable(options["out"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if options["threads"]:
        torch.set_num_threads(int(options["threads"]))
    env = record.environment(None)
    if "padding" in arguments:
        try:
            padding.run(options["data"] or None, Path(options["out"]), env)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_BAD_INPUT
        return 0
    if "pack" in arguments:
        packs.run(pack_cases(), int(options["rounds"]), Path(options["out"]), env)
        return 0
    results: list[dict[str, Any]] = []
    for case in cases:
        print(f"{case.title}, {case.device} ...", file=sys.stderr, flush=True)
        results.append(compare(case, entrants(case.shape, case.device), backbone, int(options["rounds"])))
        gc.collect()
        text = table(results, env)  # written after every case: what is done stays
        files.write_text(Path(options["out"], "bench.md"), text)
        files.write_text(
            Path(options["out"], "bench.json"), json.dumps({"env": env, "cases": results}, indent=1) + "\n"
        )
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(ended(main))
