"""The engines that serve a model, one module each."""
