"""Bulk jobs as a client sees them: submitted, watched, paused, resumed and proved."""
