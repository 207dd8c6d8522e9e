"""What makes the project's pages; not part of the package."""
