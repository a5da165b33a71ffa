"""The training backend: a plain library over torch and transformers. It knows nothing of notebooks or HTTP."""
