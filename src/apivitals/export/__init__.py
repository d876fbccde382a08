"""SHIP: one collection of the metrics, fanned out to OTLP, Prometheus and files."""
