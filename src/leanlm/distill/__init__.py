"""One model made into another of a different kind, to be trained on from there."""
