"""Scaled dot-product attention over flat rows that keeps nothing but its inputs: scores are computed again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from propulsion.fast.masks import Masks
from propulsion.fast.rows import Group, Rows


@dataclass(frozen=True)
class Attention:
    """The fixed side of one layer's attention. `site` names its dropout among the model's."""

    heads: int
    scale: float
    dropout: float
    site: int

    def forward(self, qkv: torch.Tensor, rows: Rows, masks: Masks | None) -> torch.Tensor:
        """The mixed values `(tokens, d)` from queries, keys and values `(tokens, 3d)`; float32 inside."""
        mixed = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
        for group in rows.groups:
            query, key, value = self._split(qkv, group)
            shares = self._shares(query, key, group)
            kept = self._kept(shares, group, masks)
            if kept is not None:
                shares.mul_(kept)
            group.scatter(self._join(torch.bmm(shares, value), group), mixed)
        return mixed

    def backward(self, grad: torch.Tensor, qkv: torch.Tensor, rows: Rows, masks: Masks | None) -> torch.Tensor:
        """The gradient of `qkv` from that of the mixed values."""
        result = torch.empty_like(qkv)
        for group in rows.groups:
            query, key, value = self._split(qkv, group)
            shares = self._shares(query, key, group)
            (upstream,) = self._heads(group.gather(grad), 1)
            if group.real is not None:  # a padded place has no gradient
                upstream.view(group.sequences, self.heads, group.length, -1).mul_(group.real[:, None, :, None])
            grad_shares = torch.bmm(upstream, value.transpose(1, 2))
            kept = self._kept(shares, group, masks)
            if kept is None:
                grad_value = torch.bmm(shares.transpose(1, 2), upstream)
            else:
                grad_shares.mul_(kept)
                grad_value = torch.bmm(kept.mul_(shares).transpose(1, 2), upstream)
            grad_scores = torch._softmax_backward_data(grad_shares, shares, -1, shares.dtype)
            grad_query = torch.bmm(grad_scores, key).mul_(self.scale)
            grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
            parts = [self._join(each, group) for each in (grad_query, grad_key, grad_value)]
            group.scatter(torch.cat(parts, dim=-1), result)
        return result

    def _split(self, qkv: torch.Tensor, group: Group) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scaled queries, keys and values, each `(n heads, length, width)`."""
        query, key, value = self._heads(group.gather(qkv), 3)
        return query.mul_(self.scale), key, value

    def _heads(self, padded: torch.Tensor, parts: int) -> torch.Tensor:
        """`(n, length, parts d)` as a copy `(parts, n heads, length, width)`, in float32 at least."""
        n, length, _ = padded.shape
        dtype = torch.promote_types(padded.dtype, torch.float32)
        split = padded.reshape(n, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4)
        copy = torch.empty(split.shape, dtype=dtype, device=padded.device).copy_(split)
        return copy.view(parts, n * self.heads, length, -1)

    def _join(self, per_head: torch.Tensor, group: Group) -> torch.Tensor:
        """`(n heads, length, width)` as `(n, length, d)`."""
        split = per_head.view(group.sequences, self.heads, group.length, -1)
        return split.transpose(1, 2).reshape(group.sequences, group.length, -1)

    def _shares(self, query: torch.Tensor, key: torch.Tensor, group: Group) -> torch.Tensor:
        """How much of each value a token takes, `(n heads, length, length)`, before dropout."""
        scores = torch.bmm(query, key.transpose(1, 2))
        if group.real is not None:
            padding = torch.zeros_like(group.real, dtype=scores.dtype).masked_fill_(~group.real, float("-inf"))
            scores.view(group.sequences, self.heads, group.length, -1).add_(padding[:, None, None, :])
        return torch.softmax(scores, -1)

    def _kept(self, shares: torch.Tensor, group: Group, masks: Masks | None) -> torch.Tensor | None:
        """Dropout's factors, 0 or 1 / (1 - rate), or None."""
        if masks is None or self.dropout == 0:
            return None
        kept = masks.keep(self.dropout, shares.shape, shares, (self.site, group.part), group.run)
        return kept.mul_(1 / (1 - self.dropout))
