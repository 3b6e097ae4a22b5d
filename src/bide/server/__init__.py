"""`bide serve`: clients that exist already get a thinking budget."""
