"""The engine: it hears, keeps the bar and mixes. It never opens a socket, and knows nothing of the bridge."""
