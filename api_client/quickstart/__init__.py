"""The first run: pictures with known captions, sent through a real stack and found again."""
