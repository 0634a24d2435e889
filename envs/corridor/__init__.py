"""The corridor: remember the color of an object until its door, any number of steps later."""
