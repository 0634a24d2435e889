"""The portal: a chain of rooms, in each of which one door leads on and the other back to the first room."""
