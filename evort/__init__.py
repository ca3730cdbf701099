"""evort."""
