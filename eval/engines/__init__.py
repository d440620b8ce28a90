"""Models of ours in other engines, under their own prompt mask: transformers, llama.cpp."""
