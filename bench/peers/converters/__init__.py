"""One script a format, run by the environment that has its tools: `python -m … SOURCE OUT [OPTION…]`."""
