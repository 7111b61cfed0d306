"""The command line: thin faces over engine/."""
