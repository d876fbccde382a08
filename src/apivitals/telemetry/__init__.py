"""PRODUCE: spans and histograms of a service, with classes and tallies."""
