"""One policy, one data path: who gets which arm, and the bytes in between."""
