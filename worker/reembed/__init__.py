"""A bulk job on the worker's side: what it reads, what it writes, and how it keeps count."""
