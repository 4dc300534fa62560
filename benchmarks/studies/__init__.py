"""Small measurements, a module each: run by ``python -m benchmarks.studies.NAME``."""
