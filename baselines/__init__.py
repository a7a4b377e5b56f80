"""Step 4, method: the ways to tune a frozen or unfrozen backbone, and what each of them trains.

`apply_method` turns a classifier into one that trains the method's parameters and nothing else;
`partition` names those parameters, adapter and head apart; `hooks` is what a method needs beside them.
"""

from baselines.apply import NeedsWeightsError, apply_method
from baselines.counts import Counts, Partition, count, in_head, partition

__all__ = ["Counts", "NeedsWeightsError", "Partition", "apply_method", "count", "in_head", "partition"]
