"""What must stand beside the numbers: on which data, weights, device and code, and trained how."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from propulsion.harness.record import DIVERGED, FAILED, HEEDS_WARMUP, SUCCESS, start_of
from propulsion.harness.tables.reading import Record, at
from propulsion.harness.tables.variants import short_start

SUITES = {"glue": "GLUE", "superglue": "SuperGLUE"}
MOST_TEXTS = 3  # of one condition, where no task, method or backbone decides it
VERSIONS = ("python", "torch", "transformers", "peft", "datasets")


def title(suite: str, records: list[Record]) -> str:
    """`GLUE, mini profile: generated data, not comparable with the paper`."""
    profile = records[0]["run"]["profile"]
    text = f"{SUITES.get(suite, suite)}, {profile} profile"
    if data := made_up(records):
        text += f": {data}, not comparable with the paper or with any GLUE score"
    elif profile.startswith("mini"):
        text += ": small backbone, cut rows, not comparable with the paper"
    if _random(records):
        text += " (RANDOM WEIGHTS: the scores mean nothing)"
    return text


def made_up(records: Sequence[Record]) -> str:
    """`generated data`, or nothing where the rows are real."""
    sources = {str(record["run"]["data"].get("source")) for record in records}
    if "generated" not in sources:
        return ""
    return "generated data" if len(sources) == 1 else "partly generated data"


def conditions(records: list[Record]) -> list[tuple[str, str]]:
    """Name and text of each condition. What differs is told by task, method or backbone, else with counts."""
    lines = [
        ("Runs", _runs(records)),
        ("Seeds", ", ".join(map(str, sorted({r["run"]["seed"] for r in records})))),
        ("Data", _describe(records, _data)),
    ]
    for name in dict.fromkeys(r["run"]["backbone"] for r in records):
        lines.append(("Backbone", _backbone(name, [r for r in records if r["run"]["backbone"] == name])))
    lines += [
        ("Training", _describe(records, _length)),
        ("Batches", _describe(records, _batches)),
        ("Schedule", _describe(records, _schedule)),
        ("Learning rate", _describe(records, _learning_rate, ("method", "task", "backbone"))),
        ("Settings", _describe(records, _settings)),
        ("Start", _starts(records)),
        ("Head", _describe(records, lambda r: at(r, "run.config.method.head"), ("method",))),
        ("Best checkpoint by", _describe(records, lambda r: at(r, "run.config.training.best_by"))),
        ("Device", _describe(records, _device)),
        ("Cells at once", _crowds(records)),
        ("Speed", _speeds(records)),
        ("Versions", _describe(records, _versions)),
        ("Code", _describe(records, _code)),
    ]
    return [(name, text) for name, text in lines if text]


def _describe(
    records: list[Record],
    value: Callable[[Record], Any],
    axes: tuple[str, ...] = ("task", "method", "backbone"),
) -> str:
    """One text for all records; or one for each task, method or backbone that decides it; or counts."""
    known = [(record["run"], str(text)) for record in records if (text := value(record)) is not None]
    texts = Counter(text for _, text in known)
    if len(texts) <= 1:
        return "".join(texts)
    for axis in axes:
        by_name: dict[str, set[str]] = defaultdict(set)
        for run, text in known:
            by_name[run[axis]].add(text)
        if all(len(own) == 1 for own in by_name.values()):
            names: dict[str, list[str]] = defaultdict(list)
            for name, own in by_name.items():
                names[next(iter(own))].append(name)
            return "; ".join(f"{', '.join(own)}: {text}" for text, own in names.items())
    by_method: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, text in known:
        by_method[run["method"]][text].add(run["task"])
    if len({run["task"] for run, _ in known}) > 1 and all(map(_disjoint, by_method.values())):
        return "; ".join(f"{method}: {_by_task(own)}" for method, own in by_method.items())
    ordered = sorted(texts.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > MOST_TEXTS + 1:  # one more is no longer than the words that would stand for it
        rest = ordered[MOST_TEXTS:]
        ordered = [*ordered[:MOST_TEXTS], (f"{len(rest)} others, see the CSV", sum(count for _, count in rest))]
    return "; ".join(f"{text} ({count} of {len(known)} runs)" for text, count in ordered)


def _disjoint(own: dict[str, set[str]]) -> bool:
    return sum(map(len, own.values())) == len(set().union(*own.values()))


def _by_task(own: dict[str, set[str]]) -> str:
    """`0.001 (cola, rte), 0.003 (mrpc)`, or the value alone."""
    if len(own) == 1:
        return next(iter(own))
    return ", ".join(f"{text} ({', '.join(sorted(tasks))})" for text, tasks in own.items())


def _random(records: list[Record]) -> bool:
    return any(at(r, "run.config.backbone.weights") == "random" for r in records)


def _runs(records: list[Record]) -> str:
    counts = Counter(r["status"] for r in records)
    words = {SUCCESS: "succeeded", FAILED: "failed", DIVERGED: "diverged"}
    return ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])


def _data(record: Record) -> str:
    data = record["run"]["data"]
    kind = "the published dev split" if data.get("official") else "not the published dev split"
    held = at(record, "run.config.data.holdout_rows")
    kind = "held out of the train split" if held else kind
    return (
        f"{data.get('source')}, {_number(data.get('train_rows'))} training rows, "
        f"{_number(data.get('eval_rows'))} evaluation rows ({kind})"
    )


def _backbone(name: str, records: list[Record]) -> str:
    if _random(records):
        return f"{name}: RANDOM WEIGHTS, nothing was pretrained"
    weights: dict[str, Any] = next((r["run"]["weights"] for r in records if r["run"].get("weights")), {})
    words = [f"{name}: {weights.get('id') or at(records[0], 'run.config.backbone.id')}"]
    words += [f"revision {weights['revision']}"] if weights.get("revision") else []
    words += [f"sha256 {weights['sha256'][:16]}"] if weights.get("sha256") else []
    pooling = at(records[0], "run.config.backbone.pooling")
    words += [f"{pooling} pooling"] if pooling == "mean" else []
    note = at(records[0], "run.config.backbone.note")
    return ", ".join(words) + (f". {note}" if note else "")


def _length(record: Record) -> str | None:
    training = at(record, "run.config.training") or {}
    steps = training.get("max_steps") or 0
    text = f"{steps} steps" if steps > 0 else f"{training.get('epochs')} epochs"
    return f"{text}, at most {training.get('max_length')} tokens" if training else None


def _batches(record: Record) -> str | None:
    training, devices = at(record, "run.config.training") or {}, record["env"].get("device_count") or 1
    size, accumulation = training.get("batch_size"), training.get("accumulation") or 1
    if not size:
        return None
    shared = devices > 1 and size % devices == 0  # the devices share `batch_size`; a cell whose cannot be shared fails
    factors = [f"{devices} × {size // devices} per device" if shared else f"{size}"]
    factors += [f"{accumulation} accumulated"] if accumulation > 1 else []
    return f"{size * accumulation}" + (f" ({' × '.join(factors)})" if shared or accumulation > 1 else "")


def _schedule(record: Record) -> str | None:
    training = at(record, "run.config.training") or {}
    if not training:
        return None
    steps = training.get("warmup_steps")
    warmup = f"warm-up {steps} steps" if steps is not None else f"warm-up {training.get('warmup_ratio')} of the steps"
    if training.get("schedule") == "constant" and (record["run"].get("harness") or 0) < HEEDS_WARMUP:
        warmup = "no warm-up"  # none was asked for, or earlier code left it out
    decay = f"weight decay {training.get('weight_decay')}{' (z too)' if training.get('decay_vectors') else ''}"
    return f"{training.get('schedule')}, {warmup}, {decay}"


def _learning_rate(record: Record) -> str | None:
    rate, head = (
        at(record, "run.config.training.learning_rate"),
        at(record, "run.config.training.head_learning_rate"),
    )
    if rate is None:
        return None
    return f"{rate}" if head is None else f"{rate}, head {head}"


def _settings(record: Record) -> str:
    version = at(record, "run.config.recipe.version")
    text = "the method's defaults" if version is None else f"recipe version {version}"
    centred = at(record, "run.config.training.center_regression")
    return text + (", the head starting at the mean of the training labels" if centred else "")


def _starts(records: list[Record]) -> str:
    """Which runs started from another run's trained tensors; nothing where none did."""
    if all(start_of(record["run"]) is None for record in records):
        return ""
    return _describe(records, _start)


