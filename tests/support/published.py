"""What cards are made of, and the job that publishes a folder."""

from backend.artifacts.artifact import Intervals, Metrics
from backend.publish.plan import look
from backend.stages.kinds import Publication

METRICS = Metrics(
    kl_mean=0.0912,
    kl_p99=0.61,
    top1_agreement=0.8734,
    perplexity=24.12,
    reference_perplexity=21.9,
    tokens=16376,
    text="WikiText-2 (Salesforce/wikitext, test)",
    convention="8 non-overlapping windows of 2048 tokens",
)

SURE = Intervals(
    kl_mean=(0.0812, 0.1031), top1_agreement=(0.86, 0.885), flips=(0.03, 0.05), perplexity_change=(0.09, 0.112)
)

FILES = {
    "LICENSE",
    "README.md",
    "artifact.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "recipe.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
}


def publication(folder, options):
    """Return the job that publishes a folder, as its files say, without a word of the Hub."""
    return Publication.of(look(folder, options))
