"""The command line: one file a command, and beside them what several need. Nothing heavy is imported at the top."""
