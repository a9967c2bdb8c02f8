"""From a reference to a vector: pictures opened and decoded, rows joined into forward passes."""
