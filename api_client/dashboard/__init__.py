"""Flower with a Models page: which model sits where, why, and what goes next."""
