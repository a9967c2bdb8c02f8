"""Clipyard as other libraries expect an embedding model. Each module needs its library."""
