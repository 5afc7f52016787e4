"""What the user supplies: pictures and captions. Import from the modules of this package."""
