"""Pages of the Hub that sentences point to."""

TOKENS_PAGE = "https://huggingface.co/settings/tokens"
BILLING_PAGE = "https://huggingface.co/settings/billing"
LIMITS_PAGE = "https://huggingface.co/docs/hub/storage-limits"
PRICING_PAGE = "https://huggingface.co/pricing"
