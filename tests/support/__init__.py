"""What several test files use: `from support.programs import environment`. Fakes that users may want, too, are in `velodrome.testing`."""
