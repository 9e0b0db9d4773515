"""Our benchmarks inside other harnesses, lmms-eval and VLMEvalKit; `python -m eval.export` writes what they read."""
