"""Data: loader, order, in-memory columns, recognised datasets, sources."""
