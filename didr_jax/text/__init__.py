"""Prompts to token ids, through transformers' tokenizers."""
