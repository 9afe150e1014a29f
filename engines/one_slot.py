"""One sequence at a time over any session, behind the face of slots: a checkpoint, or engines of a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.cache import Cache
from engines.errors import UserError
from engines.onnx_vision import UNSEEN, VisionTokens
from engines.processor import Inputs
from engines.session import Session
from engines.slots import Slot


@dataclass(eq=False)
class OneSlot:
    """Slots of which there is one, of `capacity` tokens; nothing is remembered."""

    session: Session
    capacity: int
    _busy: Slot | None = field(init=False, default=None)
    _cache: Cache | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.config = self.session.config

    @property
    def active(self) -> Sequence[Slot]:
        """See Slots.active."""
        return [self._busy] if self._busy and self._cache else []

    def see(self, prompt: Inputs) -> VisionTokens:
        """Nothing yet: the session looks for itself, in prefill."""
        return UNSEEN

    def open(self, prompt: Inputs, vision: VisionTokens) -> Slot | None:
        """See Slots.open. UserError when the prompt leaves no room for an answer."""
        if len(prompt.input_ids) >= self.capacity:
            raise UserError(
                f"a prompt of {len(prompt.input_ids)} tokens: the context has {self.capacity}; shorten it"
            )
        if self._busy:
            return None
        self._busy = Slot(0, np.empty(0, np.int64), prompt=prompt)
        return self._busy

    def prefill(self, slot: Slot, limit: int) -> NDArray[np.float32] | None:
        """See Slots.prefill. All at once, as nobody waits for a chunk to end."""
        assert slot.prompt is not None
        logits, self._cache = self.session.prefill([slot.prompt], capacity=self.capacity)
        slot.length, slot.prompt = len(slot.prompt.input_ids), None
        last: NDArray[np.float32] = logits[0, -1]
        return last

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """See Slots.decode."""
        assert self._cache is not None
        return self.session.decode(tokens, self._cache)

    def close(self, slot: Slot) -> None:
        """See Slots.close."""
        self._busy = self._cache = None
