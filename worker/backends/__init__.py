"""Where embeddings come from: what a family must do, the families that ship, their registry."""
