"""Fine-tuning: from checked samples to an adapter."""
