"""The demo: a shop under traffic with two faults, and the analytics job that has to find them."""
