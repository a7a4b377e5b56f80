"""Batches as training takes them: padded, and on a GPU with a copy of the mask that the host can read."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from transformers import DataCollatorWithPadding

from propulsion.fast import rows

HOST_MASK = "host_mask"  # in no model's arguments: taken out where a batch is prepared


class Collator:
    """Pads rows to the longest, and on a GPU keeps the mask as an array of the host.

    Not to a multiple of 8: that is for modules that are compiled for every shape, which none is here, and would make
    padding of 6 to 26 % where there is less than 5 % (results/bench/padding.md).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """The batch of some rows, tensors on the host."""
        batch = self.pad(features)
        if self.on_gpu:
            batch[HOST_MASK] = batch["attention_mask"].numpy()  # no tensor: stays where it is when the batch moves
        return batch


def take_host_mask(inputs: MutableMapping[str, Any]) -> None:
    """Tell the fast path what the mask of a batch that is on its device holds: reading it would wait for the device."""
    host = inputs.pop(HOST_MASK, None)
    if host is not None:
        rows.tell(inputs["attention_mask"], torch.from_numpy(host))
