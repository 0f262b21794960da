"""quantize: compress a language model, and prove that the smaller one may replace it."""

__version__ = "0.1.0"
