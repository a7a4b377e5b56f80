"""Which trained tensors of a run are kept, and where they lie; `weights` writes and reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from propulsion.harness.settings import Settings

LAST, BEST = "last", "best"
RULES = (LAST, BEST)  # of which the weights can be kept
AUTO_BYTES = 16_000_000  # of one file: any PEFT method and head on an encoder, full fine-tuning of none


def weights_path(results_dir: str, key: str, rule: str = LAST) -> Path:
    """Where a cell keeps its trained tensors of its last or best evaluation."""
    return Path(results_dir, "weights", key, f"{rule}.safetensors")


def rules_kept(keep: str, size: int) -> tuple[str, ...]:
    """The rules whose weights `training.keep_weights=keep` keeps of a run that trains `size` bytes."""
    if keep == "auto":
        return RULES if size <= AUTO_BYTES else ()
    return {"none": (), LAST: (LAST,), BEST: (BEST,), "both": RULES}[keep]


def rules_asked(keep: str) -> tuple[str, ...]:
    """The rules whose weights must be there for a cell to be done; `auto` asks for none of an older record."""
    return () if keep == "auto" else rules_kept(keep, 0)


def lacks_weights(settings: Settings, done: dict[str, Any]) -> bool:
    """Whether weights are asked for that an earlier successful run of the cell did not keep."""
    known = done["run"].get("kept") or {}
    return done["status"] == "success" and any(
        rule not in known or not weights_path(settings.results_dir, done["key"], rule).is_file()
        for rule in rules_asked(settings.training.keep_weights)
    )
