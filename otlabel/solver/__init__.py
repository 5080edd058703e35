"""From rows and demands to labels with a proof: posing, the smooth solve, and what follows it."""
