"""WATCH: what the live window says about the service now."""
