"""Small text towers with known properties: what detection is developed and judged on.

``python -m benchmarks.zoo`` trains an anchor of the shape of CLIP, LongCLIP or SigLIP on real
sentence embeddings and derives backdoored and benign towers from it. Attack code lives here,
outside the wheel: a security tool does not install a backdoor planter.
"""
