"""Scaled dot-product attention over flat rows that keeps nothing but its inputs: all else is computed again.

On a GPU in half precision by a variable-length kernel (`varlen`), elsewhere by groups of sequences of like length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from propulsion.fast import varlen
from propulsion.fast.masks import Masks
from propulsion.fast.rows import Group, Rows
from propulsion.fast.workspace import Workspace

aten = torch.ops.aten


@dataclass(frozen=True)
class Attention:
    """The fixed side of one layer's attention. `site` names its dropout among the model's; `varlen`: see there."""

    heads: int
    scale: float
    dropout: float
    site: int
    varlen: bool = True

    def forward(self, qkv: torch.Tensor, rows: Rows, masks: Masks | None, space: Workspace) -> torch.Tensor:
        """The mixed values `(tokens, d)` from queries, keys and values `(tokens, 3d)`."""
        if self.varlen and varlen.trusted(self, qkv, rows, space):
            return varlen.forward(self, qkv, rows, masks)
        return self.forward_by_groups(qkv, rows, masks, space)

    def backward(
        self, grad: torch.Tensor, qkv: torch.Tensor, rows: Rows, masks: Masks | None, space: Workspace
    ) -> torch.Tensor:
        """The gradient of `qkv` from that of the mixed values."""
        if self.varlen and varlen.trusted(self, qkv, rows, space):
            return varlen.backward(self, grad, qkv, rows, masks)
        return self.backward_by_groups(grad, qkv, rows, masks, space)

    def forward_by_groups(self, qkv: torch.Tensor, rows: Rows, masks: Masks | None, space: Workspace) -> torch.Tensor:
        """`forward` by products of groups of sequences, in float32 at least: the reference."""
        mixed = space.take("mixed", (qkv.shape[0], qkv.shape[1] // 3), qkv)
        for group in rows.groups:
            query, key, value = self._split(qkv, group, space)
            shares = self._shares(query, key, group, space)
            kept = self._kept(shares, group, masks, space)
            if kept is not None:
                shares.mul_(kept)
                value.mul_(1 / (1 - self.dropout))
            torch.bmm(shares, value, out=query)
            group.scatter(self._join(query, group), mixed)
        return mixed

    def backward_by_groups(
        self, grad: torch.Tensor, qkv: torch.Tensor, rows: Rows, masks: Masks | None, space: Workspace
    ) -> torch.Tensor:
        """`backward` by the same products."""
        result = space.take("grad_qkv", qkv.shape, qkv)
        parts = result.chunk(3, dim=1)
        for group in rows.groups:
            query, key, value = self._split(qkv, group, space)
            shares = self._shares(query, key, group, space)
            (upstream,) = self._heads(group.gather(grad), 1, "upstream", space)
            if group.real is not None:  # a padded place has no gradient
                upstream.view(group.sequences, self.heads, group.length, -1).mul_(group.real[:, None, :, None])
            kept, used = self._kept(shares, group, masks, space), shares
            if kept is not None:
                upstream.mul_(1 / (1 - self.dropout))
            grad_shares = torch.bmm(upstream, value.transpose(1, 2), out=space.take("scores", shares.shape, shares))
            if kept is not None:
                grad_shares.mul_(kept)
                used = kept.mul_(shares)
            found = torch.bmm(used.transpose(1, 2), upstream, out=space.take("found", query.shape, query))
            group.scatter(self._join(found, group), parts[2])
            out = space.take("kept", shares.shape, shares)  # whose content is done with
            grad_scores = aten._softmax_backward_data(grad_shares, shares, -1, shares.dtype, grad_input=out)
            torch.bmm(grad_scores, key, out=found).mul_(self.scale)
            group.scatter(self._join(found, group), parts[0])
            torch.bmm(grad_scores.transpose(1, 2), query, out=found)
            group.scatter(self._join(found, group), parts[1])
        return result

    def _split(self, qkv: torch.Tensor, group: Group, space: Workspace) -> tuple[torch.Tensor, ...]:
        """Scaled queries, keys and values, each `(n heads, length, width)`."""
        query, key, value = self._heads(group.gather(qkv), 3, "qkv", space)
        return query.mul_(self.scale), key, value

    def _heads(self, padded: torch.Tensor, parts: int, name: str, space: Workspace) -> torch.Tensor:
        """`(n, length, parts d)` as a copy `(parts, n heads, length, width)`, in float32 at least."""
        n, length, _ = padded.shape
        wide = padded.new_empty(0, dtype=torch.promote_types(padded.dtype, torch.float32))
        split = padded.reshape(n, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4)
        return space.take(name, split.shape, wide).copy_(split).view(parts, n * self.heads, length, -1)

    def _join(self, per_head: torch.Tensor, group: Group) -> torch.Tensor:
        """`(n heads, length, width)` as `(n, length, heads, width)`."""
        return per_head.view(group.sequences, self.heads, group.length, -1).transpose(1, 2)

    def _shares(self, query: torch.Tensor, key: torch.Tensor, group: Group, space: Workspace) -> torch.Tensor:
        """How much of each value a token takes, `(n heads, length, length)`, before dropout."""
        shape = (query.shape[0], group.length, group.length)
        scores = torch.bmm(query, key.transpose(1, 2), out=space.take("scores", shape, query))
        if group.real is not None:
            padding = torch.zeros_like(group.real, dtype=scores.dtype).masked_fill_(~group.real, float("-inf"))
            scores.view(group.sequences, self.heads, group.length, -1).add_(padding[:, None, None, :])
        return torch.softmax(scores, -1, out=space.take("shares", shape, query))

    def _kept(self, shares: torch.Tensor, group: Group, masks: Masks | None, space: Workspace) -> torch.Tensor | None:
        """1 where a share is kept and 0 where it is dropped, or None."""
        if masks is None or self.dropout == 0:
            return None
        out = space.take("kept", shares.shape, shares)
        return masks.keep(self.dropout, shares.shape, shares, (self.site, group.part), group.run, out)
