"""The training backend: a plain library over torch, transformers and datasets. It knows nothing of notebooks or HTTP."""
