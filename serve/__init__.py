"""Variants under traffic: arms, and the router that shares requests among them."""
