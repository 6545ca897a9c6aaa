"""Small graphs of the constructs that exported models are made of, and what every one of them must pass."""
