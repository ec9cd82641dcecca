"""The decoder, its heads, and its Hugging Face form."""
