"""One readable file a strategy; each says what an optimiser step minimises."""
