"""Which models are where: slots in three tiers, what they take, and sweeps that give it back."""
