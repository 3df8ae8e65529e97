"""What can be known about a jaxpr without running it: its parameter-free parts, evaluated in NumPy."""
