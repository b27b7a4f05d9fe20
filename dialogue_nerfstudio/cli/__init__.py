"""The `ns-dialogue` command: one module a subcommand, each a dataclass whose fields explain themselves."""
