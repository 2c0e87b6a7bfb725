"""Continue a text with a GGUF model, then again with its matrices quantized to 4 bits.

python examples/run_model.py [model.gguf] [text]
"""

import sys
from pathlib import Path

import numpy as np

import kvant
from kvant import models

path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "models/tiny-moe/model.gguf"
text = sys.argv[2] if len(sys.argv) > 2 else "It was a cold morning, and"

model = models.load(path)
prompt = model.tokenizer.encode(text, bos=model.tokenizer.add_bos)
print(f"as it is: {text}{model.tokenizer.decode(model.generate(prompt, 40))}\n")

matrices = {
    name: kvant.quantize(weight.dequantize(), "q4_k")
    for name, weight in model.tensors.items()
    if isinstance(weight, kvant.QTensor) and len(weight.shape) > 1 and weight.shape[-1] % 256 == 0
}
small = model.with_weights(matrices)
print(f"in q4_k:  {text}{small.tokenizer.decode(small.generate(prompt, 40))}\n")

change = small.logits(prompt) - model.logits(prompt)
print(f"root mean square change of the logits: {np.sqrt(np.mean(change**2)):.3f}")
