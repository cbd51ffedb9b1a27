"""The commands of `stylefusion`, one a file: `add_arguments(parser)` and `run(args)`, which alone imports torch."""
