"""Which runs a process carries out side by side, and which alone.

Whatever ends a process counts as a lost worker for all runs that it carries out at that moment: it is not known whose
code it was. So a run is not given up for losses that others may have caused. Its last try before that is alone in its
process: what is lost then, it has lost by itself, and its neighbours have lost nothing.

A run that cannot begin for that is set aside in the queue: one that waited here would be lost with the process. One
that is to be alone is let in when the process has nothing else; others may begin before it for PATIENT_SECONDS.
"""

import time

from backplane.queue.base import Claim

PATIENT_SECONDS = 60.0
SET_ASIDE_SECONDS = 1.0
"""How long a run is set aside before it is tried again, here or elsewhere."""
FORGOTTEN_SECONDS = 10.0
"""A run that has not asked for so long has begun elsewhere, or is over."""


class Apart:
    """The runs of one process."""

    def __init__(self) -> None:
        self._inside: dict[Claim, bool] = {}
        self._first_asked: dict[str, float] = {}
        self._last_asked: dict[str, float] = {}

    def enters(self, claim: Claim, *, alone: bool) -> bool:
        """Whether the run may begin now. It leaves when it has entered."""
        now, run_id = time.monotonic(), claim.run_id
        if any(self._inside.values()) or (alone and self._inside) or (not alone and self._is_kept_for_others(now)):
            if alone:
                self._first_asked.setdefault(run_id, now)
                self._last_asked[run_id] = now
            return False
        self._forget(run_id)
        self._inside[claim] = alone
        return True

    def leaves(self, claim: Claim) -> None:
        del self._inside[claim]

    def _is_kept_for_others(self, now: float) -> bool:
        """Whether a run that is to be alone has asked for long enough."""
        for run_id in [run_id for run_id, asked in self._last_asked.items() if now - asked > FORGOTTEN_SECONDS]:
            self._forget(run_id)
        return any(now - asked >= PATIENT_SECONDS for asked in self._first_asked.values())

    def _forget(self, run_id: str) -> None:
        self._first_asked.pop(run_id, None)
        self._last_asked.pop(run_id, None)
