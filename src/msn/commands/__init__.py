"""The commands of `msn`, a module each: `configure(parser)` its options, `run(options)` it."""
