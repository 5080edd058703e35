"""Self-labelling: extract features, label all of them at once, train on the labels, and again."""
