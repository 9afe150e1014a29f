"""One script a peer, run by its own interpreter: the standard library, numpy and the peer's packages."""
