"""Fakes with known answers, for the tests of Velodrome and of code that uses it."""
