"""What happens between the steps of a run: each module holds hooks of one kind."""
