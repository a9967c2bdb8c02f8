"""Messages that took their workers down."""
