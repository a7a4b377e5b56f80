"""What only a GPU can show, measured and written down; type it again and it goes on. `make gpu-report` calls this.

    python -m scripts.gpu_report data_dir=<folder>            both parts, hours; resumable at any moment
    python -m scripts.gpu_report part=speed                   RoBERTa-large and a LLaMA-7B shape: steps, memory
    python -m scripts.gpu_report part=scores data_dir=<folder>    MiniLM on real GLUE files, every method, five seeds
    python -m scripts.gpu_report shape=tiny device=cpu        the same script end to end at toy size, for a test

Written: `<out>/<device>/speed/*.json`, one for each measurement, `speed.md`, and the records, tables and page of the
scores in `<out>/<device>/minilm`; of shape=tiny in `<out>/<device>-tiny`. A measurement that is there is not made
again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from propulsion.harness import files, gpu_report, record
from propulsion.harness.errors import UserError, unknown
from propulsion.harness.report import write_report
from propulsion.harness.settings import Settings, read_settings
from scripts.reproduce import run_sweep

DEFAULTS = {"part": "all", "shape": "paper", "device": "cuda", "out": "results/gpu", "data_dir": "", "rounds": "20"}
CHOICES = {"part": ("all", "speed", "scores"), "shape": ("paper", "tiny"), "device": ("cuda", "cpu")}
METHODS = ("full", "lora", "ia3", "bitfit", "propulsion")
BACKBONES = ("roberta_large", "llama_7b")
EXIT_BAD_INPUT = 2
SCORES = {
    "paper": ("experiment=minilm_gpu", "task=cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli", "seed=range(5)"),
    "tiny": ("experiment=tiny", "task=rte", "seed=range(1)"),
}
SCORED = {"paper": "full,head,bitfit,lora,ia3,propulsion,propulsion_attn", "tiny": "head,propulsion"}


def parse(arguments: list[str]) -> dict[str, str]:
    """The `key=value` words over the defaults.

    Raises:
        UserError: an unknown key or value, or what is missing here to measure anything.
    """
    options = dict(DEFAULTS)
    for word in arguments:
        key, found, value = word.partition("=")
        if not found or key not in options:
            raise unknown("option", word, [f"{name}=" for name in DEFAULTS])
        options[key] = value
    for key, allowed in CHOICES.items():
        if options[key] not in allowed:
            raise UserError(f"{key}={options[key]}: use {' | '.join(allowed)}")
    if not options["rounds"].isdigit() or int(options["rounds"]) < 2:
        raise UserError(f"rounds={options['rounds']}: must be 2 or more")
    if options["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no CUDA GPU here: make gpu-report measures RoBERTa-large and a LLaMA-7B shape, then MiniLM on the real "
            "GLUE files of DATA_DIR; type it on a machine that has one (shape=tiny device=cpu tries the script)"
        )
    return options


def grid(options: dict[str, str]) -> gpu_report.Grid:
    """The measurements of a shape. Full fine-tuning of LLaMA-7B is left out: it is no peer there."""
    pairs = [(b, m) for b in BACKBONES for m in METHODS if (b, m) != ("llama_7b", "full")]
    cells = tuple(_settings(backbone, method, options["shape"]) for backbone, method in pairs)
    rounds = int(options["rounds"])
    if options["shape"] == "tiny":
        return gpu_report.Grid(cells, batch=2, lengths=(8,), rounds=rounds, matrix=64)
    return gpu_report.Grid(cells, batch=16, lengths=(64, 128, 512), rounds=rounds, matrix=8192)


def _settings(backbone: str, method: str, shape: str) -> Settings:
    words = [f"backbone={backbone}", f"method={method}", "backbone.weights=random", "tracking=off"]
    if shape == "tiny":
        words += ["experiment=tiny"]
    with initialize_config_dir(str(record.REPOSITORY / "conf"), version_base="1.3"):
        return read_settings(compose("config", words))


def scores(options: dict[str, str], folder: Path) -> int:
    """The sweep of MiniLM, in a process of its own, then its tables; the sweep's exit code."""
    shape = options["shape"]
    results = folder / "minilm"
    words = [*SCORES[shape], f"method={SCORED[shape]}", "backbone=minilm", f"results_dir={results}"]
    if shape == "paper":
        words.append(f"data.dir={Path(options['data_dir']).expanduser().resolve()}")
    code = run_sweep([sys.executable, "-m", "scripts.run", "-m", *words])
    if (results / "runs").is_dir():
        write_report(results)
    return code


def run(options: dict[str, str]) -> int:
    """Both parts, or the one that is asked for; the exit code.

    Raises:
        UserError: nothing can be written, or the scores have no data to run on.
    """
    out = Path(options["out"]).resolve()
    record.check_writable(str(out))
    folder = gpu_report.place(str(out), options["device"])
    if options["shape"] == "tiny":  # its peak and its rows must not stand in a real report
        folder = folder.with_name(f"{folder.name}-tiny")
    wanted = options["part"] != "speed" and options["shape"] == "paper"
    if wanted and not Path(options["data_dir"] or "/nowhere").expanduser().is_dir():
        raise UserError(
            "the scores need the official GLUE files: type make gpu-report DATA_DIR=<folder>, "
            "or ARGS=part=speed for the steps alone"
        )
    if options["part"] in ("all", "speed"):
        for name, new in gpu_report.measure_all(grid(options), folder, options["device"]):
            print(f"{name}: {'measured' if new else 'there already'}", flush=True)
            if (folder / gpu_report.SPEED_NAME).is_dir():
                files.write_text(folder / "speed.md", gpu_report.table(folder))
        print(f"written: {folder / 'speed.md'}")
    if options["part"] == "speed":
        return 0
    return scores(options, folder)


def main(arguments: list[str]) -> int:
    """Measure what is missing. Exit codes as scripts.run."""
    try:
        return run(parse(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: type the same command again and it goes on where it stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
