"""Which Clipyard this is: the day of the newest row under Upgrading, or a later one."""

VERSION = "2026.12.1"