def _start(record: Record) -> str:
    start = short_start(start_of(record["run"]))
    return "the backbone alone" if start is None else f"the trained tensors of another run ({start})"


def _device(record: Record) -> str | None:
    env = record["env"]
    if record["status"] == FAILED:  # it may have ended before the precision was known
        return None
    count = env.get("device_count") or 1
    device = f"{count} × {env.get('device')}" if count > 1 else env.get("device")
    tf32 = "tf32 products" if at(record, "run.config.training.tf32") else None
    return ", ".join(str(word) for word in (device, env.get("precision"), tf32) if word) or None


def _crowds(records: list[Record]) -> str:
    """How many runs shared a device, as one line however many numbers there are; nothing where none did."""
    counts = sorted({_crowd(r) for r in records if r["status"] != FAILED})
    if not counts or counts == [1]:
        return ""
    if len(counts) == 1:
        return f"{counts[0]} on one device; time and memory compare within this set alone"
    return f"{counts[0]} to {counts[-1]} on one device; time and memory compare between runs with as many alone"


def _crowd(record: Record) -> int:
    return int(record["env"].get("parallel_cells") or 1)


def measurement(record: Record) -> str:
    """What time and memory were measured on: they compare only between runs where this is the same."""
    crowd = [f"{_crowd(record)} cells at once"] if _crowd(record) > 1 and record["status"] != FAILED else []
    return ", ".join(word for word in (_device(record), *crowd, *_apart(record)) if word)


