"""A small true Chinese and English world, generated without downloads."""
