"""Acts on what was found: caching, batching, background work, compression, queries. Built in a later version."""
