"""The vocabulary and the work itself: job model, documents, run folder, recipes. Knows no Redis and no HTTP."""
