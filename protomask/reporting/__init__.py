"""What an evaluation leaves behind: tables and compact maps on disk, and the page made from these files alone."""
