"""What is solved and how: posing, equal rows, sharpening, proof; each a few functions of a Problem."""
