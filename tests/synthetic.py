"""A large made-up result set, in a temporary folder: for how long a report takes and how large it gets.

python -m tests.synthetic <folder> [records]     writes the records, makes the report, prints time, memory and size
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from propulsion.harness.record import sealed

ROOT = Path(__file__).resolve().parents[1]
SUITES = {
    "glue": ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"],
    "superglue": ["boolq", "cb", "copa", "multirc", "record", "wic", "wsc"],
}
BACKBONES = ["minilm", "roberta_base", "roberta_large", "deberta_v3_base"]
METHODS = ["full", "head", "bitfit", "lora", "ia3", "propulsion", "propulsion_attn", "propulsion_paper"]
_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
DEGREES = (5, 15, 35, 55)


def template() -> dict[str, Any]:
    """A real record, so that the made-up ones have its size and shape."""
    path = next(iter(sorted((ROOT / "results" / "minilm-real" / "runs" / "mrpc" / "minilm" / "propulsion").glob("*"))))
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def cells() -> Any:
    """(suite, task, backbone, method, degree, seed): seeds last, so that any first part is balanced."""
    for seed in itertools.count():
        for suite, tasks in SUITES.items():
            for task, backbone, method in itertools.product(tasks, BACKBONES, METHODS):
                for degree in DEGREES if method == "propulsion" else (None,):
                    yield suite, task, backbone, method, degree, seed


def write_records(folder: Path, count: int) -> None:
    """Write `count` records; every 50th failed. The same count gives the same bytes."""
    base, draw = json.dumps(template()), random.Random(0)
    for number, (suite, task, backbone, method, degree, seed) in enumerate(itertools.islice(cells(), count)):
        record = json.loads(base)
        run, config = record["run"], record["run"]["config"]
        run |= {
            "suite": suite,
            "task": task,
            "backbone": backbone,
            "method": method,
            "seed": seed,
            "profile": "made-up",
        }
        config["seed"] = seed
        config["task"] |= {"name": task, "suite": suite}
        config["backbone"]["name"], config["method"]["name"] = backbone, method
        config["method"]["degree"] = degree
        rate = 0.001 * (1 + METHODS.index(method))
        config["training"]["learning_rate"] = rate
        run["data"]["fingerprint"] = f"made-up:{task}"
        level = 0.4 + 0.05 * METHODS.index(method) + 0.01 * len(task)
        scores = [{"accuracy": level + draw.gauss(0, 0.02), "f1": level + draw.gauss(0, 0.02)} for _ in range(10)]
        record["eval"] |= {
            "last": scores[-1],
            "heldout": scores[-2],
            "best": max(scores, key=lambda point: point["accuracy"]),
            "history": [
                {"step": 10 * i, "epoch": i / 5, "loss": 0.5, "train_loss": 0.6, "seconds": 2.0 * i, "scores": point}
                for i, point in enumerate(scores, 1)
            ],
        }
        record["cost"] |= {"train_seconds": 20 + 20 * draw.random(), "peak_memory_bytes": 10**9 + draw.randrange(10**9)}
        record["params"] |= {"trainable": 1000 * 4 ** METHODS.index(method)}
        if number % 50 == 49:
            error = {"type": "RuntimeError", "message": f"made up, cell {number}", "where": "synthetic.py:1 in f"}
            record |= {"status": "failed", "error": error}
            record["eval"] |= {"last": None, "heldout": None, "best": None, "history": []}
        record["key"] = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        path = folder / "runs" / task / backbone / method / f"{record['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sealed(record), indent=1), encoding="utf-8")


def _cpu() -> float:
    """Seconds of processor, of the processes that drew figures too."""
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in _WHO)


def main(arguments: list[str]) -> None:
    """Write, report, measure."""
    from propulsion.harness.figures import cores
    from propulsion.harness.report import write_report

    folder, count = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 10_000
    write_records(folder, count)
    wall, cpu = time.perf_counter(), _cpu()
    _, paths = write_report(folder, cores())
    wall, cpu = time.perf_counter() - wall, _cpu() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = (folder / "index.html").stat().st_size / 1e6
    print(f"{count} records: {wall:.1f} s ({cpu:.1f} s of one core), peak {peak:.2f} GB, page {size:.2f} MB")
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
