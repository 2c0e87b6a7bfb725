"""Quantize a matrix in several formats and look at size and error.

python examples/quantize_array.py
"""

import numpy as np

import kvant

rng = np.random.default_rng(0)
weights = rng.standard_normal((64, 1024), dtype=np.float32) * np.float32(0.02)
# Columns that see large activations should be kept more exactly.
importance = rng.gamma(0.5, size=1024).astype(np.float32) + np.float32(1e-3)

print("format  bits/weight  relative error  weighted by importance, encoded with it")
for name in ("q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "iq4_xs", "q3_k", "q2_k"):
    plain = kvant.quantize(weights, name)
    aware = kvant.quantize(weights, name, importance=importance)
    error = kvant.quant_error(weights, plain, importance)
    better = kvant.quant_error(weights, aware, importance)
    print(
        f"{name:6}  {plain.bits_per_weight:11.4f}  {error.relative_rmse:14.5f}"
        f"  {error.weighted:.3e} -> {better.weighted:.3e}"
    )
