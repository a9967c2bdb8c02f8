"""A private stack on this machine: Redis, a worker per device, the beat, and who tends them."""
