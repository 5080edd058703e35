"""Several processes that work on one matrix: what they tell each other, and who has which rows."""
