"""Fixtures for all tests."""

from tests.services import redis_port

__all__ = ["redis_port"]
