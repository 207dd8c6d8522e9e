"""Sets larger than memory or disk: read shard by shard, shuffled in a bounded buffer, gone on with exactly."""
