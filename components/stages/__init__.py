"""The three training stages on one skeleton, and their plan; imports everything in components but animate, clip and
bench."""
