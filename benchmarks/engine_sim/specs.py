"""Engines, by the arithmetic of public hardware figures.

A decode step reads all weights once: base = bytes of weights / memory bandwidth, plus a few milliseconds of kernels and
scheduling. Prefill is bound by compute: 2 x parameters FLOPs a token at 45% of the dense peak. Reading the KV cache is
bound by bandwidth: 2 x layers x KV heads x head size x 2 bytes a token. The cache gets what 90% of the memory leaves.

| | memory | bandwidth | BF16 dense | model | KV bytes a token |
|---|---|---|---|---|---|
| H100 SXM (NVIDIA data sheet) | 80 GB | 3.35 TB/s | 989 TFLOPS | Llama 3.1 8B: 32 layers, 8 KV heads of 128 | 131,072 |
| A10 (data sheet) | 24 GB | 0.6 TB/s | 125 TFLOPS | the same | 131,072 |
| 4 x H100, tensor parallel | 320 GB | 13.4 TB/s | 3,956 TFLOPS | Llama 3.1 70B: 80 layers, 8 KV heads of 128 | 327,680 |
"""

from __future__ import annotations

from benchmarks.engine_sim.sequence import EngineSpec

H100_8B = EngineSpec(base_s=0.0065, prefill_s=36e-6, sequence_s=20e-6, context_s=0.043e-6, kv_tokens=400_000)
A10_8B = EngineSpec(base_s=0.030, prefill_s=285e-6, sequence_s=40e-6, context_s=0.24e-6, kv_tokens=36_000)
H100X4_70B = EngineSpec(base_s=0.014, prefill_s=88e-6, sequence_s=25e-6, context_s=0.027e-6, kv_tokens=400_000)
