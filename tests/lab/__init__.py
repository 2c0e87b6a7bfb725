"""Tests of the quality lab."""
