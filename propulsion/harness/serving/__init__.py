"""What a finished run is good for: answers to new texts, and a folder that other people can load."""
