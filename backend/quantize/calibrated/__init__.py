"""Calibrated quantization, the engine of GPTQ, AWQ, W8A8 and NVFP4: block by block, on what the model makes of text."""
