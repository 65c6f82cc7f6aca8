"""A segment of a sound file, in seconds."""

import math
from dataclasses import dataclass

from furnace_hpc.data.packing.rejects import Unusable

AFTER_END_S = 0.1  # tables round the ends of sounds


@dataclass(frozen=True)
class Segment:
    """From `start_s` to `end_s` of a sound."""

    start_s: float = 0.0
    end_s: float = math.inf
    """Infinite: to the end of the sound."""

    def __str__(self) -> str:
        end = "the end" if math.isinf(self.end_s) else f"{self.end_s:g} s"
        return f"{self.start_s:g} s to {end}"

    def samples(self, total: int, rate_hz: int) -> tuple[int, int]:
        """Return the first sample, and the one after the last, in a sound of `total` samples.

        An end up to 0.1 s after the sound is the sound's end.

        Raises:
            Unusable: it is not inside the sound.
        """
        first, last = round(self.start_s * rate_hz), total
        if not math.isinf(self.end_s):
            last = round(self.end_s * rate_hz)
        if first >= total or last > total + AFTER_END_S * rate_hz:
            raise Unusable("outside the file", f"{self}, but the sound has {total / rate_hz:.6g} s")
        return first, min(last, total)


WHOLE_SOUND = Segment()
