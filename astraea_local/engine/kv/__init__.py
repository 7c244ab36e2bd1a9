"""KV states outside the context: their files, and what is known about them."""