def measured(record: Record) -> str:
    """What a run's time and memory were measured on, and through which layers."""
    return f"{measurement(record)}, {_layers(record)}"


def footprint(record: Record) -> dict[str, Any]:
    """What decides peak memory on a GPU, by name: it compares only between runs that have it all alike.

    None where a record does not know. Other cells on the GPU are not in it: the peak is that of the process alone.
    """
    env, training = record["env"], at(record, "run.config.training") or {}
    return {
        "device": env.get("device"),
        "number of devices": env.get("device_count") or 1,
        "precision": env.get("precision"),
        "batch size": training.get("batch_size"),
        "max_length": training.get("max_length"),
        "attention": env.get("attention"),
        "kind of layers": _layers(record),
        **_savings(record),
    }


def alike(records: list[Record]) -> list[Record]:
    """Of one method's runs the most that were measured alike, and trained through the same layers."""
    kinds = [(measurement(record), _layers(record)) for record in records]
    found = Counter(kinds)
    most = min(found, key=lambda kind: (-found[kind], kind), default=None)
    return [record for record, kind in zip(records, kinds, strict=True) if kind == most]


def _speeds(records: list[Record]) -> str:
    """What made training faster, or smaller; nothing where nothing did."""
    return _describe(records, _speed) if any(at(r, "cost.fast_path") or _apart(r) for r in records) else ""


def _speed(record: Record) -> str | None:
    if record["status"] == FAILED:  # it may have ended before this was known
        return None
    layers = [] if at(record, "cost.cached_features") else [_layers(record)]  # few passes go through them
    return ", ".join((*layers, *_apart(record)))


def _layers(record: Record) -> str:
    """What a training step went through; runs from before there was a choice went through plain modules."""
    path = at(record, "cost.fast_path") or "plain"
    if path.startswith("fused, "):
        return "fused layers, some passes through plain modules"
    kind, _, attention = path.partition("; ")  # on a GPU with what attention went through, and why
    words = {"fused": "fused layers", "lean": "lean fused layers"}.get(kind)
    return " with ".join(word for word in (words, attention.partition(":")[0]) if word) if words else "plain modules"


def _apart(record: Record) -> list[str]:
    """What sets a run's time and memory apart from that of a run alone, over all rows, in whole batches."""
    return [words for words in _savings(record).values() if words]


def _savings(record: Record) -> dict[str, str]:
    """The words of `_apart` by name; '' where a run has nothing of the kind."""
    cost, training = record["cost"], at(record, "run.config.training") or {}
    others = (cost.get("packed_with") or 1) - 1
    retried = (cost.get("oom_retries") or 0) > 0
    return {
        "feature cache": "features computed once" if cost.get("cached_features") else "",
        "gradient checkpointing": "activations computed again" if training.get("gradient_checkpointing") else "",
        "sharding": "weights shared among the devices" if cost.get("sharded_parameters") else "",
        "packing": f"packed with {others} other{'s' if others > 1 else ''}" if others > 0 else "",
        "micro-batch": f"micro-batches of {cost.get('micro_batch')} as memory ran out" if retried else "",
    }


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {record['env'].get(name)}" for name in VERSIONS)


def _code(record: Record) -> str:
    commit = record["env"].get("commit")
    if not commit:
        return "unknown commit"
    return f"commit {str(commit)[:12]}" + (" with changes not committed" if record["env"].get("dirty") else "")


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unknown number of"
