"""A small family for the tests of job files and flags."""
