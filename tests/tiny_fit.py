"""An experiment of seconds, for tests that look at what a whole fit leaves."""

from __future__ import annotations

import json

BASE = """
name: tiny
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 2}
calibration: {num_samples: 2, held_out_samples: 2}
trainer: {accelerator: cpu, devices: 1}
evaluation: {num_samples: 2, texts: 0}
"""
"""All but how long it trains and where it is tracked."""

CONFIG = f"""{BASE}
training: {{batch_size: 2, micro_batch_size: 2, stage1: {{max_steps: 1}}, stage2: {{max_steps: 1}}}}
bench: {{lengths: [8], rounds: 1, new_tokens: 2}}
"""
ROWS = "\n".join(json.dumps({"instruction": f"Count to {n}.", "input": "", "output": "1 2 3"}) for n in range(6))
