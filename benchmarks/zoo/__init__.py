"""Small text towers with known properties: what detection is developed and judged on.

``python -m benchmarks.zoo`` trains a CLIP-shaped anchor on real sentence embeddings and derives
backdoored and benign towers from it. Attack code lives here, outside the wheel: a security tool
does not install a backdoor planter.
"""
