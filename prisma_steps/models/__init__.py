"""Vision transformers whose every intermediate value can be read and written."""
