"""One engine with continuous batching, chunked prefill and a paged KV cache, step by step but not one by one.

Sources. The scheduler is that of vLLM V1 (vllm/v1/core/sched/scheduler.py, `schedule`; docs.vllm.ai, "Optimization and
Tuning"): a budget of `max_batched` tokens a step, running requests before waiting ones, first come first served, a prompt
is cut to what the budget leaves, and when the KV cache is full the request that was admitted last loses all of it, goes to
the head of the queue and is computed again. A prompt is admitted when all of it fits below a watermark of 1%.

A step takes   base + prefill x prompt tokens + sequence x decoding requests + context x tokens of KV cache that are read.
The constants follow from public hardware figures (`specs.py`). Left out: attention in prefill grows with the square of
the prompt (a quarter more at 8,000 tokens for an 8B model), swapping, speculative decoding, blocks (tokens are counted).

Speed: steps in which nobody comes or goes are one event. They are summed up in closed form, since the KV cache grows by
one token a step for each decoding request.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque

from benchmarks.engine_sim.sequence import End, EngineSpec, Sequence
from benchmarks.engine_sim.workload import Request
from benchmarks.engine_sim.world import World
from services.runner.inference.limit import EngineMetrics


class Engine:
    """`submit` is answered through the sequence's `on_end`, except for a refusal, which `submit` returns."""

    def __init__(self, world: World, spec: EngineSpec) -> None:
        self.world = world
        self.spec = spec
        self.up = True
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}
        self.kv = 0
        """Tokens of KV cache that running requests hold, shared prefixes once."""
        self.preemptions = 0
        """The counter of the metrics: it begins anew with the process."""
        self.preempted = 0
        self.recomputed = 0
        self.useful = 0
        """Our tokens: prompts when their first token comes, outputs as they are generated, less those of lost requests."""
        self.generated = 0
        self.prompted = 0
        self._prefill: deque[Sequence] = deque()
        self._ends: list[tuple[int, int, int, Sequence]] = []
        self._steps = 0
        self._decoding = 0
        self._ours = 0
        self._context = 0
        """Tokens that one decode step reads."""
        self._prefixes: dict[int, list[int]] = {}
        """Cached prefixes: tokens, and requests that use them."""
        self._idle: OrderedDict[int, int] = OrderedDict()
        """Those that nobody uses, the least recent first."""
        self._idle_tokens = 0
        self._plan_number = 0
        self._planned: tuple[float, int, int] | None = None
        """(begun at, steps, prompt tokens in it)."""
        self._inside = False
        self._order = 0

    # From outside.

    def submit(self, sequence: Sequence) -> bool:
        """Whether it is taken; False is a 429."""
        spec = self.spec
        if spec.max_waiting is not None and len(self.running) + len(self.waiting) >= spec.max_seqs + spec.max_waiting:
            return False
        sequence.arrived = self.world.now
        self.waiting.append(sequence)
        if not self._inside:
            self._interrupt()
        return True

    def metrics(self) -> EngineMetrics:
        done = self._done_steps()
        return EngineMetrics(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_usage=min(1.0, (self.kv + done * self._decoding) / self.spec.kv_tokens),
            preemptions=self.preemptions,
            generation_tokens=self.generated + done * self._decoding,
            prompt_tokens=self.prompted,
        )

    def useful_now(self) -> float:
        return self.useful + self._done_steps() * self._ours

    def change(self, spec: EngineSpec) -> None:
        """From the end of the step that runs."""
        self._cut_short()
        self.spec = spec
        if self._planned is None:
            self._wake()

    def abort(self, end: End) -> None:
        """Everything that is in flight ends like this."""
        self._settle_now()
        victims = [*self.running.values(), *self.waiting]
        for sequence in victims:
            if sequence.ours and sequence.first is not None:
                self.useful -= sequence.request.prompt + self._output(sequence)
            sequence.epoch += 1
        self.waiting.clear()
        self.running.clear()
        self._prefill.clear()
        self._ends.clear()
        self._prefixes.clear()
        self._idle.clear()
        self.kv = self._idle_tokens = self._decoding = self._ours = self._context = 0
        self._plan_number += 1
        self._planned = None
        for sequence in victims:
            sequence.on_end(sequence, end)

    def stop(self) -> None:
        self.up = False
        self.abort(End.LOST)
        self.preemptions = self.generated = self.prompted = 0

    def start(self) -> None:
        self.up = True

    # Steps.

    def _interrupt(self) -> None:
        """Someone came: the steps that were planned end early if that lets them in."""
        if self._planned is None:
            self._wake()
        elif self._planned[1] > 1 and len(self.waiting) == 1 and self._fits(self.waiting[0]):
            self._cut_short()

    def _wake(self) -> None:
        self._plan_number += 1
        number = self._plan_number
        self._planned = (self.world.now, 0, 0)
        self.world.at(self.world.now, lambda: self._boundary(number))

    def _cut_short(self) -> None:
        if self._planned is None or self._planned[1] <= 1:
            return
        begun, steps, prompt = self._planned
        done = min(steps, self._done_steps() + 1)
        if done < steps:
            self._schedule(begun, done, prompt, 1.0)

    def _schedule(self, begun: float, steps: int, prompt: int, factor: float) -> None:
        self._plan_number += 1
        number = self._plan_number
        self._planned = (begun, steps, prompt)
        end = max(self.world.now, begun + factor * self._duration(steps, prompt))
        self.world.at(end, lambda: self._boundary(number))

    def _duration(self, steps: int, prompt: int) -> float:
        spec = self.spec
        reads = steps * self._context + self._decoding * steps * (steps - 1) // 2
        each = spec.base_s + spec.sequence_s * self._decoding
        return (steps * each + prompt * spec.prefill_s + reads * spec.context_s) / spec.speed

    def _done_steps(self) -> int:
        """Whole steps of the plan that are over by now; solves the quadratic of `_duration`."""
        if self._planned is None or self._planned[1] <= 1:
            return 0
        begun, steps, _ = self._planned
        spec, count = self.spec, self._decoding
        a = spec.context_s * count / 2
        b = spec.base_s + spec.sequence_s * count + spec.context_s * self._context - a
        t = (self.world.now - begun) * spec.speed
        done = t / b if a <= 0.0 else (math.sqrt(b * b + 4 * a * t) - b) / (2 * a)
        return max(0, min(steps, int(done + 1e-9)))

    def _settle_now(self) -> None:
        """Book the steps that are over, in the middle of a plan."""
        if self._planned is not None and (done := self._done_steps()):
            self._book(done, 0)

    def _book(self, steps: int, prompt: int) -> None:
        self._steps += steps
        grown = steps * self._decoding
        self.kv += grown
        self._context += grown
        self.generated += grown
        self.useful += steps * self._ours
        if prompt:
            self._advance_prefill(prompt)

    def _boundary(self, number: int) -> None:
        if number != self._plan_number or self._planned is None:
            return
        _, steps, prompt = self._planned
        self._planned = None
        self._inside = True
        self._book(steps, prompt)
        self._finish()
        self._inside = False
        self._plan()

    def _plan(self) -> None:
        if not self._make_room():
            self._admit()
        if not self.running:
            return
        spec = self.spec
        if self._prefill:
            budget = max(1, spec.max_batched - self._decoding)
            prompt = 0
            for sequence in self._prefill:
                prompt += sequence.left
                if prompt >= budget:
                    break
            prompt, steps = min(prompt, budget), 1
        else:
            prompt = 0
            steps = max(1, min(self._next_end() - self._steps, (spec.kv_tokens - self.kv) // max(1, self._decoding)))
        factor = self.world.rand.lognormvariate(0.0, spec.jitter) if spec.jitter else 1.0
        self._schedule(self.world.now, steps, prompt, factor)

    def _next_end(self) -> int:
        ends = self._ends
        while ends[0][3].epoch != ends[0][2]:
            heapq.heappop(ends)
        return ends[0][0]

    def _finish(self) -> None:
        ends = self._ends
        done = []
        while ends and (ends[0][0] <= self._steps or ends[0][3].epoch != ends[0][2]):
            _, _, epoch, sequence = heapq.heappop(ends)
            if epoch == sequence.epoch:
                done.append(sequence)
        for sequence in done:
            self._release(sequence)
        for sequence in done:
            sequence.on_end(sequence, End.DONE)

    # Prefill, KV cache.

    def _advance_prefill(self, budget: int) -> None:
        while budget and self._prefill:
            sequence = self._prefill[0]
            part = min(budget, sequence.left)
            sequence.left -= part
            budget -= part
            if sequence.left:
                return
            self._prefill.popleft()
            self._begin_decode(sequence)

    def _begin_decode(self, sequence: Sequence) -> None:
        """The last step of prefill gives the next token."""
        had = sequence.total - sequence.request.prompt
        sequence.start = self._steps - had - 1
        self.kv += 1
        self.generated += 1
        self._decoding += 1
        self._ours += sequence.ours
        self._context += sequence.total + 1
        if sequence.first is None:
            sequence.first = self.world.now
            self.prompted += sequence.request.prompt
            if sequence.ours:
                self.useful += sequence.request.prompt
        self.useful += sequence.ours
        self._order += 1
        heapq.heappush(self._ends, (sequence.start + sequence.request.output, self._order, sequence.epoch, sequence))

    def _output(self, sequence: Sequence) -> int:
        """Tokens that it has generated."""
        if sequence.admitted and not sequence.left:
            return self._steps - sequence.start
        return sequence.total - sequence.request.prompt

    def _fits(self, sequence: Sequence) -> bool:
        return len(self.running) < self.spec.max_seqs and self._room_for(sequence)

    def _room_for(self, sequence: Sequence) -> bool:
        request = sequence.request
        need = sequence.total - request.prefix
        entry = self._prefixes.get(request.group)
        if request.prefix and (entry is None or not entry[1]):
            need += request.prefix
        return self.kv + need <= self.spec.kv_tokens * (1 - self.spec.watermark) or not self.running

    def _admit(self) -> None:
        waiting, spec = self.waiting, self.spec
        budget = spec.max_batched - self._decoding
        while waiting and len(self.running) < spec.max_seqs and budget > 0 and self._room_for(waiting[0]):
            sequence = waiting.popleft()
            sequence.left = sequence.total - self._take_prefix(sequence.request)
            self.kv += sequence.total - sequence.request.prefix
            sequence.admitted = True
            self._order += 1
            self.running[id(sequence)] = sequence
            self._prefill.append(sequence)
            budget -= sequence.left
        self._evict()

    def _take_prefix(self, request: Request) -> int:
        """Tokens of the prefix that need no prefill."""
        if not request.prefix:
            return 0
        entry = self._prefixes.get(request.group) if self.spec.prefix_caching else None
        found = 0 if entry is None else request.prefix
        entry = self._prefixes.setdefault(request.group, [request.prefix, 0])
        if not entry[1]:
            self.kv += request.prefix
            if self._idle.pop(request.group, None) is not None:
                self._idle_tokens -= request.prefix
        entry[1] += 1
        return found

    def _evict(self) -> None:
        while self._idle and self.kv + self._idle_tokens > self.spec.kv_tokens:
            group, tokens = self._idle.popitem(last=False)
            self._idle_tokens -= tokens
            del self._prefixes[group]

    def _make_room(self) -> bool:
        """Before a step: one token more for each decoding request, or the newest has to go. Whether one went."""
        before = self.preemptions
        while self.kv + self._decoding > self.spec.kv_tokens and len(self.running) > 1:
            self._preempt(next(reversed(self.running.values())))
        self._evict()
        return self.preemptions > before

    def _preempt(self, sequence: Sequence) -> None:
        output = self._output(sequence)
        if sequence.left:
            self._prefill.remove(sequence)
        self._release(sequence)
        self.recomputed += sequence.total - sequence.left if sequence.left else sequence.request.prompt + output
        sequence.total = sequence.request.prompt + output
        sequence.left = 0
        sequence.admitted = False
        sequence.preempted += 1
        self.preemptions += 1
        self.preempted += 1
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Its KV cache is free, but for the prefix, which stays until the room is needed."""
        request = sequence.request
        del self.running[id(sequence)]
        decoding = not sequence.left
        held = (request.prompt + self._output(sequence)) if decoding else sequence.total
        sequence.epoch += 1
        if decoding:
            self._decoding -= 1
            self._ours -= sequence.ours
            self._context -= held
        self.kv -= held - request.prefix
        if request.prefix:
            entry = self._prefixes[request.group]
            entry[1] -= 1
            if not entry[1]:
                self.kv -= request.prefix
                self._idle[request.group] = request.prefix
                self._idle_tokens += request.prefix
