"""What a batch asks for: prompt and output lengths drawn from published statistics, and prefixes that requests share.

Lengths are lognormal, cut at both ends: medians and tails of production traces are described well enough by it, and two
numbers say all. Sources:

- short chat: conversations of the ShareGPT set as the PagedAttention paper uses them (arXiv 2309.06180, section 6.1: means of
  161 prompt and 338 output tokens; quoted from memory).
- mixed: the public head of the BurstGPT trace (arXiv 2401.17644; its first 33 rows with an answer have means of about 760
  and 360 tokens, medians of 549 and 344).
- long documents: LongBench (arXiv 2308.14508): 6,711 words on average in its English tasks, about 9,000 tokens; short answers.
- heavy tail: TIE (arXiv 2604.00499) finds output lengths heavy-tailed; here a lognormal with sigma 1.2, as reasoning models give.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    prompt: int
    """Tokens, those of the shared prefix included."""
    output: int
    group: int = -1
    """Requests with the same group begin with the same `prefix` tokens; -1: nothing is shared."""
    prefix: int = 0


@dataclass(frozen=True)
class Lengths:
    """Tokens: lognormal around `median`, cut to `low`..`high`."""

    median: float
    sigma: float
    low: int = 1
    high: int = 1 << 20

    def draw(self, rand: random.Random) -> int:
        return max(self.low, min(self.high, round(rand.lognormvariate(math.log(self.median), self.sigma))))


@dataclass(frozen=True)
class Workload:
    prompt: Lengths
    """Without the shared prefix."""
    output: Lengths
    groups: int = 0
    """0: no prefixes. Else request i belongs to group i modulo `groups`: for each question, all documents."""
    prefix: int = 0

    def requests(self, seed: int) -> Iterator[Request]:
        """Endless, and the same for the same seed."""
        rand = random.Random(seed)
        number = 0
        while True:
            group = number % self.groups if self.groups else -1
            prompt = self.prefix + self.prompt.draw(rand)
            yield Request(number, prompt, self.output.draw(rand), group, self.prefix if self.groups else 0)
            number += 1


CHAT = Workload(Lengths(100, 0.97, 4, 2_048), Lengths(250, 0.78, 4, 2_048))
MIXED = Workload(Lengths(550, 1.0, 8, 8_192), Lengths(340, 0.8, 4, 2_048))
DOCUMENTS = Workload(Lengths(8_000, 0.5, 1_000, 30_000), Lengths(150, 0.7, 4, 1_024))
HEAVY_TAIL = Workload(Lengths(300, 0.8, 8, 4_096), Lengths(500, 1.2, 4, 8_192))
EVEN = Workload(Lengths(300, 0.3, 64, 1_024), Lengths(250, 0.3, 64, 1_024))
ANSWERS_LONG = Workload(Lengths(300, 0.5, 64, 1_024), Lengths(1_200, 0.5, 64, 4_096))
SHARED = Workload(Lengths(60, 0.4, 8, 400), Lengths(220, 0.4, 16, 1_024), groups=300, prefix=900)
