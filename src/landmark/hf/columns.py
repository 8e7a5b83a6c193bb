"""The columns of input_ids that a cache has read: how many, which held tokens, whether a prompt begins with them."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

# Odd, so that multiplication by it loses nothing modulo 2**64.
_FACTOR = 6364136223846793005


@dataclass(frozen=True)
class Columns:
    """What was read so far: the newest columns as they were, of all older ones a hash a row.

    `recent` holds (ids or None for embeddings `[B, W]`, real `[B, W]`), the newest last; at least the newest `keep`
    columns are among them. `digest [B]` is None where embeddings are among the older ones, or nothing is older;
    `older_tokens [B]` counts the tokens in those, None where there are none.
    """

    keep: int
    count: int = 0
    older: int = 0
    digest: Tensor | None = None
    older_tokens: Tensor | None = None
    recent: tuple[tuple[Tensor | None, Tensor], ...] = field(default=())

    def followed_by(self, ids: Tensor | None, real: Tensor) -> "Columns":
        """After an input of `ids [B, S]`, None for embeddings, with its mask `real [B, S]`."""
        ids = None if ids is None else ids.detach()
        grown = replace(self, count=self.count + real.shape[1], recent=(*self.recent, (ids, real)))
        return grown._settled() if grown.count - grown.older > 2 * self.keep + real.shape[1] else grown

    def _settled(self) -> "Columns":
        """With all but the newest `keep` columns among the older ones."""
        ids, real = self._joined()
        gone = max(0, real.shape[1] - self.keep)
        known = ids is not None and (self.digest is not None or not self.older)
        digest = _digest(ids[:, :gone], self.digest) if known else None  # type: ignore[index]
        newest = None if ids is None else ids[:, gone:].clone()
        tokens = _sum(real[:, :gone], self.older_tokens)
        recent = ((newest, real[:, gone:].clone()),)
        return replace(self, older=self.older + gone, digest=digest, older_tokens=tokens, recent=recent)

    def _joined(self) -> tuple[Tensor | None, Tensor]:
        ids = [ids for ids, _ in self.recent if ids is not None]
        whole = torch.cat(ids, 1) if len(ids) == len(self.recent) else None
        return whole, torch.cat([real for _, real in self.recent], 1)

    def cropped(self, dropped: int) -> tuple["Columns", Tensor]:
        """Without the newest `dropped` columns, and how many tokens of each row `[B]` stood in them.

        Raises ValueError where they are no longer known.
        """
        if dropped > self.count:
            raise ValueError(f"cannot drop {dropped} tokens of {self.count}")
        if dropped > self.count - self.older:
            raise ValueError(
                f"cannot take back {dropped} tokens: only the newest {self.count - self.older} are still in reach;"
                " raise local_blocks to keep more"
            )
        ids, real = self._joined()
        stay = real.shape[1] - dropped
        recent = ((None if ids is None else ids[:, :stay], real[:, :stay]),)
        return replace(self, count=self.count - dropped, recent=recent), real[:, stay:].sum(1)

    def of_rows(self, rows: Tensor) -> "Columns":
        """Where row i goes on from what was row `rows[i]`."""
        if not self.recent:
            return self
        ids, real = self._joined()
        taken = None if ids is None else ids[rows.to(ids.device)]
        digest, tokens = (None if x is None else x[rows.to(x.device)] for x in (self.digest, self.older_tokens))
        return replace(self, digest=digest, older_tokens=tokens, recent=((taken, real[rows.to(real.device)]),))

    def tokens(self) -> Tensor | int:
        """How many tokens of each row `[B]` stand in these columns."""
        return _sum(self._joined()[1], self.older_tokens) if self.recent else 0

    def masked(self, mask: Tensor) -> Tensor:
        """Whether `mask [B, count]` says of these columns what was read of them; of older ones, how many tokens."""
        _, real = self._joined()
        mask = mask.to(real.device)
        newest = (mask[:, self.older :] == real).all()
        return (
            newest if self.older_tokens is None else newest & (mask[:, : self.older].sum(1) == self.older_tokens).all()
        )

    def begin(self, ids: Tensor) -> bool:
        """Whether the prompt `ids [B, S]` begins with these columns; True where embeddings were read.

        Fewer rows than were read are several answers to each, as `generate` repeats them.
        """
        if not self.count:
            return True
        if ids.shape[1] < self.count:
            return False
        recent, real = self._joined()
        if len(real) % len(ids):
            return False
        ids = ids.repeat_interleave(len(real) // len(ids), 0)
        newest = recent is None or torch.equal(ids[:, self.older : self.count].to(recent.device), recent)
        older = self.digest is None or torch.equal(_digest(ids[:, : self.older].to(real.device)), self.digest)
        return newest and older


def _sum(real: Tensor, before: Tensor | None) -> Tensor:
    return real.sum(1) if before is None else before + real.sum(1)


def _digest(ids: Tensor, before: Tensor | None = None) -> Tensor:
    """A polynomial hash `[B]` of rows of ids, modulo 2**64: of `before` and then `ids [B, S]`."""
    count = ids.shape[1]
    powers = torch.full((count,), _FACTOR, dtype=torch.long, device=ids.device).cumprod(0)  # factor ** 1, 2, ...
    digest = ((ids.long() + 1) * powers.flip(0)).sum(1)
    return digest if before is None or not count else digest + before * powers[-1]
