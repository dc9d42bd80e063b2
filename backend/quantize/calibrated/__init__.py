"""Calibrated quantization, the engine of GPTQ and AWQ: block after block, on what the model makes of text."""
