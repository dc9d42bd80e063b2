"""From one repo of the Hub to another, shard by shard."""
