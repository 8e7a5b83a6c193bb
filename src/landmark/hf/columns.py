"""The columns of input_ids that a cache has read: their number, their mask, and whether a prompt begins with them."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

# Odd, so that multiplication by it is invertible modulo 2**64.
_FACTOR = 6364136223846793005


@dataclass(frozen=True)
class Columns:
    """The columns read so far: the newest ones themselves, and of all older ones a hash for each row.

    `recent` holds pairs (ids `[B, W]`, None for embeddings, and mask `[B, W]`), the newest last; at least the newest
    `keep` columns are among them. `digest [B]` is None where some of the older columns were embeddings, or where there
    are none; `older_tokens [B]` counts the tokens in the older columns, None where there are none.
    """

    keep: int
    count: int = 0
    older: int = 0
    digest: Tensor | None = None
    older_tokens: Tensor | None = None
    recent: tuple[tuple[Tensor | None, Tensor], ...] = field(default=())

    def followed_by(self, ids: Tensor | None, real: Tensor) -> "Columns":
        """The columns after an input of `ids [B, S]`, None for embeddings, with mask `real [B, S]`."""
        ids = None if ids is None else ids.detach()
        grown = replace(self, count=self.count + real.shape[1], recent=(*self.recent, (ids, real)))
        return grown._compacted() if grown.count - grown.older > 2 * self.keep + real.shape[1] else grown

    def _compacted(self) -> "Columns":
        """The same with all but the newest `keep` columns hashed."""
        ids, real = self._joined()
        hashed = max(0, real.shape[1] - self.keep)
        known = ids is not None and (self.digest is not None or not self.older)
        digest = _digest(ids[:, :hashed], self.digest) if known else None  # type: ignore[index]
        newest = None if ids is None else ids[:, hashed:].clone()
        tokens = _sum(real[:, :hashed], self.older_tokens)
        recent = ((newest, real[:, hashed:].clone()),)
        return replace(self, older=self.older + hashed, digest=digest, older_tokens=tokens, recent=recent)

    def _joined(self) -> tuple[Tensor | None, Tensor]:
        ids = [ids for ids, _ in self.recent if ids is not None]
        whole = torch.cat(ids, 1) if len(ids) == len(self.recent) else None
        return whole, torch.cat([real for _, real in self.recent], 1)

    def cropped(self, dropped: int) -> tuple["Columns", Tensor]:
        """Without the newest `dropped` columns; also the number of tokens of each row `[B]` in them.

        Raises ValueError where they have been hashed.
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
        """The columns with row i taken from row `rows[i]`."""
        if not self.recent:
            return self
        ids, real = self._joined()
        taken = None if ids is None else ids[rows.to(ids.device)]
        digest, tokens = (None if x is None else x[rows.to(x.device)] for x in (self.digest, self.older_tokens))
        return replace(self, digest=digest, older_tokens=tokens, recent=((taken, real[rows.to(real.device)]),))

    def tokens(self) -> Tensor | int:
        """Tokens of each row `[B]` in these columns."""
        return _sum(self._joined()[1], self.older_tokens) if self.recent else 0

    def masked(self, mask: Tensor) -> Tensor:
        """Whether `mask [B, count]` is that of these columns; of hashed ones, the number of tokens is compared."""
        _, real = self._joined()
        mask = mask.to(real.device)
        newest = (mask[:, self.older :] == real).all()
        return (
            newest if self.older_tokens is None else newest & (mask[:, : self.older].sum(1) == self.older_tokens).all()
        )

    def begin(self, ids: Tensor) -> bool:
        """Whether the prompt `ids [B, S]` begins with these columns; True where embeddings were read.

        With fewer rows than were read, each stands for several, as `generate` repeats them for several sequences.
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
    """Polynomial hash `[B]` of rows of ids, modulo 2**64, that continues `before` with `ids [B, S]`."""
    count = ids.shape[1]
    powers = torch.full((count,), _FACTOR, dtype=torch.long, device=ids.device).cumprod(0)  # factor ** 1, 2, ...
    digest = ((ids.long() + 1) * powers.flip(0)).sum(1)
    return digest if before is None or not count else digest + before * powers[-1]
