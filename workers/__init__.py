"""One process per slot: takes an offer, runs one attempt, records how it ended."""
