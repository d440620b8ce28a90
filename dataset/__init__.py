"""Text in, batches out: tokenizer, conversations, token store, packing, batches."""
