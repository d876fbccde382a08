"""SHOW: routes an application can mount."""
