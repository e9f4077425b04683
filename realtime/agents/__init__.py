"""Players: echo (the tutorial, start there), corpus, and what else is written to `protocols.Agent`."""
