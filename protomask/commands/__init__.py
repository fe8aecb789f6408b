"""The commands, one file each; :mod:`protomask.cli` puts them together."""
